// Runs a kernel's body for every thread of a grid, on one thread of this machine.
//
// A threadgroup's threads are fibers: each has a stack, and runs until it has to wait for others. Threadgroups come
// one after another. Waiting is what a GPU does too, so a barrier or a SIMD operation that some threads never reach is
// seen as what it is: nobody can go on. Each byte of threadgroup memory remembers who touched it since which barrier.
#include "simulation.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <vector>

#if defined(TINYLLM_UCONTEXT) || !(defined(__x86_64__) || defined(__aarch64__))
#undef TINYLLM_UCONTEXT
#define TINYLLM_UCONTEXT 1
#include <ucontext.h>
#endif

namespace simulated {

State state;

namespace {

constexpr int LANES = 32;
constexpr size_t STACK = 128 * 1024;
constexpr size_t SHARED_LIMIT = 32 * 1024; // what Metal gives a threadgroup
constexpr uint16_t MANY = 0xffff;
constexpr uint64_t LINE = 128; // bytes that device memory moves at once
constexpr size_t REMEMBERED = 4096; // reads of a thread between two meetings of its SIMD-group

enum class Status { ready, at_barrier, in_simd, ended };

// What a report is about. Two reports of one kind at one line are one report that happened twice.
enum Kind {
  device_bounds,
  device_alignment,
  device_conflict,
  device_unwritten,
  shared_bounds,
  shared_unwritten,
  shared_race,
  shared_size,
  diverged_barrier,
  diverged_simd,
  never_written,
  device_const,
};

} // namespace

struct Thread {
  void* sp; // where its stack stands while it waits
  char* stack;
#if defined(TINYLLM_UCONTEXT)
  ucontext_t context;
#endif
  uint32_t index; // in its threadgroup
  uint32_t position[3]; // in its threadgroup
  Status status;
  int line; // where it waits
  SimdOperation operation;
  uint64_t word; // what it hands to the SIMD operation
  uint64_t read, written;
  std::vector<uint64_t> reads; // since its SIMD-group last met: the buffer's number and the line, in one word
};

namespace {

// What happened last to one byte of threadgroup memory. Times are numbers of barriers.
struct Trace {
  uint32_t wrote_at, read_at;
  uint16_t writer, reader; // a thread of the group, or MANY
  uint16_t reader_simd; // its SIMD-group, or MANY
  uint16_t writer_part, reader_part; // simdgroup_barriers passed by then
};

struct SimdGroup {
  uint64_t words[LANES];
  uint16_t part; // simdgroup_barriers passed
};

Body body;
Thread scheduler;
std::vector<Thread> threads;
std::vector<SimdGroup> simds;
uint32_t group_position[3];
uint32_t time_now, group_began;
alignas(16) char shared_memory[2 * SHARED_LIMIT];
Trace traces[2 * SHARED_LIMIT];
SharedArray arrays[64];
int array_count;
size_t shared_used;
bool stopped;

// ---- changing from one stack to another ----

#if defined(TINYLLM_UCONTEXT)
// One that the system brings, with a system call each time: for the processors that have none below.
#elif defined(__x86_64__)
extern "C" void tinyllm_switch(void** save, void* load) __asm__("tinyllm_switch");
__asm__(R"(
.text
tinyllm_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
)");
constexpr size_t FRAME = 64; // six registers, the address to return to, and the alignment a call expects
constexpr size_t RETURN = 48;
#elif defined(__aarch64__)
extern "C" void tinyllm_switch(void** save, void* load) __asm__("tinyllm_switch");
__asm__(R"(
.text
.align 2
tinyllm_switch:
  sub sp, sp, #160
  stp x19, x20, [sp, #0]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #0]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
)");
constexpr size_t FRAME = 160;
constexpr size_t RETURN = 88; // x30
#endif

void to_scheduler();

void enter() {
  body(state.launch->buffer, state.launch->scalars);
  state.now->status = Status::ended;
  to_scheduler();
}

#if !defined(TINYLLM_UCONTEXT)
void to_scheduler() { tinyllm_switch(&state.now->sp, scheduler.sp); }

void resume(Thread& thread) {
  state.now = &thread;
  tinyllm_switch(&scheduler.sp, thread.sp);
}

void prepare(Thread& thread) {
  char* frame = thread.stack + STACK - FRAME;
  memset(frame, 0, FRAME);
  void (*start)() = enter;
  memcpy(frame + RETURN, &start, sizeof(start));
  thread.sp = frame;
}
#else
void to_scheduler() { swapcontext(&state.now->context, &scheduler.context); }

void resume(Thread& thread) {
  state.now = &thread;
  swapcontext(&scheduler.context, &thread.context);
}

void prepare(Thread& thread) {
  getcontext(&thread.context);
  thread.context.uc_stack.ss_sp = thread.stack;
  thread.context.uc_stack.ss_size = STACK;
  thread.context.uc_link = nullptr;
  makecontext(&thread.context, enter, 0);
}
#endif

// ---- reports ----

// What the lanes of a SIMD-group have read since they last met: they read in step, so the first read of each is one
// request, the second the next, and a request costs as many lines as it touches.
void settle_reads(size_t first, size_t last) {
  size_t most = 0;
  for (size_t i = first; i < last; ++i) {
    most = threads[i].reads.size() > most ? threads[i].reads.size() : most;
  }
  for (size_t k = 0; k < most; ++k) {
    uint64_t seen[LANES];
    int count = 0;
    for (size_t i = first; i < last; ++i) {
      if (k < threads[i].reads.size()) {
        uint64_t line = threads[i].reads[k];
        int j = 0;
        while (j < count && seen[j] != line) {
          ++j;
        }
        if (j == count) {
          seen[count++] = line;
          ++state.launch->buffer[line >> 56].lines;
        }
      }
    }
  }
  for (size_t i = first; i < last; ++i) {
    threads[i].reads.clear();
  }
}

void settle_all_reads() {
  for (size_t first = 0; first < threads.size(); first += LANES) {
    settle_reads(first, first + LANES < threads.size() ? first + LANES : threads.size());
  }
}

// "thread (3, 0, 0) of threadgroup (1, 0, 0)", in one of a few buffers.
const char* name_of(uint32_t index) {
  static char texts[4][96];
  static int next;
  char* text = texts[next++ % 4];
  const uint32_t* p = threads[index].position;
  const uint32_t* g = group_position;
  snprintf(text, 96, "thread (%u, %u, %u) of threadgroup (%u, %u, %u)", p[0], p[1], p[2], g[0], g[1], g[2]);
  return text;
}

__attribute__((format(printf, 3, 4))) void tell(Kind kind, int line, const char* format, ...) {
  Launch& launch = *state.launch;
  for (uint32_t i = 0; i < launch.reports; ++i) {
    if (launch.report[i].kind == kind && launch.report[i].line == line) {
      ++launch.report[i].times;
      return;
    }
  }
  if (launch.reports == launch.capacity) {
    stopped = true;
    return;
  }
  Report& report = launch.report[launch.reports++];
  report.kind = kind;
  report.line = line;
  report.times = 1;
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(report.text, sizeof(report.text), format, arguments);
  va_end(arguments);
}

// "x[40]", or "x[40] to x[43]" for an access to several elements.
const char* elements(const Buffer& buffer, const char* address, size_t bytes) {
  static char text[160];
  int64_t offset = address - buffer.data;
  int64_t size = buffer.element;
  int64_t first = offset >= 0 ? offset / size : -((-offset + size - 1) / size);
  int64_t count = (static_cast<int64_t>(bytes) + size - 1) / size;
  if (count > 1) {
    snprintf(text, sizeof(text), "%s[%lld] to %s[%lld]", buffer.name, static_cast<long long>(first), buffer.name,
             static_cast<long long>(first + count - 1));
  } else {
    snprintf(text, sizeof(text), "%s[%lld]", buffer.name, static_cast<long long>(first));
  }
  return text;
}

bool device_allowed(Buffer& buffer, const char* address, size_t bytes, size_t alignment, const char* verb) {
  uint64_t offset = static_cast<uint64_t>(address - buffer.data); // negative ones become huge
  if (offset > buffer.bytes || bytes > buffer.bytes - offset) {
    tell(device_bounds, state.line, "%s %s %s, and %s has %llu elements", name_of(state.now->index), verb,
         elements(buffer, address, bytes), buffer.name,
         static_cast<unsigned long long>(buffer.bytes / buffer.element));
    return false;
  }
  if (offset % alignment != 0) {
    tell(device_alignment, state.line, "%s %s %s at once, which must begin at a multiple of %zu bytes",
         name_of(state.now->index), verb, elements(buffer, address, bytes), alignment);
    return false;
  }
  return true;
}

uint32_t number_of(const Thread& thread) { // in the whole grid, from 1
  const Launch& l = *state.launch;
  uint64_t groups_x = l.grid[0] / l.group[0];
  uint64_t groups_y = l.grid[1] / l.group[1];
  uint64_t group = (group_position[2] * groups_y + group_position[1]) * groups_x + group_position[0];
  return static_cast<uint32_t>(group * threads.size() + thread.index + 1);
}

bool shared_inside(SharedArray* array, const char* address, size_t bytes, const char* verb) {
  if (address == nullptr) { // an index before this one was reported
    return false;
  }
  uint64_t offset = static_cast<uint64_t>(address - array->address);
  if (offset > array->bytes || bytes > array->bytes - offset) {
    int64_t index = (address - array->address) / static_cast<int64_t>(array->element);
    tell(shared_bounds, state.line, "%s %s element %lld of the threadgroup array %s, which has %llu",
         name_of(state.now->index), verb, static_cast<long long>(index), array->name,
         static_cast<unsigned long long>(array->bytes / array->element));
    return false;
  }
  return true;
}

} // namespace

// ---- device memory ----

bool device_read(Buffer* buffer, const char* address, size_t bytes, size_t alignment) {
  buffer->read += bytes;
  state.now->read += bytes;
  if (!device_allowed(*buffer, address, bytes, alignment, "reads")) {
    return false;
  }
  if (state.now->reads.size() < REMEMBERED) {
    uint64_t number = static_cast<uint64_t>(buffer - state.launch->buffer);
    state.now->reads.push_back(number << 56 | static_cast<uint64_t>(address - buffer->data) / LINE);
  }
  if (buffer->output && buffer->writer[(address - buffer->data) / buffer->element] == 0) {
    tell(device_unwritten, state.line, "%s reads %s before any thread has written it", name_of(state.now->index),
         elements(*buffer, address, bytes));
  }
  return true;
}

void device_write(Buffer* buffer, char* address, const void* value, size_t bytes, size_t alignment) {
  buffer->written += bytes;
  state.now->written += bytes;
  if (!device_allowed(*buffer, address, bytes, alignment, "writes")) {
    return;
  }
  if (!buffer->output) {
    tell(device_const, state.line, "%s writes to the input %s", name_of(state.now->index), buffer->name);
    return;
  }
  uint32_t me = number_of(*state.now);
  size_t first = (address - buffer->data) / buffer->element;
  size_t last = (address - buffer->data + bytes - 1) / buffer->element;
  for (size_t i = first; i <= last; ++i) {
    uint32_t other = buffer->writer[i];
    if (other != 0 && other != me && memcmp(address, value, bytes) != 0) {
      tell(device_conflict, state.line,
           "%s writes %s, which another thread has written with another value: on a GPU either may come last",
           name_of(state.now->index), elements(*buffer, address, bytes));
    }
    buffer->writer[i] = me;
  }
  memcpy(address, value, bytes);
}

// ---- threadgroup memory ----

SharedArray* shared_declare(const char* name, int line, size_t bytes, size_t alignment, size_t element) {
  for (int i = 0; i < array_count; ++i) {
    if (arrays[i].name == name && arrays[i].line == line) {
      return &arrays[i];
    }
  }
  size_t start = (shared_used + alignment - 1) / alignment * alignment;
  if (start + bytes > SHARED_LIMIT || array_count == 64) {
    tell(shared_size, line, "with %s a threadgroup holds %zu bytes of threadgroup memory, and %zu is the most",
         name, start + bytes, SHARED_LIMIT);
    stopped = true;
    to_scheduler(); // and never back
  }
  arrays[array_count] = {name, line, shared_memory + start, bytes, static_cast<uint32_t>(element)};
  memset(shared_memory + start, 0xff, bytes);
  shared_used = start + bytes;
  if (shared_used > state.launch->shared_bytes) {
    state.launch->shared_bytes = shared_used;
  }
  return &arrays[array_count++];
}

bool shared_extent(SharedArray* array, int64_t index, int64_t count) {
  if (index >= 0 && index < count) {
    return true;
  }
  tell(shared_bounds, state.line, "%s uses index %lld of the threadgroup array %s, where there are %lld",
       name_of(state.now->index), static_cast<long long>(index), array->name, static_cast<long long>(count));
  return false;
}

bool shared_read(SharedArray* array, const char* address, size_t bytes) {
  if (!shared_inside(array, address, bytes, "reads")) {
    return false;
  }
  state.launch->shared_read += bytes;
  uint16_t me = static_cast<uint16_t>(state.now->index);
  uint16_t simd = me / LANES;
  uint16_t part = simds[simd].part;
  Trace* trace = &traces[address - shared_memory];
  for (size_t i = 0; i < bytes; ++i) {
    Trace& t = trace[i];
    if (t.wrote_at < group_began) {
      tell(shared_unwritten, state.line, "%s reads an element of %s that no thread has written yet",
           name_of(state.now->index), array->name);
      return true;
    }
    if (t.wrote_at == time_now && t.writer != me && !(t.writer / LANES == simd && t.writer_part < part)) {
      tell(shared_race, state.line, "%s reads what thread (%u, %u, %u) has written to %s, with no barrier between",
           name_of(me), threads[t.writer].position[0], threads[t.writer].position[1], threads[t.writer].position[2],
           array->name);
      break;
    }
    bool first = t.read_at != time_now;
    t.reader = first || t.reader == me ? me : MANY;
    t.reader_simd = first || t.reader_simd == simd ? simd : MANY;
    t.reader_part = part;
    t.read_at = time_now;
  }
  return true;
}

void shared_write(SharedArray* array, char* address, const void* value, size_t bytes) {
  if (!shared_inside(array, address, bytes, "writes")) {
    return;
  }
  state.launch->shared_written += bytes;
  uint16_t me = static_cast<uint16_t>(state.now->index);
  uint16_t simd = me / LANES;
  uint16_t part = simds[simd].part;
  Trace* trace = &traces[address - shared_memory];
  bool same = memcmp(address, value, bytes) == 0;
  for (size_t i = 0; i < bytes; ++i) {
    Trace& t = trace[i];
    bool other_wrote = t.wrote_at == time_now && t.writer != me && !(t.writer / LANES == simd && t.writer_part < part);
    if (other_wrote && !same) { // the same value twice is harmless
      tell(shared_race, state.line, "%s writes an element of %s that thread (%u, %u, %u) has written, with no barrier "
           "between", name_of(me), array->name, threads[t.writer].position[0], threads[t.writer].position[1],
           threads[t.writer].position[2]);
      break;
    }
    bool other_read = t.read_at == time_now && t.reader != me && !(t.reader_simd == simd && t.reader_part < part);
    if (other_read && t.wrote_at >= group_began && !same) {
      char who[48] = "other threads have";
      if (t.reader != MANY) {
        const uint32_t* p = threads[t.reader].position;
        snprintf(who, sizeof(who), "thread (%u, %u, %u) has", p[0], p[1], p[2]);
      }
      tell(shared_race, state.line, "%s writes an element of %s that %s read since the last barrier", name_of(me),
           array->name, who);
      break;
    }
  }
  for (size_t i = 0; i < bytes; ++i) {
    trace[i].wrote_at = time_now;
    trace[i].writer = me;
    trace[i].writer_part = part;
  }
  memcpy(address, value, bytes);
}

// ---- threads ----

void wait_at_barrier(int line) {
  state.now->status = Status::at_barrier;
  state.now->line = line;
  to_scheduler();
}

const uint64_t* simd_meet(SimdOperation operation, int line, uint64_t word) {
  Thread& me = *state.now;
  me.status = Status::in_simd;
  me.line = line;
  me.operation = operation;
  me.word = word;
  to_scheduler();
  return simds[me.index / LANES].words;
}

int current_lane() { return static_cast<int>(state.now->index % LANES); }

uint32_t index_in_group() { return state.now->index; }

uint32_t place(int which, int axis) {
  uint32_t inside = state.now->position[axis];
  if (which == 1) {
    return inside;
  }
  return which == 2 ? group_position[axis] : group_position[axis] * state.launch->group[axis] + inside;
}

namespace {

const char* name_of(SimdOperation operation) {
  static const char* names[] = {"simd_sum", "simd_max", "simd_min", "simd_broadcast", "simd_shuffle",
                                "simd_shuffle_xor", "simd_shuffle_down", "simd_shuffle_up", "simdgroup_barrier"};
  return names[static_cast<int>(operation)];
}

// Run the threads of a SIMD-group until each of them waits at a barrier, has ended, or is stuck.
void run_simd_group(size_t number) {
  size_t first = number * LANES;
  size_t last = first + LANES < threads.size() ? first + LANES : threads.size();
  for (;;) {
    for (size_t i = first; i < last && !stopped; ++i) {
      if (threads[i].status == Status::ready) {
        resume(threads[i]);
      }
    }
    size_t together = 0;
    const Thread& leader = threads[first];
    for (size_t i = first; i < last; ++i) {
      const Thread& t = threads[i];
      together += t.status == Status::in_simd && t.operation == leader.operation && t.line == leader.line;
    }
    if (stopped || together != LANES) {
      return;
    }
    ++state.launch->simd_operations;
    settle_reads(first, last);
    simds[number].part += leader.operation == SimdOperation::barrier;
    for (size_t i = first; i < last; ++i) {
      simds[number].words[i - first] = threads[i].word;
      threads[i].status = Status::ready;
    }
  }
}

// Say who waits where, of threads that cannot go on.
void tell_stuck() {
  size_t simd = threads.size();
  for (size_t i = 0; i < threads.size(); ++i) {
    if (threads[i].status == Status::in_simd) {
      simd = i;
      break;
    }
  }
  const Thread* waiting = nullptr;
  size_t first = 0, last = threads.size();
  if (simd < threads.size()) {
    waiting = &threads[simd];
    first = simd / LANES * LANES;
    last = first + LANES < threads.size() ? first + LANES : threads.size();
  } else {
    for (const Thread& t : threads) {
      if (t.status == Status::at_barrier) {
        waiting = &t;
        break;
      }
    }
  }
  size_t there = 0;
  const Thread* other = nullptr;
  for (size_t i = first; i < last; ++i) {
    const Thread& t = threads[i];
    if (t.status == waiting->status && t.line == waiting->line &&
        (t.status != Status::in_simd || t.operation == waiting->operation)) {
      ++there;
    } else if (other == nullptr) {
      other = &t;
    }
  }
  char elsewhere[160] = "";
  if (other != nullptr) {
    const uint32_t* p = other->position;
    if (other->status == Status::ended) {
      snprintf(elsewhere, sizeof(elsewhere), ": thread (%u, %u, %u) has ended", p[0], p[1], p[2]);
    } else {
      snprintf(elsewhere, sizeof(elsewhere), ": thread (%u, %u, %u) is at %s on line %d", p[0], p[1], p[2],
               other->status == Status::at_barrier ? "a barrier" : name_of(other->operation), other->line);
    }
  }
  if (waiting->status == Status::at_barrier) {
    tell(diverged_barrier, waiting->line,
         "%zu of the %zu threads of threadgroup (%u, %u, %u) reach this barrier, and all must%s", there,
         threads.size(), group_position[0], group_position[1], group_position[2], elsewhere);
  } else if (last - first < LANES && other == nullptr) {
    tell(diverged_simd, waiting->line, "%s needs whole SIMD-groups of %d, and a threadgroup has %zu threads",
         name_of(waiting->operation), LANES, threads.size());
  } else {
    tell(diverged_simd, waiting->line,
         "%zu of the %zu lanes of SIMD-group %zu of threadgroup (%u, %u, %u) reach this %s, and all must%s", there,
         last - first, first / LANES, group_position[0], group_position[1], group_position[2],
         name_of(waiting->operation), elsewhere);
  }
}

void run_group() {
  const Launch& launch = *state.launch;
  group_began = ++time_now;
  array_count = 0;
  shared_used = 0;
  for (size_t i = 0; i < threads.size(); ++i) {
    Thread& t = threads[i];
    t.index = static_cast<uint32_t>(i);
    t.position[0] = t.index % launch.group[0];
    t.position[1] = t.index / launch.group[0] % launch.group[1];
    t.position[2] = t.index / launch.group[0] / launch.group[1];
    t.status = Status::ready;
    t.read = t.written = 0;
    prepare(t);
  }
  while (!stopped) {
    for (size_t s = 0; s < simds.size() && !stopped; ++s) {
      run_simd_group(s);
    }
    if (stopped) {
      return;
    }
    size_t ended = 0, at_barrier = 0;
    for (const Thread& t : threads) {
      ended += t.status == Status::ended;
      at_barrier += t.status == Status::at_barrier && t.line == threads[0].line;
    }
    settle_all_reads();
    if (ended == threads.size()) {
      break;
    }
    if (at_barrier != threads.size()) {
      tell_stuck();
      stopped = true;
      return;
    }
    ++state.launch->barriers;
    ++time_now;
    for (Thread& t : threads) {
      t.status = Status::ready;
    }
  }
  for (const Thread& t : threads) {
    state.launch->most_read = t.read > state.launch->most_read ? t.read : state.launch->most_read;
    state.launch->most_written = t.written > state.launch->most_written ? t.written : state.launch->most_written;
  }
}

void tell_never_written(const Buffer& buffer) {
  uint64_t count = buffer.bytes / buffer.element, missing = 0, first = 0;
  for (uint64_t i = 0; i < count; ++i) {
    if (buffer.writer[i] == 0 && missing++ == 0) {
      first = i;
    }
  }
  if (missing != 0) {
    tell(never_written, 0, "%llu of the %llu elements of %s are never written, %s[%llu] first",
         static_cast<unsigned long long>(missing), static_cast<unsigned long long>(count), buffer.name, buffer.name,
         static_cast<unsigned long long>(first));
  }
}

} // namespace

void run(Launch* launch, Body kernel) {
  state = {0, nullptr, launch};
  body = kernel;
  stopped = false;
  time_now = 0;
  memset(traces, 0, sizeof(traces));
  size_t count = static_cast<size_t>(launch->group[0]) * launch->group[1] * launch->group[2];
  threads.assign(count, Thread{});
  simds.assign((count + LANES - 1) / LANES, SimdGroup{});
  void* stacks = mmap(nullptr, count * STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANON, -1, 0);
  if (stacks == MAP_FAILED) {
    tell(shared_size, 0, "there is no memory for the stacks of %zu threads", count);
    return;
  }
  for (size_t i = 0; i < count; ++i) {
    threads[i].stack = static_cast<char*>(stacks) + i * STACK;
  }
  for (uint32_t z = 0; z < launch->grid[2] / launch->group[2] && !stopped; ++z) {
    for (uint32_t y = 0; y < launch->grid[1] / launch->group[1] && !stopped; ++y) {
      for (uint32_t x = 0; x < launch->grid[0] / launch->group[0] && !stopped; ++x) {
        group_position[0] = x;
        group_position[1] = y;
        group_position[2] = z;
        run_group();
      }
    }
  }
  munmap(stacks, count * STACK);
  if (!stopped && launch->reports == 0) {
    for (uint32_t i = 0; i < launch->buffers; ++i) {
      if (launch->buffer[i].output) {
        tell_never_written(launch->buffer[i]);
      }
    }
  }
}

} // namespace simulated
