// What the trees' kernels define and the operations here call: plain functions over contiguous memory.
//
// A kernel's file includes this header and nothing of MLX's but its 16-bit number types, so that it compiles in a
// second. Everything that makes it an MLX operation (shapes, dtypes, memory, threads) is in *_op.cpp.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>

#include "mlx/types/half_types.h"

namespace tinyllm {

using mlx::core::bfloat16_t;
using mlx::core::float16_t;

// A kernel that is not written yet; what() says which day and task.
struct NotWritten : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// ---- axpby.cpp, day 1.7 ----

// z[i] = alpha * x[i] + beta * y[i] for i < size. T: float, float16_t or bfloat16_t.
template <typename T>
void axpby(const T* x, const T* y, T* z, size_t size, float alpha, float beta);

// ---- multiply_tile.cpp, day 2.2 ----

// c[r, j] += sum over k < depth of a[r, k] * b[k, j], for r < rows and j < kTileColumns.
// lda, ldb, ldc: how many floats a row of a, b and c is from the next one.
inline constexpr size_t kTileColumns = 32;
void multiply_tile(
    const float* a, size_t lda, const float* b, size_t ldb, float* c, size_t ldc, size_t rows, size_t depth);

// ---- quantized_matmul.cpp, day 2.2 ----

// out[m, o] = sum over i of a[m, i] * w[o, i], with w in MLX's affine format: `bits` bits a weight, the first of a
// word lowest, and w[o, i] = scales[o, g] * q[o, i] + biases[o, g] for group g = i / group_size. All arrays are
// contiguous; group_size divides I. T: float, float16_t or bfloat16_t.
template <typename T>
struct QuantizedMatmul {
  const T* a; // (M, I)
  const uint32_t* packed; // (O, I * bits / 32)
  const T* scales; // (O, I / group_size)
  const T* biases; // (O, I / group_size)
  T* out; // (M, O)
  size_t M, O, I;
  size_t group_size; // 32, 64 or 128
  size_t bits; // 4 or 8
};

// The steps of the ladder: the same result, each for one reason faster than the one before.
template <typename T>
void quantized_matmul_plain(const QuantizedMatmul<T>& call); // 1: the formula, weight by weight
template <typename T>
void quantized_matmul_grouped(const QuantizedMatmul<T>& call); // 2: scale and bias once a group
template <typename T>
void quantized_matmul_vector(const QuantizedMatmul<T>& call); // 3: a vector of words at a time, rows in blocks
template <typename T>
void quantized_matmul_threads(const QuantizedMatmul<T>& call); // 4: the outputs shared out over threads
template <typename T>
void quantized_matmul_tiled(const QuantizedMatmul<T>& call); // 5: for many rows of a: unpack once, use often

// ---- flash_attention.cpp, day 2.4 ----

enum class MaskKind { none, causal, additive, boolean };

// A matrix for each batch row b and head h. The numbers of a row are neighbours, all else goes by strides: a view of
// a cache needs no copy.
template <typename T>
struct Matrices {
  const T* data;
  size_t batch, head, row; // strides, in elements

  const T* at(size_t b, size_t h, size_t r) const {
    return data + b * batch + h * head + r * row;
  }
};

// out = softmax(scale * query key^T + mask) value, for each head; a query that sees no key gives zeros. Query head
// h reads key head h / (H_q / H). T: float, float16_t or bfloat16_t.
template <typename T>
struct FlashAttention {
  Matrices<T> query; // (B, H_q, L, D)
  Matrices<T> key; // (B, H, S, D)
  Matrices<T> value; // (B, H, S, D)
  T* out; // (B, H_q, L, D), contiguous
  size_t B, H_q, H, L, S, D;
  float scale;
  MaskKind kind; // causal: query i sees the keys up to i + (S - L)
  const float* additive; // for MaskKind::additive: added to the scores
  const bool* boolean; // for MaskKind::boolean: true where a query may look
  size_t mask_strides[4]; // of the mask's b, h, i and j, in elements; 0 where it is broadcast
  int32_t* tiles; // out: key tiles computed for each query tile, (B, H_q, ceil(L / kQueryTile)), contiguous
};

inline constexpr size_t kQueryTile = 32; // queries of a tile
inline constexpr size_t kKeyTile = 64; // keys of a tile

template <typename T>
void flash_attention_plain(const FlashAttention<T>& call); // 1: a tile at a time, number by number
template <typename T>
void flash_attention_fast(const FlashAttention<T>& call); // 2: tiles multiplied as matrices, heads grouped, threads

} // namespace tinyllm
