// Softmax of scaled rows, and its gradient (softmax.py, attention.py), with LANES lanes for each row.
#include "common.cuh"

// Returns the columns rounded up to whole packs. The results after the row's columns are undefined.
template <int V> __device__ __forceinline__ size whole_packs(size columns) { return (columns + V - 1) / V * V; }

template <int V, class T> __device__ void softmax_row(const T *x, acc scale, real *y, size columns, bool live) {
  Row<V, T> row(x, live ? whole_packs<V>(columns) : 0);
  acc largest = LOWEST, sum = 0;
  row.each([&](int, size c, acc(&a)[V]) {
#pragma unroll
    for (int j = 0; j < V; ++j) {
      const acc s = scale * a[j];
      if (c + j < columns && (s > largest || s != s)) largest = s;
    }
  });
  largest = row_max(largest);
  row.each([&](int, size c, acc(&a)[V]) {
#pragma unroll
    for (int j = 0; j < V; ++j) {
      a[j] = c + j < columns ? exp(scale * a[j] - largest) : acc(0);
      sum += a[j];
    }
  });
  const acc inverse = 1 / row_sum(sum);
  row.each([&](int, size c, acc(&a)[V]) {
#pragma unroll
    for (int j = 0; j < V; ++j) a[j] = (CHUNKS > 0 ? a[j] : exp(scale * a[j] - largest)) * inverse;
    store<V>(a, y + c);
  });
}

template <class T>
__device__ void softmax_rows(const T *x, acc scale, real *y, size rows, size columns, size stride) {
  const size r = (size(blockIdx.x) * TALL + threadIdx.y) * GROUPS + threadIdx.x / LANES;
  if (CHUNKS > 0)
    softmax_row<PACK>(x + r * stride, scale, y + r * stride, columns, r < rows);
  else
    softmax_row<1>(x + r * stride, scale, y + r * stride, columns, r < rows);
}

// y = softmax(scale * x). Rows are stride apart in both; y may be x.
extern "C" __global__ void softmax(const real *x, double scale, real *y, size rows, size columns, size stride) {
  softmax_rows(x, acc(scale), y, rows, columns, stride);
}

// The same for scores in acc.
extern "C" __global__ void softmax_scores(const acc *x, double scale, real *y, size rows, size columns, size stride) {
  softmax_rows(x, acc(scale), y, rows, columns, stride);
}

template <int V, class T>
__device__ void softmax_row_backward(const T *dy, const real *y, acc scale, real *dx, size columns, bool live) {
  const size span = live ? whole_packs<V>(columns) : 0;
  Row<V, T> d_row(dy, span);
  Row<V> y_row(y, span);
  acc sum = 0;
  d_row.each([&](int i, size c, acc(&d)[V]) {
    acc buffer[V];
    acc(&p)[V] = y_row.part(i, c, buffer);
#pragma unroll
    for (int j = 0; j < V; ++j)
      if (c + j < columns) sum += d[j] * p[j];
  });
  sum = row_sum(sum);
  d_row.each([&](int i, size c, acc(&d)[V]) {
    acc buffer[V];
    acc(&p)[V] = y_row.part(i, c, buffer);
#pragma unroll
    for (int j = 0; j < V; ++j) d[j] = scale * p[j] * (d[j] - sum);
    store<V>(d, dx + c);
  });
}

template <class T>
__device__ void softmax_rows_backward(const T *dy, const real *y, acc scale, real *dx, size rows, size columns,
                                      size stride) {
  const size r = (size(blockIdx.x) * TALL + threadIdx.y) * GROUPS + threadIdx.x / LANES, at = r * stride;
  if (CHUNKS > 0)
    softmax_row_backward<PACK>(dy + at, y + at, scale, dx + at, columns, r < rows);
  else
    softmax_row_backward<1>(dy + at, y + at, scale, dx + at, columns, r < rows);
}

// dx = scale * y * (dy - sum(dy * y)). Rows are stride apart in all three; dx may be dy.
extern "C" __global__ void softmax_backward(const real *dy, const real *y, double scale, real *dx, size rows,
                                            size columns, size stride) {
  softmax_rows_backward(dy, y, acc(scale), dx, rows, columns, stride);
}

// The same for a gradient in acc.
extern "C" __global__ void softmax_scores_backward(const acc *dy, const real *y, double scale, real *dx, size rows,
                                                   size columns, size stride) {
  softmax_rows_backward(dy, y, acc(scale), dx, rows, columns, stride);
}
