//! The CPU form: entries (forward, backward) or ids (backward_weight) are split over tasks; a task walks over the vocabulary in tiles
//! of 256 ids, 8 panels of logits [8][rows][32] at a time.

use super::Scaling;
use super::softmax::{self, Form, Place, TILE};
use crate::linear::pack::{Left, Room, Stock};
use crate::linear::product::Strips;
use crate::linear::tile::{Lines, Tile, strip_below, strip_rows};
use crate::panels::PANEL;
use runtime::{Isa, Pool, Shared};
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Floats that a task keeps at hand: most of a second-level cache of 1 MiB.
const NEAR: usize = 224 << 10;
/// Entries of one task: at least so many that a transposed block pays, at most what balances.
const ENTRIES: Range<usize> = 96..264;
/// Entries of one round of `backward_weight`.
const ROUND: usize = 192;

/// The packed head [V, C].
pub(crate) struct Head<'a> {
    pub stock: Stock<'a>,
    pub v: usize,
    pub c: usize,
}

/// Outputs of `forward`, [M] each.
pub(crate) struct Outputs<'a> {
    pub logp: &'a mut [f32],
    pub z: &'a mut [f32],
    pub sum: &'a mut [f32],
    pub max: &'a mut [f32],
}

/// What the backward calls read, [M] each.
#[derive(Clone, Copy)]
pub(crate) struct Back<'a> {
    pub dlogp: &'a [f32],
    pub z: &'a [f32],
    pub sum: &'a [f32],
    pub max: &'a [f32],
}

impl Back<'_> {
    fn form(&self, m: usize) -> Form {
        Form::kept(self.z[m], self.sum[m], self.max[m])
    }
}

/// Entries of one task if each keeps `floats` at hand.
fn entries(pool: &Pool, m: usize, floats: usize) -> usize {
    let strip = strip_rows(pool.isa());
    let most = (NEAR / floats).clamp(ENTRIES.start, ENTRIES.end) / strip * strip;
    let tasks = m.div_ceil(most).next_multiple_of(pool.threads());
    m.div_ceil(tasks.max(1)).next_multiple_of(strip)
}

impl Head<'_> {
    /// The tiles: first id and count.
    fn tiles(&self) -> impl Iterator<Item = (usize, usize)> {
        let v = self.v;
        (0..v).step_by(TILE).map(move |first| (first, TILE.min(v - first)))
    }

    /// The target's logit before cap and temperature.
    fn logit(&self, isa: Isa, x: &[f32], id: usize) -> f32 {
        let at = (id / PANEL * self.c) * PANEL + id % PANEL;
        match &self.stock {
            Stock::F32(w) => softmax::dot_f32(isa, x, &w[at..]),
            Stock::Bf16(w) => softmax::dot_bf16(isa, x, &w[at..]),
            Stock::F16(w) => softmax::dot_f16(isa, x, &w[at..]),
        }
    }

    /// Logits of one tile for packed rows: z [8][padded][32].
    fn logits(&self, isa: Isa, z: &mut [f32], packed: &[f32], strips: Strips, (first, count): (usize, usize), room: &mut [f32]) {
        for p in 0..count.div_ceil(PANEL) {
            let (panel, strip_count) = (first / PANEL + p, strips.count());
            let lines = self.stock.block(isa, panel, self.c, 0..self.c, strip_count, room);
            for (i, (at, _, width)) in strips.each().enumerate() {
                let to = &mut z[(p * strips.padded() + at) * PANEL..][..width * PANEL];
                let mut t = Tile::new(width, width, PANEL, to.as_mut_ptr(), PANEL);
                (t.a, t.b, t.len) = (packed[at * self.c..][..width * self.c].as_ptr(), lines, self.c);
                if (panel + 1) * PANEL < self.v {
                    t.ahead = self.stock.ahead(panel + 1, self.c, 0..self.c, (i, strip_count), self.c);
                }
                // SAFETY: the strip has C rows of its width, the panel C rows of 32, and z width rows of 32.
                unsafe { t.run(isa) };
            }
        }
    }
}

/// The target's place in a tile.
fn within(target: u32, first: usize) -> usize {
    (target as usize).checked_sub(first).filter(|&t| t < TILE).unwrap_or(usize::MAX)
}

/// logp, z_t, sum and max of every entry.
pub(crate) fn forward(
    pool: &Pool,
    out: Outputs<'_>,
    x: &[f32],
    rows: &[u32],
    targets: &[u32],
    head: &Head<'_>,
    scaling: Scaling,
) {
    let (isa, c, m) = (pool.isa(), head.c, rows.len());
    let step = entries(pool, m, c + TILE);
    if m == 0 {
        return;
    }
    let outputs = [out.logp, out.z, out.sum, out.max].map(Shared::new);
    let pieces = [step * c, TILE * step, c * PANEL];
    pool.run(m.div_ceil(step), Room::size(&pieces), &|task, scratch| {
        let own = task * step..((task + 1) * step).min(m);
        // SAFETY: tasks have disjoint entries.
        let [logp, zt, sum, max] = outputs.each_ref().map(|o| unsafe { o.slice(own.clone()) });
        let (mut room, strips) = (Room::new(scratch), Strips::new(isa, own.len()));
        let [packed, z, block] = pieces.map(|p| room.take(p));
        let left = Left { data: x, ld: c, index: Some(rows) };
        for (i, m) in own.clone().enumerate() {
            zt[i] = softmax::scaled(head.logit(isa, left.row(m, 0..c), targets[m] as usize), scaling);
        }
        sum.fill(0.0);
        max.fill(f32::NEG_INFINITY);
        strips.pack(isa, packed, left, own.start, 0..c);
        for (first, count) in head.tiles() {
            head.logits(isa, z, packed, strips, (first, count), block);
            for i in 0..own.len() {
                let place = Place { stride: strips.padded() * PANEL, count, target: within(targets[own.start + i], first) };
                let (part, most) = softmax::tile(isa, &z[i * PANEL..], place, zt[i], max[i], scaling);
                (sum[i], max[i]) = (sum[i] + part, most);
            }
        }
        for (i, m) in own.enumerate() {
            if softmax::far(max[i], zt[i]) {
                sum[i] = far_sum(isa, left, m, head, max[i], scaling, [&mut *packed, &mut *z, &mut *block]);
                logp[i] = softmax::far_value(zt[i], max[i], sum[i]);
            } else {
                (logp[i], max[i]) = (softmax::near_value(sum[i]), f32::INFINITY);
            }
        }
    });
}

/// Σ of the second form for one entry: the logits are made again.
fn far_sum(isa: Isa, left: Left<'_>, m: usize, head: &Head<'_>, max: f32, scaling: Scaling, room: [&mut [f32]; 3]) -> f32 {
    let ([packed, z, block], strips) = (room, Strips::new(isa, 1));
    strips.pack(isa, packed, left, m, 0..head.c);
    head.tiles().fold(0.0, |sum, (first, count)| {
        head.logits(isa, z, packed, strips, (first, count), block);
        let place = Place { stride: strips.padded() * PANEL, count, target: usize::MAX };
        sum + softmax::tile(isa, z, place, max, max, scaling).0
    })
}

/// logp of stored logits.
pub(crate) fn of_logits(pool: &Pool, logp: &mut [f32], logits: &[f32], ids: &[u32], v: usize, scaling: Scaling) {
    let isa = pool.isa();
    pool.rows(logp, 1, 1, 0, &|first, out, _| {
        for (i, out) in out.iter_mut().enumerate() {
            let (z, id) = (&logits[(first + i) * v..][..v], ids[first + i]);
            let zt = softmax::scaled(z[id as usize], scaling);
            let sum = |reference: f32, skip: bool| {
                z.chunks(TILE).enumerate().fold((0.0, f32::NEG_INFINITY), |(sum, max), (t, z)| {
                    let target = if skip { within(id, t * TILE) } else { usize::MAX };
                    let place = Place { stride: PANEL, count: z.len(), target };
                    let (part, max) = softmax::tile(isa, z, place, reference, max, scaling);
                    (sum + part, max)
                })
            };
            let (s, max) = sum(zt, true);
            *out = match softmax::far(max, zt) {
                true => softmax::far_value(zt, max, sum(max, false).0),
                false => softmax::near_value(s),
            };
        }
    });
}

/// Turns logits of one tile into dz, row by row of the entries `own`.
fn to_gradient(
    isa: Isa,
    z: &mut [f32],
    padded: usize,
    own: Range<usize>,
    (first, count): (usize, usize),
    back: Back<'_>,
    targets: &[u32],
    scaling: Scaling,
) {
    for (i, m) in own.enumerate() {
        let place = Place { stride: padded * PANEL, count, target: within(targets[m], first) };
        softmax::gradient(isa, &mut z[i * PANEL..], place, back.form(m), back.dlogp[m], scaling);
    }
}

/// Lets tasks pass a point one after another in task order.
struct Turns(AtomicUsize);

/// The turn of one task; it ends when this is dropped, in order even if a task unwinds before its turn.
struct Turn<'a>(&'a AtomicUsize, usize);

impl Turns {
    /// Every task takes one when it starts.
    fn take(&self, task: usize) -> Turn<'_> {
        Turn(&self.0, task)
    }
}

impl Turn<'_> {
    /// Waits until the tasks before this one have passed. Tasks start in order, so the first of those that wait never does.
    fn wait(&self) {
        let mut spins = 0u32;
        while self.0.load(Ordering::Acquire) < self.1 {
            spins += 1;
            if spins < 1000 { std::hint::spin_loop() } else { std::thread::yield_now() }
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.wait();
        self.0.store(self.1 + 1, Ordering::Release);
    }
}

/// dx [N, C] =.
pub(crate) fn backward(
    pool: &Pool,
    dx: &mut [f32],
    back: Back<'_>,
    x: &[f32],
    rows: &[u32],
    targets: &[u32],
    head: &Head<'_>,
    scaling: Scaling,
) {
    let (isa, c, m) = (pool.isa(), head.c, rows.len());
    pool.rows(dx, c, 64, 0, &|_, rows, _| rows.fill(0.0));
    if m == 0 {
        return;
    }
    let (step, panels) = (entries(pool, m, 2 * c + TILE), c.div_ceil(PANEL));
    let pieces = [step * c, TILE * step, panels * step * PANEL, c.max(TILE) * PANEL];
    let (shared, turns) = (Shared::new(dx), Turns(AtomicUsize::new(0)));
    pool.run(m.div_ceil(step), Room::size(&pieces), &|task, scratch| {
        let turn = turns.take(task);
        let own = task * step..((task + 1) * step).min(m);
        let (mut room, strips) = (Room::new(scratch), Strips::new(isa, own.len()));
        let [packed, z, waiting, block] = pieces.map(|p| room.take(p));
        let padded = strips.padded();
        strips.pack(isa, packed, Left { data: x, ld: c, index: Some(rows) }, own.start, 0..c);
        for (first, count) in head.tiles() {
            head.logits(isa, z, packed, strips, (first, count), block);
            to_gradient(isa, z, padded, own.clone(), (first, count), back, targets, scaling);
            for p in 0..panels {
                head.stock.transpose(isa, c, first..first + count, p * PANEL..((p + 1) * PANEL).min(c), block);
                for (at, _, width) in strips.each() {
                    let wait = waiting[(p * padded + at) * PANEL..][..width * PANEL].as_mut_ptr();
                    let mut t = Tile::new(width, width, PANEL, wait, PANEL);
                    (t.a, t.across, t.b) = (z[at * PANEL..].as_ptr(), padded * PANEL, Lines::F32(block.as_ptr()));
                    t.len = count;
                    if first > 0 {
                        t.from = wait;
                    }
                    // SAFETY: every group of 32 gradients has `padded` rows, the block `count` rows of 32, the accumulators width.
                    unsafe { t.run(isa) };
                }
            }
        }
        turn.wait();
        for (i, m) in own.enumerate() {
            let row = rows[m] as usize;
            // SAFETY: only the task whose turn it is writes dx.
            let row = unsafe { shared.slice(row * c..(row + 1) * c) };
            for (p, row) in row.chunks_mut(PANEL).enumerate() {
                let entry = &waiting[(p * padded + i) * PANEL..][..row.len()];
                row.iter_mut().zip(entry).for_each(|(d, e)| *d += e);
            }
        }
    });
}

/// dhead continues its chains over the entries in list order.
pub(crate) fn backward_weight(
    pool: &Pool,
    dhead: &mut [f32],
    back: Back<'_>,
    x: &[f32],
    rows: &[u32],
    targets: &[u32],
    head: &Head<'_>,
    scaling: Scaling,
) {
    let (isa, c, m) = (pool.isa(), head.c, rows.len());
    let round = ROUND.min(m).next_multiple_of(strip_rows(isa));
    let pieces = [round * c, TILE * round, round * c, c * PANEL];
    let shared = Shared::new(dhead);
    pool.run(head.v.div_ceil(TILE), Room::size(&pieces), &|task, scratch| {
        let (first, count) = (task * TILE, TILE.min(head.v - task * TILE));
        let mut room = Room::new(scratch);
        let [packed, z, across, block] = pieces.map(|p| room.take(p));
        let left = Left { data: x, ld: c, index: Some(rows) };
        for start in (0..m).step_by(round.max(1)) {
            let own = start..(start + round).min(m);
            let strips = Strips::new(isa, own.len());
            strips.pack(isa, packed, left, start, 0..c);
            head.logits(isa, z, packed, strips, (first, count), block);
            to_gradient(isa, z, strips.padded(), own.clone(), (first, count), back, targets, scaling);
            for p in 0..count.div_ceil(PANEL) {
                let panel = first / PANEL + p;
                // SAFETY: tasks have disjoint panels.
                let total = unsafe { shared.slice(panel * c * PANEL..(panel + 1) * c * PANEL) };
                let mut at = 0;
                while at < c {
                    let width = strip_below(isa, c - at);
                    let strip = &mut across[at * own.len()..][..width * own.len()];
                    if p == 0 {
                        for (to, m) in strip.chunks_exact_mut(width).zip(own.clone()) {
                            to.copy_from_slice(left.row(m, at..at + width));
                        }
                    }
                    let to = total[at * PANEL..][..width * PANEL].as_mut_ptr();
                    let mut t = Tile::new(width, width, PANEL, to, PANEL);
                    let dz = z[p * strips.padded() * PANEL..][..own.len() * PANEL].as_ptr();
                    (t.a, t.b, t.len, t.from) = (strip.as_ptr(), Lines::F32(dz), own.len(), to);
                    // SAFETY: the strip and dz have one row per entry, the panel's gradient width rows from here.
                    unsafe { t.run(isa) };
                    at += width;
                }
            }
        }
    });
}
