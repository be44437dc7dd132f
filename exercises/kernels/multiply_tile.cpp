// A small matrix product with its results in registers (day 2.2): what large products are made of.
//
// What this is: c += a b for a few rows of a and 32 columns of b. What it is not: a whole product. The callers cut
// theirs so that the piece of b stays in the cache nearest the processor while all rows of a pass by.

#include "bodies.h"
#include "vectors.h"

namespace tinyllm {

namespace {

using Vector = Lanes<kLanes>;
using Floats = Vector::Floats;

constexpr size_t kVectors = kTileColumns / kLanes; // of a row of b: 2 with 16 lanes, 4 with 8, 8 with 4

// As many rows as there are registers for: each row has kVectors of them, and they stay there for all of `depth`.
constexpr size_t kRows = kLanes == 16 ? 8 : kLanes == 8 ? 3 : 2;

template <size_t rows>
void multiply_rows(
    const float* a, size_t lda, const float* b, size_t ldb, float* c, size_t ldc, size_t depth) {
  // [task 6
  throw NotWritten("day 2.2, task 6: multiply_tile");  // write this part
  // task 6]
}

} // namespace

// c[r, j] += sum over k < depth of a[r, k] * b[k, j], for r < rows and j < kTileColumns.
void multiply_tile(
    const float* a, size_t lda, const float* b, size_t ldb, float* c, size_t ldc, size_t rows, size_t depth) {
  // [task 6
  throw NotWritten("day 2.2, task 6: multiply_tile");  // write this part
  // task 6]
}

} // namespace tinyllm
