// The grad scaler and the metrics of a step (step.py).
#include "common.cuh"

constexpr int STOPPED = 0, SCALE = 1, GOOD = 2, FACTOR = 3; // indices of the state, as in ops/grad_scaler.py

// One thread. state: whether the run has stopped, loss scale, good steps, factor of the gradients.
extern "C" __global__ void update_grad_scaler(acc *state, const acc *loss, const acc *norm, double clip_norm,
                                              size scaled, double growth_steps, double largest_scale) {
  const acc scale = state[SCALE], good = state[GOOD];
  const bool finite = isfinite(*norm);
  const bool excused = !finite && scale > 1;
  const bool going_on = isfinite(*loss) && (finite || excused) && state[STOPPED] == 0;
  acc factor = 1;
  if (clip_norm != 0) {
    const acc clip = acc(clip_norm) / (*norm / scale + acc(1e-6));
    if (clip < 1) factor = clip;
  }
  if (scaled) {
    const bool grows = finite && good >= acc(growth_steps) - 1;
    const acc more = scale * 2 < acc(largest_scale) ? scale * 2 : acc(largest_scale);
    state[GOOD] = finite && !grows ? good + 1 : acc(0);
    state[SCALE] = excused ? scale / 2 : grows ? more : scale;
  }
  state[STOPPED] = going_on ? 0 : 1;
  state[FACTOR] = going_on && finite ? factor / scale : sqrt(acc(-1)); // NaN
}

// One block of COUNTERS warps. record: the loss, the number of rows whose largest logit is at the label, and stopped.
constexpr int COUNTERS = 32;

extern "C" __global__ void record_metrics(acc *record, const acc *loss, const real *logits, const long long *labels,
                                          const acc *stopped, size batch, size classes) {
  __shared__ int counts[COUNTERS];
  int correct = 0;
  for (size b = threadIdx.y; b < batch; b += COUNTERS) {
    const real *row = logits + b * classes;
    // The first of the largest logits, as in argmax; NaN is larger than every number.
    acc largest = LOWEST;
    int at = classes;
    for (int c = threadIdx.x; c < classes; c += WARP) {
      const acc a = row[c];
      if (at == classes || a > largest || (a != a && largest == largest)) {
        largest = a;
        at = c;
      }
    }
    for (int offset = WARP / 2; offset > 0; offset /= 2) {
      const acc a = __shfl_xor_sync(ALL, largest, offset);
      const int c = __shfl_xor_sync(ALL, at, offset);
      const bool nan = a != a, was_nan = largest != largest;
      const bool equal = a == largest || (nan && was_nan);
      if (c < classes && (at == classes || (nan && !was_nan) || (!was_nan && a > largest) || (equal && c < at))) {
        largest = a;
        at = c;
      }
    }
    correct += at == labels[b];
  }
  if (threadIdx.x == 0) counts[threadIdx.y] = correct;
  __syncthreads();
  if (threadIdx.x == 0 && threadIdx.y == 0) {
    for (int y = 1; y < COUNTERS; ++y) correct += counts[y];
    record[0] = *loss;
    record[1] = correct;
    record[2] = *stopped;
  }
}
