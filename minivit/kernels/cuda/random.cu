// Dropout masks and augmented images from a key, in one pass (random.py).
#include "common.cuh"
#include "keys.cuh"

__device__ __forceinline__ void draw(const long long *samples, unsigned first, unsigned second, unsigned long long threshold,
                                     acc kept, real *mask, unsigned all, unsigned count) {
  for (unsigned i = blockIdx.x * blockDim.x + threadIdx.x; i < all; i += gridDim.x * blockDim.x) {
    const unsigned bits = random_bits(unsigned(samples[i / count]), first, second, i % count);
    mask[i] = real(bits >= threshold ? kept : acc(0));
  }
}

// mask (batch, count): 0 where the bits are below threshold, and kept elsewhere.
extern "C" __global__ void keep_mask(const long long *samples, size first, size second, size threshold, double kept,
                                     real *mask, size batch, size count) {
  draw(samples, first, second, threshold, kept, mask, batch * count, count);
}

// Rounds twice, without a fused multiply-add, so that NumPy gives the same bits.
__device__ __forceinline__ float scaled(float x, float scale, float shift) {
  return __fadd_rn(__fmul_rn(x, scale), shift);
}
__device__ __forceinline__ double scaled(double x, double scale, double shift) {
  return __dadd_rn(__dmul_rn(x, scale), shift);
}

// Whether a part of an image, of which (top, left) is the first pixel, is black; all threads of a block call it.
__device__ __forceinline__ bool is_black(const unsigned char *image, int top, int left, int rows, int columns, int wide,
                                         int channels) {
  const int line = columns * channels;
  bool lit = false;
  for (int i = threadIdx.x; i < rows * line && !lit; i += blockDim.x)
    lit = image[((top + i / line) * wide + left) * channels + i % line] > 0;
  return !__syncthreads_or(lit);
}

// Takes the samples from images (n, height, width, C), pads them with zeros, crops and flips them, and scales each
// channel; an image that the crop would turn black is not cropped. A block computes one row of pixels of one image at a
// time.
extern "C" __global__ void training_images(const unsigned char *images, const long long *samples, size crop_first,
                                           size crop_second, size padding, size flip_first, size flip_second,
                                           size flip, const acc *scale, const acc *shift, real *y, size batch,
                                           size height, size width, size C) {
  const int high = height, wide = width, channels = C, choices = 2 * padding + 1;
  for (size line = blockIdx.x; line < batch * height; line += gridDim.x) {
    const size b = line / height;
    const unsigned sample = samples[b];
    const bool flipped = flip && random_bits(sample, flip_first, flip_second, 0) >> 31;
    int down = 0, aside = 0;
    if (padding) {
      down = int((random_bits(sample, crop_first, crop_second, 0) >> 16) * choices >> 16) - int(padding);
      aside = int((random_bits(sample, crop_first, crop_second, 1) >> 16) * choices >> 16) - int(padding);
      const unsigned char *image = images + samples[b] * height * width * C;
      const int rows = high - max(down, -down), columns = wide - max(aside, -aside);
      if (is_black(image, max(down, 0), max(aside, 0), rows, columns, wide, channels)) down = aside = 0;
    }
    const int row = line % height + down;
    const unsigned char *from = images + (samples[b] * height + row) * width * C;
    for (int i = threadIdx.x; i < wide * channels; i += blockDim.x) {
      const int c = i % channels, column = (flipped ? wide - 1 - i / channels : i / channels) + aside;
      const bool inside = 0 <= row && row < high && 0 <= column && column < wide;
      y[line * width * C + i] = real(scaled(inside ? from[column * channels + c] : 0, scale[c], shift[c]));
    }
  }
}
