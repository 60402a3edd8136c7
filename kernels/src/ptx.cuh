// The only inline PTX. A wrapper is one row: the text that the hardware gets, and the name of its twin, which does the same on
// the emulated device: PTX(twin, text, what it writes, what it reads), or PTX_VALUE where nothing but the operands matters. Operands
// stand in the order of %0, %1, ...
#ifdef SIMT
#define CALLED_FROM simt::Place at = simt::Place{nullptr, __builtin_FILE(), __builtin_LINE()}
#define ALSO_FROM , CALLED_FROM
#define LISTED(...) __VA_OPT__(, ) __VA_ARGS__
#define PTX(twin, text, to, from) simt::twin(simt::Place{#twin, at.file, at.line} LISTED to LISTED from)
#define PTX_VALUE PTX
#define SHARED(p) p
#define GLOBAL(p) p
#define CONSTANT(n) n
#define U32(x) x
#define F32(x) x
#define TO_U16(x) x
#define TO_U32(x) x
#define U32_2(x) x
#define U32_4(x) x
#define TO_U32_1(x) x
#define TO_U32_2(x) x
#define TO_U32_4(x) x
#define ONTO_F32_4(x) x
// The block's dynamic shared memory under a name, aligned as swizzled tiles need it.
#define DYNAMIC_SHARED(name) unsigned char *name = simt_runtime->dynamic_shared
#else
#define CALLED_FROM
#define ALSO_FROM
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
#define U32_2(x) "r"(x[0]), "r"(x[1])
#define U32_4(x) "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3])
#define TO_U32_1(x) "=r"(x[0])
#define TO_U32_2(x) "=r"(x[0]), "=r"(x[1])
#define TO_U32_4(x) "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
#define ONTO_F32_4(x) "+f"(x[0]), "+f"(x[1]), "+f"(x[2]), "+f"(x[3])
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

