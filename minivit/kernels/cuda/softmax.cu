// Softmax of rows with a scale, and its gradient (softmax.py, attention.py), a warp for each row.
#include "common.cuh"

constexpr int CHUNKS = 8; // a lane keeps so many exponentials; of longer rows they are computed twice

// y = softmax(scale * x). Rows are stride apart in both; y may be x.
extern "C" __global__ void softmax(const real *x, double scale, real *y, size rows, size columns, size stride) {
  const size r = size(blockIdx.x) * blockDim.y + threadIdx.y;
  if (r >= rows) return;
  const real *from = x + r * stride;
  real *to = y + r * stride;
  const acc s = scale;
  const bool few = columns <= WARP * CHUNKS;
  acc e[CHUNKS];
  acc most = LEAST, sum = 0;
  if (few) {
#pragma unroll
    for (int i = 0; i < CHUNKS; ++i) {
      const size c = i * WARP + threadIdx.x;
      e[i] = c < columns ? s * acc(from[c]) : LEAST;
      most = e[i] > most || e[i] != e[i] ? e[i] : most;
    }
  } else {
    for (size c = threadIdx.x; c < columns; c += WARP) {
      const acc a = s * acc(from[c]);
      most = a > most || a != a ? a : most;
    }
  }
  most = warp_max(most);
  if (few) {
#pragma unroll
    for (int i = 0; i < CHUNKS; ++i) {
      const size c = i * WARP + threadIdx.x;
      e[i] = c < columns ? exp(e[i] - most) : acc(0);
      sum += e[i];
    }
  } else {
    for (size c = threadIdx.x; c < columns; c += WARP) sum += exp(s * acc(from[c]) - most);
  }
  const acc inverse = 1 / warp_sum(sum);
  if (few) {
#pragma unroll
    for (int i = 0; i < CHUNKS; ++i) {
      const size c = i * WARP + threadIdx.x;
      if (c < columns) to[c] = real(e[i] * inverse);
    }
  } else {
    for (size c = threadIdx.x; c < columns; c += WARP) to[c] = real(exp(s * acc(from[c]) - most) * inverse);
  }
}

// dx = scale * y * (dy - sum(dy * y)). Rows are stride apart in all three; dx may be dy.
extern "C" __global__ void softmax_backward(const real *dy, const real *y, double scale, real *dx, size rows,
                                            size columns, size stride) {
  const size r = size(blockIdx.x) * blockDim.y + threadIdx.y;
  if (r >= rows) return;
  const size at = r * stride;
  acc sum = 0;
  for (size c = threadIdx.x; c < columns; c += WARP) sum += acc(dy[at + c]) * acc(y[at + c]);
  sum = warp_sum(sum);
  for (size c = threadIdx.x; c < columns; c += WARP)
    dx[at + c] = real(acc(scale) * acc(y[at + c]) * (acc(dy[at + c]) - sum));
}
