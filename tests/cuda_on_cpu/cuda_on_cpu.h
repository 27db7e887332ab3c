// CUDA C++ for g++: the parts of the language and its library that kernels use.
#pragma once

#include <limits.h>
#include <math.h>
#include <string.h>

#include <type_traits>

#include "block.h"

#define __device__
#define __host__
#define __constant__ const
#define __forceinline__ inline
#define DYNAMIC_SHARED(type, name) type* const name = static_cast<type*>(cuda_on_cpu::dynamic_shared())

#define threadIdx (cuda_on_cpu::thread)
#define blockIdx (cuda_on_cpu::block)
#define blockDim (cuda_on_cpu::threads)
#define gridDim (cuda_on_cpu::blocks)
constexpr int warpSize = 32;

#define __syncthreads() cuda_on_cpu::barrier(__LINE__)
#define __syncthreads_or(...) cuda_on_cpu::barrier_or(__LINE__, __VA_ARGS__)
#define __syncwarp(...) cuda_on_cpu::sync_warp(__LINE__ __VA_OPT__(, ) __VA_ARGS__)
#define __shfl_sync(...) cuda_on_cpu::shuffle(__LINE__, __VA_ARGS__)
#define __shfl_up_sync(...) cuda_on_cpu::shuffle_up(__LINE__, __VA_ARGS__)
#define __shfl_down_sync(...) cuda_on_cpu::shuffle_down(__LINE__, __VA_ARGS__)
#define __shfl_xor_sync(...) cuda_on_cpu::shuffle_xor(__LINE__, __VA_ARGS__)

namespace cuda_on_cpu {

// No thread begins the next call before all have read the result of this one.
inline int barrier_or(int line, int value) {
  static int any;
  barrier(line);
  any = 0;
  barrier(line);
  any |= value != 0;
  barrier(line);
  return any;
}

inline void sync_warp(int line, unsigned mask = 0xffffffffu) { exchange(mask, 0, lane, line); }

template <class T> T exchange_bits(int line, unsigned mask, T value, unsigned from) {
  static_assert(sizeof(T) <= 8, "lanes exchange numbers of up to 8 bytes");
  unsigned long long bits = 0;
  memcpy(&bits, &value, sizeof value);
  bits = exchange(mask, bits, from, line);
  memcpy(&value, &bits, sizeof value);
  return value;
}

// Lanes are counted within groups of `width`; a lane that would read from another group gets its own value.
template <class T> T shuffle(int line, unsigned mask, T value, int from, int width = 32) {
  return exchange_bits(line, mask, value, (lane & ~(width - 1)) | (from & (width - 1)));
}

template <class T> T shuffle_up(int line, unsigned mask, T value, unsigned by, int width = 32) {
  return exchange_bits(line, mask, value, (lane & (width - 1)) >= by ? lane - by : lane);
}

template <class T> T shuffle_down(int line, unsigned mask, T value, unsigned by, int width = 32) {
  return exchange_bits(line, mask, value, (lane & (width - 1)) + by < unsigned(width) ? lane + by : lane);
}

template <class T> T shuffle_xor(int line, unsigned mask, T value, int by, int width = 32) {
  return exchange_bits(line, mask, value, (lane ^ by) <= (lane | (width - 1)) ? lane ^ by : lane);
}

}  // namespace cuda_on_cpu

// As in CUDA, the minimum of a number and NaN is the number.
template <class A, class B> inline std::common_type_t<A, B> min(A a, B b) {
  using C = std::common_type_t<A, B>;
  if constexpr (std::is_floating_point_v<C>) return fmin(C(a), C(b));
  else return C(a) < C(b) ? C(a) : C(b);
}

template <class A, class B> inline std::common_type_t<A, B> max(A a, B b) {
  using C = std::common_type_t<A, B>;
  if constexpr (std::is_floating_point_v<C>) return fmax(C(a), C(b));
  else return C(a) > C(b) ? C(a) : C(b);
}

template <class T> inline T __ldg(const T* from) { return *from; }

inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dmul_rn(double a, double b) { return a * b; }

inline double rsqrt(double x) { return 1 / sqrt(x); }
inline float rsqrtf(float x) { return float(rsqrt(double(x))); }
inline float rsqrt(float x) { return rsqrtf(x); }
inline double normcdf(double x) { return 0.5 * erfc(-x * M_SQRT1_2); }
inline float normcdff(float x) { return float(normcdf(double(x))); }
inline float normcdf(float x) { return normcdff(x); }
