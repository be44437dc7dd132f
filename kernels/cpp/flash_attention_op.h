// flash_attention as an MLX operation: lazy, on the CPU.
#pragma once

#include <optional>
#include <utility>

#include "mlx/array.h"

namespace tinyllm {

// softmax(scale * query key^T + mask) value and, for each tile of queries, the number of key tiles that were computed.
//
// query: (B, H_q, L, D); key, value: (B, H, S, D), all of one dtype: float32, float16 or bfloat16. H divides H_q, D is a
// multiple of 32 and at most 256. causal: query i sees keys up to i + (S - L). mask: additive, or bool with true where
// a query may look; broadcasts to (B, H_q, L, S). Not both. version: 1 or 2 (bodies.h).
// Returns (B, H_q, L, D) in query's dtype, and (B, H_q, query tiles) int32. Throws std::invalid_argument.
std::pair<mlx::core::array, mlx::core::array> flash_attention_op(
    const mlx::core::array& query,
    const mlx::core::array& key,
    const mlx::core::array& value,
    float scale,
    bool causal,
    const std::optional<mlx::core::array>& mask,
    int version);

} // namespace tinyllm
