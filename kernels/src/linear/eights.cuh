// Eight elements of a row at a time. But for the variant RAGGED all or none of the eight are there, and rows start at 16 bytes; that variant
// takes rows that start anywhere and any count of columns, element by element.

// Brings the first `count` of eight elements, zeros for the rest; `aligned` is an address that may be read.
__device__ void bring(Chunk *to, const u16 *from, const u16 *aligned, u32 count) {
#if RAGGED
  (void)aligned;
  for (u32 i = 0; i < 8; i++) to->at[i] = i < count ? from[i] : (u16)0;
#else
  copy(to, from, aligned, count != 0);
#endif
}

// How many of the eight elements from `at`, which is below `end`, are below it too.
__device__ u32 eight(u32 at, u32 end) {
#if RAGGED
  if (end - at < 8) return end - at;
#endif
  (void)at, (void)end;
  return 8;
}
