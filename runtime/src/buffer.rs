//! Owned device memory, views into it, and the arena that one plan fills.

use crate::{DType, Element, Error, Ptr, Result, Stream, ensure};
use std::marker::PhantomData;
use std::ops::Range;

/// `len` elements of device memory, freed on drop. Not shareable between threads, so views stay on one thread.
pub struct Buffer<T> {
    stream: Stream,
    ptr: Ptr,
    len: usize,
    _element: PhantomData<(T, std::cell::Cell<()>)>,
}

impl<T> std::fmt::Debug for Buffer<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Buffer({} elements on {})", self.len, self.stream.backend().name())
    }
}

impl<T: Element> Buffer<T> {
    /// `len` zeroed elements.
    pub fn zeros(stream: &Stream, len: usize) -> Result<Buffer<T>> {
        let bytes = len
            .checked_mul(size_of::<T>())
            .ok_or_else(|| Error::OutOfMemory { wanted: usize::MAX, what: format!("{len} elements") })?;
        let ptr = stream.backend().alloc(stream.queue(), bytes)?;
        Ok(Buffer { stream: stream.clone(), ptr, len, _element: PhantomData })
    }

    /// Elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The queue it belongs to.
    pub fn stream(&self) -> &Stream {
        &self.stream
    }

    /// The whole buffer as an operand.
    pub fn view(&self) -> View<'_> {
        View::dense(self.ptr, self.len, T::DTYPE)
    }

    /// Copies `data` over the first `data.len()` elements.
    pub fn write(&mut self, data: &[T]) -> Result<()> {
        ensure!(data.len() <= self.len, "upload: {} elements into a buffer of {}", data.len(), self.len);
        self.stream.backend().htod(self.stream.queue(), self.ptr, bytemuck::cast_slice(data))
    }

    /// Copies everything to the host; waits.
    pub fn to_vec(&self) -> Result<Vec<T>> {
        let mut out = vec![T::default(); self.len];
        self.read(&mut out)?;
        Ok(out)
    }

    /// Copies the first `out.len()` elements to the host; waits.
    pub fn read(&self, out: &mut [T]) -> Result<()> {
        ensure!(out.len() <= self.len, "download: {} elements from a buffer of {}", out.len(), self.len);
        self.stream.backend().dtoh(self.stream.queue(), bytemuck::cast_slice_mut(out), self.ptr)
    }
}

impl<T> Drop for Buffer<T> {
    fn drop(&mut self) {
        self.stream.backend().free(self.stream.queue(), self.ptr, self.len * size_of::<T>());
    }
}

/// An operand: where it lies, how many elements, of which dtype. Reading or writing it is up to the op; [`disjoint`] keeps
/// an op's outputs apart from everything else it touches.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    ptr: Ptr,
    len: usize,
    dtype: DType,
    /// Rows: how wide, and from one to the next; None where elements lie side by side.
    rows: Option<(usize, usize)>,
    _owner: PhantomData<(&'a (), *const ())>,
}

impl<'a> View<'a> {
    /// A view of nothing: the neutral value of optional operands.
    pub fn none(dtype: DType) -> View<'static> {
        View::dense(Ptr(64), 0, dtype)
    }

    /// Elements side by side.
    fn dense(ptr: Ptr, len: usize, dtype: DType) -> View<'a> {
        View { ptr, len, dtype, rows: None, _owner: PhantomData }
    }

    /// Elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Storage of the elements.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Address of the first element.
    pub fn ptr(&self) -> Ptr {
        self.ptr
    }

    /// The first `width` of every `pitch` elements: rows that lie apart. An op takes them where it asks for [`View::pitch`]; elsewhere they
    /// are refused, the host included. With `pitch` = `width` nothing changes.
    pub fn apart(&self, width: usize, pitch: usize) -> Result<View<'a>> {
        self.together("rows apart")?;
        let fits = 0 < width && width <= pitch && self.len.is_multiple_of(pitch);
        ensure!(fits, "view: rows of {width}, {pitch} apart, of {} elements", self.len);
        let rows = (pitch > width).then_some((width, pitch));
        Ok(View { len: self.len / pitch * width, rows, ..*self })
    }

    /// Elements from row to row, if rows are `width` wide.
    pub fn pitch(&self, width: usize) -> Result<usize> {
        let (own, pitch) = self.rows.unwrap_or((width, width));
        ensure!(own == width, "view: wanted rows of {width}, got rows of {own}, {pitch} apart");
        Ok(pitch)
    }

    /// An error where rows lie apart.
    pub fn together(&self, what: &str) -> Result<()> {
        let (width, pitch) = self.rows.unwrap_or_default();
        ensure!(self.rows.is_none(), "{what}: wanted elements side by side, got rows of {width}, {pitch} apart");
        Ok(())
    }

    /// A part of it.
    pub fn slice(&self, range: Range<usize>) -> Result<View<'a>> {
        self.together("view")?;
        ensure!(range.start <= range.end && range.end <= self.len, "view: {range:?} of {} elements", self.len);
        Ok(View { ptr: Ptr(self.ptr.0 + (range.start * self.dtype.size()) as u64), len: range.len(), ..*self })
    }

    /// The elements themselves, on the CPU.
    ///
    /// # Safety
    /// The device is the CPU, and while the slice lives nobody writes these elements.
    pub unsafe fn host<T: Element>(self) -> Result<&'a [T]> {
        self.together("view")?;
        ensure!(self.dtype == T::DTYPE, "view: wanted {}, got {}", T::DTYPE, self.dtype);
        // SAFETY: on the CPU a Ptr is the address of `len` elements of the buffer that 'a borrows; the caller rules out writers.
        Ok(unsafe { std::slice::from_raw_parts(self.ptr.0 as *const T, self.len) })
    }

    /// The elements for writing, on the CPU.
    ///
    /// # Safety
    /// The device is the CPU, and while the slice lives nobody else reads or writes these elements (see [`disjoint`]).
    // A view is a device address; that it is Copy is what makes the caller's promise necessary.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn host_mut<T: Element>(self) -> Result<&'a mut [T]> {
        self.together("view")?;
        ensure!(self.dtype == T::DTYPE, "view: wanted {}, got {}", T::DTYPE, self.dtype);
        // SAFETY: as in `host`, and the caller promises to be the only one.
        Ok(unsafe { std::slice::from_raw_parts_mut(self.ptr.0 as *mut T, self.len) })
    }

    /// Copies the elements to the host; waits.
    pub fn read<T: Element>(&self, stream: &Stream, out: &mut [T]) -> Result<()> {
        self.together("download")?;
        ensure!(
            self.dtype == T::DTYPE && out.len() == self.len,
            "download: wanted {} {}, got {} {}",
            out.len(),
            T::DTYPE,
            self.len,
            self.dtype
        );
        stream.backend().dtoh(stream.queue(), bytemuck::cast_slice_mut(out), self.ptr)
    }

    /// Copies host elements over it.
    pub fn write<T: Element>(&self, stream: &Stream, data: &[T]) -> Result<()> {
        self.together("upload")?;
        ensure!(
            self.dtype == T::DTYPE && data.len() == self.len,
            "upload: wanted {} {}, got {} {}",
            self.len,
            self.dtype,
            data.len(),
            T::DTYPE
        );
        stream.backend().htod(stream.queue(), self.ptr, bytemuck::cast_slice(data))
    }

    /// Copies `from` over it; both have the same length and dtype.
    pub fn copy(&self, stream: &Stream, from: View<'_>) -> Result<()> {
        self.together("copy")?;
        from.together("copy")?;
        ensure!(
            self.dtype == from.dtype && self.len == from.len,
            "copy: {} {} from {} {}",
            self.len,
            self.dtype,
            from.len,
            from.dtype
        );
        disjoint("copy", &[*self], &[from])?;
        stream.backend().dtod(stream.queue(), self.ptr, from.ptr, self.bytes())
    }

    /// Sets every byte to zero.
    pub fn zero(&self, stream: &Stream) -> Result<()> {
        self.together("zero")?;
        stream.backend().fill(stream.queue(), self.ptr, 0, self.bytes())
    }

    /// From the first element to the last.
    fn bytes(&self) -> usize {
        let span = self.rows.map_or(self.len, |(width, pitch)| match self.len / width {
            0 => 0,
            n => (n - 1) * pitch + width,
        });
        span * self.dtype.size()
    }

    fn overlaps(&self, other: &View<'_>) -> bool {
        let end = |v: &View<'_>| v.ptr.0 + v.bytes() as u64;
        self.len > 0 && other.len > 0 && self.ptr.0 < end(other) && other.ptr.0 < end(self)
    }
}

/// Checks that no output overlaps another output or an input; every launcher calls it before it makes slices.
pub fn disjoint(room: &str, outputs: &[View<'_>], inputs: &[View<'_>]) -> Result<()> {
    for (i, out) in outputs.iter().enumerate() {
        let clash = outputs[i + 1..].iter().chain(inputs).any(|other| out.overlaps(other));
        ensure!(!clash, "{room}: output {i} overlaps another operand");
    }
    Ok(())
}

/// Where one operand lies in an arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    offset: usize,
    len: usize,
    dtype: DType,
}

impl Region {
    /// Elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Its 32-bit words in the arena: the range of elements if it holds f32.
    pub fn words(&self) -> Range<usize> {
        self.offset..self.offset + (self.len * self.dtype.size()).div_ceil(4)
    }
}

/// Cuts an arena into regions before it is allocated. Regions start at multiples of 64 bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    words: usize,
}

impl Plan {
    /// The next region.
    pub fn region(&mut self, len: usize, dtype: DType) -> Region {
        let region = Region { offset: self.words, len, dtype };
        self.words += (len * dtype.size()).div_ceil(64) * 16;
        region
    }

    /// Bytes of all regions.
    pub fn bytes(&self) -> usize {
        self.words * 4
    }
}

/// One allocation that a [`Plan`] has cut into regions beforehand.
#[derive(Debug)]
pub struct Arena {
    memory: Buffer<u32>,
}

impl Arena {
    /// One zeroed allocation of at least the plan's size.
    pub fn new(stream: &Stream, bytes: usize) -> Result<Arena> {
        Ok(Arena { memory: stream.zeros(bytes.div_ceil(4))? })
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.memory.len() * 4
    }

    /// The operand of a region.
    pub fn view(&self, region: Region) -> Result<View<'_>> {
        ensure!(region.words().end <= self.memory.len(), "arena: region {:?} of {} words", region.words(), self.memory.len());
        let ptr = Ptr(self.memory.ptr.0 + 4 * region.offset as u64);
        Ok(View::dense(ptr, region.len, region.dtype))
    }

    /// Everything in it as f32: what an optimizer steps over.
    pub fn flat(&self) -> View<'_> {
        View::dense(self.memory.ptr, self.memory.len(), DType::F32)
    }

    /// Sets every byte to zero.
    pub fn zero(&self) -> Result<()> {
        self.memory.view().zero(self.memory.stream())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;

    #[test]
    fn rows_that_lie_apart_are_no_elements_side_by_side() -> Result<()> {
        let s = Stream::cpu(1, Isa::portable());
        let buffer = s.upload(&[1f32; 15])?;
        let (all, rows) = (buffer.view(), buffer.view().apart(3, 5)?);
        assert_eq!((rows.len(), rows.pitch(3)?, all.pitch(7)?), (9, 5, 7));
        assert!(rows.pitch(5).is_err() && rows.apart(3, 3).is_err() && all.apart(3, 4).is_err() && all.apart(6, 5).is_err());
        let same = all.apart(5, 5)?;
        assert_eq!((same.len(), same.together("here").is_ok()), (15, true));
        let refused = rows.together("here").map_err(|e| e.to_string());
        assert!(refused.is_err_and(|e| e.contains("here: wanted elements side by side, got rows of 3, 5 apart")));
        // SAFETY: the device is the CPU and nobody else has these elements; nothing is handed out.
        let on_host = unsafe { (rows.host::<f32>().is_err(), rows.host_mut::<f32>().is_err()) };
        assert_eq!(on_host, (true, true));
        assert!(rows.slice(0..3).is_err() && rows.read(&s, &mut [0f32; 9]).is_err() && rows.write(&s, &[0f32; 9]).is_err());
        let other = s.upload(&[2f32; 9])?;
        assert!(rows.zero(&s).is_err() && rows.copy(&s, other.view()).is_err() && other.view().copy(&s, rows).is_err());
        assert_eq!(buffer.to_vec()?, [1.0; 15]);
        // What lies between rows is theirs, what lies behind the last one is not.
        assert!(disjoint("here", &[rows], &[all.slice(3..5)?]).is_err());
        assert!(disjoint("here", &[rows], &[all.slice(13..15)?]).is_ok());
        Ok(())
    }
}
