// Layer norm of rows (layer_norm.py), a warp for each row; what one pass reads, the next finds in the first-level cache.
#include "common.cuh"

// The row that is normalised: x, or x + h + h_bias, rounded as it is stored in sum.
template <int V>
__device__ void norm_row(const real *x, const real *h, const real *h_bias, const real *weight, const real *bias, acc eps,
                         real *sum, real *y, acc *mean, acc *inv_std, size columns) {
  acc total = 0;
  for (size c = threadIdx.x * V; c < columns; c += WARP * V) {
    acc a[V];
    load<V>(x + c, a);
    if (h) {
      acc b[V];
      load<V>(h + c, b);
#pragma unroll
      for (int j = 0; j < V; ++j) a[j] += b[j];
      load<V>(h_bias + c, b);
#pragma unroll
      for (int j = 0; j < V; ++j) a[j] = acc(real(a[j] + b[j]));
      store<V>(a, sum + c);
    }
#pragma unroll
    for (int j = 0; j < V; ++j) total += a[j];
  }
  const real *row = h ? sum : x;
  const acc middle = warp_sum(total) / columns;
  acc squares = 0;
  for (size c = threadIdx.x * V; c < columns; c += WARP * V) {
    acc a[V];
    load<V>(row + c, a);
#pragma unroll
    for (int j = 0; j < V; ++j) squares += (a[j] - middle) * (a[j] - middle);
  }
  const acc inverse = acc(1) / sqrt(warp_sum(squares) / columns + eps);
  for (size c = threadIdx.x * V; c < columns; c += WARP * V) {
    acc a[V], w[V], b[V];
    load<V>(row + c, a);
    load<V>(weight + c, w);
    load<V>(bias + c, b);
#pragma unroll
    for (int j = 0; j < V; ++j) a[j] = (a[j] - middle) * inverse * w[j] + b[j];
    store<V>(a, y + c);
  }
  if (threadIdx.x == 0) {
    *mean = middle;
    *inv_std = inverse;
  }
}

// h, and with it h_bias and sum, may be null.
extern "C" __global__ void layer_norm(const real *x, const real *h, const real *h_bias, const real *weight,
                                      const real *bias, double eps, real *sum, real *y, acc *mean, acc *inv_std,
                                      size rows, size columns) {
  const size r = size(blockIdx.x) * blockDim.y + threadIdx.y;
  if (r >= rows) return;
  const size at = r * columns;
  const real *h_row = h ? h + at : h;
  real *sum_row = h ? sum + at : sum;
  if (packed(columns))
    norm_row<PACK>(x + at, h_row, h_bias, weight, bias, eps, sum_row, y + at, mean + r, inv_std + r, columns);
  else
    norm_row<1>(x + at, h_row, h_bias, weight, bias, eps, sum_row, y + at, mean + r, inv_std + r, columns);
}

// sums: for each warp of the block, one number a column for dweight and one for dbias.
template <int V>
__device__ void norm_row_backward(const real *dy, const real *x, const real *weight, acc mean, acc inv_std,
                                  const real *residual, real *dx, acc *sums, size columns) {
  acc s1 = 0, s2 = 0;
  for (size c = threadIdx.x * V; c < columns; c += WARP * V) {
    acc d[V], a[V], w[V];
    load<V>(dy + c, d);
    load<V>(x + c, a);
    load<V>(weight + c, w);
#pragma unroll
    for (int j = 0; j < V; ++j) {
      const acc x_hat = (a[j] - mean) * inv_std;
      s1 += d[j] * w[j];
      s2 += d[j] * w[j] * x_hat;
      sums[c + j] += d[j] * x_hat;
      sums[columns + c + j] += d[j];
    }
  }
  const acc through_mean = warp_sum(s1) / columns, through_variance = warp_sum(s2) / columns;
  for (size c = threadIdx.x * V; c < columns; c += WARP * V) {
    acc d[V], a[V], w[V];
    load<V>(dy + c, d);
    load<V>(x + c, a);
    load<V>(weight + c, w);
#pragma unroll
    for (int j = 0; j < V; ++j)
      a[j] = inv_std * (d[j] * w[j] - through_mean - (a[j] - mean) * inv_std * through_variance);
    if (residual) {
      load<V>(residual + c, d);
#pragma unroll
      for (int j = 0; j < V; ++j) a[j] += d[j];
    }
    store<V>(a, dx + c);
  }
}

// residual may be null, or dx itself. partial: (blocks, 2, columns), dweight and dbias of the rows of each block.
extern "C" __global__ void layer_norm_backward(const real *dy, const real *x, const real *weight, const acc *mean,
                                               const acc *inv_std, const real *residual, real *dx, acc *partial,
                                               size rows, size columns) {
  DYNAMIC_SHARED(acc, sums);
  acc *own = sums + threadIdx.y * 2 * columns;
  for (size c = threadIdx.x; c < 2 * columns; c += WARP) own[c] = 0;
  __syncwarp(ALL);
  const bool fast = packed(columns);
  for (size r = size(blockIdx.x) * blockDim.y + threadIdx.y; r < rows; r += size(gridDim.x) * blockDim.y) {
    const size at = r * columns;
    const real *past = residual ? residual + at : residual;
    if (fast)
      norm_row_backward<PACK>(dy + at, x + at, weight, mean[r], inv_std[r], past, dx + at, own, columns);
    else
      norm_row_backward<1>(dy + at, x + at, weight, mean[r], inv_std[r], past, dx + at, own, columns);
  }
  __syncthreads();
  for (size c = threadIdx.y * WARP + threadIdx.x; c < 2 * columns; c += WARP * blockDim.y) {
    acc total = 0;
    for (int y = 0; y < int(blockDim.y); ++y) total += sums[y * 2 * columns + c];
    partial[blockIdx.x * 2 * columns + c] = total;
  }
}
