// What the parts of the stand-in driver share. Every function of the driver holds one lock, and work runs under it;
// only host functions run without: they may wait for a lock (Python's) whose holder waits for this one.
//
// Settings, from the environment:
//   VIRTUAL_GPU_MB         memory of the device, default 4096
//   VIRTUAL_GPU_CAPABILITY compute capability, default 8.7
//   VIRTUAL_GPU_LAZY       1: work given to a stream runs only when something waits for it
//   VIRTUAL_GPU_ORDER      of blocks and threads: 0 forward, 1 backward, else the seed of a shuffle
//   VIRTUAL_GPU_FAIL       NAME:N:CODE, the Nth and all later calls of driver function NAME return CODE
//   VIRTUAL_GPU_WAIT_S     how long a thread waits for another's host function before it is a deadlock, default 60
#pragma once

#include <cuda.h>

#include <condition_variable>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "image.h"

#define DRIVER extern "C" __attribute__((visibility("default"))) CUresult

namespace virtual_gpu {

struct Context;
struct Capture;
struct Function;
struct Stream;
using Place = std::pair<Stream *, uint64_t>;  // so much of a stream's work

enum class Memory { device, pinned, registered };

struct Allocation {
  size_t bytes;
  Memory kind;
  Context *context;
};

struct Work {
  std::vector<Place> before;  // what must be done first, beside the earlier work of the same stream
  std::function<void()> run;
};

struct Stream {
  Context *context;
  unsigned flags = 0;
  uint64_t given = 0, done = 0;  // pieces of work
  bool running = false;          // a thread is at one
  std::deque<Work> work;
  std::shared_ptr<Capture> capture;  // null while work is run
  explicit Stream(Context *of) : context(of) {}
};

struct Event {
  Stream *stream = nullptr;
  uint64_t place = 0;  // in the stream's work
  double time_ms = 0;
  bool recorded = false;
};

struct Context {
  int users = 0;
  Stream legacy{this};  // the default stream
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

// A launch with its arguments.
struct KernelCall {
  Function *function = nullptr;
  unsigned grid[3] = {}, block[3] = {};
  std::vector<uint64_t> packed;  // in 8 bytes for their alignment
  size_t extra_bytes = 0;        // of arguments that came packed, 0 for those one by one
};

// What a stream is given, at once or whenever a graph is launched.
struct Node {
  CUgraphNodeType type;
  std::function<CUresult(Stream *)> run;  // checks it, counts it, gives it to a stream; unused for kernels
  KernelCall kernel;
};

extern std::mutex lock;
extern std::condition_variable_any work_done;  // told after each piece of work
extern thread_local bool in_host_function;
extern bool gathering;  // work is queued and not run
extern std::set<Stream *> streams;  // of all contexts, without their default streams
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
  std::lock_guard<std::mutex> hold;
  CUresult result;
};
#define ENTER(needs_context)                             \
  virtual_gpu::Call call_(__func__, needs_context);      \
  if (call_.result != CUDA_SUCCESS) return call_.result
// The same for calls that no capture could see, such as of memory: some captures forbid them.
#define ENTER_UNSAFE() \
  ENTER(true);         \
  if (CUresult forbidden = forbidden_by_capture(__func__)) return forbidden

const Allocation *allocation_of(uintptr_t pointer, size_t bytes);  // null where not all bytes are in one
bool on_device(CUdeviceptr pointer, size_t bytes);
bool page_locked(const void *pointer, size_t bytes);
CUresult check_guards();

Stream *stream_of(CUstream stream);  // null for one that is not of the current context
CUresult target_of(CUstream stream, Stream **found);  // for work: refuses what breaks a capture
void give(Stream *stream, std::function<void()> work, std::vector<Place> before = {});
void start(Stream *stream);  // runs what it was given, unless in lazy mode
void finish(Stream *stream, uint64_t place);
void finish_all(Context *context);
void call_host(CUhostFn function, void *data);

CUresult prepare(KernelCall *call, Function *function, const unsigned *grid, const unsigned *block, unsigned shared,
                 void **single, void **extra);
CUresult launch(const KernelCall &call, Stream *stream);

CUresult submit(Stream *stream, Node node);           // runs it, or makes it part of a capture
CUresult refused_by_capture(Stream *stream);           // work for it
CUresult forbidden_by_capture(const char *function);  // of any stream
CUresult forbidden_to_wait(const char *function, Stream *stream);
CUresult forbidden_to_wait_for_all(const char *function, Context *context);
CUresult invalidate(Stream *stream, CUresult result, const char *what);  // its capture; returns the result

}  // namespace virtual_gpu
