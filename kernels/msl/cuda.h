// What makes CUDA understand the bodies that the course writes in Metal's language. It goes before a kernel through
// the `header` of mx.fast.cuda_kernel, together with vectors.h.
//
// Address spaces are rewritten before (gpu_source.py); this is the rest: numbers, positions, barriers, SIMD operations.
// A SIMD-group is a warp. All 32 lanes must take part in a SIMD operation, as the simulator checks.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace mlx::core::cu {

using uint = unsigned int;
using ushort = unsigned short;
using uchar = unsigned char;
using half = __half;
using bfloat = __nv_bfloat16;

#define TINYLLM_FN __device__ inline
#include "vectors.h"
#undef TINYLLM_FN

#ifndef INFINITY
#define INFINITY __int_as_float(0x7f800000)
#endif
#ifndef NAN
#define NAN __int_as_float(0x7fffffff)
#endif
#ifndef M_PI_F
#define M_PI_F 3.14159265358979323846f
#endif

// ---- positions: the body's own names for them are declared where it begins ----

namespace at {
__device__ inline uint3 of(::uint3 v) { return {v.x, v.y, v.z}; }
__device__ inline uint3 of(dim3 v) { return {v.x, v.y, v.z}; }
__device__ inline uint3 thread_position_in_threadgroup() { return of(threadIdx); }
__device__ inline uint3 threadgroup_position_in_grid() { return of(blockIdx); }
__device__ inline uint3 threads_per_threadgroup() { return of(blockDim); }
__device__ inline uint3 threadgroups_per_grid() { return of(gridDim); }
__device__ inline uint3 threads_per_grid() { return threads_per_threadgroup() * threadgroups_per_grid(); }
__device__ inline uint3 thread_position_in_grid() {
  return threadgroup_position_in_grid() * threads_per_threadgroup() + thread_position_in_threadgroup();
}
__device__ inline uint thread_index_in_threadgroup() {
  return threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
}
__device__ inline uint thread_index_in_simdgroup() { return thread_index_in_threadgroup() % 32; }
__device__ inline uint simdgroup_index_in_threadgroup() { return thread_index_in_threadgroup() / 32; }
__device__ inline uint threads_per_simdgroup() { return 32; }
__device__ inline uint simdgroups_per_threadgroup() { return (blockDim.x * blockDim.y * blockDim.z + 31) / 32; }
} // namespace at

// ---- barriers ----

enum class mem_flags { mem_none, mem_device, mem_threadgroup, mem_texture };
__device__ inline void threadgroup_barrier(mem_flags) { __syncthreads(); }
__device__ inline void simdgroup_barrier(mem_flags) { __syncwarp(); }

// ---- SIMD operations: a type, and the wider one that its shuffles are made with ----

#define TINYLLM_SIMD(T, Wide)                                                                                       \
  __device__ inline T simd_shuffle(T v, ushort lane) { return T(__shfl_sync(0xffffffffu, Wide(v), lane)); }         \
  __device__ inline T simd_broadcast(T v, ushort lane) { return simd_shuffle(v, lane); }                            \
  __device__ inline T simd_shuffle_xor(T v, ushort mask) { return T(__shfl_xor_sync(0xffffffffu, Wide(v), mask)); } \
  __device__ inline T simd_shuffle_down(T v, ushort by) { return T(__shfl_down_sync(0xffffffffu, Wide(v), by)); }   \
  __device__ inline T simd_shuffle_up(T v, ushort by) { return T(__shfl_up_sync(0xffffffffu, Wide(v), by)); }       \
  __device__ inline T simd_sum(T v) {                                                                               \
    Wide w = Wide(v);                                                                                               \
    for (int step = 16; step > 0; step /= 2) {                                                                      \
      w += __shfl_xor_sync(0xffffffffu, w, step);                                                                   \
    }                                                                                                               \
    return T(w);                                                                                                    \
  }                                                                                                                 \
  __device__ inline T simd_max(T v) {                                                                               \
    Wide w = Wide(v);                                                                                               \
    for (int step = 16; step > 0; step /= 2) {                                                                      \
      w = ::max(w, __shfl_xor_sync(0xffffffffu, w, step));                                                          \
    }                                                                                                               \
    return T(w);                                                                                                    \
  }                                                                                                                 \
  __device__ inline T simd_min(T v) {                                                                               \
    Wide w = Wide(v);                                                                                               \
    for (int step = 16; step > 0; step /= 2) {                                                                      \
      w = ::min(w, __shfl_xor_sync(0xffffffffu, w, step));                                                          \
    }                                                                                                               \
    return T(w);                                                                                                    \
  }
TINYLLM_SIMD(float, float)
TINYLLM_SIMD(int, int)
TINYLLM_SIMD(uint, uint)
TINYLLM_SIMD(half, float)
TINYLLM_SIMD(bfloat, float)
#undef TINYLLM_SIMD

// ---- mathematics ----

#define TINYLLM_MATHS(name) \
  __device__ inline float name(float x) { return ::name##f(x); }
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
#undef TINYLLM_MATHS
__device__ inline float fabs(float x) { return ::fabsf(x); }
__device__ inline float rsqrt(float x) { return ::rsqrtf(x); }
__device__ inline float pow(float x, float y) { return ::powf(x, y); }
__device__ inline float fma(float a, float b, float c) { return ::fmaf(a, b, c); }

#define TINYLLM_MINMAX(T)                                               \
  __device__ inline T min(T a, T b) { return b < a ? b : a; }           \
  __device__ inline T max(T a, T b) { return a < b ? b : a; }           \
  __device__ inline T clamp(T x, T low, T high) { return min(max(x, low), high); }
TINYLLM_MINMAX(int)
TINYLLM_MINMAX(uint)
TINYLLM_MINMAX(half)
TINYLLM_MINMAX(bfloat)
#undef TINYLLM_MINMAX
__device__ inline float min(float a, float b) { return ::fminf(a, b); }
__device__ inline float max(float a, float b) { return ::fmaxf(a, b); }
__device__ inline float clamp(float x, float low, float high) { return min(max(x, low), high); }
__device__ inline float abs(float x) { return ::fabsf(x); }
__device__ inline int abs(int x) { return x < 0 ? -x : x; }

template <typename T>
__device__ inline T select(T otherwise, T chosen, bool choose) { return choose ? chosen : otherwise; }

template <typename To, typename From>
__device__ inline To as_type(From value) {
  static_assert(sizeof(To) == sizeof(From), "as_type keeps the size");
  return *reinterpret_cast<To*>(&value);
}

namespace fast {
__device__ inline float exp(float x) { return __expf(x); }
__device__ inline float exp2(float x) { return ::exp2f(x); }
__device__ inline float log(float x) { return __logf(x); }
__device__ inline float log2(float x) { return __log2f(x); }
__device__ inline float sqrt(float x) { return ::sqrtf(x); }
__device__ inline float rsqrt(float x) { return ::rsqrtf(x); }
__device__ inline float tanh(float x) { return ::tanhf(x); }
__device__ inline float sin(float x) { return __sinf(x); }
__device__ inline float cos(float x) { return __cosf(x); }
__device__ inline float pow(float x, float y) { return __powf(x, y); }
__device__ inline float min(float a, float b) { return ::fminf(a, b); }
__device__ inline float max(float a, float b) { return ::fmaxf(a, b); }
} // namespace fast

} // namespace mlx::core::cu
