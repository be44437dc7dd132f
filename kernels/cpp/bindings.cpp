// The Python module: one function an operation.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>

#include "axpby_op.h"
#include "flash_attention_op.h"
#include "multiply_tile_op.h"
#include "operation.h"
#include "pool.h"
#include "quantized_matmul_op.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace tinyllm {
std::atomic<bool> watching_outputs{false};
std::atomic<bool> a_kernel_threw{false};
}

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
      "quantized_matmul",
      &tinyllm::quantized_matmul_op,
      "a"_a,
      "packed"_a,
      "scales"_a,
      "biases"_a,
      "group_size"_a,
      "bits"_a,
      "version"_a = 0,
      "a (.., I) times the transpose of packed weights (O, I), on the CPU; version: a step of the ladder, 0 chooses.");
  // Each step of the ladder under its own name too.
  const char* const steps[] = {
      "quantized_matmul_plain",
      "quantized_matmul_grouped",
      "quantized_matmul_vector",
      "quantized_matmul_threads",
      "quantized_matmul_tiled"};
  for (int version = 1; version <= 5; ++version) {
    module.def(
        steps[version - 1],
        [version](
            const mlx::core::array& a,
            const mlx::core::array& packed,
            const mlx::core::array& scales,
            const mlx::core::array& biases,
            int group_size,
            int bits) {
          return tinyllm::quantized_matmul_op(a, packed, scales, biases, group_size, bits, version);
        },
        "a"_a,
        "packed"_a,
        "scales"_a,
        "biases"_a,
        "group_size"_a,
        "bits"_a,
        "quantized_matmul, by this step of its ladder.");
  }
  module.def(
      "multiply_tile",
      &tinyllm::multiply_tile_op,
      "a"_a,
      "b"_a,
      "c"_a,
      "c + a b for a (rows, depth), b (depth, 32) and c (rows, 32), float32; computed at once, for tests.");
  // Attention by either kernel. Both also tell the key tiles computed for each query tile.
  const char* const attentions[] = {"flash_attention_plain", "flash_attention_fast"};
  for (int version = 1; version <= 2; ++version) {
    module.def(
        attentions[version - 1],
        [version](
            const mlx::core::array& query,
            const mlx::core::array& key,
            const mlx::core::array& value,
            float scale,
            bool causal,
            const std::optional<mlx::core::array>& mask) {
          return tinyllm::flash_attention_op(query, key, value, scale, causal, mask, version);
        },
        "query"_a,
        "key"_a,
        "value"_a,
        "scale"_a,
        "causal"_a = false,
        "mask"_a = nb::none(),
        "Attention (B, H_q, L, D) on the CPU, and the key tiles computed for each query tile, (B, H_q, tiles) int32.");
  }
  module.def(
      "same",
      [](const mlx::core::array& x) { return x; },
      "x"_a,
      "x itself: whether arrays pass between this module and mlx.core at all.");
  module.def(
      "watch_outputs",
      [](bool on) { tinyllm::watching_outputs = on; },
      "on"_a,
      "Whether kernels write into memory that is watched: NaN where nothing was written, an error beside it.");
  module.def("thread_count", &tinyllm::thread_count, "How many threads the kernels share their work among.");
  module.def("chunks_so_far", &tinyllm::chunks_so_far, "Chunks of work that all kernels so far were cut into.");
}
