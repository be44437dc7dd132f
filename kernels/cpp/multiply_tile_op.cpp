// The multiply_tile kernel on MLX arrays: each is laid out with gaps between its rows, as a piece of a larger matrix is.
#include "multiply_tile_op.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <vector>

#include "bodies.h"
#include "mlx/ops.h"
#include "mlx/transforms.h"

namespace tinyllm {

namespace mx = mlx::core;

namespace {

constexpr float kOutside = -1234.5f;

// The rows of a matrix with `gap` numbers behind each, and before the first.
struct Spread {
  size_t rows, columns, stride;
  std::vector<float> room;

  Spread(const mx::array& x, size_t gap, float between)
      : rows(x.shape(0)), columns(x.shape(1)), stride(columns + gap), room(gap + rows * stride, between) {
    for (size_t r = 0; r < rows; ++r) {
      std::copy_n(x.data<float>() + r * columns, columns, row(r));
    }
  }
  float* row(size_t r) {
    return room.data() + (stride - columns) + r * stride;
  }
};

} // namespace

mx::array multiply_tile_op(const mx::array& a, const mx::array& b, const mx::array& c) {
  const int columns = kTileColumns;
  if (a.ndim() != 2 || b.shape() != mx::Shape{a.shape(1), columns} || c.shape() != mx::Shape{a.shape(0), columns}) {
    throw std::invalid_argument("multiply_tile: a is (rows, depth), b (depth, 32) and c (rows, 32)");
  }
  if (a.dtype() != mx::float32 || b.dtype() != mx::float32 || c.dtype() != mx::float32) {
    throw std::invalid_argument("multiply_tile: a, b and c must be float32");
  }
  std::vector<mx::array> inputs{mx::contiguous(a), mx::contiguous(b), mx::contiguous(c)};
  mx::eval(inputs);
  Spread in_a(inputs[0], 3, NAN), in_b(inputs[1], 5, NAN), out(inputs[2], 7, kOutside);
  multiply_tile(in_a.row(0), in_a.stride, in_b.row(0), in_b.stride, out.row(0), out.stride, out.rows, in_a.columns);
  std::vector<float> result;
  for (size_t r = 0; r < out.rows; ++r) {
    result.insert(result.end(), out.row(r), out.row(r) + columns);
    std::fill_n(out.row(r), columns, kOutside);
  }
  for (float number : out.room) {
    if (number != kOutside) {
      throw std::runtime_error("multiply_tile writes beside its 32 columns of c, or behind its last row");
    }
  }
  return mx::array(result.begin(), c.shape(), mx::float32);
}

} // namespace tinyllm
