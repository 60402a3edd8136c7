// The elementary functions, element by element: y[i] = f(x[i]). Numbered in the order of math.rs's tests.
extern "C" __global__ void elementary(float *y, const float *x, u32 n, u32 which) {
  u32 i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  float v = x[i];
  switch (which) {
  case 0: y[i] = law_exp2(v); break;
  case 1: y[i] = law_exp(v); break;
  case 2: y[i] = law_log1p(v); break;
  case 3: y[i] = law_log(v); break;
  case 4: y[i] = law_log2(v); break;
  case 5: y[i] = law_tanh(v); break;
  case 6: y[i] = law_erf(v); break;
  default: y[i] = law_sigmoid(v); break;
  }
}
