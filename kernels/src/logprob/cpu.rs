//! The CPU form: entries (forward), rows (backward) or ids (backward_weight) are split over tasks; a task of forward walks over the
//! vocabulary in tiles of 256 ids, 8 panels of logits [8][rows][32] at a time.

use super::Scaling;
use super::softmax::{self, Form, Place, TILE};
use crate::linear::pack::{Left, Room, Stock};
use crate::linear::product::Strips;
use crate::linear::tile::{Lines, Tile, strip_below, strip_rows};
use crate::panels::PANEL;
use runtime::{Isa, Pool, Shared};
use std::ops::Range;

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

/// Outputs of `forward`, [M] each, and the way [M, C] if it is wanted.
pub(crate) struct Outputs<'a> {
    pub logp: &'a mut [f32],
    pub z: &'a mut [f32],
    pub sum: &'a mut [f32],
    pub max: &'a mut [f32],
    pub way: &'a mut [f32],
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

    /// The chains over ids of one tile's weights z: [panels of C][padded][32].
    fn chains(&self, isa: Isa, out: &mut [f32], z: &[f32], strips: Strips, (first, count): (usize, usize), room: &mut [f32]) {
        let (c, padded) = (self.c, strips.padded());
        for p in 0..c.div_ceil(PANEL) {
            self.stock.transpose(isa, c, first..first + count, p * PANEL..((p + 1) * PANEL).min(c), room);
            for (at, _, width) in strips.each() {
                let to = out[(p * padded + at) * PANEL..][..width * PANEL].as_mut_ptr();
                let mut t = Tile::new(width, width, PANEL, to, PANEL);
                (t.a, t.across, t.b) = (z[at * PANEL..].as_ptr(), padded * PANEL, Lines::F32(room.as_ptr()));
                t.len = count;
                if first > 0 {
                    t.from = to;
                }
                // SAFETY: every group of 32 weights has `padded` rows, the block `count` rows of 32, the chains width rows of 32.
                unsafe { t.run(isa) };
            }
        }
    }
}

/// The target's place in a tile.
fn within(target: u32, first: usize) -> usize {
    (target as usize).checked_sub(first).filter(|&t| t < TILE).unwrap_or(usize::MAX)
}

/// Gets an entry's place in the task, its logits of one tile with the elements between two groups of 32, and the tile.
type Meet<'a> = dyn FnMut(usize, &mut [f32], usize, (usize, usize)) + 'a;

/// Scratch of a task of `forward`: packed rows, logits of a tile, a panel's block, and the chains of the way [panels][padded][32],
/// which are empty if nobody wants it.
struct Hand<'a> {
    isa: Isa,
    head: &'a Head<'a>,
    scaling: Scaling,
    room: [&'a mut [f32]; 4],
}

impl Hand<'_> {
    /// Goes over the vocabulary with entries `m` and calls `meet` with each tile's logits of each entry, which `meet` weighs if the way
    /// is wanted; the chains then go on over them.
    fn sweep(&mut self, left: Left<'_>, m: Range<usize>, meet: &mut Meet<'_>) {
        let (isa, head, strips) = (self.isa, self.head, Strips::new(self.isa, m.len()));
        let [packed, z, block, chains] = &mut self.room;
        strips.pack(isa, packed, left, m.start, 0..head.c);
        for (first, count) in head.tiles() {
            head.logits(isa, z, packed, strips, (first, count), block);
            (0..m.len()).for_each(|i| meet(i, &mut z[i * PANEL..], strips.padded() * PANEL, (first, count)));
            if !chains.is_empty() {
                head.chains(isa, chains, z, strips, (first, count), block);
            }
        }
    }

    /// The way of entry `i` of the `rows` that were swept: [C].
    fn way(&mut self, out: &mut [f32], i: usize, rows: usize, target: usize, factor: f32) {
        let padded = Strips::new(self.isa, rows).padded();
        for (p, out) in out.chunks_mut(PANEL).enumerate() {
            let (mut w, mut way) = ([0f32; PANEL], [0f32; PANEL]);
            let columns = p * PANEL..p * PANEL + out.len();
            self.head.stock.transpose(self.isa, self.head.c, target..target + 1, columns, &mut w);
            way[..out.len()].copy_from_slice(&self.room[3][(p * padded + i) * PANEL..][..out.len()]);
            softmax::turn(self.isa, &mut way, &w, factor);
            out.copy_from_slice(&way[..out.len()]);
        }
    }

    /// The second form for entry `m` alone: Σ. Its logits are made again.
    fn far(&mut self, left: Left<'_>, m: usize, max: f32) -> f32 {
        let (isa, scaling, weigh, mut sum) = (self.isa, self.scaling, !self.room[3].is_empty(), 0.0);
        self.sweep(left, m..m + 1, &mut |_, z, stride, (_, count)| {
            let place = Place { stride, count, target: usize::MAX };
            sum += softmax::tile(isa, z, place, max, max, scaling, weigh).0;
        });
        sum
    }
}

/// logp, z_t, sum and max of every entry, and its way.
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
    let ways = if out.way.is_empty() { 0 } else { c };
    let step = entries(pool, m, c + TILE + ways);
    if m == 0 {
        return;
    }
    let (outputs, all) = ([out.logp, out.z, out.sum, out.max].map(Shared::new), Shared::new(out.way));
    let pieces = [step * c, TILE * step, c.max(TILE) * PANEL, ways.next_multiple_of(PANEL) * step];
    pool.run(m.div_ceil(step), Room::size(&pieces), &|task, scratch| {
        let own = task * step..((task + 1) * step).min(m);
        // SAFETY: tasks have disjoint entries.
        let [logp, zt, sum, max] = outputs.each_ref().map(|o| unsafe { o.slice(own.clone()) });
        // SAFETY: as above.
        let way = unsafe { all.slice(own.start * ways..own.end * ways) };
        let mut room = Room::new(scratch);
        let mut hand = Hand { isa, head, scaling, room: pieces.map(|p| room.take(p)) };
        let left = Left { data: x, ld: c, index: Some(rows) };
        let raw = |i: usize| head.logit(isa, left.row(own.start + i, 0..c), targets[own.start + i] as usize);
        zt.iter_mut().enumerate().for_each(|(i, zt)| *zt = softmax::scaled(raw(i), scaling));
        sum.fill(0.0);
        max.fill(f32::NEG_INFINITY);
        hand.sweep(left, own.clone(), &mut |i, z, stride, (first, count)| {
            let place = Place { stride, count, target: within(targets[own.start + i], first) };
            let (part, most) = softmax::tile(isa, z, place, zt[i], max[i], scaling, ways > 0);
            (sum[i], max[i]) = (sum[i] + part, most);
        });
        // Entries of the second form use the hand again, so they come last.
        for second in [false, true] {
            for i in 0..own.len() {
                if softmax::far(max[i], zt[i]) != second {
                    continue;
                }
                let (at, of) = if second { (0, 1) } else { (i, own.len()) };
                if second {
                    sum[i] = hand.far(left, own.start + i, max[i]);
                    logp[i] = softmax::far_value(zt[i], max[i], sum[i]);
                } else {
                    logp[i] = softmax::near_value(sum[i]);
                }
                if ways > 0 {
                    let slope = if scaling.softcap > 0.0 { softmax::slope_of(raw(i), scaling.softcap) } else { 1.0 };
                    let factor = sum[i] * slope;
                    hand.way(&mut way[i * c..(i + 1) * c], at, of, targets[own.start + i] as usize, factor);
                }
            }
        }
        let near = |(max, zt): &(&mut f32, &mut f32)| !softmax::far(**max, **zt);
        max.iter_mut().zip(zt).filter(near).for_each(|(max, _)| *max = f32::INFINITY);
    });
}

/// logp of stored logits.
pub(crate) fn of_logits(pool: &Pool, logp: &mut [f32], logits: &[f32], ids: &[u32], v: usize, scaling: Scaling) {
    let isa = pool.isa();
    pool.rows(logp, 1, 1, 0, &|first, out, _| {
        for (i, out) in out.iter_mut().enumerate() {
            let (z, id) = (&logits[(first + i) * v..][..v], ids[first + i]);
            let zt = softmax::scaled(z[id as usize], scaling);
            let sum = |reference: f32, skip: bool| {
                let mut tile = [0f32; TILE];
                z.chunks(TILE).enumerate().fold((0.0, f32::NEG_INFINITY), |(sum, max), (t, z)| {
                    let target = if skip { within(id, t * TILE) } else { usize::MAX };
                    let place = Place { stride: PANEL, count: z.len(), target };
                    tile[..z.len()].copy_from_slice(z);
                    let (part, max) = softmax::tile(isa, &mut tile, place, reference, max, scaling, false);
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

/// dx [N, C] =: every task goes over all entries and takes those of its rows.
pub(crate) fn backward(pool: &Pool, dx: &mut [f32], back: Back<'_>, way: &[f32], rows: &[u32], inv_temperature: f32) {
    let (m, n) = (rows.len(), dx.len());
    if m == 0 {
        return dx.fill(0.0);
    }
    let c = way.len() / m;
    let share = (n / c).div_ceil(4 * pool.threads()).max(64);
    pool.rows(dx, c, share, 0, &|first, own, _| {
        own.fill(0.0);
        let last = first + own.len() / c;
        for (m, &row) in rows.iter().enumerate().filter(|(_, row)| (first..last).contains(&(**row as usize))) {
            let factor = back.dlogp[m] * inv_temperature / back.form(m).under();
            let to = &mut own[(row as usize - first) * c..][..c];
            to.iter_mut().zip(&way[m * c..]).for_each(|(d, w)| *d += w * factor);
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
