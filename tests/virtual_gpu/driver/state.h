// What the parts of the stand-in driver share. Every function of the driver holds one lock.
//
// Settings, from the environment:
//   VIRTUAL_GPU_MB         memory of the device, default 4096
//   VIRTUAL_GPU_CAPABILITY compute capability, default 8.7
//   VIRTUAL_GPU_LAZY       1: work given to a stream runs only when something waits for it
//   VIRTUAL_GPU_ORDER      of blocks and threads: 0 forward, 1 backward, else the seed of a shuffle
//   VIRTUAL_GPU_FAIL       NAME:N:CODE, the Nth and all later calls of driver function NAME return CODE
#pragma once

#include <cuda.h>

#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "image.h"

#define DRIVER extern "C" __attribute__((visibility("default"))) CUresult

namespace virtual_gpu {

enum class Memory { device, pinned, registered };

struct Allocation {
  size_t bytes;
  Memory kind;
};

struct Stream {
  unsigned flags = 0;
  uint64_t given = 0, done = 0;  // pieces of work
  std::deque<std::function<void()>> work;
};

struct Event {
  Stream *stream = nullptr;
  uint64_t place = 0;  // in the stream's work
  double time_ms = 0;
  bool recorded = false;
};

struct Context {
  int users = 0;
  Stream legacy;  // the default stream
  std::set<Stream *> streams;
};

struct Module;
struct Function {
  Module *module;
  const host_gpu::Kernel *kernel;
};

struct Module {
  void *library;
  const host_gpu::Kernel *(*find)(const char *);
  void (*launch)(const host_gpu::Kernel *, const host_gpu::Launch *, void **);
  std::map<std::string, Function> functions;
};

extern std::recursive_mutex lock;
extern std::map<std::string, long> counts;  // calls by name, launches as "kernel NAME"
extern std::map<uintptr_t, Allocation> allocations;
extern size_t bytes_in_use;
extern thread_local std::vector<Context *> contexts;
extern CUresult broken;  // what a kernel's fault leaves behind: a context that answers nothing else

const char *setting(const char *name, const char *otherwise);
CUresult refuse(CUresult result, const char *format, ...) __attribute__((format(printf, 2, 3)));

// Counts a call, holds the lock, and says whether the call may go on.
struct Call {
  Call(const char *function, bool needs_context);
  std::lock_guard<std::recursive_mutex> hold;
  CUresult result;
};
#define ENTER(needs_context)                             \
  virtual_gpu::Call call_(__func__, needs_context);      \
  if (call_.result != CUDA_SUCCESS) return call_.result

const Allocation *allocation_of(uintptr_t pointer, size_t bytes);  // null where not all bytes are in one
bool on_device(CUdeviceptr pointer, size_t bytes);
bool page_locked(const void *pointer, size_t bytes);
CUresult check_guards();

Stream *stream_of(CUstream stream);  // null for one that is not of the current context
void give(Stream *stream, std::function<void()> work);
void finish(Stream *stream, uint64_t place);
void finish_all(Context *context);

}  // namespace virtual_gpu
