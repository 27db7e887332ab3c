// A launch on the CPU: the memory that it may access (access.cpp) and its errors (block.cpp).
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace cuda_on_cpu {

// Memory that a kernel may access; argument is the number of its argument, from 0, or NO_ARGUMENT.
struct Range {
  uint64_t first, end;
  int64_t writable, argument;
};

constexpr int NO_ARGUMENT = -1;

// The first sets the allowed memory to that of the arguments; the second adds to it.
void allow(const Range* arguments, uint64_t count);
void allow(const void* memory, size_t bytes);

// End the launch with an error message; in the second it begins with the current thread.
[[noreturn]] __attribute__((format(printf, 1, 2))) void fail(const char* format, ...);
[[noreturn]] __attribute__((format(printf, 1, 2))) void fail_here(const char* format, ...);

}  // namespace cuda_on_cpu
