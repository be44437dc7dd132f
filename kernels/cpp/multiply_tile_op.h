// The multiply_tile kernel on MLX arrays.
#pragma once

#include "mlx/array.h"

namespace tinyllm {

// c + a b for a (rows, depth), b (depth, kTileColumns) and c (rows, kTileColumns), all float32. No node in a graph:
// the other kernels call multiply_tile, Python only tests it. Throws where the kernel writes beside c.
mlx::core::array multiply_tile_op(
    const mlx::core::array& a, const mlx::core::array& b, const mlx::core::array& c);

} // namespace tinyllm
