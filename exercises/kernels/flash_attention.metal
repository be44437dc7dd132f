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
  NOT_WRITTEN("day 2.5, task 1: attention_plain");  // write this part
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
  NOT_WRITTEN("day 2.5, task 2: attention_decode");  // write this part
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
  NOT_WRITTEN("day 2.5, task 3: fill");  // write this part
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
  NOT_WRITTEN("day 2.5, task 3: attention_tiled");  // write this part
  // task 3]
}
