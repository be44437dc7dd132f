// Vectors of numbers that the processor computes with at once: four, eight or sixteen, by the machine.
//
// These are the vector types of GCC and Clang: + - * / & >> work lane by lane, on x86-64 and ARM alike.
#pragma once

#include <cstdint>
#include <cstring>

namespace tinyllm {

namespace detail {

template <int W>
struct Types;

// Spelled out, because GCC takes no template argument as a vector's size.
#define TINYLLM_VECTOR_TYPES(W)                                  \
  template <>                                                    \
  struct Types<W> {                                              \
    typedef float Floats __attribute__((vector_size(4 * W)));    \
    typedef int32_t Ints __attribute__((vector_size(4 * W)));    \
    typedef uint32_t Words __attribute__((vector_size(4 * W)));  \
  };
TINYLLM_VECTOR_TYPES(4)
TINYLLM_VECTOR_TYPES(8)
TINYLLM_VECTOR_TYPES(16)
#undef TINYLLM_VECTOR_TYPES

} // namespace detail

// W lanes of 32 bits: 4, 8 or 16.
template <int W>
struct Lanes {
  using Floats = typename detail::Types<W>::Floats;
  using Ints = typename detail::Types<W>::Ints;
  using Words = typename detail::Types<W>::Words;

  static Floats load(const float* from) {
    Floats v;
    std::memcpy(&v, from, sizeof v); // one instruction; `from` need not be aligned
    return v;
  }
  static Words load(const uint32_t* from) {
    Words v;
    std::memcpy(&v, from, sizeof v);
    return v;
  }
  // v in a register. Compilers would sooner read it from memory again for each use, and reading is what holds up a
  // loop of few operations a number.
  static Floats once(Floats v) {
#if defined(__x86_64__)
    asm("" : "+v"(v));
#elif defined(__aarch64__)
    asm("" : "+w"(v));
#endif
    return v;
  }
  static void store(float* to, Floats v) {
    std::memcpy(to, &v, sizeof v);
  }
  static Floats all(float x) {
    return x - Floats{};
  }
  // `low` in the first half of the lanes, `high` in the other.
  static Floats halves(float low, float high) {
    Ints second;
    for (int i = 0; i < W; ++i) {
      second[i] = i < W / 2 ? 0 : -1;
    }
    return second ? all(high) : all(low);
  }
  // Each lane's number as a float. The words are below 2^31.
  static Floats to_floats(Words v) {
    return __builtin_convertvector((Ints)v, Floats);
  }
  static float sum(Floats v) {
    if constexpr (W == 4) {
      return (v[0] + v[1]) + (v[2] + v[3]);
    } else { // one half onto the other: as many steps as W has bits, not as it has lanes
      typename Lanes<W / 2>::Floats half[2];
      std::memcpy(half, &v, sizeof v);
      return Lanes<W / 2>::sum(half[0] + half[1]);
    }
  }
  static Floats max(Floats a, Floats b) {
    const Ints greater = a > b; // -1 where it holds, else 0
    return (Floats)(((Ints)a & greater) | ((Ints)b & ~greater));
  }
  // e^x for x <= 0, to two units in the last place; exactly 0 below -87, for -inf too.
  //
  // e^x = 2^n e^r with n the whole number nearest x / ln 2, so |r| <= ln 2 / 2, where a polynomial of degree 7
  // will do. Its coefficients are those of Cephes' expf (Moshier).
  static Floats exp(Floats x) {
    const Ints vanishes = x < -87.0f;
    const Floats bounded = max(x, all(-87.0f));
    const float round = 12582912.0f; // 1.5 * 2^23: what is added to it loses its fraction
    const Floats n = (bounded * 1.44269504f + round) - round;
    const Floats r = bounded - n * 0.693359375f + n * 2.12194440e-4f; // ln 2 in two parts
    Floats p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    const Ints power = (__builtin_convertvector(n, Ints) + 127) << 23; // 2^n as the bits of a float
    return (Floats)((Ints)(p * (Floats)power) & ~vanishes);
  }
};

#if defined(__AVX512F__)
inline constexpr int kLanes = 16;
#elif defined(__AVX__)
inline constexpr int kLanes = 8;
#else
inline constexpr int kLanes = 4; // ARM's NEON and x86-64's SSE
#endif

} // namespace tinyllm
