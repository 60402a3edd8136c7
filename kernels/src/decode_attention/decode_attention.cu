// Attention over pages in f32, with the bits of attention.cu: k, v [pages, kv heads, 64, d]. A path's pieces are first .. first + 1 of its
// row or segment; a visible position that no piece holds makes NaN.
struct Piece {
  u32 page, block, from, to;
};
struct Pages {
  const float *k, *v;
  const Piece *pieces;
  const u32 *first;
  u32 pieces_count, count;
};

// Where position 64 block + s lies among the pieces from `cursor`, which goes on to the block: page * 64 + s.
__device__ u32 place_at(const Pages &p, u32 &cursor, u32 end, u32 block, u32 s) {
  while (cursor < end && p.pieces[cursor].block < block) cursor++;
  for (u32 i = cursor; i < end && p.pieces[i].block == block; i++) {
    Piece piece = p.pieces[i];
    if (piece.from <= s && s < piece.to && piece.page < p.count) return piece.page * KEYS + s;
  }
  return ABSENT;
}

struct Shared {
  Tiles tiles;
  float w[KEYS][TILE + 1];
  u32 places[KEYS];
};

// The lines of a part over the pieces of path `path`.
__device__ void over_pages(Shared &shared, const Part &part, u32 path, float *out, int *m, float *l, const float *qkv, const Pages &p,
                           const Shape &a, const Params &params) {
  u32 group = a.h / a.k, width = a.h + 2 * a.k, first_column = blockIdx.z * TILE, columns = rest(a.d, first_column);
  Lines x = lines_of(part, group, params);
  u32 cursor = p.first[path], last = p.first[path + 1] < p.pieces_count ? p.first[path + 1] : p.pieces_count;
  u32 end = past_seen(params, position(part, group, part.count - 1), part.of);
  for (u32 block = first_seen(params, position(part, group, 0)) / KEYS; block * KEYS < end; block++) {
    if (threadIdx.x < KEYS) shared.places[threadIdx.x] = place_at(p, cursor, last, block, threadIdx.x);
    __syncthreads();
    auto in_page = [&](const float *page, u32 s, u32 i) {
      u32 place = shared.places[s];
      return place == ABSENT ? NOT_A_NUMBER : page[(((u64)(place / KEYS) * a.k + blockIdx.y) * KEYS + place % KEYS) * a.d + i];
    };
    attend(x, shared.tiles, shared.w, block, part.count, a.d, columns, params,
           [&](u32 r, u32 i) { return qkv[at(part, group, r, width, a.d) + i]; }, [&](u32 s, u32 i) { return in_page(p.k, s, i); },
           [&](u32 c, u32 s) { return in_page(p.v, s, first_column + c); });
  }
  finish(x, part, a, first_column, out, m, l);
}

// out [n, h d] of one query row per path, at positions pos [n]. Blocks: rows times tiles of their heads, kv heads, columns.
extern "C" __launch_bounds__(256, 2) __global__ void decode_attention_forward(float *out, const float *qkv, const u32 *pos, const Pages p,
                                                                              const Shape a, const Params params) {
  __shared__ Shared shared;
  u32 group = a.h / a.k, tiles = (group + TILE - 1) / TILE, row = blockIdx.x / tiles, first = blockIdx.x % tiles * TILE;
  u32 last = pos[row] < a.positions ? pos[row] : a.positions;
  Part part = {row, first, rest(group, first), {row, 1, last, ABSENT}};
  over_pages(shared, part, row, out, nullptr, nullptr, qkv, p, a, params);
}

// out [n, h d], m, l [n, h] of the rows of segments, each a path. Blocks: tiles of lines, kv heads, columns.
extern "C" __launch_bounds__(256, 2) __global__ void decode_attention_prefill(float *out, int *m, float *l, const float *qkv,
                                                                              const Segment *segments, const Pages p, const Shape a,
                                                                              const Params params) {
  __shared__ Shared shared;
  Part part;
  if (!find(part, segments, a, a.h / a.k, blockIdx.x)) return;
  over_pages(shared, part, part.index, out, m, l, qkv, p, a, params);
}
