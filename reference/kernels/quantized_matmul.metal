// The kernels of quantized_matmul on a GPU (day 2.3): y = x w^T with w packed, 4 or 8 bits a weight.
//
// A ladder of three. The plain one, one thread an output, reads everything again for each output. The second gives a row
// of w to a SIMD-group, for few rows of x (decoding). The third shares tiles in threadgroup memory, for many (prefill).
// What this is not: simdgroup_matrix or tensor cores, which multiply tiles in hardware.
//
// Letters: M rows of x, I inputs (the length of a row of x and of w), O outputs (the rows of w).
// w[o][i] = scale * q + bias, with the scale and the bias of group i / group_size of row o. q is `BITS` bits of word
// i / (32 / BITS) of the row, the first weight of a word in its lowest bits. Sums are float, whatever T is.

// ---- 1: one thread, one output ----

// A grid of (O, M, 1) threads, rounded up: thread (o, m) makes y[m][o].
// cuda: T = float, half, bfloat; BITS = 4, 8
template <typename T, int BITS>
kernel void quantized_matmul_plain(
    const device T* x,       // (M, I)
    const device uint* w,    // (O, I * BITS / 32)
    const device T* scales,  // (O, I / group_size)
    const device T* biases,  // (O, I / group_size)
    device T* y,             // (M, O)
    constant int& M,
    constant int& I,
    constant int& O,
    constant int& group_size) {
  // [task 1
  constexpr int per_word = 32 / BITS;
  constexpr uint mask = (1u << BITS) - 1;
  const int o = thread_position_in_grid.x;
  const int m = thread_position_in_grid.y;
  if (m >= M || o >= O) {  // the grid is rounded up
    return;
  }
  float sum = 0;
  for (int i = 0; i < I; i += per_word) {
    uint word = w[(o * I + i) / per_word];
    const int group = (o * I + i) / group_size;
    const float scale = float(scales[group]);
    const float bias = float(biases[group]);
    for (int k = 0; k < per_word; ++k) {
      sum += float(x[m * I + i + k]) * (scale * float(word & mask) + bias);
      word >>= BITS;
    }
  }
  y[m * O + o] = T(sum);
  // task 1]
}

// ---- 2: one SIMD-group, one output ----

// A grid of (32, O, M) threads, O rounded up: the 32 lanes with one y and z make y[m][o] together. Lane l takes words
// l, l + 32, l + 64 ... of the row, so that in each step the lanes read 32 neighbouring words.
// cuda: T = float, half, bfloat; BITS = 4, 8
template <typename T, int BITS>
kernel void quantized_matvec(
    const device T* x,       // (M, I)
    const device uint* w,    // (O, I * BITS / 32)
    const device T* scales,  // (O, I / group_size)
    const device T* biases,  // (O, I / group_size)
    device T* y,             // (M, O)
    constant int& M,
    constant int& I,
    constant int& O,
    constant int& group_size) {
  // [task 2
  constexpr int per_word = 32 / BITS;
  constexpr uint mask = (1u << BITS) - 1;
  const int lane = thread_index_in_simdgroup;
  const int o = thread_position_in_grid.y;
  const int m = thread_position_in_grid.z;
  if (o >= O) {  // all 32 lanes leave, or none
    return;
  }
  float sum = 0;
  for (int i = lane * per_word; i < I; i += 32 * per_word) {
    uint word = w[(o * I + i) / per_word];
    const int group = (o * I + i) / group_size;
    float products = 0;  // of x and q
    float plain = 0;     // of x alone: what the bias is multiplied with
    for (int k = 0; k < per_word; ++k) {
      const float value = float(x[m * I + i + k]);
      products += value * float(word & mask);
      plain += value;
      word >>= BITS;
    }
    sum += float(scales[group]) * products + float(biases[group]) * plain;
  }
  sum = simd_sum(sum);
  if (lane == 0) {
    y[m * O + o] = T(sum);
  }
  // task 2]
}

// ---- 3: tiles in threadgroup memory ----

constexpr constant int TILE = 32;     // outputs of a tile in each direction, and inputs that are loaded at a time
constexpr constant int THREADS = 16;  // threads of a group in each direction: each makes 2 x 2 outputs

// A grid of (O / 2, M / 2, 1) threads in groups of (16, 16, 1), rounded up: each threadgroup makes 32 x 32 outputs. It
// loads 32 inputs of its 32 rows of x and, unpacked, of its 32 rows of w, and all its threads multiply from there.
// cuda: T = float, half, bfloat; BITS = 4, 8
template <typename T, int BITS>
kernel void quantized_matmul_tiled(
    const device T* x,       // (M, I)
    const device uint* w,    // (O, I * BITS / 32)
    const device T* scales,  // (O, I / group_size)
    const device T* biases,  // (O, I / group_size)
    device T* y,             // (M, O)
    constant int& M,
    constant int& I,
    constant int& O,
    constant int& group_size) {
  // One column more than is used: 16 threads that read a column then reach 16 different banks.
  threadgroup float x_tile[TILE][TILE + 1];
  threadgroup float w_tile[TILE][TILE + 1];
  // [task 3
  constexpr int per_word = 32 / BITS;
  constexpr int words = TILE / per_word;  // of a row of the tile
  constexpr uint mask = (1u << BITS) - 1;
  const int me = thread_index_in_threadgroup;
  const int tx = thread_position_in_threadgroup.x;
  const int ty = thread_position_in_threadgroup.y;
  const int first_o = TILE * threadgroup_position_in_grid.x;
  const int first_m = TILE * threadgroup_position_in_grid.y;
  float sums[2][2] = {{0, 0}, {0, 0}};

  for (int first_i = 0; first_i < I; first_i += TILE) {  // group_size, a multiple of 32, divides I
    for (int n = me; n < TILE * TILE; n += THREADS * THREADS) {
      const int row = n / TILE;
      const int column = n % TILE;
      const int m = first_m + row;
      x_tile[row][column] = m < M ? float(x[m * I + first_i + column]) : 0.0f;
    }
    for (int n = me; n < TILE * words; n += THREADS * THREADS) {
      const int row = n / words;
      const int column = n % words * per_word;
      const int o = first_o + row;
      uint word = 0;
      float scale = 0;
      float bias = 0;
      if (o < O) {
        const int i = o * I + first_i + column;
        word = w[i / per_word];
        scale = float(scales[i / group_size]);
        bias = float(biases[i / group_size]);
      }
      for (int k = 0; k < per_word; ++k) {
        w_tile[row][column + k] = scale * float(word & mask) + bias;
        word >>= BITS;
      }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);  // the tiles are full
    for (int k = 0; k < TILE; ++k) {
      const float x0 = x_tile[ty][k];
      const float x1 = x_tile[ty + THREADS][k];
      const float w0 = w_tile[tx][k];
      const float w1 = w_tile[tx + THREADS][k];
      sums[0][0] += x0 * w0;
      sums[0][1] += x0 * w1;
      sums[1][0] += x1 * w0;
      sums[1][1] += x1 * w1;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);  // and may be overwritten
  }
  for (int r = 0; r < 2; ++r) {
    for (int c = 0; c < 2; ++c) {
      const int m = first_m + ty + r * THREADS;
      const int o = first_o + tx + c * THREADS;
      if (m < M && o < O) {
        y[m * O + o] = T(sums[r][c]);
      }
    }
  }
  // task 3]
}
