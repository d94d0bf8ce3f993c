// Kernels that are wrong on purpose, or use what no kernel of the project uses: for the tests of the stand-in itself.

extern "C" __global__ void write_beyond(int *values, int count) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i <= count) values[i] = i;  // one too many
}

extern "C" __global__ void read_beyond(const int *values, int count, int *out) {
  int i = threadIdx.x;
  if (i < count) out[i] = values[i + 1];
}

extern "C" __global__ void overflow(int *values) { values[0] += 0x7fffffff; }

// Right only if thread 0 runs last.
extern "C" __global__ void race(int *values) { values[0] = threadIdx.x + blockIdx.x * blockDim.x; }

extern "C" __global__ void twice(float *values, int count) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < count) values[i] *= 2.0f;
}

// Threads wait at two barriers of which each reaches one.
extern "C" __global__ void divergent(int *values) {
  if (threadIdx.x < 16) {
    __syncwarp(0xffffffffu);
    values[threadIdx.x] = 1;
  } else {
    __syncthreads();
  }
}

extern "C" __global__ void block_sum(const int *values, int count, int *sum) {
  __shared__ int tile[256];
  __shared__ int sums[8];
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  tile[threadIdx.x] = i < count ? values[i] : 0;
  __syncthreads();
  int value = tile[blockDim.x - 1 - threadIdx.x];  // what another thread wrote
  for (int by = 16; by; by >>= 1) value += __shfl_down_sync(0xffffffffu, value, by);
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = value;
  __syncthreads();
  if (threadIdx.x == 0) {
    int all = 0;
    for (unsigned k = 0; k < blockDim.x / 32; ++k) all += sums[k];
    atomicAdd(sum, all);
  }
}

// The same without its first barrier.
extern "C" __global__ void block_sum_without_barrier(const int *values, int count, int *sum) {
  __shared__ int tile[256];
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  tile[threadIdx.x] = i < count ? values[i] : 0;
  int value = tile[blockDim.x - 1 - threadIdx.x];
  __syncthreads();
  atomicAdd(sum, value);
}
