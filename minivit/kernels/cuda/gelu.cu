// GELU of x + bias, exact or by tanh, and its gradient with the column sums for dbias (gelu.py, encoder_block.py).
#include "common.cuh"

constexpr double DENSITY = 0.3989422804014327; // 1 / sqrt(2 pi)
constexpr double C = 0.7978845608028654;       // sqrt(2 / pi)
constexpr double A = 0.044715;

// Returns Phi(x) and sets gauss to exp(-x^2 / 2). float uses the approximation and the coefficients of ops/erf.py.
__device__ __forceinline__ acc normal_cdf(acc x, acc &gauss) {
  gauss = exp(acc(-0.5) * x * x);
  if constexpr (sizeof(acc) == 8) return acc(0.5) * erfc(-x * acc(0.7071067811865476));
  const float z = x < 0 ? -x : x;
  const float p = ((0.398831383f * z + 2.96211465f) * z + 9.29608844f) * z + 13.4574033f;
  const float q = (((z + 7.41540371f) * z + 24.4369513f) * z + 40.0669486f) * z + 26.9148089f;
  // For large z, p / q would be inf / inf; gauss is 0 there.
  const float tail = z < 39 ? gauss * (p / q) : 0.0f;
  return x < 0 ? tail : 1 - tail;
}

template <bool TANH> __device__ __forceinline__ acc gelu_of(acc x) {
  acc gauss;
  if (!TANH) return x * normal_cdf(x, gauss);
  return x * (acc(0.5) + acc(0.5) * tanh(acc(C) * (x + acc(A) * x * x * x)));
}

template <bool TANH> __device__ __forceinline__ acc slope_of(acc x) {
  acc gauss;
  if (!TANH) {
    const acc cdf = normal_cdf(x, gauss);
    return cdf + x * acc(DENSITY) * gauss;
  }
  // For larger |x|, t rounds to 1 or -1, and the square could overflow.
  const acc z = x > acc(20) ? acc(20) : x < acc(-20) ? acc(-20) : x;
  const acc t = tanh(acc(C) * (z + acc(A) * z * z * z));
  return acc(0.5) + acc(0.5) * t + z * acc(0.5) * (1 - t * t) * (acc(C) + acc(3 * C * A) * z * z);
}

template <int V> __device__ __forceinline__ void add_bias(const real *bias, size column, acc (&a)[V]) {
  if (!bias) return;
  acc b[V];
  load<V>(bias + column, b);
#pragma unroll
  for (int j = 0; j < V; ++j) a[j] += b[j];
}

template <int V, bool TANH>
__device__ void forward(const real *x, const real *bias, real *y, size rows, size columns) {
  const size column = (size(blockIdx.x) * WARP + threadIdx.x) * V;
  if (column >= columns) return;
  for (size r = size(blockIdx.y) * TALL + threadIdx.y; r < rows; r += size(gridDim.y) * TALL) {
    acc a[V];
    load<V>(x + r * columns + column, a);
    add_bias<V>(bias, column, a);
#pragma unroll
    for (int j = 0; j < V; ++j) a[j] = gelu_of<TANH>(a[j]);
    store<V>(a, y + r * columns + column);
  }
}

template <int V, bool TANH>
__device__ void backward(const real *dy, const real *x, const real *bias, real *dx, acc *partial, size rows,
                         size columns) {
  const size column = (size(blockIdx.x) * WARP + threadIdx.x) * V;
  acc sums[V] = {};
  if (column < columns)
    for (size r = size(blockIdx.y) * TALL + threadIdx.y; r < rows; r += size(gridDim.y) * TALL) {
      acc d[V], a[V];
      load<V>(dy + r * columns + column, d);
      load<V>(x + r * columns + column, a);
      add_bias<V>(bias, column, a);
#pragma unroll
      for (int j = 0; j < V; ++j) {
        d[j] = acc(real(d[j] * slope_of<TANH>(a[j])));
        sums[j] += d[j];
      }
      store<V>(d, dx + r * columns + column);
    }
  if (partial) block_columns<V>(sums, column, columns, partial + blockIdx.y * columns);
}

template <int V>
__device__ void either(const real *x, const real *bias, real *y, size rows, size columns, size by_tanh) {
  if (by_tanh)
    forward<V, true>(x, bias, y, rows, columns);
  else
    forward<V, false>(x, bias, y, rows, columns);
}

template <int V>
__device__ void either_backward(const real *dy, const real *x, const real *bias, real *dx, acc *partial, size rows,
                                size columns, size by_tanh) {
  if (by_tanh)
    backward<V, true>(dy, x, bias, dx, partial, rows, columns);
  else
    backward<V, false>(dy, x, bias, dx, partial, rows, columns);
}

// bias may be null; y may be x.
extern "C" __global__ void gelu(const real *x, const real *bias, real *y, size rows, size columns, size by_tanh) {
  if (packed(columns))
    either<PACK>(x, bias, y, rows, columns, by_tanh);
  else
    either<1>(x, bias, y, rows, columns, by_tanh);
}

// bias and partial (blocks, columns) may be null; dx may be dy.
extern "C" __global__ void gelu_backward(const real *dy, const real *x, const real *bias, real *dx, acc *partial,
                                         size rows, size columns, size by_tanh) {
  if (packed(columns))
    either_backward<PACK>(dy, x, bias, dx, partial, rows, columns, by_tanh);
  else
    either_backward<1>(dy, x, bias, dx, partial, rows, columns, by_tanh);
}
