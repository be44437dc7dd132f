// What a kernel's body is compiled against in the simulator: Metal's names on checked memory.
//
// Every access to device and threadgroup memory goes through a small object that knows its buffer; it counts, and it
// reports what a GPU would do silently. The line of an access comes from the index: a default argument in the
// constructor of Index is evaluated where the index is written. runtime.cpp holds the threads.
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <type_traits>
#include <utility>

#include "simulation.h"

namespace simulated {

using uint = unsigned int;
using ushort = unsigned short;
using uchar = unsigned char;

// ---- 16-bit numbers ----

struct HalfFormat {
  static float wide(uint16_t bits);
  static uint16_t narrow(float value);
};

struct BfloatFormat {
  static float wide(uint16_t bits) {
    uint32_t word = static_cast<uint32_t>(bits) << 16;
    float value;
    memcpy(&value, &word, 4);
    return value;
  }
  static uint16_t narrow(float value) {
    uint32_t word;
    memcpy(&word, &value, 4);
    if ((word & 0x7fffffffu) > 0x7f800000u) {
      return static_cast<uint16_t>(word >> 16 | 0x40);
    }
    return static_cast<uint16_t>((word + 0x7fff + (word >> 16 & 1)) >> 16);
  }
};

// A number of 16 bits: arithmetic between two of them is rounded to 16 bits, with a float it is float.
template <typename Format>
struct Small {
  uint16_t bits;
  Small() = default;
  template <typename N, typename = std::enable_if_t<std::is_arithmetic_v<N>>>
  Small(N value) : bits(Format::narrow(static_cast<float>(value))) {}
  template <typename Other, typename = std::enable_if_t<!std::is_same_v<Other, Format>>>
  explicit Small(Small<Other> other) : bits(Format::narrow(static_cast<float>(other))) {}
  operator float() const { return Format::wide(bits); }
  template <typename N>
  Small& operator+=(N other) { return *this = Small(static_cast<float>(*this) + static_cast<float>(other)); }
  template <typename N>
  Small& operator-=(N other) { return *this = Small(static_cast<float>(*this) - static_cast<float>(other)); }
  template <typename N>
  Small& operator*=(N other) { return *this = Small(static_cast<float>(*this) * static_cast<float>(other)); }
  template <typename N>
  Small& operator/=(N other) { return *this = Small(static_cast<float>(*this) / static_cast<float>(other)); }
};

#define TINYLLM_SMALL(sign)                                                                        \
  template <typename F>                                                                            \
  Small<F> operator sign(Small<F> a, Small<F> b) {                                                 \
    return Small<F>(static_cast<float>(a) sign static_cast<float>(b));                             \
  }
TINYLLM_SMALL(+)
TINYLLM_SMALL(-)
TINYLLM_SMALL(*)
TINYLLM_SMALL(/)
#undef TINYLLM_SMALL

using half = Small<HalfFormat>;
using bfloat = Small<BfloatFormat>;
using float16_t = half;
using bfloat16_t = bfloat;

inline float HalfFormat::wide(uint16_t bits) {
  uint32_t sign = static_cast<uint32_t>(bits & 0x8000) << 16;
  uint32_t magnitude = bits & 0x7fff;
  uint32_t word;
  if (magnitude >= 0x7c00) {
    word = sign | 0x7f800000u | (magnitude & 0x3ff) << 13;
  } else {
    // A float with the same bits, moved, is 2^112 too small; multiplying also puts subnormal numbers right.
    uint32_t moved = magnitude << 13;
    float value;
    memcpy(&value, &moved, 4);
    value *= 0x1p112f;
    memcpy(&word, &value, 4);
    word |= sign;
  }
  float value;
  memcpy(&value, &word, 4);
  return value;
}

inline uint16_t HalfFormat::narrow(float value) {
  uint32_t word;
  memcpy(&word, &value, 4);
  uint16_t sign = static_cast<uint16_t>(word >> 16 & 0x8000);
  word &= 0x7fffffffu;
  if (word > 0x7f800000u) {
    return sign | 0x7e00;
  }
  if (word >= 0x477ff000u) { // rounds to 65536 or more
    return sign | 0x7c00;
  }
  if (word < 0x38800000u) { // below 2^-14: adding a half puts the rounding where a subnormal number's last bit is
    float magnitude;
    memcpy(&magnitude, &word, 4);
    magnitude += 0.5f;
    memcpy(&word, &magnitude, 4);
    return static_cast<uint16_t>(sign | (word - 0x3f000000u));
  }
  return static_cast<uint16_t>(sign | ((word - 0x38000000u + 0xfff + (word >> 13 & 1)) >> 13));
}

#define TINYLLM_FN inline
#include "vectors.h"
#undef TINYLLM_FN

// ---- memory ----

// An index, and with it the line on which it was written.
struct Index {
  int64_t value;
  template <typename N, typename = std::enable_if_t<std::is_convertible_v<N, int64_t>>>
  Index(N n, int line = __builtin_LINE()) : value(static_cast<int64_t>(n)) {
    state.line = line;
  }
};

// Bits that are NaN in every floating type: what a read gives that may not be made.
template <typename T>
T poison() {
  T value;
  memset(static_cast<void*>(&value), 0xff, sizeof(T));
  return value;
}

template <typename T>
T load(const char* address, Buffer* buffer) {
  return device_read(buffer, address, sizeof(T), alignof(T)) ? *reinterpret_cast<const T*>(address) : poison<T>();
}

template <typename T>
T load_shared(char* address, SharedArray* array) {
  return shared_read(array, address, sizeof(T)) ? *reinterpret_cast<const T*>(address) : poison<T>();
}

// An element that can be written, in device memory (Home is Buffer) or threadgroup memory (SharedArray).
template <typename T, typename Home>
struct Element {
  using value_type = T;
  char* address;
  Home* home;

  operator T() const {
    if constexpr (std::is_same_v<Home, Buffer>) {
      return load<T>(address, home);
    } else {
      return load_shared<T>(address, home);
    }
  }
  const Element& operator=(T value) const {
    if constexpr (std::is_same_v<Home, Buffer>) {
      device_write(home, address, &value, sizeof(T), alignof(T));
    } else {
      shared_write(home, address, &value, sizeof(T));
    }
    return *this;
  }
  const Element& operator=(const Element& other) const { return *this = static_cast<T>(other); }
  Element(const Element&) = default;
  Element(char* address, Home* home) : address(address), home(home) {}
  template <typename U>
  const Element& operator+=(U other) const { return *this = static_cast<T>(static_cast<T>(*this) + other); }
  template <typename U>
  const Element& operator-=(U other) const { return *this = static_cast<T>(static_cast<T>(*this) - other); }
  template <typename U>
  const Element& operator*=(U other) const { return *this = static_cast<T>(static_cast<T>(*this) * other); }
  template <typename U>
  const Element& operator/=(U other) const { return *this = static_cast<T>(static_cast<T>(*this) / other); }
};

template <typename T>
struct IsElement : std::false_type {};
template <typename T, typename Home>
struct IsElement<Element<T, Home>> : std::true_type {};

template <typename T>
T value_of(T value) { return value; }
template <typename T, typename Home>
T value_of(const Element<T, Home>& element) { return static_cast<T>(element); }

// Arithmetic with elements is arithmetic with their values.
#define TINYLLM_ELEMENT(sign)                                                                      \
  template <typename A, typename B, typename = std::enable_if_t<IsElement<A>::value || IsElement<B>::value>> \
  auto operator sign(const A& a, const B& b) {                                                     \
    return value_of(a) sign value_of(b);                                                           \
  }
TINYLLM_ELEMENT(+)
TINYLLM_ELEMENT(-)
TINYLLM_ELEMENT(*)
TINYLLM_ELEMENT(/)
#undef TINYLLM_ELEMENT

// A pointer into device memory.
template <typename T>
struct Device {
  using Plain = std::remove_const_t<T>;
  char* address = nullptr;
  Buffer* buffer = nullptr;

  Device() = default;
  Device(char* address, Buffer* buffer) : address(address), buffer(buffer) {}
  template <typename U, typename = std::enable_if_t<std::is_same_v<const U, T>>>
  Device(Device<U> other) : address(other.address), buffer(other.buffer) {}
  template <typename U, typename = std::enable_if_t<!std::is_same_v<const U, T>>, typename = void>
  explicit Device(Device<U> other) : address(other.address), buffer(other.buffer) {
    static_assert(std::is_const_v<T> || !std::is_const_v<U>, "a pointer to const device memory loses its const");
  }

  // A read for a pointer to const, and something to write to for any other.
  auto operator[](Index i) const {
    char* at = address + i.value * static_cast<int64_t>(sizeof(T));
    if constexpr (std::is_const_v<T>) {
      return load<Plain>(at, buffer);
    } else {
      return Element<T, Buffer>(at, buffer);
    }
  }
  auto operator*() const { return (*this)[Index(0, state.line)]; }
  Device operator+(Index i) const { return {address + i.value * static_cast<int64_t>(sizeof(T)), buffer}; }
  Device operator-(Index i) const { return {address - i.value * static_cast<int64_t>(sizeof(T)), buffer}; }
  Device& operator+=(Index i) { return *this = *this + i; }
  Device& operator-=(Index i) { return *this = *this - i; }
  Device& operator++() { return *this = *this + Index(1, state.line); }
  Device operator++(int) { Device old = *this; ++*this; return old; }
};

// A pointer into threadgroup memory.
template <typename T>
struct Group {
  using Plain = std::remove_const_t<T>;
  char* address = nullptr;
  SharedArray* array = nullptr;

  Group() = default;
  Group(char* address, SharedArray* array) : address(address), array(array) {}
  template <typename U, typename = std::enable_if_t<std::is_same_v<const U, T>>>
  Group(Group<U> other) : address(other.address), array(other.array) {}
  template <typename U, typename = std::enable_if_t<!std::is_same_v<const U, T>>, typename = void>
  explicit Group(Group<U> other) : address(other.address), array(other.array) {}

  auto operator[](Index i) const {
    char* at = address + i.value * static_cast<int64_t>(sizeof(T));
    if constexpr (std::is_const_v<T>) {
      return load_shared<Plain>(at, array);
    } else {
      return Element<T, SharedArray>(at, array);
    }
  }
  auto operator*() const { return (*this)[Index(0, state.line)]; }
  Group operator+(Index i) const { return {address + i.value * static_cast<int64_t>(sizeof(T)), array}; }
  Group operator-(Index i) const { return {address - i.value * static_cast<int64_t>(sizeof(T)), array}; }
  Group& operator+=(Index i) { return *this = *this + i; }
  Group& operator++() { return *this = *this + Index(1, state.line); }
  Group operator++(int) { Group old = *this; ++*this; return old; }
};

// `threadgroup float tile[16][17]`. Each extent is checked on its own: tile[0][17] is not tile[1][0].
template <typename A>
struct Extent : Group<std::remove_all_extents_t<A>> {
  using T = std::remove_all_extents_t<A>;
  using Group<T>::Group;
  static constexpr int64_t count = std::extent_v<A>;
  using Row = std::remove_extent_t<A>;

  auto operator[](Index i) const {
    bool inside = shared_extent(this->array, i.value, count);
    char* at = inside ? this->address + i.value * static_cast<int64_t>(sizeof(Row)) : nullptr;
    if constexpr (std::is_array_v<Row>) {
      return Extent<Row>(at, this->array);
    } else {
      return Element<T, SharedArray>(at, this->array);
    }
  }
};

template <typename A>
struct Shared : Extent<A> {
  Shared(const char* name, int line)
      : Extent<A>(nullptr, shared_declare(name, line, sizeof(A), alignof(A), sizeof(std::remove_all_extents_t<A>))) {
    this->address = this->array->address;
  }
};

// `threadgroup float total`
template <typename T>
struct SharedOne : Element<T, SharedArray> {
  using Element<T, SharedArray>::operator=;
  SharedOne(const char* name, int line)
      : Element<T, SharedArray>(nullptr, shared_declare(name, line, sizeof(T), alignof(T), sizeof(T))) {
    this->address = this->home->address;
  }
  Group<T> operator&() const { return {this->address, this->home}; }
};

// ---- threads that wait for one another ----

enum class mem_flags { mem_none, mem_device, mem_threadgroup, mem_texture };

inline void threadgroup_barrier(mem_flags, int line = __builtin_LINE()) { wait_at_barrier(line); }
inline void simdgroup_barrier(mem_flags, int line = __builtin_LINE()) { simd_meet(SimdOperation::barrier, line, 0); }

constexpr int LANES = 32;

// All lanes hand in a value; each then gets to see the values of all.
template <typename T>
const T* all_lanes(SimdOperation operation, T value, int line) {
  static_assert(sizeof(T) <= sizeof(uint64_t));
  uint64_t word = 0;
  memcpy(&word, &value, sizeof(T));
  const uint64_t* words = simd_meet(operation, line, word);
  static T values[LANES];
  for (int lane = 0; lane < LANES; ++lane) {
    memcpy(static_cast<void*>(&values[lane]), &words[lane], sizeof(T));
  }
  return values;
}

template <typename A>
using ValueOf = decltype(value_of(std::declval<const A&>()));

template <typename A>
ValueOf<A> simd_sum(const A& value, int line = __builtin_LINE()) {
  const auto* v = all_lanes(SimdOperation::sum, value_of(value), line);
  // In pairs, as the hardware adds.
  ValueOf<A> part[LANES];
  for (int i = 0; i < LANES; ++i) {
    part[i] = v[i];
  }
  for (int step = LANES / 2; step > 0; step /= 2) {
    for (int i = 0; i < step; ++i) {
      part[i] = part[i] + part[i + step];
    }
  }
  return part[0];
}

template <typename A>
ValueOf<A> simd_max(const A& value, int line = __builtin_LINE()) {
  const auto* v = all_lanes(SimdOperation::max, value_of(value), line);
  ValueOf<A> best = v[0];
  for (int i = 1; i < LANES; ++i) {
    best = best < v[i] || best != best ? v[i] : best;
  }
  return best;
}

template <typename A>
ValueOf<A> simd_min(const A& value, int line = __builtin_LINE()) {
  const auto* v = all_lanes(SimdOperation::min, value_of(value), line);
  ValueOf<A> best = v[0];
  for (int i = 1; i < LANES; ++i) {
    best = v[i] < best || best != best ? v[i] : best;
  }
  return best;
}

// The value of a lane, or poison where there is no such lane: Metal leaves it undefined.
template <typename T>
T of_lane(const T* values, int lane) {
  return lane >= 0 && lane < LANES ? values[lane] : poison<T>();
}

template <typename A>
ValueOf<A> simd_shuffle(const A& value, ushort lane, int line = __builtin_LINE()) {
  return of_lane(all_lanes(SimdOperation::shuffle, value_of(value), line), lane);
}
template <typename A>
ValueOf<A> simd_broadcast(const A& value, ushort lane, int line = __builtin_LINE()) {
  return of_lane(all_lanes(SimdOperation::broadcast, value_of(value), line), lane);
}
template <typename A>
ValueOf<A> simd_shuffle_xor(const A& value, ushort mask, int line = __builtin_LINE()) {
  return of_lane(all_lanes(SimdOperation::shuffle_xor, value_of(value), line), current_lane() ^ mask);
}
template <typename A>
ValueOf<A> simd_shuffle_down(const A& value, ushort delta, int line = __builtin_LINE()) {
  return of_lane(all_lanes(SimdOperation::shuffle_down, value_of(value), line), current_lane() + delta);
}
template <typename A>
ValueOf<A> simd_shuffle_up(const A& value, ushort delta, int line = __builtin_LINE()) {
  return of_lane(all_lanes(SimdOperation::shuffle_up, value_of(value), line), current_lane() - delta);
}

// ---- mathematics ----

#define INFINITY __builtin_inff()
#define NAN __builtin_nanf("")
#define M_PI_F 3.14159265358979323846f

#define TINYLLM_MATHS(name) \
  inline float name(float x) { return __builtin_##name##f(x); }
TINYLLM_MATHS(exp)
TINYLLM_MATHS(exp2)
TINYLLM_MATHS(log)
TINYLLM_MATHS(log2)
TINYLLM_MATHS(sqrt)
TINYLLM_MATHS(tanh)
TINYLLM_MATHS(sin)
TINYLLM_MATHS(cos)
TINYLLM_MATHS(floor)
TINYLLM_MATHS(ceil)
TINYLLM_MATHS(round)
TINYLLM_MATHS(rint)
TINYLLM_MATHS(trunc)
TINYLLM_MATHS(fabs)
#undef TINYLLM_MATHS
inline float rsqrt(float x) { return 1.0f / __builtin_sqrtf(x); }
inline float pow(float x, float y) { return __builtin_powf(x, y); }
inline float fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
inline bool isnan(float x) { return __builtin_isnan(x); }
inline bool isinf(float x) { return __builtin_isinf(x); }
inline bool isfinite(float x) { return __builtin_isfinite(x); }

#define TINYLLM_MINMAX(T)                              \
  inline T min(T a, T b) { return b < a ? b : a; }     \
  inline T max(T a, T b) { return a < b ? b : a; }     \
  inline T clamp(T x, T low, T high) { return min(max(x, low), high); }
TINYLLM_MINMAX(int)
TINYLLM_MINMAX(uint)
TINYLLM_MINMAX(half)
TINYLLM_MINMAX(bfloat)
#undef TINYLLM_MINMAX
// The one that is no NaN, as Metal and CUDA have it.
inline float min(float a, float b) { return __builtin_fminf(a, b); }
inline float max(float a, float b) { return __builtin_fmaxf(a, b); }
inline float clamp(float x, float low, float high) { return min(max(x, low), high); }
inline float abs(float x) { return __builtin_fabsf(x); }
inline int abs(int x) { return x < 0 ? -x : x; }

template <typename T>
T select(T otherwise, T chosen, bool choose) { return choose ? chosen : otherwise; }

template <typename To, typename From>
To as_type(From value) {
  static_assert(sizeof(To) == sizeof(From), "as_type keeps the size");
  To result;
  memcpy(static_cast<void*>(&result), &value, sizeof(To));
  return result;
}

namespace fast {
using simulated::exp;
using simulated::exp2;
using simulated::log;
using simulated::log2;
using simulated::rsqrt;
using simulated::sqrt;
using simulated::tanh;
using simulated::sin;
using simulated::cos;
using simulated::pow;
using simulated::max;
using simulated::min;
} // namespace fast
namespace precise = fast;

} // namespace simulated

// ---- positions: the body's own names for them are declared where it begins ----

namespace simulated::at {

inline uint3 of(int which) { return {place(which, 0), place(which, 1), place(which, 2)}; }
inline uint3 thread_position_in_grid() { return of(0); }
inline uint3 thread_position_in_threadgroup() { return of(1); }
inline uint3 threadgroup_position_in_grid() { return of(2); }
inline uint3 threads_per_threadgroup() { return {state.launch->group[0], state.launch->group[1], state.launch->group[2]}; }
inline uint3 threads_per_grid() { return {state.launch->grid[0], state.launch->grid[1], state.launch->grid[2]}; }
inline uint3 threadgroups_per_grid() { return threads_per_grid() / threads_per_threadgroup(); }
inline uint thread_index_in_threadgroup() { return index_in_group(); }
inline uint thread_index_in_simdgroup() { return index_in_group() % LANES; }
inline uint simdgroup_index_in_threadgroup() { return index_in_group() / LANES; }
inline uint threads_per_simdgroup() { return LANES; }
inline uint simdgroups_per_threadgroup() {
  uint3 n = threads_per_threadgroup();
  return (n.x * n.y * n.z + LANES - 1) / LANES;
}

} // namespace simulated::at
