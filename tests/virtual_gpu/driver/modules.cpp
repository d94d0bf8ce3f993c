// Modules and launches. A module's image is a kernel file compiled for the host: an ELF library of this machine.
#include <dlfcn.h>
#include <elf.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <algorithm>

#include "state.h"

using namespace virtual_gpu;

namespace virtual_gpu {

#if defined(__aarch64__)
constexpr int HOST_MACHINE = EM_AARCH64;
#else
constexpr int HOST_MACHINE = EM_X86_64;
#endif

// The driver is given no length: the library ends behind its section headers or its last section.
static size_t length_of(const Elf64_Ehdr *header) {
  size_t length = header->e_shoff + (size_t)header->e_shnum * header->e_shentsize;
  auto sections = (const Elf64_Shdr *)((const char *)header + header->e_shoff);
  for (int i = 0; i < header->e_shnum; ++i)
    if (sections[i].sh_type != SHT_NOBITS)
      length = std::max<size_t>(length, sections[i].sh_offset + sections[i].sh_size);
  return length;
}

// There when the process runs under AddressSanitizer, which looks up source lines in the file when it reports.
extern "C" void __asan_poison_memory_region(void const volatile *, size_t) __attribute__((weak));

static void remove_at_end(const std::string &path) {
  static struct Files {
    std::vector<std::string> paths;
    ~Files() { for (auto &one : paths) unlink(one.c_str()); }
  } files;
  files.paths.push_back(path);
}

static void *open_library(const void *image) {
  std::string path = std::string(setting("TMPDIR", "/tmp")) + "/virtual-gpu-XXXXXX";
  int file = mkstemp(&path[0]);
  if (file < 0) return nullptr;
  const char *bytes = (const char *)image;
  size_t left = length_of((const Elf64_Ehdr *)image);
  for (ssize_t n; left && (n = write(file, bytes, left)) > 0; left -= (size_t)n) bytes += n;
  close(file);
  void *library = left ? nullptr : dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!library) refuse(CUDA_ERROR_INVALID_IMAGE, "%s", left ? "disk full" : dlerror());
  if (__asan_poison_memory_region) remove_at_end(path);
  else unlink(path.c_str());
  return library;
}

static CUresult load(CUmodule *module, const void *image) {
  if (memcmp(image, ELFMAG, SELFMAG)) return CUDA_ERROR_UNSUPPORTED_PTX_VERSION;  // as a driver older than the PTX
  if (((const Elf64_Ehdr *)image)->e_machine != HOST_MACHINE) return CUDA_ERROR_NO_BINARY_FOR_GPU;
  void *library = open_library(image);
  if (!library) return CUDA_ERROR_INVALID_IMAGE;
  Module *made = new Module();
  made->library = library;
  made->find = (decltype(made->find))dlsym(library, "host_gpu_find");
  made->launch = (decltype(made->launch))dlsym(library, "host_gpu_launch");
  if (!made->find || !made->launch) return CUDA_ERROR_INVALID_IMAGE;
  *module = (CUmodule)made;
  return CUDA_SUCCESS;
}

static CUresult check_sizes(const char *name, const unsigned *grid, const unsigned *block) {
  uint64_t threads = (uint64_t)block[0] * block[1] * block[2];
  if (!grid[0] || !grid[1] || !grid[2] || grid[0] > 0x7fffffff || grid[1] > 65535 || grid[2] > 65535)
    return refuse(CUDA_ERROR_INVALID_VALUE, "launch of %s: a grid of %u x %u x %u", name, grid[0], grid[1], grid[2]);
  if (!threads || threads > 1024 || block[2] > 64)
    return refuse(CUDA_ERROR_INVALID_VALUE, "launch of %s: a block of %u x %u x %u", name, block[0], block[1], block[2]);
  return CUDA_SUCCESS;
}

// Copies the arguments, given packed or one by one.
static CUresult take_arguments(KernelCall *call, void **single, void **extra) {
  const host_gpu::Kernel *kernel = call->function->kernel;
  char *packed = (char *)call->packed.data();
  if (!extra) {
    for (unsigned i = 0; i < kernel->parameter_count; ++i)
      memcpy(packed + kernel->parameters[i].offset, single[i], kernel->parameters[i].size);
    return CUDA_SUCCESS;
  }
  const void *buffer = nullptr;
  size_t bytes = 0;
  for (; *extra != CU_LAUNCH_PARAM_END; extra += 2) {
    if (extra[0] == CU_LAUNCH_PARAM_BUFFER_POINTER) buffer = extra[1];
    if (extra[0] == CU_LAUNCH_PARAM_BUFFER_SIZE) bytes = *(size_t *)extra[1];
  }
  if (bytes < kernel->parameter_bytes || bytes >= kernel->parameter_bytes + 8)
    return refuse(CUDA_ERROR_INVALID_VALUE, "launch of %s: arguments are %zu bytes, the kernel takes %u", kernel->name,
                  bytes, kernel->parameter_bytes);
  memcpy(packed, buffer, kernel->parameter_bytes);
  call->extra_bytes = bytes;
  return CUDA_SUCCESS;
}

static CUresult check_pointers(const host_gpu::Kernel *kernel, const char *packed) {
  for (unsigned i = 0; i < kernel->parameter_count; ++i) {
    if (!kernel->parameters[i].pointer) continue;
    uintptr_t pointer = 0;
    memcpy(&pointer, packed + kernel->parameters[i].offset, sizeof pointer);
    if (pointer && !allocation_of(pointer, 1))
      return broken = refuse(CUDA_ERROR_ILLEGAL_ADDRESS, "launch of %s: argument %u points at no device memory",
                             kernel->name, i);
  }
  return CUDA_SUCCESS;
}

CUresult prepare(KernelCall *call, Function *function, const unsigned *grid, const unsigned *block, unsigned shared,
                 void **single, void **extra) {
  const host_gpu::Kernel *kernel = function->kernel;
  if (shared) return refuse(CUDA_ERROR_NOT_SUPPORTED, "launch of %s: dynamic shared memory", kernel->name);
  if (CUresult result = check_sizes(kernel->name, grid, block)) return result;
  call->function = function;
  std::copy_n(grid, 3, call->grid);
  std::copy_n(block, 3, call->block);
  call->packed.assign(kernel->parameter_bytes / 8 + 1, 0);
  return take_arguments(call, single, extra);
}

CUresult launch(const KernelCall &call, Stream *stream) {
  const host_gpu::Kernel *kernel = call.function->kernel;
  if (CUresult result = check_pointers(kernel, (const char *)call.packed.data())) return result;
  ++counts[std::string("kernel ") + kernel->name];
  give(stream, [call, kernel, order = (unsigned)atoi(setting("VIRTUAL_GPU_ORDER", "0"))]() mutable {
    host_gpu::Launch sizes = {{call.grid[0], call.grid[1], call.grid[2]},
                              {call.block[0], call.block[1], call.block[2]}, order};
    void *arguments[32];
    for (unsigned i = 0; i < kernel->parameter_count; ++i)
      arguments[i] = (char *)call.packed.data() + kernel->parameters[i].offset;
    call.function->module->launch(kernel, &sizes, arguments);
  });
  return CUDA_SUCCESS;
}

}  // namespace virtual_gpu

DRIVER cuModuleLoadData(CUmodule *module, const void *image) { ENTER_UNSAFE(); return load(module, image); }
DRIVER cuModuleLoadDataEx(CUmodule *module, const void *image, unsigned, CUjit_option *, void **) {
  ENTER_UNSAFE();
  return load(module, image);
}
DRIVER cuModuleUnload(CUmodule module) {
  ENTER_UNSAFE();
  finish_all(contexts.back());
  dlclose(((Module *)module)->library);
  delete (Module *)module;
  return CUDA_SUCCESS;
}
DRIVER cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name) {
  ENTER(true);
  Module *known = (Module *)module;
  const host_gpu::Kernel *kernel = known->find(name);
  if (!kernel) return CUDA_ERROR_NOT_FOUND;
  Function &made = known->functions[name];
  made = {known, kernel};
  *function = (CUfunction)&made;
  return CUDA_SUCCESS;
}
DRIVER cuFuncGetAttribute(int *value, CUfunction_attribute attribute, CUfunction) {
  ENTER(true);
  *value = attribute == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? 1024 : 0;
  return CUDA_SUCCESS;
}
DRIVER cuFuncSetBlockShape(CUfunction, int, int, int) { ENTER(true); return CUDA_SUCCESS; }
DRIVER cuFuncSetSharedSize(CUfunction, unsigned) { ENTER(true); return CUDA_SUCCESS; }
DRIVER cuFuncSetCacheConfig(CUfunction, CUfunc_cache) { ENTER(true); return CUDA_SUCCESS; }

DRIVER cuLaunchKernel(CUfunction function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                      unsigned shared, CUstream on, void **single, void **extra) {
  ENTER(true);
  Stream *stream = nullptr;
  if (CUresult result = target_of(on, &stream)) return result;
  const unsigned grid[] = {gx, gy, gz}, block[] = {bx, by, bz};
  Node node{CU_GRAPH_NODE_TYPE_KERNEL, nullptr, {}};
  if (CUresult result = prepare(&node.kernel, (Function *)function, grid, block, shared, single, extra)) return result;
  return submit(stream, std::move(node));
}
