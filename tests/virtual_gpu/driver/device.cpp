// Device, context, error texts, and what tests ask the stand-in.
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "state.h"

using namespace virtual_gpu;

namespace virtual_gpu {

std::mutex lock;
std::map<std::string, long> counts;
thread_local std::vector<Context *> contexts;
CUresult broken = CUDA_SUCCESS;

static bool initialised = false;
static Context *primary = nullptr;

const char *setting(const char *name, const char *otherwise) {
  const char *value = getenv(name);
  return value && *value ? value : otherwise;
}

CUresult refuse(CUresult result, const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  fputs("virtual GPU: ", stderr);
  vfprintf(stderr, format, arguments);
  fputc('\n', stderr);
  va_end(arguments);
  return result;
}

// cuMemAlloc_v2 is called cuMemAlloc by everybody.
static std::string plain_name(const char *function) {
  std::string name = function;
  size_t at = name.rfind("_v");
  if (at != std::string::npos && at + 3 == name.size()) name.resize(at);
  return name;
}

// Returns the error that VIRTUAL_GPU_FAIL asks for at this call.
static CUresult injected(const std::string &name, long number) {
  std::string wish = setting("VIRTUAL_GPU_FAIL", "");
  size_t first = wish.find(':'), second = wish.find(':', first + 1);
  if (second == std::string::npos || wish.compare(0, first, name) || first != name.size()) return CUDA_SUCCESS;
  return number >= atol(wish.c_str() + first + 1) ? (CUresult)atoi(wish.c_str() + second + 1) : CUDA_SUCCESS;
}

Call::Call(const char *function, bool needs_context) : hold(lock), result(CUDA_SUCCESS) {
  std::string name = plain_name(function);
  result = injected(name, ++counts[name]);
  if (result != CUDA_SUCCESS) return;
  if (in_host_function) {
    result = refuse(CUDA_ERROR_NOT_PERMITTED, "%s called by a host function", function);
    return;
  }
  if (!initialised && name != "cuInit" && name != "cuDriverGetVersion") result = CUDA_ERROR_NOT_INITIALIZED;
  else if (needs_context && contexts.empty()) result = CUDA_ERROR_INVALID_CONTEXT;
  else if (needs_context) result = broken;
}

static int capability(int part) {
  int major = 8, minor = 7;
  sscanf(setting("VIRTUAL_GPU_CAPABILITY", "8.7"), "%d.%d", &major, &minor);
  return part ? minor : major;
}

static Context *primary_context() {
  if (!primary) primary = new Context();
  return primary;
}

}  // namespace virtual_gpu

DRIVER cuInit(unsigned) { ENTER(false); initialised = true; return CUDA_SUCCESS; }
DRIVER cuDriverGetVersion(int *version) { ENTER(false); *version = CUDA_VERSION; return CUDA_SUCCESS; }
DRIVER cuDeviceGetCount(int *count) { ENTER(false); *count = 1; return CUDA_SUCCESS; }
DRIVER cuDeviceGet(CUdevice *device, int number) {
  ENTER(false);
  if (number) return CUDA_ERROR_INVALID_DEVICE;
  *device = 0;
  return CUDA_SUCCESS;
}
DRIVER cuDeviceGetName(char *name, int size, CUdevice) {
  ENTER(false);
  snprintf(name, size, "Virtual GPU (host memory)");
  return CUDA_SUCCESS;
}
DRIVER cuDeviceTotalMem_v2(size_t *bytes, CUdevice) {
  ENTER(false);
  *bytes = (size_t)atol(setting("VIRTUAL_GPU_MB", "4096")) << 20;
  return CUDA_SUCCESS;
}
DRIVER cuDeviceComputeCapability(int *major, int *minor, CUdevice) {
  ENTER(false);
  *major = capability(0);
  *minor = capability(1);
  return CUDA_SUCCESS;
}
DRIVER cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice) {
  ENTER(false);
  static const std::map<int, int> known = {
      {CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK, 1024}, {CU_DEVICE_ATTRIBUTE_WARP_SIZE, 32},
      {CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, 8}, {CU_DEVICE_ATTRIBUTE_INTEGRATED, 1},
      {CU_DEVICE_ATTRIBUTE_CAN_MAP_HOST_MEMORY, 1}, {CU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING, 1},
      {CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK, 49152}};
  auto found = known.find(attribute);
  *value = attribute == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR   ? capability(0)
           : attribute == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR ? capability(1)
           : found == known.end()                                      ? 0
                                                                       : found->second;
  return CUDA_SUCCESS;
}
DRIVER cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice) {
  ENTER(false);
  ++primary_context()->users;
  *context = (CUcontext)primary;
  return CUDA_SUCCESS;
}
DRIVER cuDevicePrimaryCtxRelease_v2(CUdevice) {
  ENTER(false);
  if (primary && primary->users > 0 && !--primary->users) finish_all(primary);
  return CUDA_SUCCESS;
}
DRIVER cuDevicePrimaryCtxGetState(CUdevice, unsigned *flags, int *active) {
  ENTER(false);
  *flags = 0;
  *active = primary && primary->users > 0;
  return CUDA_SUCCESS;
}

static CUresult create(CUcontext *context) {
  contexts.push_back(new Context());
  *context = (CUcontext)contexts.back();
  return CUDA_SUCCESS;
}
DRIVER cuCtxCreate_v2(CUcontext *context, unsigned, CUdevice) { ENTER(false); return create(context); }
#if CUDA_VERSION >= 12050
DRIVER cuCtxCreate_v4(CUcontext *context, CUctxCreateParams *, unsigned, CUdevice) {
  ENTER(false);
  return create(context);
}
#endif
DRIVER cuCtxDestroy_v2(CUcontext context) {
  ENTER(false);
  finish_all((Context *)context);
  for (Stream *stream : ((Context *)context)->streams) streams.erase(stream);
  if (!contexts.empty() && contexts.back() == (Context *)context) contexts.pop_back();
  return CUDA_SUCCESS;
}
DRIVER cuCtxDetach(CUcontext context) {
  ENTER(false);
  finish_all((Context *)context);
  return CUDA_SUCCESS;
}
DRIVER cuCtxPushCurrent_v2(CUcontext context) {
  ENTER(false);
  contexts.push_back((Context *)context);
  return CUDA_SUCCESS;
}
DRIVER cuCtxPopCurrent_v2(CUcontext *context) {
  ENTER(false);
  if (contexts.empty()) return CUDA_ERROR_INVALID_CONTEXT;
  if (context) *context = (CUcontext)contexts.back();
  contexts.pop_back();
  return CUDA_SUCCESS;
}
DRIVER cuCtxGetCurrent(CUcontext *context) {
  ENTER(false);
  *context = contexts.empty() ? nullptr : (CUcontext)contexts.back();
  return CUDA_SUCCESS;
}
DRIVER cuCtxSetCurrent(CUcontext context) {
  ENTER(false);
  if (!contexts.empty()) contexts.pop_back();
  if (context) contexts.push_back((Context *)context);
  return CUDA_SUCCESS;
}
DRIVER cuCtxGetDevice(CUdevice *device) { ENTER(true); *device = 0; return CUDA_SUCCESS; }
DRIVER cuCtxGetApiVersion(CUcontext, unsigned *version) { ENTER(false); *version = 3020; return CUDA_SUCCESS; }
DRIVER cuCtxSynchronize(void) {
  ENTER(true);
  if (CUresult forbidden = forbidden_to_wait_for_all(__func__, contexts.back())) return forbidden;
  finish_all(contexts.back());
  return check_guards();
}

DRIVER cuGetErrorName(CUresult result, const char **name) {
  static const std::map<int, const char *> known = {
      {0, "CUDA_SUCCESS"}, {1, "CUDA_ERROR_INVALID_VALUE"}, {2, "CUDA_ERROR_OUT_OF_MEMORY"},
      {3, "CUDA_ERROR_NOT_INITIALIZED"}, {101, "CUDA_ERROR_INVALID_DEVICE"}, {200, "CUDA_ERROR_INVALID_IMAGE"},
      {201, "CUDA_ERROR_INVALID_CONTEXT"}, {209, "CUDA_ERROR_NO_BINARY_FOR_GPU"}, {218, "CUDA_ERROR_INVALID_PTX"},
      {222, "CUDA_ERROR_UNSUPPORTED_PTX_VERSION"}, {400, "CUDA_ERROR_INVALID_HANDLE"}, {500, "CUDA_ERROR_NOT_FOUND"},
      {401, "CUDA_ERROR_ILLEGAL_STATE"}, {600, "CUDA_ERROR_NOT_READY"}, {700, "CUDA_ERROR_ILLEGAL_ADDRESS"},
      {800, "CUDA_ERROR_NOT_PERMITTED"}, {801, "CUDA_ERROR_NOT_SUPPORTED"},
      {900, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"}, {901, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED"},
      {905, "CUDA_ERROR_STREAM_CAPTURE_ISOLATION"}, {906, "CUDA_ERROR_STREAM_CAPTURE_IMPLICIT"},
      {908, "CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD"}};
  auto found = known.find(result);
  *name = found == known.end() ? "CUDA_ERROR_UNKNOWN" : found->second;
  return CUDA_SUCCESS;
}
DRIVER cuGetErrorString(CUresult result, const char **text) { return cuGetErrorName(result, text); }

// A function of the real driver that the stand-in lacks was called.
extern "C" int missing(const char *name) {
  std::lock_guard<std::mutex> hold(lock);
  ++counts[std::string("missing ") + name];
  return refuse(CUDA_ERROR_NOT_SUPPORTED, "%s is not part of the stand-in", name);
}

// For tests: how often a driver function or "kernel NAME" was called, "bytes in use" or "allocations".
extern "C" __attribute__((visibility("default"))) long virtual_gpu_count(const char *name) {
  std::lock_guard<std::mutex> hold(lock);
  if (!strcmp(name, "bytes in use")) return (long)bytes_in_use;
  if (!strcmp(name, "allocations")) return (long)allocations.size();
  return counts.count(name) ? counts[name] : 0;
}
