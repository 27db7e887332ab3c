// Elementwise passes: addition of a bias and a residual, dropout, patches, token embedding and pooling.
#include "common.cuh"

typedef unsigned u32; // 64-bit divisions would be slower than the memory; elementwise.py limits the size of arrays

__device__ __forceinline__ u32 first_index() { return blockIdx.x * blockDim.x + threadIdx.x; }
__device__ __forceinline__ u32 all_threads() { return gridDim.x * blockDim.x; }

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
      acc extra[V];
      load<V>(residual + at, extra);
#pragma unroll
      for (int j = 0; j < V; ++j) a[j] += extra[j];
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

// y = x * mask, where each number of the mask is for this many neighbours in x.
extern "C" __global__ void dropout(const real *x, const real *mask, real *y, size count, size neighbours) {
  const u32 together = neighbours;
  if (together == 1) {
    const u32 packs = count / PACK;
    for (u32 i = first_index(); i < packs; i += all_threads()) {
      acc a[PACK], m[PACK];
      load<PACK>(x + i * PACK, a);
      load<PACK>(mask + i * PACK, m);
#pragma unroll
      for (int j = 0; j < PACK; ++j) a[j] *= m[j];
      store<PACK>(a, y + i * PACK);
    }
    for (u32 i = packs * PACK + first_index(); i < count; i += all_threads())
      y[i] = real(acc(x[i]) * acc(mask[i]));
  } else {
    for (u32 i = first_index(); i < count; i += all_threads())
      y[i] = real(acc(x[i]) * acc(mask[i / together]));
  }
}

__device__ __forceinline__ void move_lines(const real *from, real *to, u32 count, u32 columns, u32 P, u32 line,
                                           bool back) {
  for (u32 i = first_index(); i < count; i += all_threads()) {
    const u32 lines = i / line, column = lines / P % columns;
    const u32 above = lines / P / columns * P + lines % P; // rows of pixels, of all images
    const u32 pixel = (above * columns + column) * line + i % line;
    if (back)
      to[pixel] = from[i];
    else
      to[i] = from[pixel];
  }
}

// Images (batch, rows * P, columns * Q, C) to patches (batch, rows * columns, P * Q * C), or back.
extern "C" __global__ void patches(const real *from, real *to, size count, size columns, size P, size Q, size C,
                                   size back) {
  move_lines(from, to, count, columns, P, Q * C, back);
}

__device__ __forceinline__ void add_positions(const real *x, const real *pos_embed, const real *cls_token, real *y,
                                              u32 count, u32 tokens, u32 width) {
  const u32 start = cls_token ? 1 : 0;
  for (u32 i = first_index(); i < count; i += all_threads()) {
    const u32 d = i % width, all = i / width, token = all % tokens, b = all / tokens;
    const acc a = token < start ? cls_token[d] : x[(b * (tokens - start) + token - start) * width + d];
    y[i] = real(a + acc(pos_embed[token * width + d]));
  }
}

// y = [cls_token; x] + pos_embed; x has tokens - 1 tokens where there is a class token, else tokens.
extern "C" __global__ void embed(const real *x, const real *pos_embed, const real *cls_token, real *y, size count,
                                 size tokens, size width) {
  add_positions(x, pos_embed, cls_token, y, count, tokens, width);
}

__device__ __forceinline__ void mean_of_tokens(const real *x, real *y, u32 count, u32 tokens, u32 width,
                                               u32 first, u32 stop) {
  for (u32 i = first_index(); i < count; i += all_threads()) {
    const real *column = x + i / width * tokens * width + i % width;
    acc sum = 0;
    for (u32 token = first; token < stop; ++token) sum += acc(column[token * width]);
    y[i] = real(sum / (stop - first));
  }
}

// y (batch, width): the mean over the tokens first <= token < stop of x (batch, tokens, width).
extern "C" __global__ void pool(const real *x, real *y, size count, size tokens, size width, size first, size stop) {
  mean_of_tokens(x, y, count, tokens, width, first, stop);
}

__device__ __forceinline__ void share_among_tokens(const real *dy, real *dx, u32 count, u32 tokens, u32 width,
                                                   u32 first, u32 stop) {
  for (u32 i = first_index(); i < count; i += all_threads()) {
    const u32 all = i / width, token = all % tokens;
    const acc d = dy[all / tokens * width + i % width];
    dx[i] = real(first <= token && token < stop ? d / (stop - first) : acc(0));
  }
}

// dx (batch, tokens, width): dy (batch, width) / (stop - first) for first <= token < stop, and zero for the others.
extern "C" __global__ void pool_backward(const real *dy, real *dx, size count, size tokens, size width, size first,
                                         size stop) {
  share_among_tokens(dy, dx, count, tokens, width, first, stop);
}
