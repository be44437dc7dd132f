// The Python module: one function an operation.
#include <nanobind/nanobind.h>

#include "axpby_op.h"

namespace nb = nanobind;
using namespace nb::literals;

NB_MODULE(tinyllm_native, module) {
  module.def(
      "axpby",
      &tinyllm::axpby_op,
      "x"_a,
      "y"_a,
      "alpha"_a,
      "beta"_a,
      "alpha * x + beta * y, element by element, on the CPU; x and y have one shape and one dtype.");
  module.def(
      "same",
      [](const mlx::core::array& x) { return x; },
      "x"_a,
      "x itself: whether arrays pass between this module and mlx.core at all.");
}
