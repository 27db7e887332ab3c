// Adam and AdamW over the flat vector (optimizer.py); every number is read and written once.
#include "common.cuh"

constexpr int BLOCK = 256 / sizeof(real); // numbers with one learning rate and one weight decay

// lr and decay: one number for each BLOCK; stops: the index at which the update of each BLOCK ends. If factor, which may
// be null, is not finite, nothing is changed.
extern "C" __global__ void adam(real *p, const real *g, real *m, real *v, const acc *lr, const acc *decay,
                                const long long *stops, double lr_scale, double beta1, double beta2, double eps, double correction1,
                                double correction2, size decoupled, const acc *factor, size count) {
  const acc scale = factor ? *factor : acc(1);
  if (!isfinite(scale)) return;
  const acc keep1 = 1 - beta1, keep2 = 1 - beta2, inverse2 = correction2, small = eps;
  for (size i = (size(blockIdx.x) * blockDim.x + threadIdx.x) * PACK; i < count;
       i += size(gridDim.x) * blockDim.x * PACK) {
    const size stop = stops[i / BLOCK];
    if (i >= stop) continue;
    const acc rate = lr[i / BLOCK] * acc(lr_scale), wd = decay[i / BLOCK];
    acc P[PACK], G[PACK], M[PACK], V[PACK];
    load<PACK>(p + i, P);
    load<PACK>(g + i, G);
    load<PACK>(m + i, M);
    load<PACK>(v + i, V);
#pragma unroll
    for (int j = 0; j < PACK; ++j) {
      if (i + j >= stop) continue;
      G[j] *= scale;
      if (decoupled)
        P[j] *= 1 - rate * wd;
      else
        G[j] += wd * P[j];
      M[j] += keep1 * (G[j] - M[j]);
      V[j] += keep2 * (G[j] * G[j] - V[j]);
      P[j] -= rate * acc(correction1) * M[j] / (sqrt(V[j] * inverse2) + small);
    }
    store<PACK>(P, p + i);
    store<PACK>(M, m + i);
    store<PACK>(V, v + i);
  }
}

// partial: the sum of the squares of the numbers of each block of 256 threads.
extern "C" __global__ void squares(const real *x, acc *partial, size count) {
  __shared__ acc shared[8];
  acc sum = 0;
  for (size i = (size(blockIdx.x) * blockDim.x + threadIdx.x) * PACK; i < count;
       i += size(gridDim.x) * blockDim.x * PACK) {
    acc a[PACK];
    load<PACK>(x + i, a);
#pragma unroll
    for (int j = 0; j < PACK; ++j) sum += a[j] * a[j];
  }
  sum = row_sum(sum);
  if (threadIdx.x % WARP == 0) shared[threadIdx.x / WARP] = sum;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int w = 1; w < 8; ++w) sum += shared[w];
    partial[blockIdx.x] = sum;
  }
}

// One warp: root = the square root of the sum of partial.
extern "C" __global__ void root_of_sum(const acc *partial, acc *root, size count) {
  acc sum = 0;
  for (size i = threadIdx.x; i < count; i += WARP) sum += partial[i];
  sum = row_sum(sum);
  if (threadIdx.x == 0) *root = sqrt(sum);
}
