// Softmax cross-entropy of a batch (cross_entropy.py): a warp for each image, and one block for the mean.
#include "common.cuh"

// What the image's target for a class is: soft targets as given, or one for its label; then smoothed.
__device__ __forceinline__ acc target(const long long *labels, const acc *soft, size b, size c, size classes,
                                      double smoothing) {
  const acc plain = soft ? soft[b * classes + c] : acc(labels[b] == c);
  return smoothing == 0 ? plain : plain * acc(1 - smoothing) + acc(smoothing / classes);
}

// p: (batch, classes), the softmax, or null; losses: (batch), the share of each image in the mean.
// Of labels and soft one is null.
extern "C" __global__ void cross_entropy(const real *logits, const long long *labels, const acc *soft,
                                         double smoothing, acc *p, acc *losses, size batch, size classes) {
  const size b = size(blockIdx.x) * blockDim.y + threadIdx.y;
  if (b >= batch) return;
  const real *row = logits + b * classes;
  acc most = LEAST, sum = 0;
  for (size c = threadIdx.x; c < classes; c += WARP) {
    const acc a = row[c];
    most = a > most || a != a ? a : most;
  }
  most = row_max(most);
  for (size c = threadIdx.x; c < classes; c += WARP) sum += exp(acc(row[c]) - most);
  const acc log_sum = log(row_sum(sum));
  acc loss = 0;
  for (size c = threadIdx.x; c < classes; c += WARP) {
    const acc log_p = acc(row[c]) - most - log_sum;
    loss -= target(labels, soft, b, c, classes, smoothing) * log_p;
    if (p) p[b * classes + c] = exp(log_p);
  }
  loss = row_sum(loss);
  // What no check on the host has seen is not passed over in silence.
  if (labels && (labels[b] < 0 || labels[b] >= classes)) loss = sqrt(acc(-1)); // NaN
  if (threadIdx.x == 0) losses[b] = loss / batch;
}

// One warp: the sum of the shares.
extern "C" __global__ void cross_entropy_total(const acc *losses, acc *total, size batch) {
  acc sum = 0;
  for (size b = threadIdx.x; b < batch; b += WARP) sum += losses[b];
  sum = row_sum(sum);
  if (threadIdx.x == 0) *total = sum;
}

// dlogits = factor * [*dloss] * (p * sum(targets) - targets) / batch; dloss may be null.
extern "C" __global__ void cross_entropy_backward(const acc *p, const long long *labels, const acc *soft,
                                                  double smoothing, double factor, const acc *dloss, real *dlogits,
                                                  size batch, size classes) {
  const size b = size(blockIdx.x) * blockDim.y + threadIdx.y;
  if (b >= batch) return;
  acc sum = 0;
  for (size c = threadIdx.x; c < classes; c += WARP) sum += target(labels, soft, b, c, classes, smoothing);
  sum = row_sum(sum);
  const acc share = acc(factor) * (dloss ? *dloss : acc(1)) / batch;
  for (size c = threadIdx.x; c < classes; c += WARP) {
    const size i = b * classes + c;
    dlogits[i] = real((p[i] * sum - target(labels, soft, b, c, classes, smoothing)) * share);
  }
}
