// From the network's output to bodies in the full frame: metro_edge/postprocess.py, smoothing.py and the normals of
// raster.py on the GPU. Points are (N, P, 3) float32, metres, camera frame: x right, y down, z away.
#include "common.cuh"

// What the host learns of each person, bits of `status`; the words are in metro_edge/cuda/postprocess.py.
enum Status { NOT_FINITE = 1, SCALE_NOT_POSITIVE = 2, BEHIND_CAMERA = 4 };

struct Camera {
  float focal_px, centre_x, centre_y, min_depth_m;
};

// Of each person: the crop's middle from the principal point, and half its side, px of the frame.
struct Views {
  float x[MAX_PEOPLE], y[MAX_PEOPLE], half_side[MAX_PEOPLE];
};

// The joints whose mean is the root.
struct Root {
  int count, row[7];
};

// Joints from vertices by sparse rows of `columns` weights: a warp per row and person, block 32 x 8, grid y: people.
extern "C" __global__ void __launch_bounds__(256) regress(const float *__restrict__ vertices,
                                                          const int *__restrict__ indices,
                                                          const float *__restrict__ weights, float *__restrict__ joints,
                                                          int vertex_count, int rows, int columns) {
  int row = blockIdx.x * blockDim.y + threadIdx.y, lane = threadIdx.x;
  if (row >= rows) return;  // the whole warp
  const float *points = vertices + (size_t)blockIdx.y * vertex_count * 3;
  float x = 0.0f, y = 0.0f, z = 0.0f;
  for (int k = lane; k < columns; k += 32) {
    float weight = weights[row * columns + k];
    const float *point = points + 3 * indices[row * columns + k];
    x = fmaf(weight, point[0], x);
    y = fmaf(weight, point[1], y);
    z = fmaf(weight, point[2], z);
  }
  for (int bits = 16; bits; bits >>= 1) {
    x += __shfl_xor_sync(0xffffffffu, x, bits);
    y += __shfl_xor_sync(0xffffffffu, y, bits);
    z += __shfl_xor_sync(0xffffffffu, z, bits);
  }
  if (lane == 0) {
    float *joint = joints + ((size_t)blockIdx.y * rows + row) * 3;
    joint[0] = x;
    joint[1] = y;
    joint[2] = z;
  }
}

// Root, camera that moves along with it, and metric translation: a thread per person. Begins each person's status.
extern "C" __global__ void place(Views views, Camera camera, Root root, const float *__restrict__ cameras,
                                 const float *__restrict__ mesh_joints, float *__restrict__ roots,
                                 float *__restrict__ centred_cameras, float *__restrict__ translations,
                                 int *__restrict__ status, int people, int joint_count) {
  int person = blockIdx.x * blockDim.x + threadIdx.x;
  if (person >= people) return;
  float at[3] = {0.0f, 0.0f, 0.0f};
  for (int i = 0; i < root.count; ++i)
    for (int axis = 0; axis < 3; ++axis) at[axis] += mesh_joints[(person * joint_count + root.row[i]) * 3 + axis];
  for (int axis = 0; axis < 3; ++axis) roots[3 * person + axis] = at[axis] /= (float)root.count;
  const float *given = cameras + 3 * person;
  float scale = given[0], x = given[1] + at[0], y = given[2] + at[1], metre_px = scale * views.half_side[person];
  float *out = centred_cameras + 3 * person, *translation = translations + 3 * person;
  out[0] = scale;
  out[1] = x;
  out[2] = y;
  translation[0] = x + views.x[person] / metre_px;
  translation[1] = y + views.y[person] / metre_px;
  translation[2] = camera.focal_px / metre_px;
  // A sum is finite only if all its parts are, but for two that cancel as infinities and give NaN.
  int found = isfinite(scale + x + y + at[2]) ? 0 : NOT_FINITE;
  status[person] = found | (scale <= 0.0f ? SCALE_NOT_POSITIVE : 0);
}

// Moves points to the root and projects them: a thread per point, grid y: people. `centred` may be `points` itself.
extern "C" __global__ void __launch_bounds__(256) centre(Camera camera, const float *points,
                                                         const float *__restrict__ roots,
                                                         const float *__restrict__ translations, float *centred,
                                                         float *__restrict__ pixels, int *__restrict__ status, int count,
                                                         int solid) {
  int i = blockIdx.x * blockDim.x + threadIdx.x, person = blockIdx.y;
  if (i >= count) return;
  size_t at = (size_t)person * count + i;
  float x = points[3 * at] - roots[3 * person], y = points[3 * at + 1] - roots[3 * person + 1];
  float z = points[3 * at + 2] - roots[3 * person + 2];
  centred[3 * at] = x;
  centred[3 * at + 1] = y;
  centred[3 * at + 2] = z;
  float depth = z + translations[3 * person + 2], gain = camera.focal_px / depth;
  pixels[2 * at] = fmaf(x + translations[3 * person], gain, camera.centre_x);
  pixels[2 * at + 1] = fmaf(y + translations[3 * person + 1], gain, camera.centre_y);
  int found = isfinite(x + y + z) ? 0 : NOT_FINITE;
  if (solid && depth < camera.min_depth_m) found |= BEHIND_CAMERA;
  if (found) atomicOr(&status[person], found);
}

struct OneEuro {
  float min_cutoff_hz, beta, speed_cutoff_hz;
};

// Of each person: the row of the filters' memory, and the time since its last frame; 0 begins anew.
struct Steps {
  int slot[MAX_PEOPLE];
  float step_s[MAX_PEOPLE];
};

static __device__ __forceinline__ float share_of(float cutoff_hz, float step_s) {
  return 1.0f / (1.0f + 1.0f / (6.283185307f * cutoff_hz * step_s));
}

// One-Euro smoothing, metro_edge/smoothing.py: a thread per coordinate, grid y: people. `smooth` may be `values`.
extern "C" __global__ void __launch_bounds__(256) one_euro(Steps steps, OneEuro filter, const float *values,
                                                           float *smooth, float *__restrict__ last,
                                                           float *__restrict__ speeds, int count) {
  int i = blockIdx.x * blockDim.x + threadIdx.x, person = blockIdx.y;
  if (i >= count) return;
  size_t at = (size_t)person * count + i, memory = (size_t)steps.slot[person] * count + i;
  float value = values[at], speed = 0.0f, step_s = steps.step_s[person];
  if (step_s > 0.0f) {
    float before = last[memory], share = share_of(filter.speed_cutoff_hz, step_s);
    speed = fmaf(share, (value - before) / step_s, (1.0f - share) * speeds[memory]);
    share = share_of(fmaf(filter.beta, fabsf(speed), filter.min_cutoff_hz), step_s);
    value = fmaf(share, value - before, before);
  }
  smooth[at] = value;
  last[memory] = value;
  speeds[memory] = speed;
}

// Unit normals weighted by the area of the faces around: a thread per vertex, grid y: people. `first` (V + 1) and
// `around` list the faces of each vertex, so that no two threads add to the same place.
extern "C" __global__ void __launch_bounds__(256) vertex_normals(const float *__restrict__ vertices,
                                                                 const int *__restrict__ faces,
                                                                 const int *__restrict__ first,
                                                                 const int *__restrict__ around,
                                                                 float *__restrict__ normals, int count) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= count) return;
  const float *points = vertices + (size_t)blockIdx.y * count * 3;
  float x = 0.0f, y = 0.0f, z = 0.0f;
  for (int k = first[i]; k < first[i + 1]; ++k) {
    const int *face = faces + 3 * around[k];
    const float *a = points + 3 * face[0], *b = points + 3 * face[1], *c = points + 3 * face[2];
    float ux = b[0] - a[0], uy = b[1] - a[1], uz = b[2] - a[2];
    float vx = c[0] - a[0], vy = c[1] - a[1], vz = c[2] - a[2];
    x += uy * vz - uz * vy;
    y += uz * vx - ux * vz;
    z += ux * vy - uy * vx;
  }
  float length = sqrtf(x * x + y * y + z * z), gain = length > 1e-20f ? 1.0f / length : 0.0f;
  float *normal = normals + ((size_t)blockIdx.y * count + i) * 3;
  normal[0] = x * gain;
  normal[1] = y * gain;
  normal[2] = z * gain;
}
