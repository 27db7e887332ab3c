// The parts of CUDA's header of this name that kernels use.
#pragma once
#define CUDA_ON_CPU_BFLOAT

#include "sixteen_bits.h"

using __nv_bfloat16 = cuda_on_cpu::Sixteen<8, 7>;
using nv_bfloat16 = __nv_bfloat16;

inline __nv_bfloat16 __float2bfloat16(float x) { return x; }
inline __nv_bfloat16 __float2bfloat16_rn(float x) { return x; }
inline __nv_bfloat16 __double2bfloat16(double x) { return x; }
inline float __bfloat162float(__nv_bfloat16 x) { return x; }
