// Every kernel of a tree, and the thread pool, without Python: for a build with sanitizers.
//
// All memory that a kernel gets is allocated to the element, so that a read or write beside it is seen. Results are
// compared with plain loops in double. Ends with 0 when all is well; `authoring sanitize` builds and runs it.
//
//     every_kernel [no-fork]

#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "bodies.h"
#include "pool.h"

using namespace tinyllm;

namespace {

std::mt19937 numbers(22);

void require(bool holds, const std::string& what) {
  if (!holds) {
    std::fprintf(stderr, "wrong: %s\n", what.c_str());
    std::exit(1);
  }
}

template <typename T>
std::vector<T> normal(size_t size, float mean = 0.0f) {
  std::normal_distribution<float> draw(mean, 1.0f);
  std::vector<T> result;
  for (size_t i = 0; i < size; ++i) {
    result.push_back(static_cast<T>(draw(numbers)));
  }
  return result;
}

template <typename T>
double tolerance() {
  return std::is_same_v<T, float> ? 1e-5 : 1.0 / 64; // of the sum of sizes; bfloat16 keeps 8 bits
}

template <typename T>
void require_near(T got, double want, double size, const std::string& what) {
  const double value = static_cast<float>(got);
  const double allowed = tolerance<T>() * size + 1e-30;
  require(std::abs(value - want) <= allowed, what + ": " + std::to_string(value) + ", not " + std::to_string(want));
}

// ---- axpby ----

template <typename T>
void check_axpby() {
  for (size_t size : {0, 1, 7, 33}) {
    const auto x = normal<T>(size), y = normal<T>(size);
    std::vector<T> z(size);
    axpby(x.data(), y.data(), z.data(), size, 1.5f, -0.5f);
    for (size_t i = 0; i < size; ++i) {
      const double a = 1.5 * static_cast<float>(x[i]), b = -0.5 * static_cast<float>(y[i]);
      require_near(z[i], a + b, std::abs(a) + std::abs(b), "axpby");
    }
  }
}

// ---- multiply_tile ----

void check_multiply_tile() {
  const size_t columns = kTileColumns;
  for (size_t rows = 1; rows <= 19; ++rows) {
    for (size_t depth : {1, 5, 33}) {
      const size_t lda = depth + 3, ldb = columns + 1, ldc = columns + 5;
      const auto a = normal<float>((rows - 1) * lda + depth), b = normal<float>((depth - 1) * ldb + columns);
      auto c = normal<float>((rows - 1) * ldc + columns);
      const auto before = c;
      multiply_tile(a.data(), lda, b.data(), ldb, c.data(), ldc, rows, depth);
      for (size_t i = 0; i < c.size(); ++i) {
        const size_t r = i / ldc, j = i % ldc;
        double want = before[i], size = std::abs(want);
        for (size_t k = 0; j < columns && k < depth; ++k) {
          const double term = static_cast<double>(a[r * lda + k]) * b[k * ldb + j];
          want += term, size += std::abs(term);
        }
        require_near(c[i], want, size, "multiply_tile");
      }
    }
  }
}

// ---- quantized_matmul ----

template <typename T>
void check_quantized_matmul(size_t M, size_t O, size_t groups, size_t group_size, size_t bits) {
  const size_t I = groups * group_size, per_word = 32 / bits;
  std::vector<uint32_t> packed(O * I / per_word);
  std::generate(packed.begin(), packed.end(), [] { return static_cast<uint32_t>(numbers()); });
  const auto a = normal<T>(M * I, 0.3f), scales = normal<T>(O * groups), biases = normal<T>(O * groups, 5.0f);
  void (*const steps[])(const QuantizedMatmul<T>&) = {
      quantized_matmul_plain<T>,
      quantized_matmul_grouped<T>,
      quantized_matmul_vector<T>,
      quantized_matmul_threads<T>,
      quantized_matmul_tiled<T>};
  for (const auto step : steps) {
    std::vector<T> out(M * O);
    step({a.data(), packed.data(), scales.data(), biases.data(), out.data(), M, O, I, group_size, bits});
    for (size_t m = 0; m < M; ++m) {
      for (size_t o = 0; o < O; ++o) {
        double want = 0, size = 0;
        for (size_t i = 0; i < I; ++i) {
          const uint32_t word = packed[(o * I + i) / per_word];
          const uint32_t q = (word >> (bits * (i % per_word))) & ((1u << bits) - 1);
          const double s = static_cast<float>(scales[o * groups + i / group_size]);
          const double b = static_cast<float>(biases[o * groups + i / group_size]);
          const double x = static_cast<float>(a[m * I + i]);
          want += x * (s * q + b), size += std::abs(x) * (std::abs(s) * q + std::abs(b));
        }
        require_near(out[m * O + o], want, size, "quantized_matmul, " + std::to_string(bits) + " bits");
      }
    }
  }
}

template <typename T>
void check_quantized_matmuls() {
  for (size_t bits : {4, 8}) {
    for (size_t group_size : {32, 64, 128}) {
      check_quantized_matmul<T>(1, 1, 1, group_size, bits);
      check_quantized_matmul<T>(3, 37, 3, group_size, bits);
      check_quantized_matmul<T>(9, 66, 2, group_size, bits);
    }
  }
  check_quantized_matmul<T>(2, 1031, 4, 128, 4); // several chunks, the last one short
}

// ---- flash_attention ----

template <typename T>
void check_flash_attention(size_t B, size_t H_q, size_t H, size_t L, size_t S, size_t D, MaskKind kind) {
  const auto query = normal<T>(B * H_q * L * D), key = normal<T>(B * H * S * D), value = normal<T>(B * H * S * D);
  auto additive = normal<float>(L * S);
  std::vector<char> draws(L * S);
  for (size_t i = 0; i < L * S; ++i) {
    draws[i] = additive[i] > 0 || i < S; // the second query may see little, the first sees all
    additive[i] = draws[i] ? additive[i] : -std::numeric_limits<float>::infinity();
  }
  if (L > 2) { // a query that sees nothing
    std::fill(draws.begin() + 2 * S, draws.begin() + 3 * S, 0);
    std::fill(additive.begin() + 2 * S, additive.begin() + 3 * S, -std::numeric_limits<float>::infinity());
  }
  std::vector<uint8_t> boolean(draws.begin(), draws.end());
  const size_t query_tiles = (L + kQueryTile - 1) / kQueryTile;
  void (*const versions[])(const FlashAttention<T>&) = {flash_attention_plain<T>, flash_attention_fast<T>};
  for (const auto version : versions) {
    std::vector<T> out(B * H_q * L * D);
    std::vector<int32_t> tiles(B * H_q * query_tiles);
    FlashAttention<T> call{};
    call.query = {query.data(), H_q * L * D, L * D, D};
    call.key = {key.data(), H * S * D, S * D, D};
    call.value = {value.data(), H * S * D, S * D, D};
    call.out = out.data();
    call.B = B, call.H_q = H_q, call.H = H, call.L = L, call.S = S, call.D = D;
    call.scale = 0.25f;
    call.kind = kind;
    call.additive = additive.data();
    call.boolean = reinterpret_cast<const bool*>(boolean.data());
    call.mask_strides[2] = S, call.mask_strides[3] = 1;
    call.tiles = tiles.data();
    version(call);
    for (size_t row = 0; row < B * H_q * L; ++row) {
      const size_t b = row / L / H_q, h = row / L % H_q / (H_q / H), i = row % L;
      std::vector<double> weights(S);
      double sum = 0;
      for (size_t j = 0; j < S; ++j) {
        double score = 0;
        for (size_t d = 0; d < D; ++d) {
          score += static_cast<double>(static_cast<float>(query[row * D + d])) *
              static_cast<float>(key[((b * H + h) * S + j) * D + d]);
        }
        score *= 0.25;
        score += kind == MaskKind::additive ? static_cast<double>(additive[i * S + j]) : 0.0;
        const bool seen = kind == MaskKind::none || kind == MaskKind::additive ||
            (kind == MaskKind::causal ? j <= i + (S - L) : draws[i * S + j] != 0);
        weights[j] = seen ? std::exp(score) : 0.0;
        sum += weights[j];
      }
      for (size_t d = 0; d < D; ++d) {
        double want = 0;
        for (size_t j = 0; j < S; ++j) {
          want += sum > 0 ? weights[j] / sum * static_cast<float>(value[((b * H + h) * S + j) * D + d]) : 0.0;
        }
        require_near(out[row * D + d], want, 8.0, "flash_attention"); // values are of size 1 to 4
      }
    }
  }
}

template <typename T>
void check_flash_attentions() {
  for (auto kind : {MaskKind::none, MaskKind::causal, MaskKind::additive, MaskKind::boolean}) {
    check_flash_attention<T>(1, 2, 1, 1, 1, 32, kind);
    check_flash_attention<T>(1, 2, 2, 1, 67, 32, kind);
    check_flash_attention<T>(2, 4, 2, 5, 9, 64, kind);
    check_flash_attention<T>(1, 3, 1, 33, 70, 32, kind);
  }
}

// ---- the pool ----

void check_all_once(size_t chunks) {
  std::vector<std::atomic<int>> visits(chunks);
  parallel_for(chunks, [&](size_t i) { ++visits[i]; });
  require(std::all_of(visits.begin(), visits.end(), [](int n) { return n == 1; }), "parallel_for: each chunk once");
}

void check_exception() {
  bool told = false;
  try {
    parallel_for(50, [](size_t i) {
      if (i == 37) {
        throw std::runtime_error("37");
      }
    });
  } catch (const std::runtime_error& error) {
    told = std::string(error.what()) == "37";
  }
  require(told, "parallel_for: throws what a chunk throws");
}

void check_pool(bool may_fork) {
  require(thread_count() >= 1, "thread_count");
  for (size_t chunks : {0, 1, 2, 3, 100, 1000}) {
    check_all_once(chunks);
  }
  check_exception();
  check_all_once(10);
  std::vector<std::atomic<int>> inner(20);
  parallel_for(5, [&](size_t i) { parallel_for(4, [&](size_t j) { ++inner[4 * i + j]; }); });
  require(std::all_of(inner.begin(), inner.end(), [](int n) { return n == 1; }), "parallel_for: a call in a chunk");

  std::vector<std::thread> callers; // as two streams of MLX do
  for (int caller = 0; caller < 4; ++caller) {
    callers.emplace_back([] {
      for (int n = 0; n < 200; ++n) {
        check_all_once(n % 17);
      }
      check_exception();
    });
  }
  for (auto& caller : callers) {
    caller.join();
  }

  if (may_fork) {
    const pid_t child = fork();
    if (child == 0) {
      check_all_once(100);
      _exit(0);
    }
    int status = -1;
    waitpid(child, &status, 0);
    require(WIFEXITED(status) && WEXITSTATUS(status) == 0, "parallel_for after a fork");
  }
  check_all_once(100);
}

} // namespace

int main(int argc, char** argv) {
  check_pool(argc < 2 || std::string(argv[1]) != "no-fork");
  check_axpby<float>();
  check_axpby<bfloat16_t>();
  check_multiply_tile();
  check_quantized_matmuls<float>();
  check_quantized_matmuls<float16_t>();
  check_quantized_matmuls<bfloat16_t>();
  check_flash_attentions<float>();
  check_flash_attentions<bfloat16_t>();
  std::printf("all kernels and the pool: %d threads\n", thread_count());
}
