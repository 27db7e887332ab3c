// Softmax cross-entropy of a batch (cross_entropy.py): one warp for each image, and one warp for the mean.
#include "common.cuh"

// Returns the target of image b for class c: the soft target, or 1 at the label and 0 elsewhere, with label smoothing.
// It is NaN, and so is the loss, for what the host does not check here: a label out of range, or a soft target that is
// negative or infinite.
__device__ __forceinline__ acc target(const long long *labels, const acc *soft, size b, size c, size classes,
                                      double smoothing) {
  const acc plain = soft ? soft[b * classes + c] : acc(labels[b] == c);
  const bool valid = soft ? plain >= 0 && plain - plain == 0 : labels[b] >= 0 && labels[b] < classes;
  if (!valid) return sqrt(acc(-1)); // NaN
  return smoothing == 0 ? plain : plain * acc(1 - smoothing) + acc(smoothing / classes);
}

// p: (batch, classes), the softmax, or null; losses: (batch), the loss of each image divided by batch.
// Either labels or soft is null.
extern "C" __global__ void cross_entropy(const real *logits, const long long *labels, const acc *soft,
                                         double smoothing, acc *p, acc *losses, size batch, size classes) {
  const size b = size(blockIdx.x) * blockDim.y + threadIdx.y;
  if (b >= batch) return;
  const real *row = logits + b * classes;
  acc largest = LOWEST, sum = 0;
  for (size c = threadIdx.x; c < classes; c += WARP) {
    const acc a = row[c];
    largest = a > largest || a != a ? a : largest;
  }
  largest = row_max(largest);
  for (size c = threadIdx.x; c < classes; c += WARP) sum += exp(acc(row[c]) - largest);
  const acc log_sum = log(row_sum(sum));
  acc loss = 0;
  for (size c = threadIdx.x; c < classes; c += WARP) {
    const acc log_p = acc(row[c]) - largest - log_sum;
    const acc t = target(labels, soft, b, c, classes, smoothing);
    if (t != 0) loss -= t * log_p;  // where t is 0, log_p may be -infinity
    if (p) p[b * classes + c] = exp(log_p);
  }
  loss = row_sum(loss);
  if (threadIdx.x == 0) losses[b] = loss / batch;
}

// One warp: total = the sum of losses.
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
