// In the place of a tree's flash_attention.cpp when the module is built without it.
#include "bodies.h"

namespace tinyllm {

[[noreturn]] static void left_out() {
  throw NotWritten("kernels/flash_attention.cpp was left out of this build");
}

template <typename T>
void flash_attention_plain(const FlashAttention<T>&) {
  left_out();
}
template <typename T>
void flash_attention_fast(const FlashAttention<T>&) {
  left_out();
}

#define FOR_TYPE(T)                                             \
  template void flash_attention_plain(const FlashAttention<T>&); \
  template void flash_attention_fast(const FlashAttention<T>&);
FOR_TYPE(float)
FOR_TYPE(float16_t)
FOR_TYPE(bfloat16_t)

} // namespace tinyllm
