// What both forms of attention share: the forest of segments, the scores' powers of two, and the join of blocks (LAW A3).
// A line is a row of a segment times a head of a kv head's group.
#define KEYS 64
#define TILE 64  // lines, or keys, of a block
#define ABSENT 0xffffffffu
// e is an integer within i32; this f32 stands for both its ends.
#define EDGE 2147483648.0f

struct Segment {
  u32 start, len, pos0, parent;
};
// Rows [n, (h + 2 k) d]; segments [count]; no path is longer than `positions`.
struct Shape {
  u32 count, n, h, k, d, positions;
};
struct Params {
  float scale, softcap;
  u32 window, causal;
};

// Segment i; its rows and positions are among those there are.
__device__ Segment segment(const Segment *segments, u32 i, const Shape &a) {
  Segment s = segments[i];
  u32 most = s.start < a.n ? a.n - s.start : 0;
  s.len = s.len < most ? s.len : most;
  s.pos0 = s.pos0 < a.positions ? s.pos0 : a.positions;
  return s;
}

// The `nth` tile of TILE lines if every row of every segment has `lines` of them and tiles begin anew with each segment.
struct Part {
  u32 index, first, count;  // the segment, the tile's first line in it, and how many lines it has
  Segment of;
};
__device__ bool find(Part &part, const Segment *segments, const Shape &a, u32 lines, u32 nth) {
  for (u32 i = 0; i < a.count; i++) {
    Segment s = segment(segments, i, a);
    u32 all = s.len * lines, tiles = (all + TILE - 1) / TILE;
    if (nth < tiles) {
      u32 first = nth * TILE;
      part = {i, first, all - first < TILE ? all - first : TILE, s};
      return true;
    }
    nth -= tiles;
  }
  return false;
}

// The row at position `pos` of the path through segment i.
__device__ u32 row_at(const Segment *segments, u32 i, const Shape &a, u32 pos) {
  Segment s = segment(segments, i, a);
  if (pos >= s.pos0 + s.len) return ABSENT;
  while (pos < s.pos0) {
    if (s.parent >= i) return ABSENT;
    i = s.parent;
    s = segment(segments, i, a);
  }
  return pos - s.pos0 < s.len ? s.start + (pos - s.pos0) : ABSENT;
}

// Whether segment `above` is on the path of segment i.
__device__ bool on_path(const Segment *segments, u32 above, u32 i) {
  while (i > above) {
    u32 parent = segments[i].parent;
    if (parent >= i) return false;
    i = parent;
  }
  return i == above;
}

// The positions that a query at `pos` sees: first .. past.
__device__ u32 first_seen(const Params &p, u32 pos) { return p.window && pos + 1 > p.window ? pos + 1 - p.window : 0; }
__device__ u32 past_seen(const Params &p, u32 pos, const Segment &s) { return p.causal ? pos + 1 : s.pos0 + s.len; }

// t: the score scaled, capped and in powers of two; beside it the capped score.
__device__ float exponent(float s, const Params &p, float *capped) {
  float t = s * p.scale;
  if (p.softcap > 0.0f) t = p.softcap * law_tanh(t / p.softcap);
  *capped = t;
  return t * LOG2_E;
}
__device__ float within_edges(float e) { return lower(EDGE, upper(-EDGE, e)); }
// exp2 on [0, 1]: law_exp2 without the steps that change nothing there.
__device__ float exp2_unit(float f) {
  const u32 c[] = EXP2;
  return horner(f, c) * f + 1.0f;
}
// exp2(t - e) 2^(e - top), e = floor(t).
__device__ float weight(float t, float top) {
  float floor = floorf(t), e = absolute(top) < EDGE / 2.0f ? floor : within_edges(floor);
  return exp2_unit(t - floor) * law_power(e - top);
}
__device__ int as_integer(float top) { return top >= EDGE ? 0x7fffffff : (int)top; }

// How a block's (top, sum) joins a row's: of the two, the one with the smaller maximum is scaled by `by`. `top` is -inf before the first.
struct Join {
  bool old;  // what there was is scaled, else the block
  float by;
};
__device__ Join join(float &top, float &sum, float top_b, float sum_b) {
  if (top == -INFINITE) {
    top = top_b, sum = sum_b;
    return {true, 0.0f};
  }
  bool old = top_b > top;
  float by = law_power(old ? top - top_b : top_b - top);
  sum = old ? fmaf(sum, by, sum_b) : fmaf(sum_b, by, sum);
  if (old) top = top_b;
  return {old, by};
}

// The part of positions that lies in block b, as slots.
__device__ u32 slot(u32 pos, u32 block) {
  u32 first = block * KEYS;
  return pos <= first ? 0 : pos - first < KEYS ? pos - first : KEYS;
}

// p and dt of one pair from its score and dot(dout, v).
__device__ float slopes(float score, float dp, float top, float sum, float delta, const Params &params, float *dt) {
  float capped, p = weight(exponent(score, params, &capped), top) / sum, d = p * (dp - delta);
  if (params.softcap > 0.0f) {
    float ratio = capped / params.softcap;
    d *= 1.0f - ratio * ratio;
  }
  *dt = d * params.scale;
  return p;
}

// Where a line's head begins in rows that lie `ld` apart, in rows of `width` heads, and its position.
__device__ u64 at_pitch(const Part &p, u32 group, u32 line, u32 ld, u32 d) {
  u32 all = p.first + line;
  return (u64)(p.of.start + all / group) * ld + (u64)(blockIdx.y * group + all % group) * d;
}
__device__ u64 at(const Part &p, u32 group, u32 line, u32 width, u32 d) {
  u32 all = p.first + line;
  return ((u64)(p.of.start + all / group) * width + blockIdx.y * group + all % group) * d;
}
__device__ u32 position(const Part &p, u32 group, u32 line) { return p.of.pos0 + (p.first + line) / group; }

// Rows of segment s that may see keys at positions pos .. pos + count of its path.
struct Seeing {
  u32 begin, end;
};
__device__ Seeing seeing(const Params &params, const Segment &s, u32 pos, u32 count) {
  u32 begin = params.causal && pos > s.pos0 ? pos - s.pos0 : 0, end = s.len;
  u64 past = (u64)pos + count - 1 + params.window;
  if (params.window && past < (u64)s.pos0 + end) end = past > s.pos0 ? (u32)(past - s.pos0) : 0;
  return {begin, end};
}
