// Layer norm of rows (layer_norm.py), with LANES lanes for each row.
#include "common.cuh"

// Normalises a row: x, or x + h + h_bias, which is rounded to real and stored in sum; sum may be h.
template <int V>
__device__ void norm_row(const real *x, const real *h, const real *h_bias, const real *weight, const real *bias, acc eps,
                         real *sum, real *y, acc *mean, acc *inv_std, size columns, size span) {
  Row<V> row(x, span);
  acc total = 0, squares = 0;
  row.each([&](int, size c, acc(&a)[V]) {
    if (h) {
      acc b[V], shift[V];
      load<V>(h + c, b);
      load<V>(h_bias + c, shift);
#pragma unroll
      for (int j = 0; j < V; ++j) a[j] = acc(real(a[j] + b[j] + shift[j]));
      store<V>(a, sum + c);
    }
#pragma unroll
    for (int j = 0; j < V; ++j) total += a[j];
  });
  if (h) row.from = sum;
  const acc middle = row_sum(total) / columns;
  row.each([&](int, size, acc(&a)[V]) {
#pragma unroll
    for (int j = 0; j < V; ++j) squares += (a[j] - middle) * (a[j] - middle);
  });
  const acc inverse = acc(1) / sqrt(row_sum(squares) / columns + eps);
  row.each([&](int, size c, acc(&a)[V]) {
    acc w[V], b[V];
    load<V>(weight + c, w);
    load<V>(bias + c, b);
#pragma unroll
    for (int j = 0; j < V; ++j) b[j] += (a[j] - middle) * inverse * w[j];
    store<V>(b, y + c);
  });
  if (span && threadIdx.x % LANES == 0) {
    *mean = middle;
    *inv_std = inverse;
  }
}

// h may be null; then h_bias and sum are not used.
extern "C" __global__ void layer_norm(const real *x, const real *h, const real *h_bias, const real *weight,
                                      const real *bias, double eps, real *sum, real *y, acc *mean, acc *inv_std,
                                      size rows, size columns) {
  const size r = (size(blockIdx.x) * TALL + threadIdx.y) * GROUPS + threadIdx.x / LANES;
  const size at = r * columns, span = r < rows ? columns : 0;
  const real *h_row = h ? h + at : h;
  real *sum_row = h ? sum + at : sum;
  if (packed(columns))
    norm_row<PACK>(x + at, h_row, h_bias, weight, bias, eps, sum_row, y + at, mean + r, inv_std + r, columns, span);
  else
    norm_row<1>(x + at, h_row, h_bias, weight, bias, eps, sum_row, y + at, mean + r, inv_std + r, columns, span);
}

// All rows of a block. own: 2 * columns numbers in shared memory, the sums for dweight and dbias of these lanes.
template <int V>
__device__ void norm_rows_backward(const real *dy, const real *x, const real *weight, const acc *mean,
                                   const acc *inv_std, const real *residual, real *dx, acc *own, size rows,
                                   size columns) {
  acc dweight[CHUNKS ? CHUNKS : 1][V] = {}, dbias[CHUNKS ? CHUNKS : 1][V] = {};
  const size step = size(gridDim.x) * blockDim.y * GROUPS;
  for (size first = (size(blockIdx.x) * blockDim.y + threadIdx.y) * GROUPS; first < rows; first += step) {
    const size r = first + threadIdx.x / LANES, at = r * columns, span = r < rows ? columns : 0;
    const acc middle = span ? mean[r] : acc(0), inverse = span ? inv_std[r] : acc(0);
    Row<V> d_row(dy + at, span), x_row(x + at, span);
    acc s1 = 0, s2 = 0;
    d_row.each([&](int i, size c, acc(&d)[V]) {
      acc buffer[V], w[V];
      acc(&a)[V] = x_row.part(i, c, buffer);
      load<V>(weight + c, w);
#pragma unroll
      for (int j = 0; j < V; ++j) {
        const acc x_hat = (a[j] - middle) * inverse;
        s1 += d[j] * w[j];
        s2 += d[j] * w[j] * x_hat;
        if constexpr (CHUNKS > 0) {
          dweight[i][j] += d[j] * x_hat;
          dbias[i][j] += d[j];
        } else {
          own[c + j] += d[j] * x_hat;
          own[columns + c + j] += d[j];
        }
      }
    });
    const acc through_mean = row_sum(s1) / columns, through_variance = row_sum(s2) / columns;
    d_row.each([&](int i, size c, acc(&d)[V]) {
      acc buffer[V], w[V], out[V] = {};
      acc(&a)[V] = x_row.part(i, c, buffer);
      load<V>(weight + c, w);
      if (residual) load<V>(residual + at + c, out);
#pragma unroll
      for (int j = 0; j < V; ++j)
        out[j] += inverse * (d[j] * w[j] - through_mean - (a[j] - middle) * inverse * through_variance);
      store<V>(out, dx + at + c);
    });
  }
#pragma unroll
  for (int i = 0; i < CHUNKS; ++i) {
    const size c = Row<V>::column(i);
    if (c < columns) {
#pragma unroll
      for (int j = 0; j < V; ++j) {
        own[c + j] = dweight[i][j];
        own[columns + c + j] = dbias[i][j];
      }
    }
  }
}

// residual may be null; dx may be residual or dy. partial: (blocks, 2, columns), each block's sums for dweight and dbias.
extern "C" __global__ void layer_norm_backward(const real *dy, const real *x, const real *weight, const acc *mean,
                                               const acc *inv_std, const real *residual, real *dx, acc *partial,
                                               size rows, size columns) {
  DYNAMIC_SHARED(acc, sums);
  acc *own = sums + (threadIdx.y * GROUPS + threadIdx.x / LANES) * 2 * columns;
  if (CHUNKS == 0) {
    for (size c = threadIdx.x; c < 2 * columns; c += WARP) own[c] = 0;
    __syncwarp(ALL);
  }
  if (packed(columns))
    norm_rows_backward<PACK>(dy, x, weight, mean, inv_std, residual, dx, own, rows, columns);
  else
    norm_rows_backward<1>(dy, x, weight, mean, inv_std, residual, dx, own, rows, columns);
  __syncthreads();
  for (size c = threadIdx.y * WARP + threadIdx.x; c < 2 * columns; c += WARP * blockDim.y) {
    acc total = 0;
    for (int y = 0; y < int(blockDim.y) * GROUPS; ++y) total += sums[y * 2 * columns + c];
    partial[blockIdx.x * 2 * columns + c] = total;
  }
}
