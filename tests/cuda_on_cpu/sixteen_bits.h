// Floating-point numbers of 16 bits: stored rounded to nearest, ties to even; computations are in float.
#pragma once

#include <math.h>

#include <type_traits>

namespace cuda_on_cpu {

template <int EXPONENT, int FRACTION> struct Sixteen {
  unsigned short bits;

  static constexpr int LEAST = 2 - (1 << (EXPONENT - 1));  // the exponent of the smallest normal number
  static constexpr unsigned INFINITE = ((1u << EXPONENT) - 1) << FRACTION;

  Sixteen() = default;
  template <class T, class = std::enable_if_t<std::is_arithmetic_v<T>>> Sixteen(T x) : bits(rounded(double(x))) {}

  operator float() const {
    const int exponent = (bits & INFINITE) >> FRACTION;
    const int fraction = bits & ((1 << FRACTION) - 1);
    float size = ldexpf(fraction + (exponent ? 1 << FRACTION : 0), (exponent ? exponent - 1 : 0) + LEAST - FRACTION);
    if ((bits & INFINITE) == INFINITE) size = fraction ? NAN : INFINITY;
    return bits >> 15 ? -size : size;
  }

  static unsigned short rounded(double x) {
    const unsigned sign = signbit(x) ? 0x8000 : 0;
    if (isnan(x)) return sign | 0x7fff;
    if (isinf(x)) return sign | INFINITE;
    const int exponent = x == 0 || ilogb(x) < LEAST ? LEAST : ilogb(x);
    if (exponent > -LEAST + 1) return sign | INFINITE;
    // The leading one of the fraction, and a carry out of it, increment the exponent.
    return sign | ((exponent - LEAST) * (1 << FRACTION) + int(nearbyint(ldexp(fabs(x), FRACTION - exponent))));
  }
};

}  // namespace cuda_on_cpu
