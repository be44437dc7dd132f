// In the place of a tree's quantized_matmul.cpp when the module is built without it.
#include "bodies.h"

namespace tinyllm {

[[noreturn]] static void left_out() {
  throw NotWritten("kernels/quantized_matmul.cpp was left out of this build");
}

template <typename T>
void quantized_matmul_plain(const QuantizedMatmul<T>&) {
  left_out();
}
template <typename T>
void quantized_matmul_grouped(const QuantizedMatmul<T>&) {
  left_out();
}
template <typename T>
void quantized_matmul_vector(const QuantizedMatmul<T>&) {
  left_out();
}
template <typename T>
void quantized_matmul_threads(const QuantizedMatmul<T>&) {
  left_out();
}
template <typename T>
void quantized_matmul_tiled(const QuantizedMatmul<T>&) {
  left_out();
}

#define FOR_TYPE(T)                                                \
  template void quantized_matmul_plain(const QuantizedMatmul<T>&);   \
  template void quantized_matmul_grouped(const QuantizedMatmul<T>&); \
  template void quantized_matmul_vector(const QuantizedMatmul<T>&);  \
  template void quantized_matmul_threads(const QuantizedMatmul<T>&); \
  template void quantized_matmul_tiled(const QuantizedMatmul<T>&);
FOR_TYPE(float)
FOR_TYPE(float16_t)
FOR_TYPE(bfloat16_t)

} // namespace tinyllm
