// Streams and events. Work runs at the call or, in lazy mode, only when something waits for it, so that a missing
// wait and a buffer that is used again too early fail every time.
#include <stdlib.h>
#include <string.h>

#include <algorithm>
#include <chrono>

#include "state.h"

using namespace virtual_gpu;

namespace virtual_gpu {

std::condition_variable_any work_done;
thread_local bool in_host_function = false;
bool gathering = false;
std::set<Stream *> streams;

static bool lazy() {
  static const bool value = !strcmp(setting("VIRTUAL_GPU_LAZY", "0"), "1");
  return value;
}

static double now_ms() {
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

Stream *stream_of(CUstream stream) {
  Context *context = contexts.back();
  if (!stream || stream == CU_STREAM_LEGACY || stream == CU_STREAM_PER_THREAD) return &context->legacy;
  return context->streams.count((Stream *)stream) ? (Stream *)stream : nullptr;
}

CUresult target_of(CUstream handle, Stream **found) {
  Stream *stream = *found = stream_of(handle);
  if (!stream) return CUDA_ERROR_INVALID_HANDLE;
  return refused_by_capture(stream);
}

[[noreturn]] static void end(const char *why) {
  refuse(CUDA_ERROR_UNKNOWN, "%s", why);
  abort();
}

static void run_next(Stream *stream) {
  Work next = std::move(stream->work.front());
  stream->work.pop_front();
  stream->running = true;  // the lock is released by host functions, here and in what is waited for
  for (auto &one : next.before) finish(one.first, one.second);
  next.run();
  stream->running = false;
  ++stream->done;
  work_done.notify_all();
}

// Whether a thread that finished so much would have to wait for another thread.
static bool held_up(Stream *stream, uint64_t place) {
  if (stream->done >= place) return false;
  if (stream->running) return true;
  size_t ahead = std::min<size_t>(place - stream->done, stream->work.size());
  return std::any_of(stream->work.begin(), stream->work.begin() + (long)ahead, [](const Work &one) {
    return std::any_of(one.before.begin(), one.before.end(), [](Place p) { return held_up(p.first, p.second); });
  });
}

// Work that was left because another thread would have had to wait: in eager mode nobody else may come for it.
static void catch_up(Context *context) {
  std::vector<Stream *> now(context->streams.begin(), context->streams.end());
  now.push_back(&context->legacy);
  for (Stream *stream : now)
    while (!stream->running && !stream->work.empty() && !held_up(stream, stream->given)) run_next(stream);
}

void finish(Stream *stream, uint64_t place) {
  static thread_local int depth = 0;
  const auto longest = std::chrono::seconds(atol(setting("VIRTUAL_GPU_WAIT_S", "60")));
  ++depth;
  while (stream->done < place) {
    if (!stream->running) run_next(stream);
    else if (work_done.wait_for(lock, longest) == std::cv_status::timeout)
      end("deadlock: does a thread that waits hold a lock (Python's?) that a host function needs?");
  }
  if (!--depth && !lazy()) catch_up(stream->context);
}

void finish_all(Context *context) {
  finish(&context->legacy, context->legacy.given);
  auto now = context->streams;  // others may come and go while a host function runs
  for (Stream *stream : now) finish(stream, stream->given);
}

// The default stream and the others wait for each other, unless a stream was made non-blocking.
void give(Stream *stream, std::function<void()> work, std::vector<Place> before) {
  Context *context = stream->context;
  if (stream == &context->legacy) {
    for (Stream *other : context->streams)
      if (!(other->flags & CU_STREAM_NON_BLOCKING)) before.push_back({other, other->given});
  } else if (!(stream->flags & CU_STREAM_NON_BLOCKING)) {
    before.push_back({&context->legacy, context->legacy.given});
  }
  stream->work.push_back({std::move(before), std::move(work)});
  ++stream->given;
  if (!gathering) start(stream);
}

void start(Stream *stream) {
  // Never waits here: the caller may hold a lock that another thread's host function needs.
  if (!lazy() && !held_up(stream, stream->given)) finish(stream, stream->given);
}

static bool ready(Stream *stream, uint64_t place) {  // a loop that asks makes progress
  if (stream->done >= place) return true;
  if (!held_up(stream, stream->done + 1)) finish(stream, stream->done + 1);
  return false;
}

void call_host(CUhostFn function, void *data) {
  if (broken != CUDA_SUCCESS) return;
  lock.unlock();
  in_host_function = true;
  function(data);
  in_host_function = false;
  lock.lock();
}

}  // namespace virtual_gpu

DRIVER cuStreamCreate(CUstream *stream, unsigned flags) {
  ENTER(true);
  Stream *made = new Stream(contexts.back());
  made->flags = flags;
  made->context->streams.insert(made);
  streams.insert(made);
  *stream = (CUstream)made;
  return CUDA_SUCCESS;
}
DRIVER cuStreamDestroy_v2(CUstream stream) {  // not deleted: events and queued work may point at it
  ENTER(true);
  Stream *known = stream ? stream_of(stream) : nullptr;
  if (!known) return CUDA_ERROR_INVALID_HANDLE;
  known->capture = nullptr;
  finish(known, known->given);
  known->context->streams.erase(known);
  streams.erase(known);
  return CUDA_SUCCESS;
}
DRIVER cuStreamSynchronize(CUstream stream) {
  ENTER(true);
  Stream *known = stream_of(stream);
  if (!known) return CUDA_ERROR_INVALID_HANDLE;
  if (CUresult forbidden = forbidden_to_wait(__func__, known)) return forbidden;
  finish(known, known->given);
  return check_guards();
}
DRIVER cuStreamQuery(CUstream stream) {
  ENTER(true);
  Stream *known = stream_of(stream);
  if (!known) return CUDA_ERROR_INVALID_HANDLE;
  if (CUresult forbidden = forbidden_to_wait(__func__, known)) return forbidden;
  return ready(known, known->given) ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY;
}
DRIVER cuStreamWaitEvent(CUstream stream, CUevent event, unsigned) {
  ENTER(true);
  Stream *known = nullptr, *other = ((Event *)event)->stream;
  if (CUresult result = target_of(stream, &known)) return result;
  if (known->capture)
    return invalidate(known, CUDA_ERROR_STREAM_CAPTURE_ISOLATION, "a capture that waits for an event outside");
  if (other) give(known, [] {}, {{other, ((Event *)event)->place}});
  return CUDA_SUCCESS;
}
DRIVER cuStreamGetCtx(CUstream stream, CUcontext *context) {
  ENTER(true);
  Stream *known = streams.count((Stream *)stream) ? (Stream *)stream : stream_of(stream);
  if (!known) return CUDA_ERROR_INVALID_HANDLE;
  *context = (CUcontext)known->context;
  return CUDA_SUCCESS;
}
DRIVER cuLaunchHostFunc(CUstream stream, CUhostFn function, void *data) {
  ENTER(true);
  Stream *known = nullptr;
  if (CUresult result = target_of(stream, &known)) return result;
  return submit(known, {CU_GRAPH_NODE_TYPE_HOST, [=](Stream *chosen) {
    give(chosen, [=] { call_host(function, data); });
    return CUDA_SUCCESS;
  }, {}});
}
DRIVER cuEventCreate(CUevent *event, unsigned) { ENTER(true); *event = (CUevent) new Event(); return CUDA_SUCCESS; }
DRIVER cuEventDestroy_v2(CUevent) { ENTER(true); return CUDA_SUCCESS; }  // queued work may still point at it
DRIVER cuEventRecord(CUevent event, CUstream stream) {
  ENTER(true);
  Event *known = (Event *)event;
  Stream *target = nullptr;
  if (CUresult result = target_of(stream, &target)) return result;
  if (target->capture)
    return invalidate(target, CUDA_ERROR_STREAM_CAPTURE_ISOLATION, "an event in a capture (the stand-in knows none)");
  known->stream = target;
  known->recorded = true;
  known->place = known->stream->given + 1;
  give(known->stream, [=] { known->time_ms = now_ms(); });
  return CUDA_SUCCESS;
}
DRIVER cuEventSynchronize(CUevent event) {
  ENTER_UNSAFE();
  Event *known = (Event *)event;
  if (known->stream) finish(known->stream, known->place);
  return check_guards();
}
DRIVER cuEventQuery(CUevent event) {
  ENTER_UNSAFE();
  Event *known = (Event *)event;
  return !known->stream || ready(known->stream, known->place) ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY;
}
static CUresult elapsed(float *ms, Event *from, Event *to) {
  if (!from->recorded || !to->recorded) return CUDA_ERROR_INVALID_HANDLE;
  if (from->stream->done < from->place || to->stream->done < to->place) return CUDA_ERROR_NOT_READY;
  *ms = (float)(to->time_ms - from->time_ms);
  return CUDA_SUCCESS;
}
#if CUDA_VERSION >= 12080
DRIVER cuEventElapsedTime_v2(float *ms, CUevent from, CUevent to) {
  ENTER(true);
  return elapsed(ms, (Event *)from, (Event *)to);
}
#undef cuEventElapsedTime
#endif
DRIVER cuEventElapsedTime(float *ms, CUevent from, CUevent to) {
  ENTER(true);
  return elapsed(ms, (Event *)from, (Event *)to);
}
