// The interface between a kernel on the CPU and its block (block.cpp).
#pragma once

namespace cuda_on_cpu {

struct Place {
  unsigned x, y, z;
};

extern Place thread, block, threads, blocks;  // threadIdx, blockIdx, blockDim, gridDim
extern unsigned lane;
extern unsigned long long block_number, launch_number;  // counted over all launches, from 1

// Returns when every running thread of the block waits at the same line.
void barrier(int line);

// Returns the value of lane `from` when all lanes of the mask wait at the same line; all bits set if it is not in the
// mask.
unsigned long long exchange(unsigned mask, unsigned long long value, unsigned from, int line);

void* dynamic_shared();
void claim_shared(void* memory, unsigned long bytes, unsigned long long& launch);

// A variable in shared memory: undefined at the start of each block, and counted in the launches that use it.
template <class T> struct Shared {
  alignas(128) unsigned char bytes[sizeof(T)];
  unsigned long long block, launch;

  T& here() {
    if (block != block_number) {
      claim_shared(bytes, sizeof(T), launch);
      block = block_number;
    }
    return reinterpret_cast<T&>(bytes);
  }
};

}  // namespace cuda_on_cpu
