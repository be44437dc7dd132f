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
  const size_t per_word = 32 / call.bits;
  const uint32_t mask = (1u << call.bits) - 1;
  const size_t groups = call.I / call.group_size;
  for (size_t m = 0; m < call.M; ++m) {
    for (size_t o = 0; o < call.O; ++o) {
      const uint32_t* words = call.packed + o * (call.I / per_word);
      float sum = 0;
      for (size_t i = 0; i < call.I; ++i) {
        const uint32_t q = (words[i / per_word] >> (call.bits * (i % per_word))) & mask;
        const size_t g = o * groups + i / call.group_size;
        const float w = static_cast<float>(call.scales[g]) * q + static_cast<float>(call.biases[g]);
        sum += static_cast<float>(call.a[m * call.I + i]) * w;
      }
      call.out[m * call.O + o] = static_cast<T>(sum);
    }
  }
  // task 3]
}

// ---- 2: scale and bias once a group ----

// In a group scale and bias are the same for all weights, so they come out of the sum:
// sum of a (s q + b) = s * sum of a q + b * sum of a. The sums of a are the same for all outputs.
template <typename T>
void quantized_matmul_grouped(const QuantizedMatmul<T>& call) {
  // [task 4
  const size_t per_word = 32 / call.bits;
  const uint32_t mask = (1u << call.bits) - 1;
  const size_t groups = call.I / call.group_size;
  std::vector<float> sums(groups);
  for (size_t m = 0; m < call.M; ++m) {
    const T* a = call.a + m * call.I;
    for (size_t g = 0; g < groups; ++g) {
      sums[g] = 0;
      for (size_t i = g * call.group_size; i < (g + 1) * call.group_size; ++i) {
        sums[g] += static_cast<float>(a[i]);
      }
    }
    for (size_t o = 0; o < call.O; ++o) {
      const uint32_t* word = call.packed + o * (call.I / per_word);
      float total = 0;
      for (size_t g = 0; g < groups; ++g) {
        float sum = 0;
        for (size_t i = g * call.group_size; i < (g + 1) * call.group_size; i += per_word, ++word) {
          for (size_t j = 0; j < per_word; ++j) {
            sum += static_cast<float>(a[i + j]) * ((*word >> (call.bits * j)) & mask);
          }
        }
        total += static_cast<float>(call.scales[o * groups + g]) * sum +
            static_cast<float>(call.biases[o * groups + g]) * sums[g];
      }
      call.out[m * call.O + o] = static_cast<T>(total);
    }
  }
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
    for (size_t vector = 0; vector < I; vector += W * P) {
      for (size_t j = 0; j < P; ++j) {
        // The last weight of a word is shifted after all: its mask would reach the sign.
        const float power = j == P - 1 ? 1.0f : static_cast<float>(uint32_t{1} << (bits * j));
        for (size_t lane = 0; lane < W; ++lane) {
          numbers[vector + j * W + lane] = static_cast<float>(a[vector + lane * P + j]) / power;
        }
      }
    }
    for (size_t i = 0; i < I; ++i) {
      sums[i / P] += static_cast<float>(a[i]);
    }
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
  using Vector = Lanes<W>;
  constexpr size_t P = 32 / bits;
  constexpr size_t R = 4;
  constexpr uint32_t mask = (1u << bits) - 1;
  const size_t words = call.I / P; // of a row of w
  const size_t groups = call.I / call.group_size;
  // A group has a power of two of words, so a shift finds a word's group: no division in the loop.
  const int shift = std::countr_zero(call.group_size / P);
  const size_t ahead = std::max(kAhead, R * words); // long rows: the next four

  const auto block = [&]<size_t rows>(size_t o) {
    typename Vector::Floats totals[rows] = {};
    for (size_t first = 0; first < words; first += W) { // a vector of words
      const float* numbers = a.numbers.data() + first * P;
      typename Vector::Words word[rows];
      typename Vector::Floats sum[rows] = {};
      for (size_t r = 0; r < rows; ++r) {
        word[r] = Vector::load(call.packed + (o + r) * words + first);
        __builtin_prefetch(call.packed + o * words + ahead + rows * first + r * W);
      }
      for (size_t j = 0; j + 1 < P; ++j) {
        const auto of_a = Vector::once(Vector::load(numbers + j * W));
        for (size_t r = 0; r < rows; ++r) {
          sum[r] += of_a * Vector::to_floats(word[r] & (mask << (bits * j)));
        }
      }
      const auto of_a = Vector::once(Vector::load(numbers + (P - 1) * W));
      for (size_t r = 0; r < rows; ++r) {
        sum[r] += of_a * Vector::to_floats(word[r] >> (bits * (P - 1)));
      }
      // Scale and bias, lane by lane: all words of a half are in one group.
      const size_t g = first >> shift, next = (first + W / 2) >> shift;
      const auto sum_of_a = Vector::once(Vector::load(a.sums.data() + first));
      for (size_t r = 0; r < rows; ++r) {
        const T *scales = call.scales + (o + r) * groups, *biases = call.biases + (o + r) * groups;
        totals[r] += sum[r] * Vector::halves(static_cast<float>(scales[g]), static_cast<float>(scales[next]));
        totals[r] += sum_of_a * Vector::halves(static_cast<float>(biases[g]), static_cast<float>(biases[next]));
      }
    }
    for (size_t r = 0; r < rows; ++r) {
      out[o + r] = static_cast<T>(Vector::sum(totals[r]));
    }
  };

  size_t o = begin;
  for (; o + R <= end; o += R) {
    block.template operator()<R>(o);
  }
  for (; o < end; ++o) {
    block.template operator()<1>(o);
  }
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
  // Few chunks: what a thread asked for ahead of a chunk's end is the next chunk's, and so another thread's.
  constexpr size_t kChunks = 16;
  constexpr size_t kWeights = 1 << 16; // of a chunk, at least: some microseconds of work
  const size_t weights = std::max(kWeights, call.O * call.I / kChunks);
  const size_t chunk = std::max<size_t>(4, weights / call.I / 4 * 4); // outputs
  with_width<kLanes>(call, [&]<size_t W, size_t bits>() {
    std::vector<Arranged<W, bits>> rows;
    for (size_t m = 0; m < call.M; ++m) {
      rows.emplace_back(call.a + m * call.I, call.I);
    }
    parallel_for((call.O + chunk - 1) / chunk, [&](size_t i) {
      const size_t begin = i * chunk, end = std::min(call.O, begin + chunk);
      for (size_t m = 0; m < call.M; ++m) { // the chunk's weights come from memory once, then from the cache
        some_outputs<W, bits>(call, rows[m], call.out + m * call.O, begin, end);
      }
    });
  });
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
  using Vector = Lanes<kLanes>;
  const size_t per_word = 32 / call.bits;
  const uint32_t mask = (1u << call.bits) - 1;
  const size_t words = call.I / per_word;
  const size_t groups = call.I / call.group_size;
  for (size_t column = 0; column < kTileColumns; column += kLanes) {
    // A lane for each row of w; lanes behind the last row repeat it, and nobody reads what they give.
    size_t row[kLanes];
    for (size_t lane = 0; lane < kLanes; ++lane) {
      row[lane] = std::min(o + column + lane, call.O - 1);
    }
    typename Vector::Floats scale{}, bias{};
    for (size_t k = 0; k < depth; k += per_word) {
      if ((i + k) % call.group_size == 0 || k == 0) {
        for (size_t lane = 0; lane < kLanes; ++lane) {
          const size_t g = row[lane] * groups + (i + k) / call.group_size;
          scale[lane] = static_cast<float>(call.scales[g]);
          bias[lane] = static_cast<float>(call.biases[g]);
        }
      }
      typename Vector::Words word;
      for (size_t lane = 0; lane < kLanes; ++lane) {
        word[lane] = call.packed[row[lane] * words + (i + k) / per_word];
      }
      for (size_t j = 0; j < per_word; ++j) {
        const auto q = Vector::to_floats((word >> static_cast<uint32_t>(call.bits * j)) & mask);
        Vector::store(tile + (k + j) * kTileColumns + column, scale * q + bias);
      }
    }
  }
  // task 6]
}

} // namespace

template <typename T>
void quantized_matmul_tiled(const QuantizedMatmul<T>& call) {
  // [task 6
  // Every number of a is read for each chunk of outputs, so it is made a float once.
  std::vector<float> copied;
  const float* a;
  if constexpr (std::is_same_v<T, float>) {
    a = call.a;
  } else {
    copied.assign(call.a, call.a + call.M * call.I);
    a = copied.data();
  }
  parallel_for((call.O + kColumns - 1) / kColumns, [&](size_t chunk) {
    const size_t begin = chunk * kColumns, end = std::min(call.O, begin + kColumns);
    std::vector<float> out(call.M * kColumns); // float until all of I is summed; zeros
    alignas(64) float tile[kDepth * kTileColumns];
    for (size_t i = 0; i < call.I; i += kDepth) {
      const size_t depth = std::min(kDepth, call.I - i);
      for (size_t o = begin; o < end; o += kTileColumns) {
        unpack_tile(call, o, i, depth, tile);
        multiply_tile(a + i, call.I, tile, kTileColumns, out.data() + (o - begin), kColumns, call.M, depth);
      }
    }
    for (size_t m = 0; m < call.M; ++m) {
      for (size_t o = begin; o < end; ++o) {
        call.out[m * call.O + o] = static_cast<T>(out[m * kColumns + (o - begin)]);
      }
    }
  });
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
