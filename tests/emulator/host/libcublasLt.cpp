// A stand-in for cuBLASLt: column-major products of f32 and bf16 with f32 accumulators, one rounding at the end. Like the library it
// promises nothing about the order of its sums. In the hostile mode of the driver's stand-in the order depends on the rows of the
// problem (1, 2, 4 or 8 pieces that are added at the end), on the strides and on the addresses, so that what leans on it shows.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <dlfcn.h>
#include <vector>
#define API extern "C" __attribute__((visibility("default"))) int

enum Status { OK = 0, NOT_INITIALIZED = 1, INVALID_VALUE = 7, EXECUTION_FAILED = 13, NOT_SUPPORTED = 15 };
enum Type { F32 = 0, BF16 = 14 };
enum Epilogue { PLAIN = 1, BIAS = 4 };

namespace {
struct Layout {
  int type;
  uint64_t rows, columns;
  int64_t ld;
  size_t element() const { return type == F32 ? 4 : 2; }
  size_t bytes() const { return ((columns - 1) * ld + rows) * element(); }
};
struct Product {
  int turned[2] = {0, 0};
  int epilogue = 1;
  const char *bias = nullptr;  // one for each row of d
};
struct Call {
  Product product;
  Layout a, b, d;
  const char *at[2];
  char *to;
  bool hostile;
};

// The driver's stand-in knows which addresses are memory, which mode is on, and when queued work runs.
template <class F> F driver(const char *name) {
  static void *library = dlopen("libcuda.so", RTLD_NOW | RTLD_NOLOAD);
  return library ? reinterpret_cast<F>(dlsym(library, name)) : nullptr;
}

float read(const Layout &l, const char *at, uint64_t row, uint64_t column) {
  const char *from = at + (column * l.ld + row) * l.element();
  uint32_t bits = 0;
  memcpy(l.type == F32 ? reinterpret_cast<char *>(&bits) : reinterpret_cast<char *>(&bits) + 2, from, l.element());
  float value;
  memcpy(&value, &bits, 4);
  return value;
}

void write(const Layout &l, char *at, uint64_t row, uint64_t column, float value) {
  char *to = at + (column * l.ld + row) * l.element();
  uint32_t bits;
  memcpy(&bits, &value, 4);
  if (l.type == BF16) bits = value != value ? 0x7fff0000 : bits + 0x7fff + (bits >> 16 & 1);
  memcpy(to, l.type == F32 ? reinterpret_cast<char *>(&bits) : reinterpret_cast<char *>(&bits) + 2, l.element());
}

void run(void *of) {
  auto *c = static_cast<Call *>(of);
  uint64_t depth = c->product.turned[0] ? c->a.rows : c->a.columns, m = c->d.columns;
  uint64_t pieces = !c->hostile ? 1 : m <= 4 ? 8 : m <= 16 ? 4 : m <= 64 ? 2 : 1;
  bool back = c->hostile && (c->b.ld / 8 % 2 || (reinterpret_cast<uintptr_t>(c->at[1]) / 16 % 2));
  for (uint64_t row = 0; row < c->d.rows; row++)
    for (uint64_t column = 0; column < m; column++) {
      float total = 0;
      for (uint64_t piece = 0; piece < pieces; piece++) {
        uint64_t from = depth * piece / pieces, to = depth * (piece + 1) / pieces;
        float sum = 0;
        for (uint64_t i = from; i < to; i++) {
          uint64_t k = back ? from + to - 1 - i : i;
          float a = c->product.turned[0] ? read(c->a, c->at[0], k, row) : read(c->a, c->at[0], row, k);
          float b = c->product.turned[1] ? read(c->b, c->at[1], column, k) : read(c->b, c->at[1], k, column);
          sum = fmaf(a, b, sum);
        }
        total += sum;
      }
      if (c->product.epilogue == BIAS) total += read({c->d.type, c->d.rows, 1, int64_t(c->d.rows)}, c->product.bias, row, 0);
      write(c->d, c->to, row, column, total);
    }
}
void release(void *of) { delete static_cast<Call *>(of); }
}  // namespace

API cublasLtCreate(void **handle) { return *handle = new int, OK; }
API cublasLtDestroy(void *handle) { return delete static_cast<int *>(handle), OK; }
API cublasLtMatrixLayoutCreate(void **l, int type, uint64_t rows, uint64_t columns, int64_t ld) {
  if ((type != F32 && type != BF16) || !rows || !columns || ld < int64_t(rows)) return INVALID_VALUE;
  return *l = new Layout{type, rows, columns, ld}, OK;
}
API cublasLtMatrixLayoutDestroy(void *l) { return delete static_cast<Layout *>(l), OK; }
API cublasLtMatmulDescCreate(void **d, int compute, int scale) {
  if (compute != 68 || scale != F32) return NOT_SUPPORTED;  // f32 throughout
  return *d = new Product, OK;
}
API cublasLtMatmulDescDestroy(void *d) { return delete static_cast<Product *>(d), OK; }
API cublasLtMatmulDescSetAttribute(void *d, int which, const void *value, size_t bytes) {
  auto &p = *static_cast<Product *>(d);
  if (which == 8 && bytes == 8) return memcpy(&p.bias, value, 8), OK;  // BIAS_POINTER
  if (which < 3 || which > 7 || which == 5 || which == 6 || bytes != 4) return INVALID_VALUE;
  memcpy(which == 7 ? &p.epilogue : &p.turned[which - 3], value, 4);  // TRANSA, TRANSB, EPILOGUE
  return p.epilogue == PLAIN || p.epilogue == BIAS ? OK : NOT_SUPPORTED;
}
API cublasLtMatmulPreferenceCreate(void **p) { return *p = new int, OK; }
API cublasLtMatmulPreferenceDestroy(void *p) { return delete static_cast<int *>(p), OK; }
API cublasLtMatmulPreferenceSetAttribute(void *, int which, const void *, size_t bytes) {
  return which == 1 && bytes == 8 ? OK : INVALID_VALUE;  // MAX_WORKSPACE_BYTES
}

struct Heuristic {
  uint64_t algorithm[8];
  size_t workspace;
  int state;
  float waves;
  int reserved[4];
};

namespace {
bool fits(const Product &p, const Layout &a, const Layout &b, const Layout &d) {
  uint64_t rows = p.turned[0] ? a.columns : a.rows, depth = p.turned[0] ? a.rows : a.columns;
  uint64_t columns = p.turned[1] ? b.rows : b.columns, other = p.turned[1] ? b.columns : b.rows;
  bool strides = a.ld * a.element() % 16 == 0 && b.ld * b.element() % 16 == 0 && d.ld * d.element() % 16 == 0;
  return rows == d.rows && columns == d.columns && depth == other && a.type == b.type && a.type == d.type && strides;
}
}  // namespace

API cublasLtMatmulAlgoGetHeuristic(void *, void *p, void *a, void *b, void *c, void *d, void *, int wanted, Heuristic *found, int *count) {
  *count = 0;
  if (wanted < 1 || c != d) return INVALID_VALUE;
  if (!fits(*static_cast<Product *>(p), *static_cast<Layout *>(a), *static_cast<Layout *>(b), *static_cast<Layout *>(d))) return NOT_SUPPORTED;
  *found = Heuristic{};
  found->algorithm[0] = 1;
  return *count = 1, OK;
}
API cublasLtMatmul(void *, void *p, const float *alpha, const void *a, void *la, const void *b, void *lb, const float *beta, const void *c,
                   void *, void *d, void *ld, const uint64_t *algorithm, void *workspace, size_t room, void *stream) {
  auto covers = driver<int (*)(uint64_t, size_t)>("emulator_covers");
  auto hostile = driver<int (*)(int)>("emulator_is_hostile");
  auto enqueue = driver<int (*)(void *, void (*)(void *), void *, void (*)(void *))>("emulator_enqueue");
  if (!covers || !hostile || !enqueue) return NOT_INITIALIZED;
  auto *call = new Call{*static_cast<Product *>(p), *static_cast<Layout *>(la), *static_cast<Layout *>(lb), *static_cast<Layout *>(ld),
                        {static_cast<const char *>(a), static_cast<const char *>(b)}, static_cast<char *>(d), bool(hostile(0))};
  auto in = [&](const void *at, size_t bytes) { return covers(reinterpret_cast<uint64_t>(at), bytes); };
  bool known = fits(call->product, call->a, call->b, call->d) && *alpha == 1 && *beta == 0 && algorithm[0] == 1 && c == d;
  if (call->product.epilogue == BIAS && !in(call->product.bias, call->d.rows * call->d.element())) return delete call, INVALID_VALUE;
  if (!known || !in(a, call->a.bytes()) || !in(b, call->b.bytes()) || !in(d, call->d.bytes()) || !in(workspace, room))
    return delete call, INVALID_VALUE;
  return enqueue(stream, run, call, release) ? EXECUTION_FAILED : OK;
}
