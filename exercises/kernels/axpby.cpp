// The kernel of axpby (day 1.7): z = alpha * x + beta * y, element by element.
//
// What this is: the loop, and nothing else. What it is not: an MLX operation. kernels/cpp/axpby_op.cpp of this
// clone makes it one: it checks shapes and dtypes, copies what is not contiguous, allocates z, and calls this
// function when the result is needed, on a thread of MLX's.

#include "bodies.h"

namespace tinyllm {

// x, y and z are `size` elements of T, one behind the other; T is float, float16_t or bfloat16_t.
// The arithmetic is done in float; the result is rounded to T once, when it is stored.
template <typename T>
void axpby(const T* x, const T* y, T* z, size_t size, float alpha, float beta) {
  // [task 6
  throw NotWritten("day 1.7, task 6: axpby");  // write this part
  // task 6]
}

// The three kinds of numbers that the operation calls it with.
template void axpby(const float*, const float*, float*, size_t, float, float);
template void axpby(const float16_t*, const float16_t*, float16_t*, size_t, float, float);
template void axpby(const bfloat16_t*, const bfloat16_t*, bfloat16_t*, size_t, float, float);

} // namespace tinyllm
