// The kernels of flash_attention (day 2.4): attention in tiles, without ever holding the L x S scores.
//
// What this is: the readable version, and a fast one beside it that is checked against the same oracle. What it is
// not: an MLX operation (kernels/cpp/flash_attention_op.cpp makes it one).
//
// Letters: B batch, H_q query heads, H key/value heads, L queries, S keys, D head dim.
// Source: Dao et al., "FlashAttention", 2022, algorithm 1; Milakov and Gimelshein, "Online normalizer calculation for
// softmax", 2018, for the running maximum and sum.

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "bodies.h"
#include "pool.h"
#include "vectors.h"

namespace tinyllm {

namespace {

constexpr float kNothing = -std::numeric_limits<float>::infinity(); // the score of a key that is not seen

// What the mask adds to the score of query i and key j: 0, a number, or -inf.
template <typename T>
float mask_at(const FlashAttention<T>& call, size_t b, size_t h, size_t i, size_t j) {
  const size_t at = b * call.mask_strides[0] + h * call.mask_strides[1] + i * call.mask_strides[2] +
      j * call.mask_strides[3];
  switch (call.kind) {
    case MaskKind::causal:
      return j <= i + (call.S - call.L) ? 0.0f : kNothing;
    case MaskKind::additive:
      return call.additive[at];
    case MaskKind::boolean:
      return call.boolean[at] ? 0.0f : kNothing;
    default:
      return 0.0f;
  }
}

// Whether any of the queries i_begin .. i_end sees any of the keys j_begin .. j_end.
template <typename T>
bool sees_any(
    const FlashAttention<T>& call, size_t b, size_t h, size_t i_begin, size_t i_end, size_t j_begin, size_t j_end) {
  if (call.kind == MaskKind::none) {
    return true;
  }
  if (call.kind == MaskKind::causal) { // the last query sees most, and the first key is seen first
    return mask_at(call, b, h, i_end - 1, j_begin) == 0.0f;
  }
  for (size_t i = i_begin; i < i_end; ++i) {
    for (size_t j = j_begin; j < j_end; ++j) {
      if (mask_at(call, b, h, i, j) != kNothing) {
        return true;
      }
    }
  }
  return false;
}

} // namespace

// ---- 1: a tile at a time, number by number ----

// For each query the running maximum of its scores, the sum of exp(score - maximum), and the sum of the values with
// these weights. A larger maximum shrinks what has been summed by exp(old maximum - new maximum).
template <typename T>
void flash_attention_plain(const FlashAttention<T>& call) {
  // [task 3
  const size_t group = call.H_q / call.H;
  const size_t query_tiles = (call.L + kQueryTile - 1) / kQueryTile;
  for (size_t b = 0; b < call.B; ++b) {
    for (size_t h = 0; h < call.H_q; ++h) {
      for (size_t t = 0; t < query_tiles; ++t) {
        const size_t i_begin = t * kQueryTile, i_end = std::min(call.L, i_begin + kQueryTile);
        float maximum[kQueryTile], sum[kQueryTile] = {};
        std::fill_n(maximum, kQueryTile, kNothing);
        std::vector<float> total(kQueryTile * call.D);
        for (size_t j_begin = 0; j_begin < call.S; j_begin += kKeyTile) {
          const size_t j_end = std::min(call.S, j_begin + kKeyTile);
          if (!sees_any(call, b, h, i_begin, i_end, j_begin, j_end)) {
            continue;
          }
          ++call.tiles[(b * call.H_q + h) * query_tiles + t];
          for (size_t i = i_begin; i < i_end; ++i) {
            const size_t r = i - i_begin;
            float scores[kKeyTile];
            float largest = maximum[r];
            for (size_t j = j_begin; j < j_end; ++j) {
              const T* q = call.query.at(b, h, i);
              const T* k = call.key.at(b, h / group, j);
              float dot = 0;
              for (size_t d = 0; d < call.D; ++d) {
                dot += static_cast<float>(q[d]) * static_cast<float>(k[d]);
              }
              scores[j - j_begin] = dot * call.scale + mask_at(call, b, h, i, j);
              largest = std::max(largest, scores[j - j_begin]);
            }
            if (largest == kNothing) { // it has seen no key so far; -inf - -inf would be NaN
              continue;
            }
            const float shrink = std::exp(maximum[r] - largest);
            maximum[r] = largest;
            sum[r] *= shrink;
            for (size_t d = 0; d < call.D; ++d) {
              total[r * call.D + d] *= shrink;
            }
            for (size_t j = j_begin; j < j_end; ++j) {
              const T* v = call.value.at(b, h / group, j);
              const float weight = std::exp(scores[j - j_begin] - largest);
              sum[r] += weight;
              for (size_t d = 0; d < call.D; ++d) {
                total[r * call.D + d] += weight * static_cast<float>(v[d]);
              }
            }
          }
        }
        for (size_t i = i_begin; i < i_end; ++i) {
          const size_t r = i - i_begin;
          for (size_t d = 0; d < call.D; ++d) {
            const float mean = sum[r] > 0 ? total[r * call.D + d] / sum[r] : 0.0f;
            call.out[((b * call.H_q + h) * call.L + i) * call.D + d] = static_cast<T>(mean);
          }
        }
      }
    }
  }
  // task 3]
}

// ---- 2: tiles as matrices ----

namespace {

using Vector = Lanes<kLanes>;

constexpr size_t kFewRows = 8; // for so few rows turning the keys costs more than it saves

// What one thread needs for one tile of queries of all heads that share a key head. A row is a query of one of these
// heads: row r is head r / queries of the group, query r % queries of the tile.
struct Tile {
  size_t rows, D;
  std::vector<float> query; // (rows, D), times the scale
  std::vector<float> key; // (D, kKeyTile): turned, so that neighbouring keys share a vector
  std::vector<float> value; // (kKeyTile, D)
  std::vector<float> scores; // (rows, kKeyTile), then the weights
  std::vector<float> total; // (rows, D)
  std::vector<float> maximum, sum; // (rows)

  Tile(size_t rows, size_t D)
      : rows(rows),
        D(D),
        query(rows * D),
        key(D * kKeyTile),
        value(kKeyTile * D),
        scores(rows * kKeyTile),
        total(rows * D),
        maximum(rows, kNothing),
        sum(rows) {}

  // scores = query key^T of the keys j_begin .. j_end; what stands behind them is not defined.
  template <typename T>
  void score(const Matrices<T>& keys, size_t b, size_t h, size_t j_begin, size_t j_end) {
    if (rows <= kFewRows) {
      for (size_t j = j_begin; j < j_end; ++j) {
        std::copy_n(keys.at(b, h, j), D, key.data()); // a float each, whatever T is
        for (size_t r = 0; r < rows; ++r) {
          typename Vector::Floats dot{};
          for (size_t d = 0; d < D; d += kLanes) {
            dot += Vector::load(query.data() + r * D + d) * Vector::load(key.data() + d);
          }
          scores[r * kKeyTile + (j - j_begin)] = Vector::sum(dot);
        }
      }
      return;
    }
    for (size_t j = j_begin; j < j_end; ++j) {
      const T* k = keys.at(b, h, j);
      for (size_t d = 0; d < D; ++d) {
        key[d * kKeyTile + (j - j_begin)] = static_cast<float>(k[d]);
      }
    }
    std::fill(scores.begin(), scores.end(), 0.0f);
    for (size_t j = 0; j < kKeyTile; j += kTileColumns) {
      multiply_tile(query.data(), D, key.data() + j, kKeyTile, scores.data() + j, kKeyTile, rows, D);
    }
  }

  // From scores to weights: the running maximum, the running sum, and the totals shrunk to the new maximum.
  void soften(size_t r) {
    float* row = scores.data() + r * kKeyTile;
    auto largest = Vector::all(maximum[r]);
    for (size_t j = 0; j < kKeyTile; j += kLanes) {
      largest = Vector::max(largest, Vector::load(row + j));
    }
    float top = largest[0];
    for (int lane = 1; lane < kLanes; ++lane) {
      top = std::max(top, largest[lane]);
    }
    if (top == kNothing) { // it has seen no key so far; -inf - -inf would be NaN
      std::fill_n(row, kKeyTile, 0.0f);
      return;
    }
    const float shrink = std::exp(maximum[r] - top);
    maximum[r] = top;
    typename Vector::Floats weights{};
    for (size_t j = 0; j < kKeyTile; j += kLanes) {
      const auto weight = Vector::exp(Vector::load(row + j) - top);
      Vector::store(row + j, weight);
      weights += weight;
    }
    sum[r] = sum[r] * shrink + Vector::sum(weights);
    if (shrink != 1.0f) {
      for (size_t d = 0; d < D; ++d) {
        total[r * D + d] *= shrink;
      }
    }
  }

  // total += weights value
  template <typename T>
  void gather(const Matrices<T>& values, size_t b, size_t h, size_t j_begin, size_t j_end) {
    for (size_t j = j_begin; j < j_end; ++j) {
      std::copy_n(values.at(b, h, j), D, value.data() + (j - j_begin) * D);
    }
    for (size_t d = 0; d < D; d += kTileColumns) {
      multiply_tile(
          scores.data(), kKeyTile, value.data() + d, D, total.data() + d, D, rows, j_end - j_begin);
    }
  }
};

// The mask on a tile of scores, and -inf where there is no key.
template <typename T>
void hide(const FlashAttention<T>& call, Tile& tile, size_t b, size_t h_q, size_t i_begin, size_t queries,
          size_t j_begin, size_t j_end) {
  const size_t first_row_sees = i_begin + (call.S - call.L); // its last key, if causal
  const bool all_seen =
      call.kind == MaskKind::none || (call.kind == MaskKind::causal && j_end <= first_row_sees + 1);
  for (size_t r = 0; r < tile.rows; ++r) {
    float* row = tile.scores.data() + r * kKeyTile;
    if (!all_seen) {
      for (size_t j = j_begin; j < j_end; ++j) {
        row[j - j_begin] += mask_at(call, b, h_q + r / queries, i_begin + r % queries, j);
      }
    }
    std::fill(row + (j_end - j_begin), row + kKeyTile, kNothing);
  }
}

} // namespace

// The query heads of a group read the same keys, so they go through them together: a key is loaded once for all.
template <typename T>
void flash_attention_fast(const FlashAttention<T>& call) {
  // [task 4
  const size_t group = call.H_q / call.H;
  const size_t query_tiles = (call.L + kQueryTile - 1) / kQueryTile;
  parallel_for(call.B * call.H * query_tiles, [&](size_t chunk) {
    const size_t t = chunk % query_tiles, h = chunk / query_tiles % call.H, b = chunk / query_tiles / call.H;
    const size_t i_begin = t * kQueryTile, queries = std::min(call.L - i_begin, kQueryTile);
    Tile tile(group * queries, call.D);
    for (size_t r = 0; r < tile.rows; ++r) {
      const T* q = call.query.at(b, h * group + r / queries, i_begin + r % queries);
      for (size_t d = 0; d < call.D; ++d) {
        tile.query[r * call.D + d] = static_cast<float>(q[d]) * call.scale;
      }
    }
    for (size_t j_begin = 0; j_begin < call.S; j_begin += kKeyTile) {
      const size_t j_end = std::min(call.S, j_begin + kKeyTile);
      bool seen = false;
      for (size_t head = h * group; head < (h + 1) * group; ++head) {
        seen = seen || sees_any(call, b, head, i_begin, i_begin + queries, j_begin, j_end);
      }
      if (!seen) {
        continue;
      }
      for (size_t head = h * group; head < (h + 1) * group; ++head) {
        ++call.tiles[(b * call.H_q + head) * query_tiles + t];
      }
      tile.score(call.key, b, h, j_begin, j_end);
      hide(call, tile, b, h * group, i_begin, queries, j_begin, j_end);
      for (size_t r = 0; r < tile.rows; ++r) {
        tile.soften(r);
      }
      tile.gather(call.value, b, h, j_begin, j_end);
    }
    for (size_t r = 0; r < tile.rows; ++r) {
      const size_t row = (b * call.H_q + h * group + r / queries) * call.L + i_begin + r % queries;
      for (size_t d = 0; d < call.D; ++d) {
        const float mean = tile.sum[r] > 0 ? tile.total[r * call.D + d] / tile.sum[r] : 0.0f;
        call.out[row * call.D + d] = static_cast<T>(mean);
      }
    }
  });
  // task 4]
}

// The three kinds of numbers that the operation calls them with.
#define FOR_TYPE(T)                                              \
  template void flash_attention_plain(const FlashAttention<T>&); \
  template void flash_attention_fast(const FlashAttention<T>&);
FOR_TYPE(float)
FOR_TYPE(float16_t)
FOR_TYPE(bfloat16_t)
#undef FOR_TYPE

} // namespace tinyllm
