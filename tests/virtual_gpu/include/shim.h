// Included ahead of a CUDA kernel file so that g++ compiles it for the host; for tests alone.
//
// Blocks run one after another, and so do the threads of a block. A thread that waits at a barrier is left on its own
// stack (a fiber) and the next one is started on another, so kernels without barriers never switch stacks. Warps have
// no lockstep: code that relies on it without __syncwarp gives wrong results here, as it may on a GPU since Volta.
#pragma once

#include <math.h>  // beside <cmath>: the float overloads belong in the global namespace, as in CUDA
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <type_traits>
#include <utility>
#include <vector>

#include "image.h"
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

#define __global__
#define __device__
#define __host__
#define __constant__ static const
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
// The build writes `__shared__ T name[n];` as SHARED(T, name, [n]): new memory for every block, on the heap, where the
// sanitizers see its ends.
#define SHARED(T, name, dims)                                         \
  typedef T type_of_##name dims;                                      \
  static const unsigned slot_of_##name = host_gpu::new_shared_slot(); \
  type_of_##name &name = *(type_of_##name *)host_gpu::shared_memory(slot_of_##name, sizeof(type_of_##name))

struct uint3 { unsigned x, y, z; };
struct alignas(8) int2 { int x, y; };
struct alignas(16) int4 { int x, y, z, w; };
struct alignas(8) float2 { float x, y; };
struct float3 { float x, y, z; };
struct alignas(16) float4 { float x, y, z, w; };
static inline int2 make_int2(int x, int y) { return {x, y}; }
static inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
static inline float2 make_float2(float x, float y) { return {x, y}; }
static inline float3 make_float3(float x, float y, float z) { return {x, y, z}; }
static inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

using std::isfinite;

static uint3 threadIdx, blockIdx, blockDim, gridDim;
enum { warpSize = 32 };

namespace host_gpu {

constexpr size_t STACK_BYTES = 128 * 1024;

struct Fiber {
  ucontext_t context;
  char *stack;
  unsigned thread;     // number within the block
  uint3 index;         // its threadIdx
  void *asan_stack;
};

struct Warp {
  unsigned here, wanted;  // lanes at the barrier; lanes it waits for
  Fiber *fibers[32];
};

// The running block. The driver runs one kernel at a time, so plain globals do.
struct Block {
  std::vector<Fiber *> pool, waiting, ready;
  std::vector<unsigned> order;  // in which its threads are started
  std::vector<void *> shared;
  size_t fibers_used = 0;
  unsigned started = 0, finished = 0, total = 0;
  Warp warps[32] = {};
  uint64_t exchange[1024] = {};
  ucontext_t scheduler;
  Fiber *current = nullptr;
  const Kernel *kernel = nullptr;
  void **arguments = nullptr;
  const void *asan_bottom = nullptr;
  size_t asan_size = 0;
};
static Block block;

[[noreturn]] static inline void fail(const char *what) {
  fprintf(stderr, "virtual GPU: %s\n", what);
  abort();
}

static inline unsigned new_shared_slot() {
  static unsigned count = 0;
  return count++;
}

static inline void *shared_memory(unsigned slot, size_t bytes) {
  if (slot >= block.shared.size()) block.shared.resize(slot + 1);
  void *&memory = block.shared[slot];
  if (!memory) {
    if (posix_memalign(&memory, 128, bytes)) fail("no memory");
    memset(memory, 0xCD, bytes);  // shared memory is not zero when a block starts
  }
  return memory;
}

static inline void to_scheduler(Fiber *fiber) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&fiber->asan_stack, block.asan_bottom, block.asan_size);
#endif
  swapcontext(&fiber->context, &block.scheduler);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fiber->asan_stack, nullptr, nullptr);
#endif
}

static inline void resume(Fiber *fiber) {
  block.current = fiber;
  threadIdx = fiber->index;
#if defined(__SANITIZE_ADDRESS__)
  void *own = nullptr;
  __sanitizer_start_switch_fiber(&own, fiber->stack, STACK_BYTES);
#endif
  swapcontext(&block.scheduler, &fiber->context);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(own, nullptr, nullptr);
#endif
}

static inline void park() {
  Fiber *fiber = block.current;
  fiber->index = threadIdx;
  to_scheduler(fiber);
}

// What a fiber does: one thread of the block after another, as long as none waits.
static inline void fiber_main() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &block.asan_bottom, &block.asan_size);
#endif
  for (;;) {
    Fiber *fiber = block.current;
    while (block.started < block.total) {
      unsigned t = fiber->thread = block.order[block.started++];
      threadIdx = {t % blockDim.x, t / blockDim.x % blockDim.y, t / (blockDim.x * blockDim.y)};
      block.kernel->call(block.kernel->function, block.arguments);
      ++block.finished;
    }
    to_scheduler(fiber);
  }
}

static inline Fiber *free_fiber() {
  if (block.fibers_used == block.pool.size()) {
    Fiber *fiber = new Fiber();
    void *stack = mmap(nullptr, STACK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (stack == MAP_FAILED) fail("no memory for stacks");
    fiber->stack = (char *)stack;
    getcontext(&fiber->context);
    fiber->context.uc_stack.ss_sp = stack;
    fiber->context.uc_stack.ss_size = STACK_BYTES;
    fiber->context.uc_link = nullptr;
    makecontext(&fiber->context, fiber_main, 0);
    block.pool.push_back(fiber);
  }
  return block.pool[block.fibers_used++];
}

static inline void run_block() {
  block.started = block.finished = 0;
  block.fibers_used = 0;
  while (block.finished < block.total) {
    if (block.started < block.total) {
      resume(free_fiber());
    } else if (!block.ready.empty()) {
      std::vector<Fiber *> released;
      released.swap(block.ready);
      for (Fiber *fiber : released) resume(fiber);
    } else if (!block.waiting.empty() && block.waiting.size() + block.finished == block.total) {
      block.ready.swap(block.waiting);
    } else {
      fail("deadlock: threads of a block wait at different barriers, or a warp's mask names lanes that have left");
    }
  }
  for (void *&memory : block.shared) {
    free(memory);
    memory = nullptr;
  }
}

static inline void warp_barrier(unsigned mask) {
  unsigned thread = block.current->thread, lanes = block.total - thread / 32 * 32;
  Warp &warp = block.warps[thread / 32];
  if (lanes < 32) mask &= (1u << lanes) - 1;
  if (!(mask >> thread % 32 & 1)) fail("a lane calls a warp function whose mask leaves it out");
  warp.here |= 1u << thread % 32;
  warp.wanted |= mask;
  warp.fibers[thread % 32] = block.current;
  if ((warp.here & warp.wanted) == warp.wanted) {
    for (unsigned lane = 0; lane < 32; ++lane)
      if (warp.here >> lane & 1) block.ready.push_back(warp.fibers[lane]);
    warp.here = warp.wanted = 0;
  }
  park();
}

template <class T> T exchange(unsigned mask, T value, unsigned lane) {
  static_assert(sizeof(T) <= 8, "a shuffle moves 8 bytes at most");
  unsigned thread = block.current->thread;
  memcpy(&block.exchange[thread], &value, sizeof(T));
  warp_barrier(mask);
  T result;
  memcpy(&result, &block.exchange[thread / 32 * 32 + lane % 32], sizeof(T));
  warp_barrier(mask);
  return result;
}

template <class... A, size_t... I> void call_with(void (*function)(), void **arguments, std::index_sequence<I...>) {
  reinterpret_cast<void (*)(A...)>(function)(*reinterpret_cast<std::remove_reference_t<A> *>(arguments[I])...);
}

template <class... A> Kernel describe(const char *name, void (*function)(A...)) {
  static_assert(sizeof...(A) <= 32, "too many parameters");
  Kernel kernel = {};
  kernel.name = name;
  kernel.function = reinterpret_cast<void (*)()>(function);
  auto add = [&](unsigned size, unsigned alignment, bool pointer) {
    unsigned offset = (kernel.parameter_bytes + alignment - 1) / alignment * alignment;
    kernel.parameters[kernel.parameter_count++] = {offset, size, pointer};
    kernel.parameter_bytes = offset + size;
  };
  (add(sizeof(A), alignof(A), std::is_pointer<A>::value), ...);
  kernel.call = [](void (*f)(), void **arguments) { call_with<A...>(f, arguments, std::index_sequence_for<A...>{}); };
  return kernel;
}

extern const Kernel kernels[];  // written by the build
extern const unsigned kernel_count;

static inline void shuffle(std::vector<unsigned> &values, unsigned order, uint64_t &state) {
  if (order == 1) std::reverse(values.begin(), values.end());
  for (size_t i = values.size(); order > 1 && i > 1; --i) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    std::swap(values[i - 1], values[(state >> 33) % i]);
  }
}

}  // namespace host_gpu

extern "C" __attribute__((visibility("default"))) const host_gpu::Kernel *host_gpu_find(const char *name) {
  for (unsigned i = 0; i < host_gpu::kernel_count; ++i)
    if (!strcmp(host_gpu::kernels[i].name, name)) return &host_gpu::kernels[i];
  return nullptr;
}

extern "C" __attribute__((visibility("default"))) void host_gpu_launch(
    const host_gpu::Kernel *kernel, const host_gpu::Launch *launch, void **arguments) {
  using host_gpu::block;
  const unsigned *g = launch->grid, *b = launch->block;
  gridDim = {g[0], g[1], g[2]};
  blockDim = {b[0], b[1], b[2]};
  block.total = b[0] * b[1] * b[2];
  block.kernel = kernel;
  block.arguments = arguments;
  std::vector<unsigned> blocks(g[0] * g[1] * g[2]);
  block.order.resize(block.total);
  uint64_t state = launch->order;
  for (unsigned i = 0; i < blocks.size(); ++i) blocks[i] = i;
  host_gpu::shuffle(blocks, launch->order, state);
  for (unsigned i : blocks) {
    for (unsigned t = 0; t < block.total; ++t) block.order[t] = t;
    host_gpu::shuffle(block.order, launch->order, state);
    blockIdx = {i % g[0], i / g[0] % g[1], i / (g[0] * g[1])};
    host_gpu::run_block();
  }
}

// ---- what kernels call

static inline void __syncthreads() {
  host_gpu::block.waiting.push_back(host_gpu::block.current);
  host_gpu::park();
}
static inline void __syncwarp(unsigned mask = ~0u) { host_gpu::warp_barrier(mask); }
template <class T> T __shfl_sync(unsigned mask, T value, int lane) { return host_gpu::exchange(mask, value, lane); }
template <class T> T __shfl_xor_sync(unsigned mask, T value, int bits) {
  return host_gpu::exchange(mask, value, (host_gpu::block.current->thread & 31) ^ bits);
}
template <class T> T __shfl_down_sync(unsigned mask, T value, int by) {
  unsigned lane = (host_gpu::block.current->thread & 31) + by;
  return host_gpu::exchange(mask, value, lane < 32 ? lane : lane - by);
}

template <class T> T replace(T *place, T value) {
  T old = *place;
  *place = value;
  return old;
}
static inline int atomicAdd(int *place, int value) { return replace(place, *place + value); }
static inline int atomicOr(int *place, int value) { return replace(place, *place | value); }
static inline int atomicMin(int *place, int value) { return replace(place, std::min(*place, value)); }
static inline int atomicMax(int *place, int value) { return replace(place, std::max(*place, value)); }
static inline unsigned long long atomicMin(unsigned long long *place, unsigned long long value) {
  return replace(place, std::min(*place, value));
}

template <class T> T min(T a, T b) { return b < a ? b : a; }
template <class T> T max(T a, T b) { return a < b ? b : a; }
static inline float __fmul_rn(float a, float b) { return a * b; }
static inline float __fadd_rn(float a, float b) { return a + b; }
static inline float __fsub_rn(float a, float b) { return a - b; }
static inline float __fdiv_rn(float a, float b) { return a / b; }
static inline int __float2int_rn(float value) { return (int)rintf(value); }
static inline unsigned __float_as_uint(float value) {
  unsigned bits;
  memcpy(&bits, &value, 4);
  return bits;
}
static inline float __uint_as_float(unsigned bits) {
  float value;
  memcpy(&value, &bits, 4);
  return value;
}
