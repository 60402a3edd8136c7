// What every .cu file begins with: the elementary functions and the row sums of the law (LAW A2, A5), word for word those of
// math.rs and cpu/mod.rs. Compiled without contraction: an operation rounds by itself unless fmaf says otherwise.
typedef unsigned int u32;
typedef unsigned long long u64;
typedef unsigned short u16;

// Before a loop whose arrays must lie in registers.
#ifdef SIMT
#define UNROLL
#else
#define UNROLL _Pragma("unroll")
#endif

#define NOT_A_NUMBER __uint_as_float(0x7fc00000u)
#define INFINITE __uint_as_float(0x7f800000u)
#define LOG2_E __uint_as_float(0x3fb8aa3bu)
#define LN_2 __uint_as_float(0x3f317218u)
#define LN_2_HI __uint_as_float(0x3f317000u)
#define LN_2_LO __uint_as_float(0x3805fdf4u)

// Coefficients, highest power first, as in math.rs.
#define EXP2 {0x3962a0cbu, 0x3aa36b20u, 0x3c1e85cau, 0x3d634488u, 0x3e75feacu, 0x3f317216u}
#define LOG {0x3e717b88u, 0x3e921c6au, 0x3ecccd3du, 0x3f2aaaaau}
#define TANH {0xbbbb5606u, 0x3ca92b6au, 0xbd5c2224u, 0x3e0883b4u, 0xbeaaaa9au}
#define ERF {0x38a57261u, 0xba5242f3u, 0x3baa0cfau, 0xbcdbfddau, 0x3de71690u, 0xbec0939fu, 0x3f906ebau}
#define ERFC {0xb5d6b934u, 0x383dfe5au, 0xba1ab7cfu, 0x3b9aeab0u, 0xbcd7accau, 0x3de11857u, 0x3f21cba2u, 0x3f90a7c3u, 0xb998943du}

template <int N> __device__ float horner(float x, const u32 (&c)[N]) {
  float acc = __uint_as_float(c[0]);
  for (int i = 1; i < N; i++) acc = acc * x + __uint_as_float(c[i]);
  return acc;
}

// The second operand if either is NaN.
__device__ float lower(float a, float b) { return a < b ? a : b; }
__device__ float upper(float a, float b) { return a > b ? a : b; }
// `a`, which is not negative, with the sign of `sign`.
__device__ float with_sign(float a, float sign) { return __uint_as_float(__float_as_uint(a) | (__float_as_uint(sign) & 0x80000000u)); }
__device__ float absolute(float a) { return __uint_as_float(__float_as_uint(a) & 0x7fffffffu); }

// 2^i for whole i: +0 at -127 and below, +inf at 128; any i for NaN, which the caller's product keeps.
__device__ float law_power(float i) {
  float bounded = upper(i, -127.0f);
  return __uint_as_float((u32)((int)bounded + 127) << 23);
}
__device__ float law_exp2(float x) {
  const u32 c[] = EXP2;
  x = lower(128.0f, upper(-127.0f, x));
  if (x != x) return x;
  float e = floorf(x), f = x - e;
  return (horner(f, c) * f + 1.0f) * law_power(e);
}
__device__ float law_exp(float x) { return law_exp2(x * LOG2_E); }
__device__ float law_sigmoid(float x) { return 1.0f / (1.0f + law_exp(0.0f - x)); }

// u = m * 2^e with m in [sqrt 1/2, sqrt 2), u normal and positive.
__device__ float split(float u, float *m) {
  u32 shifted = __float_as_uint(u) + (0x3f800000u - 0x3f3504f3u);
  *m = __uint_as_float((shifted & 0x007fffffu) + 0x3f3504f3u);
  return (float)(((int)shifted >> 23) - 127);
}
__device__ float log_near_one(float f) {
  const u32 c[] = LOG;
  float z = f / (2.0f + f), t = z * z;
  return (z + z) + (z * t) * horner(t, c);
}
__device__ float law_log(float x) {
  float m, e = split(x, &m);
  return e * LN_2_HI + (log_near_one(m - 1.0f) + e * LN_2_LO);
}
__device__ float law_log2(float x) {
  float m, e = split(x, &m);
  return e + log_near_one(m - 1.0f) * LOG2_E;
}
__device__ float law_log1p(float s) {
  float u = 1.0f + s, m, e = split(u, &m), lost = (s - (u - 1.0f)) / u;
  float large = e * LN_2_HI + (log_near_one(m - 1.0f) + (e * LN_2_LO + lost));
  if (!(s < INFINITE)) return s + s;
  return s < 0.414f ? log_near_one(s) : large;
}
__device__ float law_tanh(float x) {
  const u32 c[] = TANH;
  float a = absolute(x), t = a * a;
  float small = a + (a * t) * horner(t, c);
  float large = 1.0f - 2.0f / (law_exp(a + a) + 1.0f);
  return with_sign(a < 0.625f ? small : large, x);
}
__device__ float law_erf(float x) {
  const u32 c[] = ERF, d[] = ERFC;
  float a = absolute(x), small = a * horner(a * a, c), b = lower(4.0f, a);
  float large = 1.0f - law_exp(0.0f - horner(b, d));
  return with_sign(a < 1.0f ? small : large, x);
}

// LAW A2 over a row, by the first sixteen lanes of a block: element i of a stretch that starts at a multiple of 16 enters
// accumulator i mod 16 by fma.
__device__ float row_dot(float acc, const float *a, const float *b, u32 n) {
  if (threadIdx.x < 16)
    for (u32 i = threadIdx.x; i < n; i += 16) acc = fmaf(a[i], b[i], acc);
  return acc;
}
// The same of terms by addition.
__device__ float row_add(float acc, const float *a, u32 n) {
  if (threadIdx.x < 16)
    for (u32 i = threadIdx.x; i < n; i += 16) acc += a[i];
  return acc;
}
// A2's last step, by the whole first warp; the sum is lane 0's.
__device__ float row_sum(float acc) {
  acc += __shfl_down_sync(~0u, acc, 8);
  acc += __shfl_down_sync(~0u, acc, 4);
  acc += __shfl_down_sync(~0u, acc, 2);
  return acc + __shfl_down_sync(~0u, acc, 1);
}
// A2's last step over the sixteen lanes that share a row, by the whole warp; every lane has the sum.
__device__ float sixteen_sum(float v) {
  v += __shfl_xor_sync(~0u, v, 8);
  v += __shfl_xor_sync(~0u, v, 4);
  v += __shfl_xor_sync(~0u, v, 2);
  return v + __shfl_xor_sync(~0u, v, 1);
}
