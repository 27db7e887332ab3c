// Checks every memory access of a kernel: it must be inside the allowed memory, and aligned to its size.
#include "launch.h"

#include <stdio.h>
#include <string.h>

namespace cuda_on_cpu {
namespace {

constexpr unsigned MOST_RANGES = 4096 / 8 + 3;  // CUDA takes 4 KiB of arguments
Range ranges[MOST_RANGES];
const Range* hit = ranges;  // the range of the last access
unsigned count;

// Returns by how many bytes an access begins before the range, or ends after it.
uint64_t distance(const Range& range, uint64_t address, size_t bytes) {
  return address < range.first ? range.first - address : address + bytes - range.end;
}

[[noreturn]] void reject(uint64_t address, size_t bytes, bool write) {
  const char* verb = write ? "writes" : "reads";
  const Range* nearest = ranges;
  for (const Range* range = ranges; range < ranges + count; ++range) {
    if (range->first <= address && address + bytes <= range->end)
      fail_here("writes to argument %d, which is read-only", int(range->argument));
    if (distance(*range, address, bytes) < distance(*nearest, address, bytes)) nearest = range;
  }
  if (!address) fail_here("%s %zu bytes through null", verb, bytes);
  char what[64] = "shared memory";
  if (nearest->argument != NO_ARGUMENT) snprintf(what, sizeof what, "the array of argument %d", int(nearest->argument));
  fail_here("%s %zu bytes outside of %s, up to %zu bytes %s", verb, bytes, what, distance(*nearest, address, bytes),
            address < nearest->first ? "before its start" : "after its end");
}

void check(uint64_t address, size_t bytes, bool write) {
  const auto inside = [=](const Range* range) {
    return range->first <= address && address + bytes <= range->end && range->writable >= write;
  };
  if (!inside(hit)) {
    hit = ranges;
    while (hit < ranges + count && !inside(hit)) ++hit;
    if (hit == ranges + count) {
      hit = ranges;
      reject(address, bytes, write);
    }
  }
  if (bytes <= 16 && !(bytes & (bytes - 1)) && address & (bytes - 1))
    fail_here("%s %zu bytes at an address that is not a multiple of that", write ? "writes" : "reads", bytes);
}

}  // namespace

void allow(const Range* arguments, uint64_t given) {
  hit = ranges;
  count = given;
  memcpy(ranges, arguments, given * sizeof *ranges);
}

void allow(const void* memory, size_t bytes) {
  ranges[count++] = {uint64_t(memory), uint64_t(memory) + bytes, true, NO_ARGUMENT};
}

// With -fsanitize=kernel-address, g++ calls these functions at every memory access,
#define CHECKED(bytes)                                                                  \
  void __asan_load##bytes##_noabort(uint64_t address) { check(address, bytes, false); } \
  void __asan_store##bytes##_noabort(uint64_t address) { check(address, bytes, true); }

extern "C" {
CHECKED(1)
CHECKED(2)
CHECKED(4)
CHECKED(8)
CHECKED(16)
void __asan_loadN_noabort(uint64_t address, size_t bytes) { check(address, bytes, false); }
void __asan_storeN_noabort(uint64_t address, size_t bytes) { check(address, bytes, true); }
void __asan_handle_no_return() {}

// and with -fsanitize=bounds-strict this one for an index outside of an array of known size.
struct Source {
  const char* file;
  uint32_t line, column;
};

void __ubsan_handle_out_of_bounds(const Source* source, uint64_t index) {
  fail_here("takes the index %td at line %u, outside of its array", int64_t(index), source->line);
}
}

}  // namespace cuda_on_cpu
