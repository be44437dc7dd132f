// What the trees' kernels define and the operations here call: plain functions over contiguous memory.
//
// A kernel's file includes this header and nothing of MLX's but its 16-bit number types, so that it compiles in a
// second. Everything that makes it an MLX operation (shapes, dtypes, memory, threads) is in *_op.cpp.
#pragma once

#include <cstddef>
#include <stdexcept>

#include "mlx/types/half_types.h"

namespace tinyllm {

using mlx::core::bfloat16_t;
using mlx::core::float16_t;

// A kernel that is not written yet; what() says which day and task.
struct NotWritten : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// z[i] = alpha * x[i] + beta * y[i] for i < size. T: float, float16_t or bfloat16_t.
template <typename T>
void axpby(const T* x, const T* y, T* z, size_t size, float alpha, float beta);

} // namespace tinyllm
