// Definitions for all kernels: the types, packs of 16 bytes, sums over a warp and over columns.
//
// real is the type in memory, acc the type of the computation: float for float, half and bfloat16, double for double.
// Both are set on the compiler's command line (runtime.py), and so is TALL, the number of warps in most blocks. Arrays
// are contiguous unless a stride is passed; rows x columns is the shape of a matrix, and threadIdx.x is the lane in a
// warp of 32. All lanes get the same bits of a sum, since they add in the same order.
#pragma once

#ifdef HALF
#include <cuda_fp16.h>
#endif
#ifdef BFLOAT
#include <cuda_bf16.h>
#endif
#ifndef LANES
#define LANES 32
#define CHUNKS 0
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
[[maybe_unused]] constexpr acc LOWEST = acc(sizeof(acc) == 8 ? -1.7e308 : -3.4e38);

template <int V, class T> struct alignas(V * sizeof(T)) Pack {
  T v[V];
};

template <int V, class T> __device__ __forceinline__ void load(const T *from, acc (&to)[V]) {
  const Pack<V, T> pack = *reinterpret_cast<const Pack<V, T> *>(from);
#pragma unroll
  for (int j = 0; j < V; ++j) to[j] = acc(pack.v[j]);
}

template <int V> __device__ __forceinline__ void store(const acc (&from)[V], real *to) {
  Pack<V, real> pack;
#pragma unroll
  for (int j = 0; j < V; ++j) pack.v[j] = real(from[j]);
#ifdef __CUDACC__
  if constexpr (V == PACK) { // the compiler would store 4 x 4 bytes
    __stwb(reinterpret_cast<uint4 *>(to), reinterpret_cast<const uint4 &>(pack));
    return;
  }
#endif
  *reinterpret_cast<Pack<V, real> *>(to) = pack;
}

// Whether rows of this many columns can be read in packs. Every array starts at a multiple of 16 bytes.
__device__ __forceinline__ bool packed(size columns) { return columns % PACK == 0; }

// LANES neighbouring lanes share a row; by default that is the whole warp. A warp computes GROUPS rows at a time.
[[maybe_unused]] constexpr int GROUPS = WARP / LANES;

// Returns the sum over the lanes of a row; all lanes of the warp must call it.
template <class T> __device__ __forceinline__ T row_sum(T x) {
#pragma unroll
  for (int offset = LANES / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(ALL, x, offset);
  return x;
}

template <class T> __device__ __forceinline__ T row_max(T x) {
#pragma unroll
  for (int offset = LANES / 2; offset > 0; offset /= 2) {
    const T other = __shfl_xor_sync(ALL, x, offset);
    x = other > x ? other : x;
  }
  return x;
}

// A row. Each lane keeps CHUNKS packs of V numbers in registers; if CHUNKS is 0, it reads them each time, from the
// current value of `from`. An empty row is not read.
template <int V, class T = real> struct Row {
  const T *from;
  size columns;
  acc kept[CHUNKS ? CHUNKS : 1][V];

  __device__ __forceinline__ Row(const T *from, size columns) : from(from), columns(columns) {
#pragma unroll
    for (int i = 0; i < CHUNKS; ++i)
      if (column(i) < columns) load<V>(from + column(i), kept[i]);
  }

  __device__ __forceinline__ static size column(int i) { return (i * LANES + size(threadIdx.x) % LANES) * V; }

  // Calls f(i, column, numbers) for each pack of the lane. Changes of the numbers are kept if they are in registers.
  template <class F> __device__ __forceinline__ void each(F f) {
    if constexpr (CHUNKS > 0) {
#pragma unroll
      for (int i = 0; i < CHUNKS; ++i)
        if (column(i) < columns) f(i, column(i), kept[i]);
    } else {
      for (size c = column(0); c < columns; c += LANES * V) {
        acc numbers[V];
        load<V>(from + c, numbers);
        f(0, c, numbers);
      }
    }
  }

  // Returns the pack of this row at the position that f got for another row.
  __device__ __forceinline__ acc (&part(int i, size c, acc (&buffer)[V]))[V] {
    if constexpr (CHUNKS > 0) return kept[i];
    load<V>(from + c, buffer);
    return buffer;
  }
};

// Adds the sums of the TALL warps of a block, V columns for each lane, in the order of the warps, and writes the totals.
template <int V>
__device__ __forceinline__ void block_columns(acc (&sums)[V], size column, size columns, acc *out) {
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
