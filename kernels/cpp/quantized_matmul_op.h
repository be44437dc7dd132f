// quantized_matmul as an MLX operation: lazy, on the CPU.
#pragma once

#include "mlx/array.h"

namespace tinyllm {

// a (.., I) times the transpose of the packed w (O, I): (.., O) in a's dtype. packed: (O, I * bits / 32) uint32; scales
// and biases: (O, I / group_size), of a's dtype, which is float32, float16 or bfloat16. version: a step of the ladder
// (bodies.h), or 0 for the fastest one at this number of rows. Throws std::invalid_argument.
mlx::core::array quantized_matmul_op(
    const mlx::core::array& a,
    const mlx::core::array& packed,
    const mlx::core::array& scales,
    const mlx::core::array& biases,
    int group_size,
    int bits,
    int version);

} // namespace tinyllm
