// The parts of CUDA's header of this name that kernels use.
#pragma once
#define CUDA_ON_CPU_HALF

#include "sixteen_bits.h"

using __half = cuda_on_cpu::Sixteen<5, 10>;
using half = __half;

inline __half __float2half(float x) { return x; }
inline __half __float2half_rn(float x) { return x; }
inline __half __double2half(double x) { return x; }
inline float __half2float(__half x) { return x; }
