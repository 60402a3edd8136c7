//! What a task keeps in its thread's scratch memory.

use super::block::{CHUNK, KEYS};
use super::tile::Layout;

/// Cuts the front off a thread's scratch memory.
pub fn take<'a>(rest: &mut &'a mut [f32], len: usize) -> &'a mut [f32] {
    let (front, back) = std::mem::take(rest).split_at_mut(len);
    *rest = back;
    front
}

/// Forward of a task.
pub struct Forward<'a> {
    /// `[entries, width]`
    pub q: &'a mut [f32],
    pub o: &'a mut [f32],
    /// `[entries]`
    pub top: &'a mut [f32],
    pub sum: &'a mut [f32],
    /// `[d, 64]`
    pub keys: &'a mut [f32],
    /// `[64, width]`
    pub values: &'a mut [f32],
    /// `[64, 64]`
    pub s: &'a mut [f32],
}

impl<'a> Forward<'a> {
    /// Values of it.
    pub fn len(tile: Layout) -> usize {
        tile.entries() * (2 * tile.width + 2) + KEYS * (tile.d + tile.width) + CHUNK * KEYS
    }

    /// Lays it over a thread's scratch memory.
    pub fn cut(mut rest: &'a mut [f32], tile: Layout) -> Forward<'a> {
        let mut next = |len| take(&mut rest, len);
        let (entries, width) = (tile.entries(), tile.width);
        Forward {
            q: next(entries * width),
            o: next(entries * width),
            top: next(entries),
            sum: next(entries),
            keys: next(KEYS * tile.d),
            values: next(KEYS * width),
            s: next(CHUNK * KEYS),
        }
    }
}

/// Backward of a task.
pub struct Backward<'a> {
    /// `[entries, width]`
    pub q: &'a mut [f32],
    pub dout: &'a mut [f32],
    pub dq: &'a mut [f32],
    /// `[entries]`
    pub top: &'a mut [f32],
    pub sum: &'a mut [f32],
    pub delta: &'a mut [f32],
    /// `[d, 64]`: keys and values with the slots side by side.
    pub keys: &'a mut [f32],
    pub values: &'a mut [f32],
    /// `[64, width]`
    pub key_rows: &'a mut [f32],
    pub dk: &'a mut [f32],
    pub dv: &'a mut [f32],
    /// `[64, 64]`
    pub s: &'a mut [f32],
    pub dp: &'a mut [f32],
}

impl<'a> Backward<'a> {
    /// Values of it.
    pub fn len(tile: Layout) -> usize {
        tile.entries() * (3 * tile.width + 3) + KEYS * (2 * tile.d + 3 * tile.width) + 2 * CHUNK * KEYS
    }

    /// Lays it over a thread's scratch memory.
    pub fn cut(mut rest: &'a mut [f32], tile: Layout) -> Backward<'a> {
        let mut next = |len| take(&mut rest, len);
        let (entries, width) = (tile.entries(), tile.width);
        Backward {
            q: next(entries * width),
            dout: next(entries * width),
            dq: next(entries * width),
            top: next(entries),
            sum: next(entries),
            delta: next(entries),
            keys: next(KEYS * tile.d),
            values: next(KEYS * tile.d),
            key_rows: next(KEYS * width),
            dk: next(KEYS * width),
            dv: next(KEYS * width),
            s: next(CHUNK * KEYS),
            dp: next(CHUNK * KEYS),
        }
    }
}
