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
  NOT_WRITTEN("day 2.3, task 1: quantized_matmul_plain");  // write this part
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
  NOT_WRITTEN("day 2.3, task 2: quantized_matvec");  // write this part
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
  NOT_WRITTEN("day 2.3, task 3: quantized_matmul_tiled");  // write this part
  // task 3]
}
