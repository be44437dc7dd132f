// The kernels of flash_attention (day 2.4): attention in tiles, without ever holding the L x S scores.
//
// What this is: a readable kernel, and a fast one beside it. What it is not: an MLX operation
// (kernels/cpp/flash_attention_op.cpp makes it one). FlashAttention and Matrices are in kernels/cpp/bodies.h.
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

// ---- what both kernels share ----

// What the mask adds to the score of query i and key j of query head h: 0, a number, or -inf.
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

// Whether any of the queries i_begin .. i_end of query head h sees any of the keys j_begin .. j_end. An end is the
// first that is not meant any more, here and below.
template <typename T>
bool sees_any(
    const FlashAttention<T>& call, size_t b, size_t h, size_t i_begin, size_t i_end, size_t j_begin, size_t j_end) {
  // [task 3
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
  // task 3]
}

// out = total / sum for one query, D numbers; zeros if it has seen no key.
template <typename T>
void store_result(const float* total, float sum, size_t D, T* out) {
  // [task 3
  for (size_t d = 0; d < D; ++d) {
    out[d] = static_cast<T>(sum > 0 ? total[d] / sum : 0.0f);
  }
  // task 3]
}

// ---- 1: number by number ----

// The state of one query: what its keys so far have come to.
struct State {
  float maximum = kNothing; // of the scores
  float sum = 0; // of exp(score - maximum)
  std::vector<float> total; // of exp(score - maximum) times the value, D numbers

  explicit State(size_t D) : total(D) {}
};

// Bring the keys j_begin .. j_end, at most kKeyTile, into the state of query i of query head h.
template <typename T>
void add_keys(
    const FlashAttention<T>& call, size_t b, size_t h, size_t i, size_t j_begin, size_t j_end, State& state) {
  // [task 3
  const size_t key_head = h / (call.H_q / call.H);
  const T* q = call.query.at(b, h, i);
  float scores[kKeyTile];
  float maximum = state.maximum;
  for (size_t j = j_begin; j < j_end; ++j) {
    const T* k = call.key.at(b, key_head, j);
    float dot = 0;
    for (size_t d = 0; d < call.D; ++d) {
      dot += static_cast<float>(q[d]) * static_cast<float>(k[d]);
    }
    const float score = dot * call.scale + mask_at(call, b, h, i, j);
    scores[j - j_begin] = score;
    maximum = std::max(maximum, score);
  }
  if (maximum == kNothing) { // subtle: no key seen so far, and -inf - -inf would be NaN
    return;
  }
  const float shrink = std::exp(state.maximum - maximum); // 0 if these are the first keys seen
  state.maximum = maximum;
  state.sum *= shrink;
  for (float& x : state.total) {
    x *= shrink;
  }
  for (size_t j = j_begin; j < j_end; ++j) {
    const T* v = call.value.at(b, key_head, j);
    const float weight = std::exp(scores[j - j_begin] - maximum);
    state.sum += weight;
    for (size_t d = 0; d < call.D; ++d) {
      state.total[d] += weight * static_cast<float>(v[d]);
    }
  }
  // task 3]
}

} // namespace

// For every head and tile of queries: all tiles of keys that it sees, one after another. call.tiles holds zeros and
// gets the number of key tiles that were computed.
template <typename T>
void flash_attention_plain(const FlashAttention<T>& call) {
  // [task 3
  const size_t query_tiles = (call.L + kQueryTile - 1) / kQueryTile;
  for (size_t b = 0; b < call.B; ++b) {
    for (size_t h = 0; h < call.H_q; ++h) {
      for (size_t t = 0; t < query_tiles; ++t) {
        const size_t i_begin = t * kQueryTile, i_end = std::min(call.L, i_begin + kQueryTile);
        std::vector<State> states(i_end - i_begin, State(call.D));
        for (size_t j_begin = 0; j_begin < call.S; j_begin += kKeyTile) {
          const size_t j_end = std::min(call.S, j_begin + kKeyTile);
          if (!sees_any(call, b, h, i_begin, i_end, j_begin, j_end)) {
            continue;
          }
          ++call.tiles[(b * call.H_q + h) * query_tiles + t];
          for (size_t i = i_begin; i < i_end; ++i) {
            add_keys(call, b, h, i, j_begin, j_end, states[i - i_begin]);
          }
        }
        for (size_t i = i_begin; i < i_end; ++i) {
          const State& state = states[i - i_begin];
          T* row = call.out + ((b * call.H_q + h) * call.L + i) * call.D;
          store_result(state.total.data(), state.sum, call.D, row);
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

// What a thread needs for one tile of queries, of all heads that share a key head. A row is a query of one of these
// heads: row r is query r % queries of the tile, in head r / queries of the group.
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

  // scores = query key^T for the keys j_begin .. j_end of key head h; what stands behind them is not defined.
  template <typename T>
  void score(const Matrices<T>& keys, size_t b, size_t h, size_t j_begin, size_t j_end) {
    if (rows <= kFewRows) {
      score_few(keys, b, h, j_begin, j_end);
      return;
    }
    // [task 4
    for (size_t j = j_begin; j < j_end; ++j) {
      const T* k = keys.at(b, h, j);
      for (size_t d = 0; d < D; ++d) {
        key[d * kKeyTile + (j - j_begin)] = static_cast<float>(k[d]);
      }
    }
    std::fill(scores.begin(), scores.end(), 0.0f); // multiply_tile adds to what is there
    for (size_t j = 0; j < kKeyTile; j += kTileColumns) {
      multiply_tile(query.data(), D, key.data() + j, kKeyTile, scores.data() + j, kKeyTile, rows, D);
    }
    // task 4]
  }

  // The same for few rows, as in decoding: a dot product for each row and key, D being a multiple of a vector.
  template <typename T>
  void score_few(const Matrices<T>& keys, size_t b, size_t h, size_t j_begin, size_t j_end) {
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
  }

  // Row r from scores to weights, with the maximum, the sum and the total brought up to date. All kKeyTile scores
  // count: those without a key are -inf. Weights are exp(score - maximum), 0 for a row that has seen no key.
  void soften(size_t r) {
    float* row = scores.data() + r * kKeyTile;
    // [task 4
    auto largest = Vector::all(maximum[r]);
    for (size_t j = 0; j < kKeyTile; j += kLanes) {
      largest = Vector::max(largest, Vector::load(row + j));
    }
    float top = largest[0];
    for (int lane = 1; lane < kLanes; ++lane) {
      top = std::max(top, largest[lane]);
    }
    if (top == kNothing) {
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
    if (shrink != 1.0f) { // most tiles bring no new maximum
      for (size_t d = 0; d < D; ++d) {
        total[r * D + d] *= shrink;
      }
    }
    // task 4]
  }

  // total += weights value, for the keys j_begin .. j_end.
  template <typename T>
  void gather(const Matrices<T>& values, size_t b, size_t h, size_t j_begin, size_t j_end) {
    // [task 4
    const size_t keys = j_end - j_begin;
    for (size_t j = 0; j < keys; ++j) {
      std::copy_n(values.at(b, h, j_begin + j), D, value.data() + j * D);
    }
    for (size_t d = 0; d < D; d += kTileColumns) {
      multiply_tile(scores.data(), kKeyTile, value.data() + d, D, total.data() + d, D, rows, keys);
    }
    // task 4]
  }
};

// The mask on a tile's scores, and -inf where there is no key: the keys are j_begin .. j_end, the rows those of
// `queries` queries from i_begin on, in the query heads from first_head on.
template <typename T>
void hide(
    const FlashAttention<T>& call,
    Tile& tile,
    size_t b,
    size_t first_head,
    size_t i_begin,
    size_t queries,
    size_t j_begin,
    size_t j_end) {
  for (size_t r = 0; r < tile.rows; ++r) {
    float* row = tile.scores.data() + r * kKeyTile;
    const size_t h = first_head + r / queries, i = i_begin + r % queries;
    if (call.kind == MaskKind::causal) {
      const size_t first_hidden = i + (call.S - call.L) + 1;
      for (size_t j = std::max(j_begin, first_hidden); j < j_end; ++j) {
        row[j - j_begin] = kNothing;
      }
    } else if (call.kind != MaskKind::none) { // mask_at, with its question about the kind asked once a row
      const size_t step = call.mask_strides[3];
      const size_t at = b * call.mask_strides[0] + h * call.mask_strides[1] + i * call.mask_strides[2] + j_begin * step;
      if (call.kind == MaskKind::additive) {
        for (size_t n = 0; n < j_end - j_begin; ++n) {
          row[n] += call.additive[at + n * step];
        }
      } else {
        for (size_t n = 0; n < j_end - j_begin; ++n) {
          row[n] = call.boolean[at + n * step] ? row[n] : kNothing;
        }
      }
    }
    std::fill(row + (j_end - j_begin), row + kKeyTile, kNothing);
  }
}

} // namespace

// As flash_attention_plain, but for the tiles: the query heads of a group read the same keys, so they go through them
// together, and a tile of keys is computed for all of them if one of them sees it. A chunk of work is a query tile of
// a group; every output belongs to one chunk.
template <typename T>
void flash_attention_fast(const FlashAttention<T>& call) {
  // [task 4
  const size_t group = call.H_q / call.H;
  const size_t query_tiles = (call.L + kQueryTile - 1) / kQueryTile;
  parallel_for(call.B * call.H * query_tiles, [&](size_t chunk) {
    const size_t t = chunk % query_tiles, h = chunk / query_tiles % call.H, b = chunk / query_tiles / call.H;
    const size_t first = h * group; // of the query heads
    const size_t i_begin = t * kQueryTile, queries = std::min(call.L - i_begin, kQueryTile);
    Tile tile(group * queries, call.D);
    for (size_t r = 0; r < tile.rows; ++r) {
      const T* q = call.query.at(b, first + r / queries, i_begin + r % queries);
      for (size_t d = 0; d < call.D; ++d) {
        tile.query[r * call.D + d] = static_cast<float>(q[d]) * call.scale;
      }
    }
    for (size_t j_begin = 0; j_begin < call.S; j_begin += kKeyTile) {
      const size_t j_end = std::min(call.S, j_begin + kKeyTile);
      bool seen = false;
      for (size_t head = first; head < first + group; ++head) {
        seen = seen || sees_any(call, b, head, i_begin, i_begin + queries, j_begin, j_end);
      }
      if (!seen) {
        continue;
      }
      for (size_t head = first; head < first + group; ++head) {
        ++call.tiles[(b * call.H_q + head) * query_tiles + t];
      }
      tile.score(call.key, b, h, j_begin, j_end);
      hide(call, tile, b, first, i_begin, queries, j_begin, j_end);
      for (size_t r = 0; r < tile.rows; ++r) {
        tile.soften(r);
      }
      tile.gather(call.value, b, h, j_begin, j_end);
    }
    for (size_t r = 0; r < tile.rows; ++r) {
      const size_t row = (b * call.H_q + first + r / queries) * call.L + i_begin + r % queries;
      store_result(tile.total.data() + r * call.D, tile.sum[r], call.D, call.out + row * call.D);
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
