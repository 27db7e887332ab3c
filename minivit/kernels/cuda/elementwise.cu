// Passes over whole arrays: a bias and a residual added to rows, dropout, images into patches, tokens.
#include "common.cuh"

constexpr int TALL = 8;

__device__ __forceinline__ size first_index() { return size(blockIdx.x) * blockDim.x + threadIdx.x; }
__device__ __forceinline__ size all_threads() { return size(gridDim.x) * blockDim.x; }

template <int V>
__device__ void add_rows(const real *x, const real *bias, const real *residual, real *y, size rows, size columns) {
  const size column = (size(blockIdx.x) * WARP + threadIdx.x) * V;
  if (column >= columns) return;
  acc b[V];
  load<V>(bias + column, b);
  for (size r = size(blockIdx.y) * TALL + threadIdx.y; r < rows; r += size(gridDim.y) * TALL) {
    const size at = r * columns + column;
    acc a[V];
    load<V>(x + at, a);
#pragma unroll
    for (int j = 0; j < V; ++j) a[j] += b[j];
    if (residual) {
      acc past[V];
      load<V>(residual + at, past);
#pragma unroll
      for (int j = 0; j < V; ++j) a[j] += past[j];
    }
    store<V>(a, y + at);
  }
}

// y = x + bias [+ residual]; y may be x.
extern "C" __global__ void add_bias(const real *x, const real *bias, const real *residual, real *y, size rows,
                                    size columns) {
  if (packed(columns))
    add_rows<PACK>(x, bias, residual, y, rows, columns);
  else
    add_rows<1>(x, bias, residual, y, rows, columns);
}

// y = x * mask, in which every number of the mask is for so many neighbours of x.
extern "C" __global__ void dropout(const real *x, const real *mask, real *y, size count, size neighbours) {
  if (neighbours == 1) {
    const size packs = count / PACK;
    for (size i = first_index(); i < packs; i += all_threads()) {
      acc a[PACK], m[PACK];
      load<PACK>(x + i * PACK, a);
      load<PACK>(mask + i * PACK, m);
#pragma unroll
      for (int j = 0; j < PACK; ++j) a[j] *= m[j];
      store<PACK>(a, y + i * PACK);
    }
    for (size i = packs * PACK + first_index(); i < count; i += all_threads())
      y[i] = real(acc(x[i]) * acc(mask[i]));
  } else {
    for (size i = first_index(); i < count; i += all_threads())
      y[i] = real(acc(x[i]) * acc(mask[i / neighbours]));
  }
}

// Images (batch, rows * P, columns * Q, C) to patches (batch, rows * columns, P * Q * C), or back.
extern "C" __global__ void patches(const real *from, real *to, size count, size rows, size columns, size P, size Q,
                                   size C, size back) {
  const size line = Q * C;
  for (size i = first_index(); i < count; i += all_threads()) {
    const size in_line = i % line;
    size rest = i / line;
    const size p = rest % P;
    rest /= P;
    const size column = rest % columns;
    rest /= columns; // the image and the row of patches in it
    const size pixel = ((rest * P + p) * columns + column) * line + in_line;
    if (back)
      to[pixel] = from[i];
    else
      to[i] = from[pixel];
  }
}

// y = [cls_token; x] + pos_embed; x has tokens - 1 tokens where there is a class token, else tokens.
extern "C" __global__ void embed(const real *x, const real *pos_embed, const real *cls_token, real *y, size count,
                                 size tokens, size width) {
  const size start = cls_token ? 1 : 0;
  for (size i = first_index(); i < count; i += all_threads()) {
    const size d = i % width, token = i / width % tokens, b = i / width / tokens;
    const acc a = token < start ? cls_token[d] : x[(b * (tokens - start) + token - start) * width + d];
    y[i] = real(a + acc(pos_embed[token * width + d]));
  }
}

// y (batch, width): the mean of the tokens from first to stop of x (batch, tokens, width).
extern "C" __global__ void pool(const real *x, real *y, size count, size tokens, size width, size first, size stop) {
  for (size i = first_index(); i < count; i += all_threads()) {
    const real *column = x + i / width * tokens * width + i % width;
    acc sum = 0;
    for (size token = first; token < stop; ++token) sum += acc(column[token * width]);
    y[i] = real(sum / (stop - first));
  }
}

// dx (batch, tokens, width): a share of dy (batch, width) for the tokens from first to stop, zero for the others.
extern "C" __global__ void pool_backward(const real *dy, real *dx, size count, size tokens, size width, size first,
                                         size stop) {
  for (size i = first_index(); i < count; i += all_threads()) {
    const size token = i / width % tokens;
    const acc d = dy[i / width / tokens * width + i % width];
    dx[i] = real(first <= token && token < stop ? d / (stop - first) : acc(0));
  }
}
