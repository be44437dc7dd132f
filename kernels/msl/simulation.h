// Between a kernel's body (simulator.h) and what runs it (runtime.cpp), and between that and Python: plain structs.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace simulated {

// ---- what Python hands over and reads back; gpu_simulator.py has the same fields in the same order ----

struct Buffer {
  const char* name;
  char* data;
  uint64_t bytes;
  uint32_t element; // bytes of one
  uint32_t output;
  uint64_t read; // bytes, by all threads
  uint64_t written;
  uint64_t lines; // of 128 bytes, that SIMD-groups had to fetch to read from it
  uint32_t* writer; // of each element of an output: 1 + the thread's number, 0 for none
};

struct Report {
  int32_t line;
  int32_t kind;
  int32_t times;
  char text[384];
};

struct Launch {
  uint32_t grid[3]; // threads
  uint32_t group[3];
  uint32_t buffers;
  Buffer* buffer;
  const uint32_t* scalars; // their bits
  uint32_t capacity; // of report
  uint32_t reports;
  Report* report;
  uint64_t most_read, most_written; // bytes of device memory, by the busiest thread
  uint64_t shared_bytes; // a threadgroup's memory
  uint64_t shared_read, shared_written;
  uint64_t barriers, simd_operations;
};

// ---- threads and memory, in runtime.cpp ----

struct SharedArray {
  const char* name;
  int line;
  char* address;
  uint64_t bytes;
  uint32_t element;
};

struct Thread;

struct State {
  int line; // of the access that is being made
  Thread* now;
  Launch* launch;
};
extern State state;

enum class SimdOperation { sum, max, min, broadcast, shuffle, shuffle_xor, shuffle_down, shuffle_up, barrier };

bool device_read(Buffer* buffer, const char* address, size_t bytes, size_t alignment);
void device_write(Buffer* buffer, char* address, const void* value, size_t bytes, size_t alignment);

SharedArray* shared_declare(const char* name, int line, size_t bytes, size_t alignment, size_t element);
bool shared_extent(SharedArray* array, int64_t index, int64_t count);
bool shared_read(SharedArray* array, const char* address, size_t bytes);
void shared_write(SharedArray* array, char* address, const void* value, size_t bytes);

void wait_at_barrier(int line);
const uint64_t* simd_meet(SimdOperation operation, int line, uint64_t word);
int current_lane();

// Where the running thread is: 0 in the grid, 1 in its threadgroup, 2 its threadgroup in the grid.
uint32_t place(int which, int axis);
uint32_t index_in_group();

using Body = void (*)(Buffer* buffers, const uint32_t* scalars);
void run(Launch* launch, Body body);

} // namespace simulated
