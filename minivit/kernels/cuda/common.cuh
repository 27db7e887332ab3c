// What every kernel shares: the types that it is compiled for, packs of 16 bytes, sums over a warp and over columns.
//
// real is the type in memory, acc the one that is computed with: float for float, half and bfloat16, double for double.
// Which they are is said on the compiler's command line (runtime.py), as is TALL, the warps of most blocks. Arrays are
// contiguous unless a stride is passed; rows x columns are the shape of a matrix, and threadIdx.x is the lane in a warp
// of 32. All lanes of a sum get the same bits, since its tree is the same for each.
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
[[maybe_unused]] constexpr acc LEAST = acc(sizeof(acc) == 8 ? -1.7e308 : -3.4e38);

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
  if constexpr (V == PACK) { // left to itself, the compiler would store four times four bytes
    __stwb(reinterpret_cast<uint4 *>(to), reinterpret_cast<const uint4 &>(pack));
    return;
  }
#endif
  *reinterpret_cast<Pack<V, real> *>(to) = pack;
}

// Whether rows of so many columns can be read in packs; every array starts at a multiple of 16 bytes.
__device__ __forceinline__ bool packed(size columns) { return columns % PACK == 0; }

// Rows are shared by LANES neighbouring lanes, a whole warp unless the command line says otherwise; a warp takes GROUPS
// of them at a time.
[[maybe_unused]] constexpr int GROUPS = WARP / LANES;

// The sum over the lanes of a row; all lanes of the warp must call it.
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

// A row, of which each lane has CHUNKS packs of V numbers in registers; with 0 CHUNKS it reads them anew each time, from
// wherever `from` points by then. A row of no columns is read nowhere.
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

  // Calls f(i, column, numbers) for each of the lane's packs; what f makes of the numbers stays if they are registers.
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

  // The numbers that f has in the same place of another row.
  __device__ __forceinline__ acc (&part(int i, size c, acc (&buffer)[V]))[V] {
    if constexpr (CHUNKS > 0) return kept[i];
    load<V>(from + c, buffer);
    return buffer;
  }
};

// Adds what the TALL warps of a block have for V columns of a lane each; writes the totals, first warp first.
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
