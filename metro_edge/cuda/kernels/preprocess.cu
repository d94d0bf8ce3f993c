// From a frame and boxes to the network's input, all people in one launch: metro_edge/preprocess.py on the GPU.
//
// The samples are rounded to whole levels where the NumPy path rounds them, and normalised by the same two operations.
// crop_boxes does OpenCV's own arithmetic, bit for bit; crop's positions are finer, and ties may fall differently.
#include "common.cuh"

enum Format { BGR = 0, RGB = 1, GREY = 2, NV12 = 3, YUYV = 4 };
enum Output { FLOAT32 = 0, FLOAT16 = 1, INT8 = 2 };

#define ONE_PX 4294967296LL  // positions in the frame count 2^-32 px

struct Frame {
  unsigned long long pitch, uv_pitch;  // bytes from row to row
  int width, height, format;
  YuvRule yuv;
  Bgr border;  // outside the frame
};

struct Target {
  int size, type;            // S; Output
  float gain[3], offset[3];  // RGB: normalised = level * gain + offset
  float inverse_scale;       // INT8: levels per unit
};

// Where one person's samples lie: pixel (X, Y) of the crop's grid of taps * S samples a side is at
// x + (X * xx + Y * xy) * 2^shift, alike for y, in units of 2^-32 px of the frame. Fixed point, for a float's 24 bits
// would leave 2^-12 px at a frame's right edge.
struct Person {
  long long x, y;
  int xx, xy, yx, yy;
  int low_x, high_x, low_y, high_y;  // pixels that samples are kept between
  short taps, shift;
  int unused;
};
struct People {
  Person person[MAX_PEOPLE];
};

// A person of the rules box_area and box_bilinear: column X of the grid of taps * S samples a side is at
// start_x + X * step_x px from column `left` of the frame on, alike for rows.
struct Box {
  float start_x, start_y, step_x, step_y;
  int left, top, taps, unused;
};
struct Boxes {
  Box person[MAX_PEOPLE];
};

// A person of the rule metro_demo: `length` px from `first` on are resized to `resized`, of which S from `offset` on
// are taken.
struct Axis {
  int first, length, resized, offset;
};
struct Resized {
  Axis x, y;
};
struct ResizedPeople {
  Resized person[MAX_PEOPLE];
};

static __device__ __forceinline__ Bgr pixel(const unsigned char *__restrict__ data, const unsigned char *__restrict__ uv,
                                            const Frame &frame, int x, int y, const Bgr &outside) {
  if (x < 0 || y < 0 || x >= frame.width || y >= frame.height) return outside;
  const unsigned char *row = data + y * frame.pitch;
  switch (frame.format) {
    case BGR:
      return {row[3 * x], row[3 * x + 1], row[3 * x + 2]};
    case RGB:
      return {row[3 * x + 2], row[3 * x + 1], row[3 * x]};
    case GREY:
      return {row[x], row[x], row[x]};
    case NV12: {
      const unsigned char *pair = uv + (y >> 1) * frame.uv_pitch + (x & ~1);
      return bgr_of_yuv(row[x], pair[0], pair[1], frame.yuv);
    }
    default: {
      const unsigned char *four = row + 4 * (x >> 1);
      return bgr_of_yuv(row[2 * x], four[1], four[3], frame.yuv);
    }
  }
}

static __device__ __forceinline__ void store(void *__restrict__ out, const Target &target, int person, int x, int y,
                                             const Bgr &levels) {
  int rgb[3] = {levels.r, levels.g, levels.b};
  size_t plane = (size_t)target.size * target.size;
  size_t at = (size_t)person * 3 * plane + (size_t)y * target.size + x;
#pragma unroll
  for (int c = 0; c < 3; ++c, at += plane) {
    // Not one fused operation: NumPy rounds the product first.
    float value = __fadd_rn(__fmul_rn((float)rgb[c], target.gain[c]), target.offset[c]);
    if (target.type == FLOAT32) {
      ((float *)out)[at] = value;
    } else if (target.type == FLOAT16) {
      ((unsigned short *)out)[at] = half_bits(value);
    } else {
      int level = __float2int_rn(__fmul_rn(value, target.inverse_scale));
      ((signed char *)out)[at] = (signed char)min(max(level, -128), 127);
    }
  }
}

static __device__ __forceinline__ long long kept(long long place, int low, int high) {
  return min(max(place, low * ONE_PX), high * ONE_PX);
}

// One bilinear sample, rounded to whole levels, added to `sum`.
static __device__ __forceinline__ void add_sample(const unsigned char *__restrict__ data,
                                                  const unsigned char *__restrict__ uv, const Frame &frame,
                                                  const Person &p, int X, int Y, Bgr &sum) {
  long long unit = 1LL << p.shift;
  long long place_x = p.x + ((long long)X * p.xx + (long long)Y * p.xy) * unit;
  long long place_y = p.y + ((long long)X * p.yx + (long long)Y * p.yy) * unit;
  place_x = kept(place_x, p.low_x, p.high_x);
  place_y = kept(place_y, p.low_y, p.high_y);
  int x = (int)(place_x >> 32), y = (int)(place_y >> 32);
  float u = (float)(unsigned)place_x * 0x1p-32f, v = (float)(unsigned)place_y * 0x1p-32f;
  float b = 0.0f, g = 0.0f, r = 0.0f;
#pragma unroll
  for (int corner = 0; corner < 4; ++corner) {
    int i = corner & 1, j = corner >> 1;
    float weight = (i ? u : 1.0f - u) * (j ? v : 1.0f - v);
    Bgr at = pixel(data, uv, frame, x + i, y + j, frame.border);
    b = fmaf(weight, (float)at.b, b);
    g = fmaf(weight, (float)at.g, g);
    r = fmaf(weight, (float)at.r, r);
  }
  sum.b += __float2int_rn(b);
  sum.g += __float2int_rn(g);
  sum.r += __float2int_rn(r);
}

// The mean of taps * taps samples as OpenCV rounds it: halves up for four samples, to even for more.
static __device__ __forceinline__ int mean(int sum, int taps) {
  if (taps == 1) return sum;
  if (taps == 2) return (sum + 2) >> 2;
  return __float2int_rn((float)sum * (1.0f / (float)(taps * taps)));
}

static __device__ __forceinline__ int between(float u, float v, int a, int b, int c, int d) {
  float upper = fmaf(u, (float)(b - a), (float)a), lower = fmaf(u, (float)(d - c), (float)c);
  return __float2int_rn(fmaf(v, lower - upper, upper));
}

// Rules box_area and box_bilinear, the roundings of cv2.warpAffine of OpenCV 5: columns by fused operations, rows not.
// A thread per output pixel, block 32 x 8, grid z: people.
extern "C" __global__ void __launch_bounds__(256, 4) crop_boxes(Boxes people, Frame frame, Target target,
                                                                const unsigned char *__restrict__ data,
                                                                const unsigned char *__restrict__ uv,
                                                                void *__restrict__ out) {
  int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y * blockDim.y + threadIdx.y;
  if (x >= target.size || y >= target.size) return;
  const Box &p = people.person[blockIdx.z];
  Bgr sum = {0, 0, 0};
  for (int j = 0; j < p.taps; ++j) {
    float place_y = __fadd_rn(__fmul_rn(p.step_y, (float)(y * p.taps + j)), p.start_y);
    int row = (int)floorf(place_y);
    float v = place_y - (float)row;
    row += p.top;
    for (int i = 0; i < p.taps; ++i) {
      float place_x = fmaf(p.step_x, (float)(x * p.taps + i), p.start_x);
      int column = (int)floorf(place_x);
      float u = place_x - (float)column;
      column += p.left;
      Bgr a = pixel(data, uv, frame, column, row, frame.border);
      Bgr b = pixel(data, uv, frame, column + 1, row, frame.border);
      Bgr c = pixel(data, uv, frame, column, row + 1, frame.border);
      Bgr d = pixel(data, uv, frame, column + 1, row + 1, frame.border);
      sum.b += between(u, v, a.b, b.b, c.b, d.b);
      sum.g += between(u, v, a.g, b.g, c.g, d.g);
      sum.r += between(u, v, a.r, b.r, c.r, d.r);
    }
  }
  store(out, target, blockIdx.z, x, y, {mean(sum.b, p.taps), mean(sum.g, p.taps), mean(sum.r, p.taps)});
}

// Rule metro_eval, and any affine map. A thread per output pixel, block 32 x 8, grid z: people.
extern "C" __global__ void __launch_bounds__(256) crop(People people, Frame frame, Target target,
                                                       const unsigned char *__restrict__ data,
                                                       const unsigned char *__restrict__ uv, void *__restrict__ out) {
  int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y * blockDim.y + threadIdx.y;
  if (x >= target.size || y >= target.size) return;
  const Person &p = people.person[blockIdx.z];
  Bgr sum = {0, 0, 0};
  for (int j = 0; j < p.taps; ++j)
    for (int i = 0; i < p.taps; ++i) add_sample(data, uv, frame, p, x * p.taps + i, y * p.taps + j, sum);
  store(out, target, blockIdx.z, x, y, {mean(sum.b, p.taps), mean(sum.g, p.taps), mean(sum.r, p.taps)});
}

// The triangle of weights about an output pixel's middle: pixels low to high - 1 of the axis, from its first one.
struct Triangle {
  int low, high;
  int whole;    // the middle is at whole + part
  float part, reach, norm;
};

static __device__ __forceinline__ float weight_at(const Triangle &t, int i) {
  return fmaxf(1.0f - fabsf((float)(i - t.whole) + 0.5f - t.part) / t.reach, 0.0f);
}

static __device__ __forceinline__ Triangle triangle(const Axis &axis, int i) {
  long long numerator = (2LL * (axis.offset + i) + 1) * axis.length, denominator = 2LL * axis.resized;
  Triangle t;
  t.whole = (int)(numerator / denominator);
  t.part = (float)(numerator % denominator) / (float)denominator;
  t.reach = fmaxf((float)axis.length / (float)axis.resized, 1.0f);
  t.low = max(t.whole + (int)floorf(t.part - t.reach + 0.5f), 0);
  t.high = min(t.whole + (int)floorf(t.part + t.reach + 0.5f), axis.length);
  float sum = 0.0f;
  for (int k = t.low; k < t.high; ++k) sum += weight_at(t, k);
  t.norm = 1.0f / sum;
  return t;
}

// Rule metro_demo: rows first, rounded, then columns, as PIL resizes. A thread per output pixel, as above.
extern "C" __global__ void __launch_bounds__(256) crop_resized(ResizedPeople people, Frame frame, Target target,
                                                               const unsigned char *__restrict__ data,
                                                               const unsigned char *__restrict__ uv,
                                                               void *__restrict__ out) {
  int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y * blockDim.y + threadIdx.y;
  if (x >= target.size || y >= target.size) return;
  const Resized &p = people.person[blockIdx.z];
  Triangle columns = triangle(p.x, x), rows = triangle(p.y, y);
  const Bgr black = {0, 0, 0};
  float b = 0.0f, g = 0.0f, r = 0.0f;
  // Black adds nothing: only what lies inside the frame is visited, however far beyond it the box reaches.
  int left = max(columns.low, -p.x.first), right = min(columns.high, frame.width - p.x.first);
  int top = max(rows.low, -p.y.first), bottom = min(rows.high, frame.height - p.y.first);
  for (int i = left; i < right; ++i) {
    float column_b = 0.0f, column_g = 0.0f, column_r = 0.0f;
    for (int j = top; j < bottom; ++j) {
      float weight = weight_at(rows, j) * rows.norm;
      Bgr at = pixel(data, uv, frame, p.x.first + i, p.y.first + j, black);
      column_b = fmaf(weight, (float)at.b, column_b);
      column_g = fmaf(weight, (float)at.g, column_g);
      column_r = fmaf(weight, (float)at.r, column_r);
    }
    float weight = weight_at(columns, i) * columns.norm;
    b = fmaf(weight, rintf(column_b), b);
    g = fmaf(weight, rintf(column_g), g);
    r = fmaf(weight, rintf(column_r), r);
  }
  store(out, target, blockIdx.z, x, y, {__float2int_rn(b), __float2int_rn(g), __float2int_rn(r)});
}
