// The only inline PTX. A wrapper is one row: the text that the hardware gets, and the name of its twin, which does the same on
// the emulated device: PTX(twin, text, what it writes, what it reads), or PTX_VALUE where nothing but the operands matters. Operands
// stand in the order of %0, %1, ...
#ifdef SIMT
#define CALLED_FROM const char *file = __builtin_FILE(), unsigned line = __builtin_LINE()
#define ALSO_FROM , CALLED_FROM
#define ALSO_AT , file, line
#define LISTED(...) __VA_OPT__(, ) __VA_ARGS__
#define PTX(twin, text, to, from) simt::twin(simt::Place{#twin, file, line} LISTED to LISTED from)
#define PTX_VALUE PTX
#define SHARED(p) p
#define GLOBAL(p) p
#define CONSTANT(n) n
#define U32(x) x
#define F32(x) x
#define TO_U16(x) x
#define TO_U32(x) x
#define U32_1(x) x
#define U32_2(x) x
#define U32_4(x) x
#define TO_U32_1(x) x
#define TO_U32_2(x) x
#define TO_U32_4(x) x
#define ONTO_F32_4(x) x
#define ONTO_F32_32(x) x
#define ONTO_F32_64(x) x
#define ONTO_F32_128(x) x
#define U64(x) x
#define I32(x) x
// The block's dynamic shared memory under a name, aligned as swizzled tiles need it.
#define DYNAMIC_SHARED(name) unsigned char *name = simt_runtime->dynamic_shared
#else
#define CALLED_FROM
#define ALSO_FROM
#define ALSO_AT
#define LISTED(...) __VA_ARGS__
#define PTX(twin, text, to, from) asm volatile(text : LISTED to : LISTED from : "memory")
#define PTX_VALUE(twin, text, to, from) asm(text : LISTED to : LISTED from)
#define SHARED(p) "r"((u32)__cvta_generic_to_shared(p))
#define GLOBAL(p) "l"(p)
#define CONSTANT(n) "n"(n)
#define U32(x) "r"(x)
#define F32(x) "f"(x)
#define TO_U16(x) "=h"(x)
#define TO_U32(x) "=r"(x)
#define U32_1(x) "r"(x[0])
#define U32_2(x) "r"(x[0]), "r"(x[1])
#define U32_4(x) "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3])
#define TO_U32_1(x) "=r"(x[0])
#define TO_U32_2(x) "=r"(x[0]), "=r"(x[1])
#define TO_U32_4(x) "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
#define FOUR_AT(x, i) "+f"(x[i]), "+f"(x[i + 1]), "+f"(x[i + 2]), "+f"(x[i + 3])
#define SIXTEEN_AT(x, i) FOUR_AT(x, i), FOUR_AT(x, i + 4), FOUR_AT(x, i + 8), FOUR_AT(x, i + 12)
#define ONTO_F32_4(x) FOUR_AT(x, 0)
#define ONTO_F32_32(x) SIXTEEN_AT(x, 0), SIXTEEN_AT(x, 16)
#define ONTO_F32_64(x) ONTO_F32_32(x), SIXTEEN_AT(x, 32), SIXTEEN_AT(x, 48)
#define ONTO_F32_128(x) ONTO_F32_64(x), SIXTEEN_AT(x, 64), SIXTEEN_AT(x, 80), SIXTEEN_AT(x, 96), SIXTEEN_AT(x, 112)
#define U64(x) "l"(x)
#define I32(x) "r"(x)
#define DYNAMIC_SHARED(name) extern __shared__ __align__(1024) unsigned char name[]
#endif

// ---- bf16, as bits in u16; two in a u32, the lower index in the lower half
__device__ float bf16_to_f32(u16 x) { return __uint_as_float((u32)x << 16); }
__device__ float low_f32(u32 pair) { return __uint_as_float(pair << 16); }
__device__ float high_f32(u32 pair) { return __uint_as_float(pair & 0xffff0000u); }
__device__ u16 f32_to_bf16(float x ALSO_FROM) {
  u16 d;
  PTX_VALUE(cvt_bf16, "cvt.rn.bf16.f32 %0, %1;", (TO_U16(d)), (F32(x)));
  return d;
}
__device__ u32 pack_bf16(float low, float high ALSO_FROM) {
  u32 d;
  PTX_VALUE(cvt_bf16x2, "cvt.rn.bf16x2.f32 %0, %1, %2;", (TO_U32(d)), (F32(high), F32(low)));
  return d;
}

// ---- tensor cores: D[16, 8] += A[16, 16] B[16, 8] of one warp. With g = lane / 4, t = 2 (lane mod 4): d = D[g][t, t+1], D[g+8][t, t+1];
// a = A[g][t, t+1], A[g+8][t, ..], A[g][t+8, ..], A[g+8][t+8, ..]; b = B[t, t+1][g], B[t+8, t+9][g].
__device__ void mma_bf16(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2] ALSO_FROM) {
  PTX_VALUE(mma_bf16, "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};",
      (ONTO_F32_4(d)), (U32_4(a), U32_2(b)));
}
// The same over half a step: a = A[g][t, t+1], A[g+8][t, ..]; b = B[t, t+1][g]. No room uses it: it tells what a whole step is made of.
__device__ void mma_bf16_k8(float (&d)[4], const u32 (&a)[2], const u32 (&b)[1] ALSO_FROM) {
  PTX_VALUE(mma_bf16_k8, "mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};",
      (ONTO_F32_4(d)), (U32_2(a), U32_1(b)));
}

// ---- 8x8 matrices of 16-bit elements from shared memory: lane 8 m + r has the address of row r (16 bytes, aligned) of matrix m; lane l
// gets elements 2 (l mod 4) and the next of row l / 4, or, transposed, of column l / 4.
__device__ void ldmatrix_x1(u32 (&d)[1], const void *row ALSO_FROM) {
  PTX(ldmatrix_x1, "ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];", (TO_U32_1(d)), (SHARED(row)));
}
__device__ void ldmatrix_x2(u32 (&d)[2], const void *row ALSO_FROM) {
  PTX(ldmatrix_x2, "ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];", (TO_U32_2(d)), (SHARED(row)));
}
__device__ void ldmatrix_x4(u32 (&d)[4], const void *row ALSO_FROM) {
  PTX(ldmatrix_x4, "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];", (TO_U32_4(d)), (SHARED(row)));
}
__device__ void ldmatrix_x1_trans(u32 (&d)[1], const void *row ALSO_FROM) {
  PTX(ldmatrix_x1_trans, "ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];", (TO_U32_1(d)), (SHARED(row)));
}
__device__ void ldmatrix_x2_trans(u32 (&d)[2], const void *row ALSO_FROM) {
  PTX(ldmatrix_x2_trans, "ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];", (TO_U32_2(d)), (SHARED(row)));
}
__device__ void ldmatrix_x4_trans(u32 (&d)[4], const void *row ALSO_FROM) {
  PTX(ldmatrix_x4_trans, "ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];", (TO_U32_4(d)), (SHARED(row)));
}

// ---- asynchronous copies of 16 aligned bytes from global to shared memory: `bytes` of them, the rest zeros. A thread waits for its own.
__device__ void cp_async(void *to, const void *from, u32 bytes ALSO_FROM) {
  PTX(cp_async, "cp.async.cg.shared.global [%0], [%1], 16, %2;", (), (SHARED(to), GLOBAL(from), U32(bytes)));
}
__device__ void cp_async_commit(CALLED_FROM) { PTX(cp_async_commit, "cp.async.commit_group;", (), ()); }
// All of the thread's groups but the newest KEEP are complete.
template <int KEEP> __device__ void cp_async_wait(CALLED_FROM) { PTX(cp_async_wait, "cp.async.wait_group %0;", (), (CONSTANT(KEEP))); }

// ---- barrier `number` (1 to 15) of `threads` threads, a multiple of 32.
__device__ void bar_sync(u32 number, u32 threads ALSO_FROM) {
  PTX(bar_sync, "bar.sync %0, %1;", (), (U32(number), U32(threads)));
}

// What cuTensorMapEncodeTiled makes; a kernel takes it as `const __grid_constant__ TensorMap`.
struct __align__(64) TensorMap {
  unsigned char bytes[128];
};

// ---- sm_90: HOPPER says whether it is there.
#if defined(SIMT) || __CUDA_ARCH__ >= 900
#define HOPPER 1
// A barrier in shared memory for `count` arrivals a phase, and for the bytes that they announce. Its phases have parity 0, 1, 0, ...
__device__ void mbarrier_init(u64 *b, u32 count ALSO_FROM) {
  PTX(mbarrier_init, "mbarrier.init.shared::cta.b64 [%0], %1;", (), (SHARED(b), U32(count)));
}
__device__ void mbarrier_arrive(u64 *b ALSO_FROM) { PTX(mbarrier_arrive, "mbarrier.arrive.shared::cta.b64 _, [%0];", (), (SHARED(b))); }
// One arrival that announces bytes.
__device__ void mbarrier_expect(u64 *b, u32 bytes ALSO_FROM) {
  PTX(mbarrier_expect, "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;", (), (SHARED(b), U32(bytes)));
}
// Whether the phase of this parity is over.
__device__ bool mbarrier_try_wait(u64 *b, u32 parity ALSO_FROM) {
  u32 done;
  PTX(mbarrier_try_wait, "{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}",
      (TO_U32(done)), (SHARED(b), U32(parity)));
  return done;
}
__device__ void mbarrier_wait(u64 *b, u32 parity ALSO_FROM) {
  while (!mbarrier_try_wait(b, parity ALSO_AT)) {}
}
// Between init and others' use of a barrier, before the block's barrier.
__device__ void fence_mbarrier_init(CALLED_FROM) { PTX(fence_mbarrier_init, "fence.mbarrier_init.release.cluster;", (), ()); }
// Between ordinary writes to shared memory and their reading by tensor copies and wgmma, before the block's barrier.
__device__ void fence_async(CALLED_FROM) { PTX(fence_async, "fence.proxy.async.shared::cta;", (), ()); }

// One thread loads the map's box at (x, y) or (x, y, z), x innermost; zeros where the tensor is not. The barrier counts its bytes.
__device__ void tensor_load_2d(void *to, const TensorMap *map, u64 *b, int x, int y ALSO_FROM) {
  PTX(tensor_load_2d, "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];", (),
      (SHARED(to), GLOBAL(map), SHARED(b), I32(x), I32(y)));
}
__device__ void tensor_load_3d(void *to, const TensorMap *map, u64 *b, int x, int y, int z ALSO_FROM) {
  PTX(tensor_load_3d, "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], [%2];",
      (), (SHARED(to), GLOBAL(map), SHARED(b), I32(x), I32(y), I32(z)));
}
// The reverse of ldmatrix.
__device__ void stmatrix_x4(void *row, const u32 (&s)[4] ALSO_FROM) {
  PTX(stmatrix_x4, "stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1,%2,%3,%4};", (), (SHARED(row), U32_4(s)));
}
__device__ void stmatrix_x4_trans(void *row, const u32 (&s)[4] ALSO_FROM) {
  PTX(stmatrix_x4_trans, "stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1,%2,%3,%4};", (), (SHARED(row), U32_4(s)));
}
#endif
// Byte of (row, byte mod 128) in a tile of 128-byte rows with 128-byte swizzle; the tile starts at a multiple of 1024.
__device__ u32 swizzled(u32 row, u32 byte) { return row * 128 + (byte ^ (row % 8) << 4); }

// ---- sm_90a: WGMMA says whether it is there. Four warps, D[64, N] (+)= A[64, 16] B[16, N] (+ where `onto` is not 0), asynchronously:
// fence, products, commit, wait. Warp w has rows 16 w ...; in them d[4 j ...] lies as D of mma_bf16 in columns 8 j ...
#if defined(SIMT) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define WGMMA 1
// A tile in dynamic shared memory with 128-byte swizzle. Rows of 64 k: `stride` bytes to the next eight rows. Transposed, rows of 64 of the
// other index, one each k: `stride` bytes to the next eight k, `leading` to the next 64 of the other index.
__device__ u64 tile_of(const void *p, u32 leading, u32 stride) {
#ifdef SIMT
  u64 address = (const unsigned char *)p - simt_runtime->dynamic_shared;
#else
  u64 address = (u32)__cvta_generic_to_shared(p);
#endif
  return (address & 0x3ffff) >> 4 | (u64)(leading >> 4) << 16 | (u64)(stride >> 4) << 32 | 1ull << 62;
}
// Between other uses of the registers and products on them.
__device__ void wgmma_fence(CALLED_FROM) { PTX(wgmma_fence, "wgmma.fence.sync.aligned;", (), ()); }
__device__ void wgmma_commit(CALLED_FROM) { PTX(wgmma_commit, "wgmma.commit_group.sync.aligned;", (), ()); }
template <int KEEP> __device__ void wgmma_wait(CALLED_FROM) { PTX(wgmma_wait, "wgmma.wait_group.sync.aligned %0;", (), (CONSTANT(KEEP))); }
#define REGISTERS_4 "%0,%1,%2,%3"
#define REGISTERS_32 REGISTERS_4 ",%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define REGISTERS_64 REGISTERS_32 ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define REGISTERS_128 REGISTERS_64 ",%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95," \
  "%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111,%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127"
template <int TA, int TB> __device__ void wgmma_bf16(float (&d)[4], u64 a, u64 b, u32 onto ALSO_FROM) {
  PTX(wgmma_ss_n8, "{\n.reg .pred p;\nsetp.ne.b32 p, %6, 0;\nwgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {" REGISTERS_4
      "}, %4, %5, p, 1, 1, %7, %8;\n}", (ONTO_F32_4(d)), (U64(a), U64(b), U32(onto), CONSTANT(TA), CONSTANT(TB)));
}
template <int TB> __device__ void wgmma_bf16(float (&d)[4], const u32 (&a)[4], u64 b, u32 onto ALSO_FROM) {
  PTX(wgmma_rs_n8, "{\n.reg .pred p;\nsetp.ne.b32 p, %9, 0;\nwgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {" REGISTERS_4
      "}, {%4,%5,%6,%7}, %8, p, 1, 1, %10;\n}", (ONTO_F32_4(d)), (U32_4(a), U64(b), U32(onto), CONSTANT(TB)));
}
template <int TA, int TB> __device__ void wgmma_bf16(float (&d)[32], u64 a, u64 b, u32 onto ALSO_FROM) {
  PTX(wgmma_ss_n64, "{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\nwgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" REGISTERS_32
      "}, %32, %33, p, 1, 1, %35, %36;\n}", (ONTO_F32_32(d)), (U64(a), U64(b), U32(onto), CONSTANT(TA), CONSTANT(TB)));
}
template <int TB> __device__ void wgmma_bf16(float (&d)[32], const u32 (&a)[4], u64 b, u32 onto ALSO_FROM) {
  PTX(wgmma_rs_n64, "{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\nwgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" REGISTERS_32
      "}, {%32,%33,%34,%35}, %36, p, 1, 1, %38;\n}", (ONTO_F32_32(d)), (U32_4(a), U64(b), U32(onto), CONSTANT(TB)));
}
template <int TA, int TB> __device__ void wgmma_bf16(float (&d)[64], u64 a, u64 b, u32 onto ALSO_FROM) {
  PTX(wgmma_ss_n128, "{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\nwgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" REGISTERS_64
      "}, %64, %65, p, 1, 1, %67, %68;\n}", (ONTO_F32_64(d)), (U64(a), U64(b), U32(onto), CONSTANT(TA), CONSTANT(TB)));
}
template <int TB> __device__ void wgmma_bf16(float (&d)[64], const u32 (&a)[4], u64 b, u32 onto ALSO_FROM) {
  PTX(wgmma_rs_n128, "{\n.reg .pred p;\nsetp.ne.b32 p, %69, 0;\nwgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" REGISTERS_64
      "}, {%64,%65,%66,%67}, %68, p, 1, 1, %70;\n}", (ONTO_F32_64(d)), (U32_4(a), U64(b), U32(onto), CONSTANT(TB)));
}
template <int TA, int TB> __device__ void wgmma_bf16(float (&d)[128], u64 a, u64 b, u32 onto ALSO_FROM) {
  PTX(wgmma_ss_n256, "{\n.reg .pred p;\nsetp.ne.b32 p, %130, 0;\nwgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {" REGISTERS_128
      "}, %128, %129, p, 1, 1, %131, %132;\n}", (ONTO_F32_128(d)), (U64(a), U64(b), U32(onto), CONSTANT(TA), CONSTANT(TB)));
}
template <int TB> __device__ void wgmma_bf16(float (&d)[128], const u32 (&a)[4], u64 b, u32 onto ALSO_FROM) {
  PTX(wgmma_rs_n256, "{\n.reg .pred p;\nsetp.ne.b32 p, %133, 0;\nwgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {" REGISTERS_128
      "}, {%128,%129,%130,%131}, %132, p, 1, 1, %134;\n}", (ONTO_F32_128(d)), (U32_4(a), U64(b), U32(onto), CONSTANT(TB)));
}
#endif

#undef PTX
#undef PTX_VALUE
#undef SHARED
#undef GLOBAL
#undef CONSTANT
#undef U32
#undef F32
#undef TO_U16
#undef TO_U32
#undef U32_2
#undef U32_4
#undef TO_U32_1
#undef TO_U32_2
#undef TO_U32_4
#undef ONTO_F32_4
#undef ONTO_F32_32
#undef ONTO_F32_64
#undef ONTO_F32_128
#undef U64
#undef I32

