// Meshes and skeletons over a frame: metro_edge/video/overlay.py on the GPU.
//
// Coverage is decided in whole numbers: corners are rounded to 1/256 of a sample, so that it is the same on every
// machine. The buffer of depths holds for each sample 64 bits, the nearest surface's inverse depth above the number of
// its triangle, written by atomicMin: the order of triangles makes no difference.
#include "common.cuh"

#define SUBSAMPLES 256
#define EMPTY 0xffffffffffffffffull
#define LARGEST 3.402823466e38f  // finite float
#define FARTHEST_SAMPLE 1048576.0f  // 2^20; further out corners are moved there, and products stay below 2^60

enum Format { BGR = 0, RGB = 1, NV12 = 3 };

struct Canvas {
  unsigned long long pitch, uv_pitch;  // bytes from row to row
  int width, height, format;
  float yuv_zero[3], yuv[3][3];  // Y, U, V = yuv_zero + yuv (b, g, r), all of 0 to 255
};

struct View {
  float focal_px, centre_x, centre_y, near_m;
  int scale;  // samples per pixel and axis
  int width, height;  // of the buffer of depths, samples
};

// Towards the two lights, and how many base colours there are, BGR of 0 to 1; people take them in turn.
struct Clay {
  float key[3], fill[3];
  int count;
  float base[8][3];
};

// What lies over a pixel: colour times opacity, of 0 to 255, and opacity.
struct Layer {
  float b, g, r, alpha;
};

static __device__ __forceinline__ float unit_range(float value) { return fminf(fmaxf(value, 0.0f), 1.0f); }

static __device__ __forceinline__ unsigned char level(float value) {
  return (unsigned char)__float2int_rn(fminf(fmaxf(value, 0.0f), 255.0f));
}

// Blends four pixels, a square whose corner is at even x and y: NV12's pixels share their colour by such squares.
static __device__ __forceinline__ void blend_square(unsigned char *__restrict__ data, unsigned char *__restrict__ uv,
                                                    const Canvas &canvas, int x, int y, const Layer (&layers)[4]) {
  float opacity = 0.0f, u = 0.0f, v = 0.0f;
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    int px = x + (k & 1), py = y + (k >> 1);
    const Layer &l = layers[k];
    if (l.alpha == 0.0f || px >= canvas.width || py >= canvas.height) continue;
    float under = 1.0f - l.alpha;
    unsigned char *row = data + py * canvas.pitch;
    if (canvas.format == NV12) {
      row[px] = level(row[px] * under + canvas.yuv_zero[0] * l.alpha + canvas.yuv[0][0] * l.b + canvas.yuv[0][1] * l.g +
                      canvas.yuv[0][2] * l.r);
      opacity += 0.25f * l.alpha;
      u += 0.25f * (canvas.yuv_zero[1] * l.alpha + canvas.yuv[1][0] * l.b + canvas.yuv[1][1] * l.g + canvas.yuv[1][2] * l.r);
      v += 0.25f * (canvas.yuv_zero[2] * l.alpha + canvas.yuv[2][0] * l.b + canvas.yuv[2][1] * l.g + canvas.yuv[2][2] * l.r);
    } else {
      bool rgb = canvas.format == RGB;
      unsigned char *pixel = row + 3 * px;
      pixel[0] = level(pixel[0] * under + (rgb ? l.r : l.b));
      pixel[1] = level(pixel[1] * under + l.g);
      pixel[2] = level(pixel[2] * under + (rgb ? l.b : l.r));
    }
  }
  if (opacity > 0.0f) {
    unsigned char *pair = uv + (y >> 1) * canvas.uv_pitch + x;
    pair[0] = level(pair[0] * (1.0f - opacity) + u);
    pair[1] = level(pair[1] * (1.0f - opacity) + v);
  }
}

// Corners in samples and their colours, as `shade` of overlay.py lights them: a thread per vertex, grid y: people.
// A corner in front of the near plane gets inverse depth 0, and its triangles are left out.
extern "C" __global__ void __launch_bounds__(256) shade(View view, Clay clay, const float *__restrict__ vertices,
                                                        const float *__restrict__ translations,
                                                        const float *__restrict__ normals, int *__restrict__ corners,
                                                        float *__restrict__ inverse_depths, float *__restrict__ colours,
                                                        int count) {
  int i = blockIdx.x * blockDim.x + threadIdx.x, person = blockIdx.y;
  if (i >= count) return;
  size_t at = (size_t)person * count + i;
  const float *vertex = vertices + 3 * at, *translation = translations + 3 * person, *n = normals + 3 * at;
  float z = vertex[2] + translation[2];
  bool seen = z >= view.near_m;
  float inverse = seen ? 1.0f / z : 0.0f, gain = view.focal_px * inverse, scale = (float)view.scale;
  float px = (vertex[0] + translation[0]) * gain + view.centre_x, py = (vertex[1] + translation[1]) * gain + view.centre_y;
  float sx = (px + 0.5f) * scale - 0.5f, sy = (py + 0.5f) * scale - 0.5f;
  corners[2 * at] = __float2int_rn(fminf(fmaxf(sx, -FARTHEST_SAMPLE), FARTHEST_SAMPLE) * SUBSAMPLES);
  corners[2 * at + 1] = __float2int_rn(fminf(fmaxf(sy, -FARTHEST_SAMPLE), FARTHEST_SAMPLE) * SUBSAMPLES);
  inverse_depths[at] = inverse;
  float key = unit_range(n[0] * clay.key[0] + n[1] * clay.key[1] + n[2] * clay.key[2]);
  float fill = unit_range(n[0] * clay.fill[0] + n[1] * clay.fill[1] + n[2] * clay.fill[2]);
  float light = 0.30f + 0.64f * key + 0.16f * fill + 0.14f * (0.5f - 0.5f * n[1]);
  float key3 = key * key * key, key6 = key3 * key3, key12 = key6 * key6, highlight = 0.10f * (key12 * key12);
  const float *base = clay.base[person % clay.count];
  for (int c = 0; c < 3; ++c) colours[3 * at + c] = unit_range(light * base[c] + highlight);
}

// A triangle with its corners in such an order that the inside is on the positive side of every edge.
struct Triangle {
  long long ax, ay, bx, by, cx, cy, area;  // 1/256 samples; area doubled
  int a, b, c;
};

static __device__ __forceinline__ Triangle triangle(const int *__restrict__ corners, const int *__restrict__ face) {
  Triangle t;
  t.a = face[0];
  t.b = face[1];
  t.c = face[2];
  t.ax = corners[2 * t.a];
  t.ay = corners[2 * t.a + 1];
  t.bx = corners[2 * t.b];
  t.by = corners[2 * t.b + 1];
  t.cx = corners[2 * t.c];
  t.cy = corners[2 * t.c + 1];
  t.area = (t.bx - t.ax) * (t.cy - t.ay) - (t.by - t.ay) * (t.cx - t.ax);
  if (t.area < 0) {
    int corner = t.b;
    t.b = t.c;
    t.c = corner;
    long long swap = t.bx;
    t.bx = t.cx;
    t.cx = swap;
    swap = t.by;
    t.by = t.cy;
    t.cy = swap;
    t.area = -t.area;
  }
  return t;
}

// The shares of the corners at a sample, times `area`; one is negative outside.
struct Shares {
  long long a, b, c;
};

static __device__ __forceinline__ Shares shares(const Triangle &t, int x, int y) {
  long long px = (long long)x * SUBSAMPLES, py = (long long)y * SUBSAMPLES;
  Shares s;
  s.a = (t.cx - t.bx) * (py - t.by) - (t.cy - t.by) * (px - t.bx);
  s.b = (t.ax - t.cx) * (py - t.cy) - (t.ay - t.cy) * (px - t.cx);
  s.c = t.area - s.a - s.b;
  return s;
}

static __device__ __forceinline__ long long least(long long a, long long b, long long c) { return min(a, min(b, c)); }
static __device__ __forceinline__ long long most(long long a, long long b, long long c) { return max(a, max(b, c)); }

// Eight threads per triangle go through the samples of its bounding box, block 8 x 32, grid y: people.
extern "C" __global__ void __launch_bounds__(256) draw_triangles(View view, const int *__restrict__ corners,
                                                                 const float *__restrict__ inverse_depths,
                                                                 const int *__restrict__ faces,
                                                                 unsigned long long *__restrict__ nearest,
                                                                 int vertex_count, int face_count) {
  int face = blockIdx.x * blockDim.y + threadIdx.y, person = blockIdx.y;
  if (face >= face_count) return;
  Triangle t = triangle(corners + (size_t)person * vertex_count * 2, faces + 3 * face);
  const float *inverse = inverse_depths + (size_t)person * vertex_count;
  float a = inverse[t.a], b = inverse[t.b], c = inverse[t.c];
  if (t.area == 0 || a == 0.0f || b == 0.0f || c == 0.0f) return;
  // The first sample at or behind the least corner, the last at or before the greatest; >> rounds down.
  int x0 = (int)max(0LL, (least(t.ax, t.bx, t.cx) + SUBSAMPLES - 1) >> 8);
  int y0 = (int)max(0LL, (least(t.ay, t.by, t.cy) + SUBSAMPLES - 1) >> 8);
  int x1 = (int)min((long long)view.width - 1, most(t.ax, t.bx, t.cx) >> 8);
  int y1 = (int)min((long long)view.height - 1, most(t.ay, t.by, t.cy) >> 8);
  if (x1 < x0 || y1 < y0) return;
  unsigned number = (unsigned)person * face_count + face;
  float area = (float)t.area;
  int columns = x1 - x0 + 1, samples = columns * (y1 - y0 + 1);
  for (int i = threadIdx.x; i < samples; i += blockDim.x) {
    int x = x0 + i % columns, y = y0 + i / columns;
    Shares s = shares(t, x, y);
    if ((s.a | s.b | s.c) < 0) continue;
    float depth = ((float)s.a * a + (float)s.b * b + (float)s.c * c) / area;
    unsigned long long key = (unsigned long long)(~__float_as_uint(depth)) << 32 | number;
    atomicMin(&nearest[(size_t)y * view.width + x], key);
  }
}

// Adds the colour of the surface at one sample; it is linear on the surface, hence the division by depth.
static __device__ __forceinline__ void add_surface(Layer &sum, unsigned number, int x, int y,
                                                   const int *__restrict__ corners,
                                                   const float *__restrict__ inverse_depths,
                                                   const float *__restrict__ colours, const int *__restrict__ faces,
                                                   int vertex_count, int face_count) {
  size_t person = number / face_count, face = number % face_count;
  Triangle t = triangle(corners + person * vertex_count * 2, faces + 3 * face);
  const float *inverse = inverse_depths + person * vertex_count, *colour = colours + person * vertex_count * 3;
  Shares s = shares(t, x, y);
  float a = (float)s.a * inverse[t.a], b = (float)s.b * inverse[t.b], c = (float)s.c * inverse[t.c];
  float gain = 1.0f / (a + b + c);
  sum.b += (a * colour[3 * t.a] + b * colour[3 * t.b] + c * colour[3 * t.c]) * gain;
  sum.g += (a * colour[3 * t.a + 1] + b * colour[3 * t.b + 1] + c * colour[3 * t.c + 1]) * gain;
  sum.r += (a * colour[3 * t.a + 2] + b * colour[3 * t.b + 2] + c * colour[3 * t.c + 2]) * gain;
  sum.alpha += 1.0f;
}

// Blends what draw_triangles found into the frame: a thread per 2 x 2 pixels, block 32 x 8.
extern "C" __global__ void __launch_bounds__(256) blend_meshes(Canvas canvas, View view, float opacity,
                                                               unsigned char *__restrict__ data,
                                                               unsigned char *__restrict__ uv,
                                                               const unsigned long long *__restrict__ nearest,
                                                               const int *__restrict__ corners,
                                                               const float *__restrict__ inverse_depths,
                                                               const float *__restrict__ colours,
                                                               const int *__restrict__ faces, int vertex_count,
                                                               int face_count) {
  int x = 2 * (blockIdx.x * blockDim.x + threadIdx.x), y = 2 * (blockIdx.y * blockDim.y + threadIdx.y);
  if (x >= canvas.width || y >= canvas.height) return;
  Layer layers[4];
  float gain = opacity / (float)(view.scale * view.scale);
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    Layer sum = {0.0f, 0.0f, 0.0f, 0.0f};
    int px = x + (k & 1), py = y + (k >> 1);
    if (px < canvas.width && py < canvas.height) {
      for (int j = 0; j < view.scale; ++j)
        for (int i = 0; i < view.scale; ++i) {
          int sx = px * view.scale + i, sy = py * view.scale + j;
          unsigned long long key = nearest[(size_t)sy * view.width + sx];
          if (key != EMPTY)
            add_surface(sum, (unsigned)key, sx, sy, corners, inverse_depths, colours, faces, vertex_count, face_count);
        }
    }
    layers[k] = {255.0f * gain * sum.b, 255.0f * gain * sum.g, 255.0f * gain * sum.r, gain * sum.alpha};
  }
  blend_square(data, uv, canvas, x, y, layers);
}

// How a skeleton is drawn: half the thickness of bones, radius of joints, and the part of the frame that it touches.
struct Strokes {
  float half_bone, joint, left, top, right, bottom;
};

// A thread per person.
extern "C" __global__ void measure_skeletons(const float *__restrict__ points, Strokes *__restrict__ strokes, int people,
                                             int joint_count) {
  int person = blockIdx.x * blockDim.x + threadIdx.x;
  if (person >= people) return;
  const float *p = points + (size_t)person * joint_count * 2;
  float left = LARGEST, right = -LARGEST, top = LARGEST, bottom = -LARGEST;
  for (int i = 0; i < joint_count; ++i) {
    float x = p[2 * i], y = p[2 * i + 1];
    if (!(fabsf(x) <= LARGEST && fabsf(y) <= LARGEST)) continue;  // infinite or NaN: drawn nowhere
    left = fminf(left, x);
    right = fmaxf(right, x);
    top = fminf(top, y);
    bottom = fmaxf(bottom, y);
  }
  float thickness = fmaxf(1.0f, rintf(fmaxf(right - left, bottom - top) / 120.0f)), joint = thickness + 1.0f;
  float edge = joint + 1.0f;
  strokes[person] = {0.5f * thickness, joint, left - edge, top - edge, right + edge, bottom + edge};
}

// Lays a stroke of `radius` about the line from a to b over `layer`; its edge fades out over one pixel.
static __device__ __forceinline__ void stroke(Layer &layer, float x, float y, const float *__restrict__ a,
                                              const float *__restrict__ b, float radius, const float *__restrict__ bgr) {
  float dx = b[0] - a[0], dy = b[1] - a[1], ex = x - a[0], ey = y - a[1], length2 = dx * dx + dy * dy;
  float along = length2 > 0.0f ? unit_range((ex * dx + ey * dy) / length2) : 0.0f;
  float ox = ex - along * dx, oy = ey - along * dy, alpha = unit_range(radius + 0.5f - sqrtf(ox * ox + oy * oy));
  if (alpha == 0.0f) return;
  float under = 1.0f - alpha;
  layer.b = layer.b * under + alpha * bgr[0];
  layer.g = layer.g * under + alpha * bgr[1];
  layer.r = layer.r * under + alpha * bgr[2];
  layer.alpha = layer.alpha * under + alpha;
}

// Bones, then joints, of one person after the other: a thread per 2 x 2 pixels, block 32 x 8. `colours` (B + J, 3) BGR.
extern "C" __global__ void __launch_bounds__(256, 4) draw_skeletons(Canvas canvas, unsigned char *__restrict__ data,
                                                                 unsigned char *__restrict__ uv,
                                                                 const float *__restrict__ points,
                                                                 const Strokes *__restrict__ strokes,
                                                                 const int *__restrict__ bones,
                                                                 const float *__restrict__ colours, int people,
                                                                 int joint_count, int bone_count) {
  int x = 2 * (blockIdx.x * blockDim.x + threadIdx.x), y = 2 * (blockIdx.y * blockDim.y + threadIdx.y);
  if (x >= canvas.width || y >= canvas.height) return;
  Layer layers[4] = {};
  bool drawn = false;
  for (int person = 0; person < people; ++person) {
    Strokes s = strokes[person];
    if (!(x + 1 >= s.left && x <= s.right && y + 1 >= s.top && y <= s.bottom)) continue;  // NaN touches nothing
    const float *p = points + (size_t)person * joint_count * 2;
    drawn = true;
    for (int i = 0; i < bone_count + joint_count; ++i) {
      bool bone = i < bone_count;
      const float *a = p + 2 * (bone ? bones[2 * i] : i - bone_count);
      const float *b = p + 2 * (bone ? bones[2 * i + 1] : i - bone_count);
#pragma unroll
      for (int k = 0; k < 4; ++k)
        stroke(layers[k], (float)(x + (k & 1)), (float)(y + (k >> 1)), a, b, bone ? s.half_bone : s.joint, colours + 3 * i);
    }
  }
  if (drawn) blend_square(data, uv, canvas, x, y, layers);
}
