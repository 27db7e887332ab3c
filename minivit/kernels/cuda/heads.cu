// Conversion between tokens (batch, tokens, parts, H, K) and heads (parts, batch, H, tokens, K) (heads.py).
#include "common.cuh"

// The index in (parts, batch, H, tokens, K) of the element (r, column) of (batch * tokens, parts * H * K).
struct Place {
  size head, part, k;
  __device__ Place(size column, size H, size K) : head(column / K % H), part(column / K / H), k(column % K) {}
  __device__ size of(size r, size batch, size H, size tokens, size K) const {
    const size b = r / tokens, n = r % tokens;
    return (((part * batch + b) * H + head) * tokens + n) * K + k;
  }
};

template <int V>
__device__ void split(const real *x, const real *bias, real *y, size batch, size tokens, size parts, size H, size K) {
  const size columns = parts * H * K, column = (size(blockIdx.x) * WARP + threadIdx.x) * V;
  if (column >= columns) return;
  const Place place(column, H, K);
  acc shift[V] = {};
  if (bias) load<V>(bias + column, shift);
  for (size r = size(blockIdx.y) * TALL + threadIdx.y; r < batch * tokens; r += size(gridDim.y) * TALL) {
    acc a[V];
    load<V>(x + r * columns + column, a);
#pragma unroll
    for (int j = 0; j < V; ++j) a[j] += shift[j];
    store<V>(a, y + place.of(r, batch, H, tokens, K));
  }
}

template <int V>
__device__ void merge(const real *x, real *y, acc *partial, size batch, size tokens, size parts, size H, size K) {
  const size columns = parts * H * K, column = (size(blockIdx.x) * WARP + threadIdx.x) * V;
  acc sums[V] = {};
  if (column < columns) {
    const Place place(column, H, K);
    for (size r = size(blockIdx.y) * TALL + threadIdx.y; r < batch * tokens; r += size(gridDim.y) * TALL) {
      acc a[V];
      load<V>(x + place.of(r, batch, H, tokens, K), a);
#pragma unroll
      for (int j = 0; j < V; ++j) sums[j] += a[j];
      store<V>(a, y + r * columns + column);
    }
  }
  if (partial) block_columns<V>(sums, column, columns, partial + blockIdx.y * columns);
}

// y (parts, batch, H, tokens, K) = x (batch, tokens, parts, H, K) + bias (parts, H, K), which may be null.
extern "C" __global__ void split_heads(const real *x, const real *bias, real *y, size batch, size tokens, size parts,
                                       size H, size K) {
  if (packed(K))
    split<PACK>(x, bias, y, batch, tokens, parts, H, K);
  else
    split<1>(x, bias, y, batch, tokens, parts, H, K);
}

// The inverse of split_heads without the bias. partial (blocks, parts * H * K), which may be null, is set to the sums
// over the tokens of each block.
extern "C" __global__ void merge_heads(const real *x, real *y, acc *partial, size batch, size tokens, size parts,
                                       size H, size K) {
  if (packed(K))
    merge<PACK>(x, y, partial, batch, tokens, parts, H, K);
  else
    merge<1>(x, y, partial, batch, tokens, parts, H, K);
}
