// Runs the blocks of a launch one after another, and the threads of a block as fibers.
//
// A fiber runs until it waits at a barrier or for other lanes of its warp. Then another lane of the warp runs, or, if no
// lane of this warp can run, another warp, so that warps run as far ahead as barriers allow. The order of the launch
// says which lane, warp and block runs first. A fiber whose thread has ended waits for the next block.
#include "block.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>

#include "launch.h"

namespace cuda_on_cpu {

Place thread, block, threads, blocks;
unsigned lane;
unsigned long long block_number, launch_number;

namespace {

constexpr unsigned WARP = 32, MOST_THREADS = 1024, MOST_WARPS = MOST_THREADS / WARP;
constexpr size_t STACK = 64 << 10, GUARD = 4 << 10, STEP = STACK + GUARD, MOST_SHARED = 48 << 10;

enum Order { FORWARD, BACKWARD, SHUFFLED };
enum End { FAILED = 1, ENDED };

struct Fiber {
  jmp_buf where;
  bool started;
  Place thread;
  unsigned mask, from;  // the lanes that it waits for, and the lane whose value it reads
  int line;
  unsigned long long value, result;
};

struct Warp {
  unsigned living, ready, turn, at_barrier, at_exchange;  // sets of lanes; the lanes in turn have not run yet
};

Fiber fibers[MOST_THREADS];
Warp warps[MOST_WARPS];
char* stacks;
unsigned ready_warps, warp, living, waiting;
int barrier_line;

Order order;
uint64_t random_state;
void (*body)(const uint64_t*);
const uint64_t* arguments;
size_t static_bytes, dynamic_bytes;
alignas(128) char dynamic[MOST_SHARED];

jmp_buf caller;
char message[1024];

uint64_t random_bits() {  // splitmix64
  uint64_t z = random_state += 0x9e3779b97f4a7c15;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
  z = (z ^ z >> 27) * 0x94d049bb133111eb;
  return z ^ z >> 31;
}

unsigned pick(unsigned set) {
  if (order == FORWARD) return __builtin_ctz(set);
  if (order == BACKWARD) return 31 - __builtin_clz(set);
  const unsigned turn = random_bits() & 31;
  return (__builtin_ctz(set >> turn | set << (-turn & 31)) + turn) & 31;
}

[[noreturn]] void fail_waiting() {
  const Fiber* first = nullptr;
  unsigned elsewhere = 0;
  for (unsigned t = 0; t < MOST_THREADS; ++t)
    if (warps[t / WARP].living >> t % WARP & 1) {
      if (!first) first = &fibers[t];
      elsewhere += fibers[t].line != first->line;
    }
  fail("%u threads of block (%u, %u, %u) wait forever: thread (%u, %u, %u) at line %d, %u at other lines; %u have ended",
       living, block.x, block.y, block.z, first->thread.x, first->thread.y, first->thread.z, first->line, elsewhere,
       threads.x * threads.y * threads.z - living);
}

void run_fiber();

[[noreturn]] void enter(unsigned t) {
  Fiber& fiber = fibers[t];
  thread = fiber.thread;
  lane = t % WARP;
  if (fiber.started) _longjmp(fiber.where, 1);
  fiber.started = true;
  ucontext_t context;
  getcontext(&context);
  context.uc_stack.ss_sp = stacks + t * STEP + GUARD;
  context.uc_stack.ss_size = STACK;
  mprotect(context.uc_stack.ss_sp, STACK, PROT_READ | PROT_WRITE);
  makecontext(&context, run_fiber, 0);
  setcontext(&context);
  __builtin_unreachable();
}

// Runs other threads; returns when the scheduler resumes this one.
void yield_to_others() {
  Fiber& self = fibers[warp * WARP + lane];
  if (!warps[warp].ready) {
    ready_warps &= ~(1u << warp);
    if (!ready_warps && living) fail_waiting();
    if (!ready_warps) {
      if (!_setjmp(self.where)) _longjmp(caller, ENDED);
      return;
    }
    warp = pick(ready_warps);
  }
  Warp& next = warps[warp];
  if (!next.turn) next.turn = next.ready;
  const unsigned chosen = pick(next.turn);
  next.turn &= ~(1u << chosen);
  const unsigned other = warp * WARP + chosen;
  if (&fibers[other] != &self && !_setjmp(self.where)) enter(other);
}

void open_barrier_when_full() {
  if (waiting < living) return;
  waiting = 0;
  for (unsigned w = 0; w < MOST_WARPS; ++w)
    if (warps[w].at_barrier) {
      warps[w].ready |= warps[w].at_barrier;
      warps[w].at_barrier = 0;
      ready_warps |= 1u << w;
    }
}

void run_fiber() {
  for (;;) {
    body(arguments);
    const unsigned self = 1u << lane;
    warps[warp].living &= ~self;
    warps[warp].ready &= ~self;
    --living;
    open_barrier_when_full();
    yield_to_others();
  }
}

void start_threads() {
  memset(warps, 0, sizeof warps);
  living = threads.x * threads.y * threads.z;
  waiting = ready_warps = 0;
  Place place = {0, 0, 0};
  for (unsigned t = 0; t < living; ++t) {
    fibers[t].thread = place;
    if (++place.x == threads.x) place.x = 0, ++place.y;
    if (place.y == threads.y) place.y = 0, ++place.z;
    warp = t / WARP;
    ready_warps |= 1u << warp;
    warps[warp].living = warps[warp].ready |= 1u << t % WARP;
  }
}

// Returns whether the block ended without an error; otherwise there is a message.
bool run_block() {
  if (const int end = _setjmp(caller)) return end == ENDED;
  ++block_number;
  memset(dynamic, 0xff, dynamic_bytes);
  start_threads();
  warp = pick(ready_warps);
  const unsigned first = pick(warps[warp].ready);
  warps[warp].turn = warps[warp].ready & ~(1u << first);
  enter(warp * WARP + first);
}

uint64_t coprime(uint64_t count) {
  for (;;) {
    const uint64_t step = random_bits() % count + 1;
    uint64_t a = count, b = step;
    while (b) {
      const uint64_t rest = a % b;
      a = b;
      b = rest;
    }
    if (a == 1) return step;
  }
}

}  // namespace

void barrier(int line) {
  if (waiting && line != barrier_line)
    fail_here("waits at line %d while others wait at line %d", line, barrier_line);
  barrier_line = fibers[warp * WARP + lane].line = line;
  const unsigned self = 1u << lane;
  warps[warp].ready &= ~self;
  warps[warp].at_barrier |= self;
  ++waiting;
  open_barrier_when_full();
  yield_to_others();
}

unsigned long long exchange(unsigned mask, unsigned long long value, unsigned from, int line) {
  const unsigned self = 1u << lane;
  Warp& own = warps[warp];
  Fiber* lanes = &fibers[warp * WARP];
  if (!(mask & self)) fail_here("is not in the mask 0x%08x of line %d", mask, line);
  if (mask & ~own.living)
    fail_here("waits at line %d for the lanes 0x%08x, which have ended or do not exist", line, mask & ~own.living);
  Fiber& fiber = lanes[lane];
  fiber.mask = mask;
  fiber.from = from;
  fiber.line = line;
  fiber.value = value;
  own.ready &= ~self;
  own.at_exchange |= self;
  bool complete = (own.at_exchange & mask) == mask;
  for (unsigned rest = mask; complete && rest; rest &= rest - 1) {
    const Fiber& other = lanes[__builtin_ctz(rest)];
    complete = other.mask == mask && other.line == line;
  }
  if (complete) {
    for (unsigned rest = mask; rest; rest &= rest - 1) {
      Fiber& other = lanes[__builtin_ctz(rest)];
      other.result = mask >> other.from & 1 ? lanes[other.from].value : ~0ull;
    }
    own.at_exchange &= ~mask;
    own.ready |= mask;
  }
  yield_to_others();
  return fiber.result;
}

void* dynamic_shared() { return dynamic; }

void claim_shared(void* memory, unsigned long bytes, unsigned long long& launch) {
  if (launch != launch_number) static_bytes += bytes;
  launch = launch_number;
  if (static_bytes + dynamic_bytes > MOST_SHARED)
    fail("%zu static and %zu dynamic bytes of shared memory are more than %zu", static_bytes, dynamic_bytes, MOST_SHARED);
  memset(memory, 0xff, bytes);
}

void fail(const char* format, ...) {
  va_list values;
  va_start(values, format);
  vsnprintf(message, sizeof message, format, values);
  va_end(values);
  for (Fiber& fiber : fibers) fiber.started = false;
  _longjmp(caller, FAILED);
}

void fail_here(const char* format, ...) {
  char what[512];
  va_list values;
  va_start(values, format);
  vsnprintf(what, sizeof what, format, values);
  va_end(values);
  fail("thread (%u, %u, %u) of block (%u, %u, %u) %s", thread.x, thread.y, thread.z, block.x, block.y, block.z, what);
}

struct Launch {
  uint64_t grid[3], block[3], dynamic_bytes, order, seed, arrays;
};

// Returns null or an error message. The image is the kernel's library, with its constants and shared arrays.
extern "C" const char* cuda_on_cpu_launch(void (*kernel)(const uint64_t*), const uint64_t* values, const Launch* launch,
                                          const Range* arrays, const char* image, const char* image_end) {
  if (!stacks)
    stacks = static_cast<char*>(mmap(nullptr, MOST_THREADS * STEP, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  const auto place = [](const uint64_t* n) { return Place{unsigned(n[0]), unsigned(n[1]), unsigned(n[2])}; };
  blocks = place(launch->grid);
  threads = place(launch->block);
  body = kernel;
  arguments = values;
  dynamic_bytes = launch->dynamic_bytes;
  static_bytes = 0;
  order = Order(launch->order);
  random_state = launch->seed;
  ++launch_number;
  allow(arrays, launch->arrays);
  allow(stacks, MOST_THREADS * STEP);
  allow(dynamic, dynamic_bytes);
  allow(image, image_end - image);
  const uint64_t count = uint64_t(blocks.x) * blocks.y * blocks.z;
  const uint64_t step = order == FORWARD ? 1 : order == BACKWARD ? count - 1 : coprime(count);
  uint64_t at = order == FORWARD ? 0 : count - 1;
  for (uint64_t done = 0; done < count; ++done, at = (at + step) % count) {
    block = {unsigned(at % blocks.x), unsigned(at / blocks.x % blocks.y), unsigned(at / blocks.x / blocks.y)};
    if (!run_block()) return message;
  }
  return nullptr;
}

}  // namespace cuda_on_cpu
