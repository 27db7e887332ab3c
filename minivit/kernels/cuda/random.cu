// What is drawn from a key in one pass: factors of dropout, and the augmented images of a batch (random.py).
#include "common.cuh"
#include "keys.cuh"

// mask (batch, count): 0 where the bits are below threshold, else kept.
extern "C" __global__ void keep_mask(const long long *samples, size first, size second, size threshold, double kept,
                                     real *mask, size batch, size count) {
  const size all = batch * count;
  for (size i = size(blockIdx.x) * blockDim.x + threadIdx.x; i < all; i += size(gridDim.x) * blockDim.x) {
    const unsigned bits = random_bits(unsigned(samples[i / count]), first, second, unsigned(i % count));
    mask[i] = real(acc(bits >= threshold ? kept : 0.0));
  }
}

// Not one rounding for both, so that NumPy has the same bits.
__device__ __forceinline__ float scaled(float x, float scale, float shift) { return __fadd_rn(__fmul_rn(x, scale), shift); }
__device__ __forceinline__ double scaled(double x, double scale, double shift) { return __dadd_rn(__dmul_rn(x, scale), shift); }

// From images (n, height, width, C) the samples' own, cropped out of a frame of zeros of padding pixels, flipped,
// and scaled channel by channel.
extern "C" __global__ void training_images(const unsigned char *images, const long long *samples, size crop_first,
                                           size crop_second, size padding, size flip_first, size flip_second,
                                           size flip, const acc *scale, const acc *shift, real *y, size count,
                                           size height, size width, size C) {
  for (size i = size(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += size(gridDim.x) * blockDim.x) {
    const size c = i % C, column = i / C % width, row = i / C / width % height, b = i / C / width / height;
    const unsigned sample = samples[b];
    size from_row = row, from_column = column;
    if (flip && random_bits(sample, flip_first, flip_second, 0) >> 31) from_column = width - 1 - column;
    if (padding) {
      const unsigned choices = 2 * padding + 1;
      from_row += size((random_bits(sample, crop_first, crop_second, 0) >> 16) * choices >> 16) - padding;
      from_column += size((random_bits(sample, crop_first, crop_second, 1) >> 16) * choices >> 16) - padding;
    }
    const bool inside = 0 <= from_row && from_row < height && 0 <= from_column && from_column < width;
    const acc pixel = inside ? images[((samples[b] * height + from_row) * width + from_column) * C + c] : 0;
    y[i] = real(scaled(pixel, scale[c], shift[c]));
  }
}
