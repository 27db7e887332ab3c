// Sums over the rows of a matrix (columns.py), in two stages whose order does not depend on the device.
#include "common.cuh"

constexpr int TALLER = 32; // warps in a block of the second stage

template <int V> __device__ void sum_rows(const real *x, acc *partial, size rows, size columns) {
  const size column = (size(blockIdx.x) * WARP + threadIdx.x) * V;
  acc sums[V] = {};
  if (column < columns)
    for (size r = size(blockIdx.y) * TALL + threadIdx.y; r < rows; r += size(gridDim.y) * TALL) {
      acc a[V];
      load<V>(x + r * columns + column, a);
#pragma unroll
      for (int j = 0; j < V; ++j) sums[j] += a[j];
    }
  block_columns<V>(sums, column, columns, partial + blockIdx.y * columns);
}

// partial: (blocks, columns), the sums over the rows of each block.
extern "C" __global__ void column_sums(const real *x, acc *partial, size rows, size columns) {
  if (packed(columns))
    sum_rows<PACK>(x, partial, rows, columns);
  else
    sum_rows<1>(x, partial, rows, columns);
}

// out = [out +] the sum of partial over the blocks.
extern "C" __global__ void column_totals(const acc *partial, acc *out, size blocks, size columns, size stride,
                                         size add) {
  __shared__ acc shared[TALLER][WARP];
  const size column = size(blockIdx.x) * WARP + threadIdx.x;
  acc total = 0;
  if (column < columns)
    for (size b = threadIdx.y; b < blocks; b += TALLER) total += partial[b * stride + column];
  shared[threadIdx.y][threadIdx.x] = total;
  __syncthreads();
  if (threadIdx.y == 0 && column < columns) {
    for (int y = 1; y < TALLER; ++y) total += shared[y][threadIdx.x];
    out[column] = add ? out[column] + total : total;
  }
}
