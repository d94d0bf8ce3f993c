// What the stand-in driver and an image (a kernel file compiled for the host) know of each other.
#pragma once

namespace host_gpu {

struct Parameter {
  unsigned offset, size;  // bytes, laid out as CUDA does: each at a multiple of its alignment
  bool pointer;
};

struct Kernel {
  const char *name;
  unsigned parameter_count, parameter_bytes;
  Parameter parameters[32];
  void (*function)();
  void (*call)(void (*function)(), void **arguments);
};

struct Launch {
  unsigned grid[3], block[3];
  unsigned order;  // of blocks and threads: 0 forward, 1 backward, else the seed of a shuffle
};

}  // namespace host_gpu
