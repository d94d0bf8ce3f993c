// Streams and events. Work runs at the call or, in lazy mode, only when something waits for it, so that a missing
// wait and a buffer that is used again too early fail every time.
#include <string.h>

#include <chrono>

#include "state.h"

using namespace virtual_gpu;

namespace virtual_gpu {

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

void finish(Stream *stream, uint64_t place) {
  while (stream->done < place && !stream->work.empty()) {
    auto work = std::move(stream->work.front());
    stream->work.pop_front();
    work();
    ++stream->done;
  }
}

void finish_all(Context *context) {
  finish(&context->legacy, context->legacy.given);
  for (Stream *stream : context->streams) finish(stream, stream->given);
}

// The default stream and the others wait for each other, unless a stream was made non-blocking.
void give(Stream *stream, std::function<void()> work) {
  Context *context = contexts.back();
  std::vector<std::pair<Stream *, uint64_t>> before;
  if (stream == &context->legacy) {
    for (Stream *other : context->streams)
      if (!(other->flags & CU_STREAM_NON_BLOCKING)) before.push_back({other, other->given});
  } else if (!(stream->flags & CU_STREAM_NON_BLOCKING)) {
    before.push_back({&context->legacy, context->legacy.given});
  }
  stream->work.push_back([before, work] {
    for (auto &one : before) finish(one.first, one.second);
    work();
  });
  ++stream->given;
  if (!lazy()) finish(stream, stream->given);
}

static bool ready(Stream *stream, uint64_t place) {  // a loop that asks makes progress
  if (stream->done >= place) return true;
  finish(stream, stream->done + 1);
  return false;
}

}  // namespace virtual_gpu

DRIVER cuStreamCreate(CUstream *stream, unsigned flags) {
  ENTER(true);
  Stream *made = new Stream();
  made->flags = flags;
  contexts.back()->streams.insert(made);
  *stream = (CUstream)made;
  return CUDA_SUCCESS;
}
DRIVER cuStreamDestroy_v2(CUstream stream) {  // not deleted: events and queued work may point at it
  ENTER(true);
  Stream *known = stream ? stream_of(stream) : nullptr;
  if (!known) return CUDA_ERROR_INVALID_HANDLE;
  finish(known, known->given);
  contexts.back()->streams.erase(known);
  return CUDA_SUCCESS;
}
DRIVER cuStreamSynchronize(CUstream stream) {
  ENTER(true);
  Stream *known = stream_of(stream);
  if (!known) return CUDA_ERROR_INVALID_HANDLE;
  finish(known, known->given);
  return check_guards();
}
DRIVER cuStreamQuery(CUstream stream) {
  ENTER(true);
  Stream *known = stream_of(stream);
  if (!known) return CUDA_ERROR_INVALID_HANDLE;
  return ready(known, known->given) ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY;
}
DRIVER cuStreamWaitEvent(CUstream stream, CUevent event, unsigned) {
  ENTER(true);
  Stream *known = stream_of(stream), *other = ((Event *)event)->stream;
  if (!known) return CUDA_ERROR_INVALID_HANDLE;
  uint64_t place = ((Event *)event)->place;
  if (other) give(known, [=] { finish(other, place); });
  return CUDA_SUCCESS;
}
DRIVER cuEventCreate(CUevent *event, unsigned) { ENTER(true); *event = (CUevent) new Event(); return CUDA_SUCCESS; }
DRIVER cuEventDestroy_v2(CUevent) { ENTER(true); return CUDA_SUCCESS; }  // queued work may still point at it
DRIVER cuEventRecord(CUevent event, CUstream stream) {
  ENTER(true);
  Event *known = (Event *)event;
  if (!(known->stream = stream_of(stream))) return CUDA_ERROR_INVALID_HANDLE;
  known->recorded = true;
  known->place = known->stream->given + 1;
  give(known->stream, [=] { known->time_ms = now_ms(); });
  return CUDA_SUCCESS;
}
DRIVER cuEventSynchronize(CUevent event) {
  ENTER(true);
  Event *known = (Event *)event;
  if (known->stream) finish(known->stream, known->place);
  return check_guards();
}
DRIVER cuEventQuery(CUevent event) {
  ENTER(true);
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
