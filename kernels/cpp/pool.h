// Work shared out over a few threads.
#pragma once

#include <cstddef>

namespace tinyllm {

namespace detail {
void run(size_t chunks, void (*call)(const void*, size_t), const void* work);
}

// work(0), work(1), ... work(chunks - 1), each once, in no particular order, on as many threads as TINYLLM_THREADS
// says (all processors if it is not set). Returns when all are done; if one throws, throws that.
//
// Chunks are claimed one by one: a thread that is held up by another program holds up one chunk, not a half of
// the work. Cut the work by its size alone, and let every output belong to one chunk: then the result is the
// same to the bit for any number of threads. A call from within a chunk, or while another stream's call is
// running, is done by the calling thread alone.
template <typename Work>
void parallel_for(size_t chunks, const Work& work) {
  detail::run(
      chunks, [](const void* w, size_t chunk) { (*static_cast<const Work*>(w))(chunk); }, &work);
}

// How many threads share the work, the caller's included.
int thread_count();

// Chunks of all calls so far, also of those that the calling thread did alone. A test counts with it.
size_t chunks_so_far();

} // namespace tinyllm
