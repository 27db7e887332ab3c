// A launch on the CPU: what it may touch (access.cpp), how it goes (block.cpp) and how it fails.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace cuda_on_cpu {

// Memory that a kernel may use: that of an argument, counted from 0, or of none.
struct Range {
  uint64_t first, end;
  int64_t writable, argument;
};

constexpr int NO_ARGUMENT = -1;

// Forgets all memory of the launch before and allows that of the arguments; then more of it.
void allow(const Range* arguments, uint64_t count);
void allow(const void* memory, size_t bytes);

// End the launch with a message; the second begins it with the current thread.
[[noreturn]] __attribute__((format(printf, 1, 2))) void fail(const char* format, ...);
[[noreturn]] __attribute__((format(printf, 1, 2))) void fail_here(const char* format, ...);

}  // namespace cuda_on_cpu
