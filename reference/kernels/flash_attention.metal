// The GPU kernels of flash_attention (day 2.5): attention that never holds the L x S scores.
//
// Three kernels compute the same and differ in who does what: a thread for each query, a threadgroup for each query, a
// threadgroup for 32 queries. week2/gpu_attention.py launches them.
//
// Letters: B batch, H_q query heads, H key/value heads, L queries, S keys, D head dim. All arrays are contiguous.
// Sources: Dao, "FlashAttention-2", 2023, for the tiles of queries and keys; Milakov and Gimelshein, "Online normalizer
// calculation for softmax", 2018, for the running maximum and sum, and for merging two of them.

constexpr constant int SIMD_WIDTH = 32;       // of a SIMD-group
constexpr constant int SPLITS = 8;       // SIMD-groups that share the keys of a query in attention_decode
constexpr constant int SIMD_GROUPS = 4;  // of a threadgroup in attention_tiled
constexpr constant int THREADS = 128;    // SIMD_GROUPS * SIMD_WIDTH
constexpr constant int KEYS = 32;        // of a tile: a lane each

// Kinds of masks, as week2/gpu_attention.py numbers them.
constexpr constant int CAUSAL = 1;
constexpr constant int ARRAY = 2;

// What an entry of a mask adds to a score; -inf where the query does not see the key.
inline float added(float number) {
  return number;
}

inline float added(bool sees) {
  return sees ? 0.0f : -INFINITY;
}

// What the mask adds to the score of key j. mask_row: where the query's row of the mask begins, entries `stride` apart;
// last: the last key that the query sees if the mask is causal.
template <typename M>
float mask_at(const device M* mask_row, int kind, int stride, int j, int last) {
  if (kind == CAUSAL) {
    return j <= last ? 0.0f : -INFINITY;
  }
  return kind == ARRAY ? added(mask_row[j * stride]) : 0.0f;
}

// ---- 1: a thread for each query ----

// cuda: T = float, half, bfloat; M = float, bool; D = 64
template <typename T, typename M, int D>
kernel void attention_plain(
    const device T* query,  // (B, H_q, L, D)
    const device T* key,    // (B, H, S, D)
    const device T* value,  // (B, H, S, D)
    const device M* mask,   // the entry of (b, h, i, j) is b * mask_b + h * mask_h + i * mask_i + j * mask_j
    device T* out,          // (B, H_q, L, D)
    constant int& H_q,
    constant int& H,
    constant int& L,
    constant int& S,
    constant float& scale,
    constant int& kind,
    constant int& mask_b,
    constant int& mask_h,
    constant int& mask_i,
    constant int& mask_j) {
  const int i = thread_position_in_grid.x;  // query
  const int h = thread_position_in_grid.y;  // query head
  const int b = thread_position_in_grid.z;
  // [task 1
  if (i >= L) {
    return;
  }
  const int row = ((b * H_q + h) * L + i) * D;
  const int keys_of = (b * H + h / (H_q / H)) * S * D;
  const device M* mask_row = mask + (b * mask_b + h * mask_h + i * mask_i);
  const int last = i + S - L;
  float q[D];
  float total[D];  // the sum of the values, weighted by exp(score - maximum)
  for (int d = 0; d < D; ++d) {
    q[d] = float(query[row + d]);
    total[d] = 0.0f;
  }
  float maximum = -INFINITY;  // of the scores so far
  float sum = 0.0f;           // of exp(score - maximum)
  for (int j = 0; j < S; ++j) {
    const float seen = mask_at<M>(mask_row, kind, mask_j, j, last);
    if (seen == -INFINITY) {
      continue;
    }
    float dot = 0.0f;
    for (int d = 0; d < D; ++d) {
      dot += q[d] * float(key[keys_of + j * D + d]);
    }
    const float score = dot * scale + seen;
    const float top = max(maximum, score);
    const float shrink = exp(maximum - top);  // 0 for the first key: exp(-inf)
    const float weight = exp(score - top);
    maximum = top;
    sum = sum * shrink + weight;
    for (int d = 0; d < D; ++d) {
      total[d] = total[d] * shrink + weight * float(value[keys_of + j * D + d]);
    }
  }
  for (int d = 0; d < D; ++d) {
    out[row + d] = T(sum > 0.0f ? total[d] / sum : 0.0f);
  }
  // task 1]
}

// ---- 2: a threadgroup for each query, for few of them ----

// Of a query's S keys each of the SPLITS SIMD-groups takes 32 in turn. A lane holds the numbers lane, lane + 32, ... of
// rows of D, so the lanes read neighbouring numbers; after 32 dot products it also holds the score of one key.
// cuda: T = float, half, bfloat; M = float, bool; D = 64
template <typename T, typename M, int D>
kernel void attention_decode(
    const device T* query,  // all as in attention_plain
    const device T* key,
    const device T* value,
    const device M* mask,
    device T* out,
    constant int& H_q,
    constant int& H,
    constant int& L,
    constant int& S,
    constant float& scale,
    constant int& kind,
    constant int& mask_b,
    constant int& mask_h,
    constant int& mask_i,
    constant int& mask_j) {
  threadgroup float maxima[SPLITS];
  threadgroup float sums[SPLITS];
  threadgroup float totals[SPLITS][D];
  const int i = threadgroup_position_in_grid.x;  // query
  const int h = threadgroup_position_in_grid.y;  // query head
  const int b = threadgroup_position_in_grid.z;
  const int split = simdgroup_index_in_threadgroup;
  const int lane = thread_index_in_simdgroup;
  // [task 2
  constexpr int OWN = D / SIMD_WIDTH;  // numbers of a row that a lane holds
  const int row = ((b * H_q + h) * L + i) * D;
  const int keys_of = (b * H + h / (H_q / H)) * S * D;
  const device M* mask_row = mask + (b * mask_b + h * mask_h + i * mask_i);
  const int last = i + S - L;
  const int keys = kind == CAUSAL ? last + 1 : S;

  float q[OWN];
  float total[OWN];
  for (int c = 0; c < OWN; ++c) {
    q[c] = float(query[row + lane + c * SIMD_WIDTH]) * scale;
    total[c] = 0.0f;
  }
  float maximum = -INFINITY;
  float sum = 0.0f;
  for (int first = split * SIMD_WIDTH; first < keys; first += SPLITS * SIMD_WIDTH) {
    const int count = min(SIMD_WIDTH, keys - first);  // the same for all lanes, so all reach the simd operations
    float score = -INFINITY;                     // of key first + lane
    for (int j = 0; j < count; ++j) {
      float part = 0.0f;
      for (int c = 0; c < OWN; ++c) {
        part += q[c] * float(key[keys_of + (first + j) * D + lane + c * SIMD_WIDTH]);
      }
      const float dot = simd_sum(part);
      score = lane == j ? dot : score;
    }
    if (lane < count) {
      score += mask_at<M>(mask_row, kind, mask_j, first + lane, last);
    }
    const float top = max(maximum, simd_max(score));
    if (top == -INFINITY) {  // it has seen no key so far; -inf - -inf would be NaN
      continue;
    }
    const float shrink = exp(maximum - top);
    const float weight = exp(score - top);
    maximum = top;
    sum = sum * shrink + simd_sum(weight);
    for (int c = 0; c < OWN; ++c) {
      total[c] *= shrink;
    }
    for (int j = 0; j < count; ++j) {
      const float of_key = simd_shuffle(weight, j);
      for (int c = 0; c < OWN; ++c) {
        total[c] += of_key * float(value[keys_of + (first + j) * D + lane + c * SIMD_WIDTH]);
      }
    }
  }

  // Every SIMD-group has a maximum, a sum and a total of its own keys: the first one merges them.
  if (lane == 0) {
    maxima[split] = maximum;
    sums[split] = sum;
  }
  for (int c = 0; c < OWN; ++c) {
    totals[split][lane + c * SIMD_WIDTH] = total[c];
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  if (split == 0) {
    const float mine = lane < SPLITS ? maxima[lane] : -INFINITY;  // lane s holds what split s found
    const float top = simd_max(mine);
    const float factor = mine == -INFINITY ? 0.0f : exp(mine - top);
    const float all = simd_sum(lane < SPLITS ? sums[lane] * factor : 0.0f);
    for (int c = 0; c < OWN; ++c) {
      float merged = 0.0f;
      for (int s = 0; s < SPLITS; ++s) {
        merged += simd_shuffle(factor, s) * totals[s][lane + c * SIMD_WIDTH];
      }
      out[row + lane + c * SIMD_WIDTH] = T(all > 0.0f ? merged / all : 0.0f);
    }
  }
  // task 2]
}

// ---- 3: a threadgroup for a tile of queries ----

// The rows of a threadgroup are queries of all heads that share a key head, so that one tile of keys serves them all:
// row r is query r / group of the group's head r % group. Which row that is in (B, H_q, L):
inline int row_in_query(int r, int b, int h, int H_q, int L, int group) {
  return (b * H_q + h * group + r % group) * L + r / group;
}

// Puts rows first .. first + KEYS of `rows` into a tile whose rows are `stride` apart, and 0 behind the last of `count`.
// Neighbouring threads take neighbouring numbers.
template <typename T, int D>
void fill(threadgroup T* tile, int stride, const device T* rows, int first, int count, int thread_index) {
  // [task 3
  for (int at = thread_index; at < KEYS * D; at += THREADS) {
    const int j = at / D, d = at % D;
    tile[j * stride + d] = first + j < count ? rows[(first + j) * D + d] : T(0.0f);
  }
  // task 3]
}

// cuda: T = float, half, bfloat; M = float, bool; D = 64; ROWS = 32
template <typename T, typename M, int D, int ROWS>
kernel void attention_tiled(
    const device T* query,  // all as in attention_plain
    const device T* key,
    const device T* value,
    const device M* mask,
    device T* out,
    constant int& H_q,
    constant int& H,
    constant int& L,
    constant int& S,
    constant float& scale,
    constant int& kind,
    constant int& mask_b,
    constant int& mask_h,
    constant int& mask_i,
    constant int& mask_j) {
  constexpr int PAD = 4 / sizeof(T);  // one bank: rows of the tile begin in different banks
  threadgroup T queries[ROWS][D];
  threadgroup T tile[KEYS][D + PAD];  // of keys, then of values
  const int h = threadgroup_position_in_grid.y;  // key head
  const int b = threadgroup_position_in_grid.z;
  const int thread_index = thread_index_in_threadgroup;
  const int simd = simdgroup_index_in_threadgroup;
  const int lane = thread_index_in_simdgroup;
  // [task 3
  constexpr int MINE = ROWS / SIMD_GROUPS;  // rows of a SIMD-group
  constexpr int OWN = D / SIMD_WIDTH;            // numbers of a row's total that a lane holds
  const int group = H_q / H;
  const int rows = group * L;
  const int first_row = threadgroup_position_in_grid.x * ROWS;
  const int my_row = first_row + simd * MINE;
  threadgroup const T* my_queries = queries[simd * MINE];
  threadgroup const T* my_key = tile[lane];
  const device T* keys_of = key + (b * H + h) * S * D;
  const device T* values_of = value + (b * H + h) * S * D;

  for (int at = thread_index; at < ROWS * D; at += THREADS) {
    const int r = first_row + at / D;
    const int from = row_in_query(r, b, h, H_q, L, group) * D + at % D;
    queries[at / D][at % D] = r < rows ? query[from] : T(0.0f);
  }

  float maximum[MINE];
  float sum[MINE];
  float score[MINE];       // of key first + lane, later its weight
  float total[MINE][OWN];  // lane, lane + 32, ... of the row
  for (int r = 0; r < MINE; ++r) {
    maximum[r] = -INFINITY;
    sum[r] = 0.0f;
    for (int c = 0; c < OWN; ++c) {
      total[r][c] = 0.0f;
    }
  }

  const int last_query = (min(first_row + ROWS, rows) - 1) / group;
  const int keys = kind == CAUSAL ? last_query + S - L + 1 : S;  // no row of the tile sees any behind these
  for (int first = 0; first < keys; first += KEYS) {
    threadgroup_barrier(mem_flags::mem_threadgroup);  // everyone is done with the values of the tile before
    fill<T, D>(tile[0], D + PAD, keys_of, first, S, thread_index);
    threadgroup_barrier(mem_flags::mem_threadgroup);  // the keys are there
    for (int r = 0; r < MINE; ++r) {
      score[r] = 0.0f;
    }
    for (int d = 0; d < D; ++d) {
      const float k = float(my_key[d]);  // once for all rows
      for (int r = 0; r < MINE; ++r) {
        score[r] += float(my_queries[r * D + d]) * k;
      }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);  // everyone is done with the keys
    fill<T, D>(tile[0], D + PAD, values_of, first, S, thread_index);

    // From scores to weights, in registers: no other SIMD-group has these rows.
    const int j = first + lane;
    for (int r = 0; r < MINE; ++r) {
      const int q = my_row + r;
      const int i = q / group;
      float s = -INFINITY;
      if (q < rows && j < S) {
        const device M* mask_row = mask + (b * mask_b + (h * group + q % group) * mask_h + i * mask_i);
        s = score[r] * scale + mask_at<M>(mask_row, kind, mask_j, j, i + S - L);
      }
      const float top = max(maximum[r], simd_max(s));
      const bool none = top == -INFINITY;  // it has seen no key so far; -inf - -inf would be NaN
      const float shrink = none ? 1.0f : exp(maximum[r] - top);
      score[r] = none ? 0.0f : exp(s - top);
      maximum[r] = top;
      sum[r] = sum[r] * shrink + simd_sum(score[r]);
      for (int c = 0; c < OWN; ++c) {
        total[r][c] *= shrink;
      }
    }

    threadgroup_barrier(mem_flags::mem_threadgroup);  // the values are there
    for (int k = 0; k < KEYS; ++k) {
      threadgroup const T* tile_value = tile[k];
      float v[OWN];  // once for all rows
      for (int c = 0; c < OWN; ++c) {
        v[c] = float(tile_value[lane + c * SIMD_WIDTH]);
      }
      for (int r = 0; r < MINE; ++r) {
        const float weight = simd_shuffle(score[r], k);
        for (int c = 0; c < OWN; ++c) {
          total[r][c] += weight * v[c];
        }
      }
    }
  }

  for (int r = 0; r < MINE; ++r) {
    const int q = my_row + r;
    if (q < rows) {
      const int to = row_in_query(q, b, h, H_q, L, group) * D;
      for (int c = 0; c < OWN; ++c) {
        out[to + lane + c * SIMD_WIDTH] = T(sum[r] > 0.0f ? total[r][c] / sum[r] : 0.0f);
      }
    }
  }
  // task 3]
}
