// What every kernel shares: the types that it is compiled for, packs of 16 bytes, sums over a warp and over columns.
//
// real is the type in memory, acc the one that is computed with: float for float, half and bfloat16, double for double.
// Which they are is said on the compiler's command line (runtime.py). Arrays are contiguous unless a stride is passed;
// rows x columns are the shape of a matrix, and threadIdx.x is the lane in a warp of 32.
#pragma once

#ifdef HALF
#include <cuda_fp16.h>
#endif
#ifdef BFLOAT
#include <cuda_bf16.h>
#endif
#ifndef DYNAMIC_SHARED
#define DYNAMIC_SHARED(type, name) extern __shared__ type name[]
#endif

typedef REAL real;
typedef ACC acc;
typedef long long size;

[[maybe_unused]] constexpr int WARP = 32;
[[maybe_unused]] constexpr unsigned ALL = 0xffffffffu;
[[maybe_unused]] constexpr int PACK = 16 / sizeof(real);
[[maybe_unused]] constexpr acc LEAST = acc(sizeof(acc) == 8 ? -1.7e308 : -3.4e38);

template <int V> struct alignas(V * sizeof(real)) Pack {
  real v[V];
};

template <int V> __device__ __forceinline__ void load(const real *from, acc (&to)[V]) {
  const Pack<V> pack = *reinterpret_cast<const Pack<V> *>(from);
#pragma unroll
  for (int j = 0; j < V; ++j) to[j] = acc(pack.v[j]);
}

template <int V> __device__ __forceinline__ void store(const acc (&from)[V], real *to) {
  Pack<V> pack;
#pragma unroll
  for (int j = 0; j < V; ++j) pack.v[j] = real(from[j]);
  *reinterpret_cast<Pack<V> *>(to) = pack;
}

// Whether rows of so many columns can be read in packs; every array starts at a multiple of 16 bytes.
__device__ __forceinline__ bool packed(size columns) { return columns % PACK == 0; }

// Every lane gets the same bits: the tree is the same for all.
template <class T> __device__ __forceinline__ T warp_sum(T x) {
#pragma unroll
  for (int offset = WARP / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(ALL, x, offset);
  return x;
}

template <class T> __device__ __forceinline__ T warp_max(T x) {
#pragma unroll
  for (int offset = WARP / 2; offset > 0; offset /= 2) {
    const T other = __shfl_xor_sync(ALL, x, offset);
    x = other > x ? other : x;
  }
  return x;
}

// Adds what the TALL warps of a block have for V columns of a lane each; writes the totals, first warp first.
template <int V, int TALL> __device__ __forceinline__ void block_columns(acc (&sums)[V], size column, size columns, acc *out) {
  __shared__ acc shared[TALL][WARP * V];
#pragma unroll
  for (int j = 0; j < V; ++j) shared[threadIdx.y][j * WARP + threadIdx.x] = sums[j];
  __syncthreads();
  if (threadIdx.y == 0 && column < columns) {
#pragma unroll
    for (int j = 0; j < V; ++j) {
      acc total = 0;
      for (int y = 0; y < TALL; ++y) total += shared[y][j * WARP + threadIdx.x];
      out[column + j] = total;
    }
  }
}
