// Memory of the device: host memory with guard bytes around every allocation, and copies.
#include <stdlib.h>
#include <string.h>

#include <algorithm>

#include "state.h"

using namespace virtual_gpu;

// There when the process runs under AddressSanitizer, which then sees the guards by itself.
extern "C" void __asan_poison_memory_region(void const volatile *, size_t) __attribute__((weak));
extern "C" void __asan_unpoison_memory_region(void const volatile *, size_t) __attribute__((weak));

namespace virtual_gpu {

std::map<uintptr_t, Allocation> allocations;
size_t bytes_in_use = 0;

constexpr size_t GUARD = 512;  // bytes before and after; also the alignment
constexpr int GUARD_BYTE = 0xA5, FRESH_BYTE = 0xCD, FREED_BYTE = 0xDD;

static size_t padded(size_t bytes) { return (bytes + GUARD - 1) / GUARD * GUARD; }

static CUresult allocate(size_t bytes, Memory kind, uintptr_t *pointer) {
  if (!bytes) return CUDA_ERROR_INVALID_VALUE;
  size_t limit = (size_t)atol(setting("VIRTUAL_GPU_MB", "4096")) << 20;
  if (kind == Memory::device && bytes_in_use + bytes > limit) return CUDA_ERROR_OUT_OF_MEMORY;
  size_t after = padded(bytes) - bytes + GUARD;
  char *start = (char *)aligned_alloc(GUARD, padded(bytes) + 2 * GUARD);
  if (!start) return CUDA_ERROR_OUT_OF_MEMORY;
  memset(start, GUARD_BYTE, GUARD);
  memset(start + GUARD, FRESH_BYTE, bytes);
  memset(start + GUARD + bytes, GUARD_BYTE, after);
  if (__asan_poison_memory_region) {
    __asan_poison_memory_region(start, GUARD);
    __asan_poison_memory_region(start + GUARD + bytes, after);
  }
  *pointer = (uintptr_t)start + GUARD;
  allocations[*pointer] = {bytes, kind, contexts.back()};
  if (kind == Memory::device) bytes_in_use += bytes;
  return CUDA_SUCCESS;
}

static bool guards_whole(uintptr_t pointer, const Allocation &allocation) {
  if (allocation.kind == Memory::registered || __asan_poison_memory_region) return true;
  auto bytes = (const unsigned char *)pointer;
  auto whole = [](const unsigned char *from, const unsigned char *to) {
    return std::all_of(from, to, [](unsigned char byte) { return byte == GUARD_BYTE; });
  };
  return whole(bytes - GUARD, bytes) && whole(bytes + allocation.bytes, bytes + padded(allocation.bytes) + GUARD);
}

CUresult check_guards() {
  for (auto &entry : allocations)
    if (!guards_whole(entry.first, entry.second))
      return broken = refuse(CUDA_ERROR_ILLEGAL_ADDRESS, "something was written outside an allocation of %zu bytes",
                             entry.second.bytes);
  return CUDA_SUCCESS;
}

static CUresult release(uintptr_t pointer, Memory kind) {
  auto found = allocations.find(pointer);
  if (found == allocations.end() || found->second.kind != kind)
    return refuse(CUDA_ERROR_INVALID_VALUE, "free of what is no such allocation");
  Allocation allocation = found->second;
  CUresult result = guards_whole(pointer, allocation) ? CUDA_SUCCESS : check_guards();
  char *start = (char *)pointer - GUARD;
  size_t all = padded(allocation.bytes) + 2 * GUARD;
  if (__asan_unpoison_memory_region) __asan_unpoison_memory_region(start, all);
  memset(start, FREED_BYTE, all);
  if (kind == Memory::device) bytes_in_use -= allocation.bytes;
  allocations.erase(found);
  free(start);
  return result;
}

const Allocation *allocation_of(uintptr_t pointer, size_t bytes) {
  auto after = allocations.upper_bound(pointer);
  if (after == allocations.begin()) return nullptr;
  auto entry = std::prev(after);
  return pointer + bytes <= entry->first + entry->second.bytes ? &entry->second : nullptr;
}

bool on_device(CUdeviceptr pointer, size_t bytes) { return !bytes || allocation_of(pointer, bytes); }

bool page_locked(const void *pointer, size_t bytes) {
  const Allocation *found = allocation_of((uintptr_t)pointer, bytes);
  return found && found->kind != Memory::device;
}

// One end of a copy, a rectangle of rows.
struct End {
  char *start;
  size_t pitch;
  bool host;
  bool valid(size_t width, size_t rows) const { return host || on_device((CUdeviceptr)start, pitch * (rows - 1) + width); }
  bool locked(size_t width, size_t rows) const { return !host || page_locked(start, pitch * (rows - 1) + width); }
};

struct Copy {
  End to, from;
  size_t width, rows;

  CUresult check() const {
    if (to.pitch < width || from.pitch < width)
      return refuse(CUDA_ERROR_INVALID_VALUE, "a copy's pitch is below its width");
    if (!to.valid(width, rows)) return refuse(CUDA_ERROR_INVALID_VALUE, "copy to what is not device memory");
    if (!from.valid(width, rows)) return refuse(CUDA_ERROR_INVALID_VALUE, "copy from what is not device memory");
    return CUDA_SUCCESS;
  }
  bool locked() const { return to.locked(width, rows) && from.locked(width, rows); }
};

static void run_copy(Copy one, bool async, Stream *stream) {
  End &to = one.to, &from = one.from;
  size_t width = one.width, rows = one.rows;
  counts[to.host ? "bytes to host" : from.host ? "bytes to device" : "bytes within device"] += (long)(width * rows);
  bool wait = !async || !to.locked(width, rows);
  std::vector<char> staged;  // memory that is not page-locked is read at the call
  if (!wait && !from.locked(width, rows)) {
    staged.resize(width * rows);
    for (size_t row = 0; row < rows; ++row) memcpy(&staged[row * width], from.start + row * from.pitch, width);
    from.pitch = width;
  }
  give(stream, [=] {
    const char *source = staged.empty() ? from.start : staged.data();
    for (size_t row = 0; row < rows; ++row) memmove(to.start + row * to.pitch, source + row * from.pitch, width);
  });
  if (wait) finish(stream, stream->given);
}

static CUresult copy(End to, End from, size_t width, size_t rows, bool async, CUstream on) {
  if (!async)
    if (CUresult forbidden = forbidden_by_capture("a copy that waits")) return forbidden;
  if (!width || !rows) return CUDA_SUCCESS;
  Copy one{to, from, width, rows};
  if (CUresult result = one.check()) return result;
  Stream *stream = nullptr;
  if (CUresult result = target_of(async ? on : nullptr, &stream)) return result;
  if (stream->capture && !one.locked())  // a graph would read or write it later, when it may be gone
    return invalidate(stream, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "a copy of memory that is not page-locked");
  return submit(stream, {CU_GRAPH_NODE_TYPE_MEMCPY, [=](Stream *chosen) {
    CUresult result = one.check();
    if (result == CUDA_SUCCESS) run_copy(one, async, chosen);
    return result;
  }, {}});
}

template <class T> CUresult fill(CUdeviceptr pointer, T value, size_t count, bool async, CUstream on) {
  if (!async)
    if (CUresult forbidden = forbidden_by_capture("a fill that waits")) return forbidden;
  Stream *stream = nullptr;
  if (CUresult result = target_of(async ? on : nullptr, &stream)) return result;
  return submit(stream, {CU_GRAPH_NODE_TYPE_MEMSET, [=](Stream *chosen) {
    if (!on_device(pointer, count * sizeof(T)))
      return refuse(CUDA_ERROR_INVALID_VALUE, "fill of what is not device memory");
    give(chosen, [=] { std::fill_n((T *)pointer, count, value); });
    if (!async) finish(chosen, chosen->given);
    return CUDA_SUCCESS;
  }, {}});
}

static CUresult copy_rectangle(const CUDA_MEMCPY2D *c, bool async, CUstream on) {
  auto host = [](CUmemorytype type) { return type == CU_MEMORYTYPE_HOST; };
  if (c->srcMemoryType == CU_MEMORYTYPE_ARRAY || c->dstMemoryType == CU_MEMORYTYPE_ARRAY) return CUDA_ERROR_NOT_SUPPORTED;
  End from{host(c->srcMemoryType) ? (char *)c->srcHost : (char *)c->srcDevice, c->srcPitch, host(c->srcMemoryType)};
  End to{host(c->dstMemoryType) ? (char *)c->dstHost : (char *)c->dstDevice, c->dstPitch, host(c->dstMemoryType)};
  if (!from.pitch) from.pitch = c->WidthInBytes;
  if (!to.pitch) to.pitch = c->WidthInBytes;
  from.start += c->srcY * from.pitch + c->srcXInBytes;
  to.start += c->dstY * to.pitch + c->dstXInBytes;
  return copy(to, from, c->WidthInBytes, c->Height, async, on);
}

static End device(CUdeviceptr pointer, size_t bytes) { return {(char *)pointer, bytes, false}; }
static End host(const void *pointer, size_t bytes) { return {(char *)pointer, bytes, true}; }

}  // namespace virtual_gpu

DRIVER cuMemAlloc_v2(CUdeviceptr *pointer, size_t bytes) {
  ENTER_UNSAFE();
  uintptr_t made = 0;
  CUresult result = allocate(bytes, Memory::device, &made);
  *pointer = made;
  return result;
}
DRIVER cuMemAllocPitch_v2(CUdeviceptr *pointer, size_t *pitch, size_t width, size_t rows, unsigned) {
  ENTER_UNSAFE();
  *pitch = padded(width);
  uintptr_t made = 0;
  CUresult result = allocate(*pitch * rows, Memory::device, &made);
  *pointer = made;
  return result;
}
DRIVER cuMemFree_v2(CUdeviceptr pointer) {
  ENTER_UNSAFE();
  finish_all(contexts.back());
  return release(pointer, Memory::device);
}
DRIVER cuMemGetInfo_v2(size_t *unused, size_t *all) {
  ENTER(true);
  *all = (size_t)atol(setting("VIRTUAL_GPU_MB", "4096")) << 20;
  *unused = *all - bytes_in_use;
  return CUDA_SUCCESS;
}
DRIVER cuMemHostAlloc(void **pointer, size_t bytes, unsigned) {
  ENTER_UNSAFE();
  return allocate(bytes, Memory::pinned, (uintptr_t *)pointer);
}
DRIVER cuMemAllocHost_v2(void **pointer, size_t bytes) {
  ENTER_UNSAFE();
  return allocate(bytes, Memory::pinned, (uintptr_t *)pointer);
}
DRIVER cuMemFreeHost(void *pointer) {
  ENTER_UNSAFE();
  finish_all(contexts.back());
  return release((uintptr_t)pointer, Memory::pinned);
}
DRIVER cuMemHostRegister_v2(void *pointer, size_t bytes, unsigned) {
  ENTER_UNSAFE();
  allocations[(uintptr_t)pointer] = {bytes, Memory::registered, contexts.back()};
  return CUDA_SUCCESS;
}
DRIVER cuMemHostUnregister(void *pointer) {
  ENTER_UNSAFE();
  return allocations.erase((uintptr_t)pointer) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}
DRIVER cuMemHostGetDevicePointer_v2(CUdeviceptr *pointer, void *host_pointer, unsigned) {
  ENTER(true);
  if (!page_locked(host_pointer, 1)) return CUDA_ERROR_INVALID_VALUE;
  *pointer = (CUdeviceptr)host_pointer;
  return CUDA_SUCCESS;
}
DRIVER cuMemcpyHtoD_v2(CUdeviceptr to, const void *from, size_t n) {
  ENTER(true);
  return copy(device(to, n), host(from, n), n, 1, false, nullptr);
}
DRIVER cuMemcpyDtoH_v2(void *to, CUdeviceptr from, size_t n) {
  ENTER(true);
  CUresult result = copy(host(to, n), device(from, n), n, 1, false, nullptr);
  return result == CUDA_SUCCESS ? check_guards() : result;
}
DRIVER cuMemcpyDtoD_v2(CUdeviceptr to, CUdeviceptr from, size_t n) {
  ENTER(true);
  return copy(device(to, n), device(from, n), n, 1, false, nullptr);
}
DRIVER cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void *from, size_t n, CUstream on) {
  ENTER(true);
  return copy(device(to, n), host(from, n), n, 1, true, on);
}
DRIVER cuMemcpyDtoHAsync_v2(void *to, CUdeviceptr from, size_t n, CUstream on) {
  ENTER(true);
  return copy(host(to, n), device(from, n), n, 1, true, on);
}
DRIVER cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, size_t n, CUstream on) {
  ENTER(true);
  return copy(device(to, n), device(from, n), n, 1, true, on);
}
DRIVER cuMemcpy2D_v2(const CUDA_MEMCPY2D *c) { ENTER(true); return copy_rectangle(c, false, nullptr); }
DRIVER cuMemcpy2DUnaligned_v2(const CUDA_MEMCPY2D *c) { ENTER(true); return copy_rectangle(c, false, nullptr); }
DRIVER cuMemcpy2DAsync_v2(const CUDA_MEMCPY2D *c, CUstream on) { ENTER(true); return copy_rectangle(c, true, on); }
DRIVER cuMemsetD8_v2(CUdeviceptr p, unsigned char v, size_t n) { ENTER(true); return fill(p, v, n, false, nullptr); }
DRIVER cuMemsetD32_v2(CUdeviceptr p, unsigned v, size_t n) { ENTER(true); return fill(p, v, n, false, nullptr); }
DRIVER cuMemsetD8Async(CUdeviceptr p, unsigned char v, size_t n, CUstream s) { ENTER(true); return fill(p, v, n, true, s); }
DRIVER cuMemsetD32Async(CUdeviceptr p, unsigned v, size_t n, CUstream s) { ENTER(true); return fill(p, v, n, true, s); }

DRIVER cuPointerGetAttribute(void *data, CUpointer_attribute attribute, CUdeviceptr pointer) {
  ENTER(true);
  auto after = allocations.upper_bound(pointer);
  if (!allocation_of(pointer, 1)) return CUDA_ERROR_INVALID_VALUE;
  const auto &[start, found] = *std::prev(after);
  bool on_host = found.kind != Memory::device;
  switch ((int)attribute) {
    case CU_POINTER_ATTRIBUTE_CONTEXT: *(CUcontext *)data = (CUcontext)found.context; break;
    case CU_POINTER_ATTRIBUTE_MEMORY_TYPE:
      *(unsigned *)data = on_host ? CU_MEMORYTYPE_HOST : CU_MEMORYTYPE_DEVICE;
      break;
    case CU_POINTER_ATTRIBUTE_DEVICE_POINTER: *(CUdeviceptr *)data = pointer; break;
    case CU_POINTER_ATTRIBUTE_HOST_POINTER:
      if (!on_host) return CUDA_ERROR_INVALID_VALUE;
      *(void **)data = (void *)pointer;
      break;
    case CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL: *(int *)data = 0; break;
    case CU_POINTER_ATTRIBUTE_RANGE_START_ADDR: *(CUdeviceptr *)data = start; break;
    case CU_POINTER_ATTRIBUTE_RANGE_SIZE: *(size_t *)data = found.bytes; break;
    default: return refuse(CUDA_ERROR_NOT_SUPPORTED, "attribute %d of a pointer", (int)attribute);
  }
  return CUDA_SUCCESS;
}
