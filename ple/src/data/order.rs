//! The order of rows (LAW "Random numbers"): Fisher–Yates from the end, counter (i, 0, epoch, stream), tag 2.

use kernels::sample::{Tag, key, philox};

/// Order of the rows of a supervised stage; the epoch is the pass.
pub const ROWS: u32 = 0;
/// Order of the queries; the epoch counts passes over all queries.
pub const QUERIES: u32 = 1;
/// Order of the pairs of an iteration; the epoch counts passes since the first iteration.
pub const PAIRS: u32 = 2;

/// floor(u64 · n / 2^64), u64 of the first two words.
pub(super) fn below(block: [u32; 4], n: u64) -> u64 {
    let draw = u64::from(block[0]) | u64::from(block[1]) << 32;
    ((u128::from(draw) * u128::from(n)) >> 64) as u64
}

/// A permutation of 0..n.
pub fn shuffle(n: u32, seed: u64, epoch: u32, stream: u32) -> Vec<u32> {
    let mut order: Vec<u32> = (0..n).collect();
    for i in (1..n).rev() {
        let j = below(philox(key(seed, Tag::Shuffle), [i, 0, epoch, stream]), u64::from(i) + 1);
        order.swap(i as usize, j as usize);
    }
    order
}

/// The queries of an iteration: the next `count` of a permutation of 0..n, reshuffled at each wrap; a function of the
/// iteration alone.
pub fn draw(iteration: u32, count: u32, n: u32, seed: u64) -> Vec<u32> {
    let mut drawn = Vec::with_capacity(count as usize);
    if n == 0 {
        return drawn;
    }
    let mut at = u64::from(iteration) * u64::from(count);
    while drawn.len() < count as usize {
        let (epoch, start) = ((at / u64::from(n)) as u32, (at % u64::from(n)) as usize);
        let order = shuffle(n, seed, epoch, QUERIES);
        let take = order.iter().skip(start).take(count as usize - drawn.len());
        drawn.extend(take);
        at = u64::from(iteration) * u64::from(count) + drawn.len() as u64;
    }
    drawn
}

/// The queries of an iteration in the order of the file: the next `count` of 0..n, from the beginning again at each wrap.
pub fn in_file(iteration: u32, count: u32, n: u32) -> Vec<u32> {
    let first = u64::from(iteration) * u64::from(count);
    let at = |i: u64| ((first + i) % u64::from(n.max(1))) as u32;
    (0..u64::from(count)).filter(|_| n > 0).map(at).collect()
}
