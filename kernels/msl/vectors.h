// Metal's short vectors (float4, half2, uint3 ...) for the two targets that lack them: CUDA and the simulator.
//
// Members x, y, z, w and [i]; + - * / with a vector or a number; dot; conversion from another vector of as many
// elements, written out: float4(h). No swizzles (v.xy). TINYLLM_FN is what a function is marked with.
#pragma once

#define TINYLLM_VECTOR_OPERATOR(sign)                                                              \
  template <typename T, int N>                                                                     \
  TINYLLM_FN vec<T, N> operator sign(vec<T, N> a, vec<T, N> b) {                                   \
    vec<T, N> r;                                                                                   \
    for (int i = 0; i < N; ++i) {                                                                  \
      r[i] = a[i] sign b[i];                                                                       \
    }                                                                                              \
    return r;                                                                                      \
  }                                                                                                \
  template <typename T, int N>                                                                     \
  TINYLLM_FN vec<T, N> operator sign(vec<T, N> a, typename vec<T, N>::element b) {                 \
    return a sign vec<T, N>(b);                                                                    \
  }                                                                                                \
  template <typename T, int N>                                                                     \
  TINYLLM_FN vec<T, N> operator sign(typename vec<T, N>::element a, vec<T, N> b) {                 \
    return vec<T, N>(a) sign b;                                                                    \
  }                                                                                                \
  template <typename T, int N, typename U>                                                         \
  TINYLLM_FN vec<T, N>& operator sign##=(vec<T, N>& a, U b) {                                      \
    return a = a sign b;                                                                           \
  }

#define TINYLLM_VECTOR_PARTS(n)                                                                    \
  using element = T;                                                                               \
  vec() = default;                                                                                 \
  TINYLLM_FN explicit vec(T all) {                                                                 \
    for (int i = 0; i < n; ++i) {                                                                  \
      (*this)[i] = all;                                                                            \
    }                                                                                              \
  }                                                                                                \
  template <typename U>                                                                            \
  TINYLLM_FN explicit vec(vec<U, n> other) {                                                       \
    for (int i = 0; i < n; ++i) {                                                                  \
      (*this)[i] = static_cast<T>(other[i]);                                                       \
    }                                                                                              \
  }                                                                                                \
  TINYLLM_FN T& operator[](int i) { return (&x)[i]; }                                              \
  TINYLLM_FN const T& operator[](int i) const { return (&x)[i]; }

template <typename T, int N>
struct vec;

template <typename T>
struct alignas(2 * sizeof(T)) vec<T, 2> {
  T x, y;
  TINYLLM_VECTOR_PARTS(2)
  TINYLLM_FN vec(T x, T y) : x(x), y(y) {}
};

template <typename T>
struct alignas(4 * sizeof(T)) vec<T, 3> {
  T x, y, z;
  TINYLLM_VECTOR_PARTS(3)
  TINYLLM_FN vec(T x, T y, T z) : x(x), y(y), z(z) {}
};

template <typename T>
struct alignas(4 * sizeof(T)) vec<T, 4> {
  T x, y, z, w;
  TINYLLM_VECTOR_PARTS(4)
  TINYLLM_FN vec(T x, T y, T z, T w) : x(x), y(y), z(z), w(w) {}
};

TINYLLM_VECTOR_OPERATOR(+)
TINYLLM_VECTOR_OPERATOR(-)
TINYLLM_VECTOR_OPERATOR(*)
TINYLLM_VECTOR_OPERATOR(/)

template <typename T, int N>
TINYLLM_FN T dot(vec<T, N> a, vec<T, N> b) {
  T sum = a[0] * b[0];
  for (int i = 1; i < N; ++i) {
    sum = sum + a[i] * b[i];
  }
  return sum;
}

using float2 = vec<float, 2>;
using float3 = vec<float, 3>;
using float4 = vec<float, 4>;
using half2 = vec<half, 2>;
using half3 = vec<half, 3>;
using half4 = vec<half, 4>;
using bfloat2 = vec<bfloat, 2>;
using bfloat4 = vec<bfloat, 4>;
using int2 = vec<int, 2>;
using int3 = vec<int, 3>;
using int4 = vec<int, 4>;
using uint2 = vec<uint, 2>;
using uint3 = vec<uint, 3>;
using uint4 = vec<uint, 4>;
using uchar4 = vec<uchar, 4>;
