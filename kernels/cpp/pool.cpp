// The threads behind parallel_for: started at its first use, woken by each call, gone with the process.
#include "pool.h"

#include <pthread.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <exception>
#include <mutex>
#include <new>
#include <thread>
#include <utility>

namespace tinyllm {

namespace {

constexpr int kSpins = 2000; // looks for work before a thread gives way: some tens of microseconds
constexpr int kYields = 1000; // and times that it gives way before it sleeps: longer than from one kernel to the next

int chosen_threads() {
  if (const char* text = std::getenv("TINYLLM_THREADS")) {
    if (int given = std::atoi(text); given > 0) {
      return std::min(given, 64);
    }
  }
  return std::clamp(static_cast<int>(std::thread::hardware_concurrency()), 1, 64);
}

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

thread_local bool inside_a_chunk = false;

std::atomic<size_t> all_chunks{0};

class Pool {
 public:
  explicit Pool(int threads) : threads_(threads) {
    for (int i = 1; i < threads_; ++i) {
      std::thread([this] { help(); }).detach(); // they live as long as the process
    }
  }

  int threads() const {
    return threads_;
  }

  // True if all of it was done; false if the pool is busy with another thread's work, and nothing was done.
  bool try_run(uint32_t chunks, void (*call)(const void*, size_t), const void* work) {
    std::unique_lock<std::mutex> lock(busy_, std::try_to_lock);
    if (!lock.owns_lock()) {
      return false;
    }
    call_.store(call, std::memory_order_relaxed);
    work_.store(work, std::memory_order_relaxed);
    chunks_.store(chunks, std::memory_order_relaxed);
    done_.store(0, std::memory_order_relaxed);
    const uint32_t round = round_.load(std::memory_order_relaxed) + 1;
    ticket_.store(uint64_t{round} << 32, std::memory_order_release);
    round_.store(round, std::memory_order_release);
    round_.notify_all();
    claim(round);
    for (int looks = 0; done_.load(std::memory_order_acquire) < chunks; ++looks) {
      looks < kSpins ? pause() : std::this_thread::yield();
    }
    if (failed_) { // handed over: the pool keeps nothing that another caller would free
      std::rethrow_exception(std::exchange(failed_, nullptr));
    }
    return true;
  }

 private:
  // Do chunks of this round until none is left.
  //
  // The ticket holds the round and the next chunk in one number. A thread that was held up between reading it and
  // claiming finds another number there and claims nothing, so it cannot run a chunk of work that has ended.
  void claim(uint32_t round) {
    uint64_t ticket = ticket_.load(std::memory_order_acquire);
    while (ticket >> 32 == round) {
      const auto chunk = static_cast<uint32_t>(ticket);
      const auto call = call_.load(std::memory_order_relaxed);
      const auto work = work_.load(std::memory_order_relaxed);
      if (chunk >= chunks_.load(std::memory_order_relaxed)) {
        return;
      }
      if (!ticket_.compare_exchange_weak(ticket, ticket + 1, std::memory_order_acq_rel)) {
        continue;
      }
      inside_a_chunk = true;
      try {
        call(work, chunk);
      } catch (...) {
        std::lock_guard<std::mutex> lock(failure_);
        if (!failed_) {
          failed_ = std::current_exception();
        }
      }
      inside_a_chunk = false;
      done_.fetch_add(1, std::memory_order_acq_rel);
      ticket = ticket_.load(std::memory_order_acquire);
    }
  }

  [[noreturn]] void help() {
    uint32_t seen = 0;
    for (;;) {
      uint32_t round = round_.load(std::memory_order_acquire);
      for (int looks = 0; round == seen; ++looks) {
        if (looks < kSpins) {
          pause();
        } else if (looks < kSpins + kYields) {
          std::this_thread::yield();
        } else {
          round_.wait(seen, std::memory_order_acquire);
        }
        round = round_.load(std::memory_order_acquire);
      }
      seen = round;
      claim(round);
    }
  }

  const int threads_;
  std::mutex busy_; // held by the thread whose work it is
  std::atomic<uint32_t> round_{0}; // counts the calls; what sleeping threads wait for
  std::atomic<uint64_t> ticket_{0}; // the round, and in the low half the next chunk
  std::atomic<uint32_t> chunks_{0}, done_{0};
  std::atomic<void (*)(const void*, size_t)> call_{nullptr};
  std::atomic<const void*> work_{nullptr};
  std::mutex failure_;
  std::exception_ptr failed_;
};

// After a fork the child has the pool's memory and none of its threads: it gets a pool of its own.
Pool& pool() {
  static std::mutex making;
  static Pool* made = nullptr;
  static pid_t maker = 0;
  static const bool once = [] {
    return pthread_atfork(nullptr, nullptr, [] { new (&making) std::mutex; }) == 0;
  }();
  (void)once;
  std::lock_guard<std::mutex> lock(making);
  if (!made || maker != getpid()) {
    made = new Pool(chosen_threads()); // never freed: its threads may outlive every static
    maker = getpid();
  }
  return *made;
}

} // namespace

int thread_count() {
  return pool().threads();
}

size_t chunks_so_far() {
  return all_chunks;
}

namespace detail {

void run(size_t chunks, void (*call)(const void*, size_t), const void* work) {
  all_chunks += chunks;
  if (chunks > 1 && !inside_a_chunk) {
    Pool& shared = pool();
    if (shared.threads() > 1 && shared.try_run(static_cast<uint32_t>(chunks), call, work)) {
      return;
    }
  }
  for (size_t chunk = 0; chunk < chunks; ++chunk) {
    call(work, chunk);
  }
}

} // namespace detail

} // namespace tinyllm
