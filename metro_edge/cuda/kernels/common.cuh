// What the kernels share. Plain CUDA C++ without any library, for nvcc and NVRTC alike.
#pragma once

// At most this many people in one launch: what is known of each goes as kernel arguments, whose limit is 4096 bytes,
// so that a launch copies nothing and allocates nothing.
#define MAX_PEOPLE 64

// The bits of an IEEE half nearest to `value`; written out, as the toolkit's header is not on every device.
static __device__ __forceinline__ unsigned short half_bits(float value) {
#if defined(__CUDA_ARCH__)
  unsigned short bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return bits;
#elif defined(__CUDACC__)
  return 0;  // nvcc's pass for the host, which never calls it
#else
  _Float16 half = (_Float16)value;
  unsigned short bits;
  memcpy(&bits, &half, 2);
  return bits;
#endif
}

// Integer colour conversion in units of 2^-20, as OpenCV's; see metro_edge/cuda/arrays.py for the numbers.
struct YuvRule {
  int luma_zero;                // what black is
  int luma;                     // gain of (Y - luma_zero)
  int red_v, green_u, green_v, blue_u;
};

struct Bgr {
  int b, g, r;
};

static __device__ __forceinline__ int byte_range(int value) { return min(max(value, 0), 255); }

static __device__ __forceinline__ Bgr bgr_of_yuv(int y, int u, int v, const YuvRule &rule) {
  // The sums stay below 2^30: 255 * 1.2e6 + 128 * 2.2e6.
  int luma = max(y - rule.luma_zero, 0) * rule.luma + (1 << 19);
  u -= 128;
  v -= 128;
  return {byte_range((luma + rule.blue_u * u) >> 20),
          byte_range((luma + rule.green_u * u + rule.green_v * v) >> 20),
          byte_range((luma + rule.red_v * v) >> 20)};
}
