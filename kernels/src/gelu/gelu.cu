// GELU and GeGLU, one thread per element of y. y, dy: [n/f, f]; x, dx: [n/f, f + up], where up is f if the last f of a row are what
// the first gate, else 0. Rows of y and dx lie ld apart. erf: which of the curves.
#define CUBIC 0.044715f
#define CUBIC_3 0.134145f
#define TWICE_ROOT_2_OVER_PI 1.5957692f
#define ROOT_HALF 0.70710678f
#define ONE_OVER_ROOT_2_PI 0.3989423f

// h at x, and the slope of x h.
struct Curve {
  float h, slope;
};

__device__ Curve curve_at(float x, u32 erf) {
  float square = x * x;
  if (erf) {
    float h = 0.5f * (1.0f + law_erf(x * ROOT_HALF));
    return {h, h + x * (law_exp(-0.5f * square) * ONE_OVER_ROOT_2_PI)};
  }
  float z = (TWICE_ROOT_2_OVER_PI * x) * (1.0f + CUBIC * square), h = law_sigmoid(z), rest = law_sigmoid(0.0f - z);
  return {h, h + x * ((h * rest) * (TWICE_ROOT_2_OVER_PI * (1.0f + CUBIC_3 * square)))};
}

extern "C" __global__ void gelu_forward(stored *y, const stored *x, u64 n, u32 f, u32 up, u32 ld, u32 erf) {
  u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  const stored *at = x + i / f * (f + up) + i % f;
  float g = widen(*at), a = g * curve_at(g, erf).h;
  y[i / f * ld + i % f] = narrow(up ? a * widen(at[up]) : a);
}

extern "C" __global__ void gelu_backward(stored *dx, const stored *dy, const stored *x, u64 n, u32 f, u32 up, u32 ld, u32 erf) {
  u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  u64 at = i / f * (f + up) + i % f, to = i / f * ld + i % f;
  float d = widen(dy[i]), g = widen(x[at]);
  Curve curve = curve_at(g, erf);
  dx[to] = narrow((up ? d * widen(x[at + up]) : d) * curve.slope);
  if (up) dx[to + up] = narrow(d * (g * curve.h));
}
