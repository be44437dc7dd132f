// axpby as an MLX operation: lazy, on the CPU.
#pragma once

#include "mlx/array.h"

namespace tinyllm {

// alpha * x + beta * y, element by element. x and y have one shape and one dtype (float32, float16 or bfloat16),
// and so has the result. Throws std::invalid_argument otherwise.
mlx::core::array axpby_op(const mlx::core::array& x, const mlx::core::array& y, float alpha, float beta);

} // namespace tinyllm
