// What the operations share: the type of the numbers, and outputs that are watched.
#pragma once

#include <atomic>
#include <chrono>
#include <cmath>
#include <cstring>
#include <future>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "bodies.h"
#include "mlx/allocator.h"
#include "mlx/array.h"
#include "mlx/backend/cpu/encoder.h"
#include "mlx/ops.h"
#include "mlx/scheduler.h"

namespace tinyllm {

// Whether outputs are watched. The grader turns it on; it costs a copy of each output.
extern std::atomic<bool> watching_outputs; // bindings.cpp

// Whether a kernel threw since the last call of settle.
extern std::atomic<bool> a_kernel_threw; // bindings.cpp

// `task`, which runs a kernel, for CommandEncoder::dispatch. What it throws reaches mx.eval as a RuntimeError.
template <typename Task>
auto noted(Task&& task) {
  return [task = std::forward<Task>(task)]() {
    try {
      task();
    } catch (...) {
      a_kernel_threw = true;
      throw;
    }
  };
}

// Set MLX's count of running tasks right after a kernel threw. Every operation of ours begins with it.
//
// MLX 0.32.4 drops tasks that are queued behind one that throws, and with them, at times, the one that counts down.
// From ten tasks on mx.eval waits for one to end: a hundred calls of a kernel that is not written yet, and the
// next evaluation would wait for ever.
inline void settle(mlx::core::Stream stream) {
  if (!a_kernel_threw.exchange(false)) {
    return;
  }
  auto reached = std::make_shared<std::promise<void>>();
  auto waiting = reached->get_future();
  mlx::core::scheduler::enqueue(stream, [reached]() { reached->set_value(); });
  if (waiting.wait_for(std::chrono::milliseconds(100)) != std::future_status::ready) {
    a_kernel_threw = true; // this one was dropped as well: next time
    return;
  }
  while (mlx::core::scheduler::n_active_tasks() > 0) {
    mlx::core::scheduler::notify_task_completion(stream);
  }
}

// run(T{}) with T the C++ type of a dtype that is float32, float16 or bfloat16.
template <typename Run>
void with_type(mlx::core::Dtype dtype, const Run& run) {
  if (dtype == mlx::core::float32) {
    run(float{});
  } else if (dtype == mlx::core::float16) {
    run(float16_t{});
  } else {
    run(bfloat16_t{});
  }
}

// The numbers of x side by side, in order: its own where they are so already, else those of a copy that is made when
// the kernel's turn comes. Asked when x is computed, not when the graph is made: then it would take a node of the graph
// for each input, and a node costs microseconds.
template <typename T>
const T* in_order(const mlx::core::array& x, mlx::core::cpu::CommandEncoder& encoder) {
  if (x.flags().row_contiguous) {
    return x.data<T>();
  }
  mlx::core::array copy(x.shape(), x.dtype(), nullptr, {});
  copy.set_data(mlx::core::allocator::malloc(copy.nbytes()));
  encoder.add_temporary(copy);
  encoder.dispatch([from = x.data<T>(), to = copy.data<T>(), size = x.size(), shape = x.shape(), strides = x.strides()] {
    std::vector<int64_t> index(shape.size());
    int64_t place = 0; // of `index` in x
    for (size_t i = 0; i < size; ++i) {
      to[i] = from[place];
      for (size_t axis = shape.size(); axis-- > 0;) { // one on, as an odometer goes
        place += strides[axis];
        if (++index[axis] < shape[axis]) {
          break;
        }
        place -= index[axis] * strides[axis];
        index[axis] = 0;
      }
    }
  });
  return copy.data<T>();
}

inline bool is_supported(mlx::core::Dtype dtype) {
  return dtype == mlx::core::float32 || dtype == mlx::core::float16 || dtype == mlx::core::bfloat16;
}

// run(out), where out has room for `size` numbers. Watched, it gets other memory: filled with NaN, so that what it
// does not write shows, and with a margin on both sides, so that what it writes beside it is told, not suffered.
template <typename T, typename Run>
void watched(const char* kernel, T* out, size_t size, const Run& run) {
  if (!watching_outputs) {
    run(out);
    return;
  }
  constexpr size_t margin = 256; // numbers
  const T outside = static_cast<T>(-1234.5f);
  std::vector<T> room(size + 2 * margin, outside);
  std::fill(room.begin() + margin, room.end() - margin, static_cast<T>(NAN));
  run(room.data() + margin);
  for (size_t i = 0; i < margin; ++i) {
    if (std::memcmp(&room[i], &outside, sizeof(T)) != 0) {
      throw std::runtime_error(std::string(kernel) + " writes in front of its output");
    }
    if (std::memcmp(&room[size + margin + i], &outside, sizeof(T)) != 0) {
      throw std::runtime_error(
          std::string(kernel) + " writes behind its output: element " + std::to_string(size + i) + " of " +
          std::to_string(size));
    }
  }
  std::memcpy(static_cast<void*>(out), room.data() + margin, size * sizeof(T));
}

} // namespace tinyllm
