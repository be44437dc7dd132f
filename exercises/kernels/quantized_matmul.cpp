// The kernels of quantized_matmul (day 2.2): out = a w^T with w packed, 4 or 8 bits a weight.
//
// A ladder: the formula first, then four steps, each for one reason faster. Every step is checked against the same
// oracle before any is timed. What this is not: an MLX operation (kernels/cpp/quantized_matmul_op.cpp makes it one).
//
// Letters: M rows of a, I inputs (the length of a row of a and of w), O outputs (the rows of w).

#include <algorithm>
#include <bit>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "bodies.h"
#include "pool.h"
#include "vectors.h"

namespace tinyllm {

// ---- 1: the formula ----

// out[m, o] = sum over i of a[m, i] * (scales[o, g] * q[o, i] + biases[o, g]), where g = i / group_size and q[o, i] is
// the weight's `bits` bits: word i / (32 / bits) of row o, the first weight of a word in its lowest bits.
template <typename T>
void quantized_matmul_plain(const QuantizedMatmul<T>& call) {
  // [task 3
  throw NotWritten("day 2.2, task 3: quantized_matmul");  // write this part
  // task 3]
}

// ---- 2: scale and bias once a group ----

// In a group scale and bias are the same for all weights, so they come out of the sum:
// sum of a (s q + b) = s * sum of a q + b * sum of a. The sums of a are the same for all outputs.
template <typename T>
void quantized_matmul_grouped(const QuantizedMatmul<T>& call) {
  // [task 4
  throw NotWritten("day 2.2, task 4: quantized_matmul");  // write this part
  // task 4]
}

// ---- 3: vectors of words ----

namespace {

// A row of a in the order in which its numbers meet the weights.
//
// A vector of W words holds W * P weights. Masking out bits j of every word leaves the weights j, P + j, 2 P + j ...
// of the vector, so the numbers of a with these indices are put side by side. And since the mask leaves q * 2^(bits j)
// where q is wanted, they are divided by that power of two here, exactly and once, instead of shifting every word.
template <size_t W, size_t bits>
struct Arranged {
  static constexpr size_t P = 32 / bits; // weights of a word

  std::vector<float> numbers; // (I / (W P), P, W)
  std::vector<float> sums; // of the numbers that meet one word, (I / P): a lane has its own

  template <typename T>
  Arranged(const T* a, size_t I) : numbers(I), sums(I / P) {
    // [task 5
    throw NotWritten("day 2.2, task 5: quantized_matmul");  // write this part
    // task 5]
  }
};

// Words asked for ahead of their use, at least: 4 KB. Memory answers only after some hundred cycles, and four rows side
// by side are no pattern for the processor to foresee; but the rows behind them come next, and they are asked for in
// the order in which they lie in memory.
constexpr size_t kAhead = 1024;

// out[begin .. end) of one row of a. Four outputs at a time: a vector of a is loaded once and used four times.
template <size_t W, size_t bits, typename T>
void some_outputs(const QuantizedMatmul<T>& call, const Arranged<W, bits>& a, T* out, size_t begin, size_t end) {
  // [task 5
  throw NotWritten("day 2.2, task 5: quantized_matmul");  // write this part
  // task 5]
}

// run(W, bits) as compile-time numbers, W the widest vector that fits: a row is a whole number of vectors, and a half of
// a vector does not reach over the end of a group.
template <size_t W, typename T, typename Run>
void with_width(const QuantizedMatmul<T>& call, const Run& run) {
  const size_t weights = W * 32 / call.bits; // of a vector
  if constexpr (W > 4) {
    if (call.I % weights != 0 || call.group_size % (weights / 2) != 0) {
      return with_width<W / 2>(call, run);
    }
  }
  call.bits == 8 ? run.template operator()<W, 8>() : run.template operator()<W, 4>();
}

} // namespace

template <typename T>
void quantized_matmul_vector(const QuantizedMatmul<T>& call) {
  with_width<kLanes>(call, [&]<size_t W, size_t bits>() {
    for (size_t m = 0; m < call.M; ++m) {
      const Arranged<W, bits> a(call.a + m * call.I, call.I);
      some_outputs<W, bits>(call, a, call.out + m * call.O, 0, call.O);
    }
  });
}

// ---- 4: threads ----

// The outputs are cut into chunks by their number alone, so the result does not depend on how many threads there are.
template <typename T>
void quantized_matmul_threads(const QuantizedMatmul<T>& call) {
  // [task 5
  throw NotWritten("day 2.2, task 5: quantized_matmul");  // write this part
  // task 5]
}

// ---- 5: tiles, for many rows ----

namespace {

constexpr size_t kDepth = 128; // inputs of a tile; with kTileColumns outputs it is 16 KB, half of the nearest cache
constexpr size_t kColumns = 2 * kTileColumns; // outputs of a chunk

// Unpack w[o .. o + kTileColumns, i .. i + depth) into tile[i, o], the way round that multiply_tile reads.
// Rows of w behind the last are left as they are.
template <typename T>
void unpack_tile(const QuantizedMatmul<T>& call, size_t o, size_t i, size_t depth, float* tile) {
  // [task 6
  throw NotWritten("day 2.2, task 6: quantized_matmul");  // write this part
  // task 6]
}

} // namespace

template <typename T>
void quantized_matmul_tiled(const QuantizedMatmul<T>& call) {
  // [task 6
  throw NotWritten("day 2.2, task 6: quantized_matmul");  // write this part
  // task 6]
}

// The three kinds of numbers that the operation calls them with.
#define FOR_TYPE(T)                                                  \
  template void quantized_matmul_plain(const QuantizedMatmul<T>&);   \
  template void quantized_matmul_grouped(const QuantizedMatmul<T>&); \
  template void quantized_matmul_vector(const QuantizedMatmul<T>&);  \
  template void quantized_matmul_threads(const QuantizedMatmul<T>&); \
  template void quantized_matmul_tiled(const QuantizedMatmul<T>&);
FOR_TYPE(float)
FOR_TYPE(float16_t)
FOR_TYPE(bfloat16_t)
#undef FOR_TYPE

} // namespace tinyllm
