//! One step of 16 of a tensor core, asked in many ways: the same sixteen products and accumulator, permuted, negated, scaled, with roles
//! exchanged, in two halves. What is turned before the step is turned back afterwards, so that equal answers are equal words.

use super::{bf16_pair, wide_pair, words};
use runtime::{Arg, Result, Stream};

/// Of the matrices.
pub const SEED: u64 = 30;
/// Steps of each kind.
const TILES: usize = 16;

/// Matrices of one step: A [16, 16] and B [8, 16] as bf16 bits, C [16, 8] as f32 bits.
#[derive(Clone)]
struct Step {
    a: [[u16; 16]; 16],
    b: [[u16; 16]; 8],
    c: [[u32; 8]; 16],
}

impl Step {
    /// Fragments of the lanes: d, a, b.
    fn dealt(&self) -> Vec<u32> {
        let pair = |row: &[u16; 16], k: usize| u32::from(row[k]) | u32::from(row[k + 1]) << 16;
        let (mut d, mut a, mut b) = (Vec::new(), Vec::new(), Vec::new());
        for lane in 0..32 {
            let (g, t) = (lane / 4, lane % 4 * 2);
            d.extend([self.c[g][t], self.c[g][t + 1], self.c[g + 8][t], self.c[g + 8][t + 1]]);
            a.extend([(g, t), (g + 8, t), (g, t + 8), (g + 8, t + 8)].map(|(r, k)| pair(&self.a[r], k)));
            b.extend([t, t + 8].map(|k| pair(&self.b[g], k)));
        }
        [d, a, b].concat()
    }

    /// C of the lanes' fragments.
    fn gathered(bits: &[u32]) -> [[u32; 8]; 16] {
        let mut c = [[0; 8]; 16];
        for (lane, d) in bits.chunks(4).enumerate() {
            let (g, t) = (lane / 4, lane % 4 * 2);
            (c[g][t], c[g][t + 1], c[g + 8][t], c[g + 8][t + 1]) = (d[0], d[1], d[2], d[3]);
        }
        c
    }

    fn random(seed: u64, pair: fn(u32) -> u32) -> Step {
        let x = words(seed, 320);
        let half = |at: usize, row: usize, k: usize| (pair(x[at + row * 8 + k / 2]) >> (16 * (k % 2))) as u16;
        Step {
            a: std::array::from_fn(|r| std::array::from_fn(|k| half(0, r, k))),
            b: std::array::from_fn(|r| std::array::from_fn(|k| half(128, r, k))),
            // Accumulators of the size of the products.
            c: std::array::from_fn(|r| std::array::from_fn(|j| (x[192 + r * 8 + j] & 0x807f_ffff) | 0x3f80_0000)),
        }
    }

    /// One element each, changed.
    fn map(&self, a: impl Fn(u16) -> u16, b: impl Fn(u16) -> u16, c: impl Fn(u32) -> u32) -> Step {
        Step { a: self.a.map(|row| row.map(&a)), b: self.b.map(|row| row.map(&b)), c: self.c.map(|row| row.map(&c)) }
    }
}

/// D of each step, from fragments as [`Step::dealt`] has them.
pub fn run(s: &Stream, input: &[u32], eights: bool) -> Result<Vec<u32>> {
    let n = input.len() / 320;
    super::run(s, "dump_mma", 32, 0, input, n * 128, &[Arg::U32(n as u32), Arg::U32(eights.into())])
}

fn step(s: &Stream, steps: &[Step], eights: bool) -> Result<Vec<u32>> {
    let input: Vec<u32> = steps.iter().flat_map(Step::dealt).collect();
    run(s, &input, eights)
}

/// f32 bits times a power of two; zero and what is not finite stay.
fn times(bits: u32, power: f32) -> u32 {
    (f32::from_bits(bits) * power).to_bits()
}

fn bf16(v: f32) -> u16 {
    half::bf16::from_f32(v).to_bits()
}

/// Values that formats treat apart, as a of a step whose b is 1, 2^-100 and 0 in its columns, all at k = 0.
fn special() -> Step {
    let values = [0.0, -0.0, 1.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 2f32.powi(-126), 2f32.powi(-130), 3e38, -3e38];
    let sums = [0.0, -0.0, f32::from_bits(1), f32::MIN_POSITIVE, f32::MAX, f32::INFINITY, 1.0, -1.0];
    let first = |v: u16| std::array::from_fn(|k| if k == 0 { v } else { 0 });
    Step {
        a: std::array::from_fn(|r| first(bf16(values[r % values.len()]))),
        b: std::array::from_fn(|c| first(bf16([1.0, 2f32.powi(-100), 0.0, -1.0][c % 4]))),
        c: std::array::from_fn(|r| std::array::from_fn(|c| sums[(r / 2 + c) % sums.len()].to_bits())),
    }
}

/// Every way of asking, with a name.
pub fn all(s: &Stream) -> Result<Vec<(&'static str, Vec<u32>)>> {
    let of = |pair| (0..TILES).map(|i| Step::random(SEED + i as u64, pair)).collect::<Vec<_>>();
    let (normal, wide) = (of(bf16_pair as fn(u32) -> u32), of(wide_pair));
    let each = |f: &dyn Fn(&Step) -> Step| wide.iter().map(f).collect::<Vec<Step>>();
    let turned = |row: [u16; 16]| std::array::from_fn(|k| row[15 - k]);
    let permuted = each(&|t| Step { a: t.a.map(turned), b: t.b.map(turned), c: t.c });
    let negated = each(&|t| t.map(|a| a ^ 0x8000, |b| b, |c| c ^ 0x8000_0000));
    let scaled = each(&|t| t.map(|a| a + (4 << 7), |b| b, |c| times(c, 16.0)));
    // The first eight rows of A as B's columns, and B's columns as rows of A.
    let swapped = each(&|t| Step {
        a: std::array::from_fn(|r| if r < 8 { t.b[r] } else { [0; 16] }),
        b: std::array::from_fn(|r| t.a[r]),
        c: std::array::from_fn(|r| std::array::from_fn(|c| if r < 8 { t.c[c][r] } else { 0 })),
    });
    let plain = step(s, &wide, false)?;
    let zeros = plain.chunks(128).map(|d| Step { a: [[0; 16]; 16], b: wide[0].b, c: Step::gathered(d) }).collect::<Vec<_>>();
    let top = |bits: &[u32], f: &dyn Fn([[u32; 8]; 16], usize, usize) -> u32| -> Vec<u32> {
        let squares = bits.chunks(128).map(Step::gathered);
        squares.flat_map(|c| (0..64).map(|i| f(c, i / 8, i % 8)).collect::<Vec<_>>()).collect()
    };
    Ok(vec![
        ("step normal", step(s, &normal, false)?),
        ("step wide", plain.clone()),
        ("step wide, rows 0 to 7", top(&plain, &|c, row, column| c[row][column])),
        ("step exchanged", top(&step(s, &swapped, false)?, &|c, row, column| c[column][row])),
        ("step permuted", step(s, &permuted, false)?),
        ("step negated", step(s, &negated, false)?.into_iter().map(|d| d ^ 0x8000_0000).collect()),
        ("step scaled", step(s, &scaled, false)?.into_iter().map(|d| times(d, 0.0625)).collect()),
        ("step of eights", step(s, &wide, true)?),
        ("step of zeros", step(s, &zeros, false)?),
        ("step special", step(s, &[special()], false)?),
    ])
}

/// The products of `dump_chain` for n = 8, in its places, with the accumulators in memory between the steps.
pub fn chain(s: &Stream, input: &[u32]) -> Result<Vec<u32>> {
    let half = |row: usize, k: usize| (input[row * 32 + k / 2] >> (16 * (k % 2))) as u16;
    let mut c = [[[0u32; 8]; 16]; 4];
    for k in 0..4 {
        let of = |warp: usize, c: &[[u32; 8]; 16]| Step {
            a: std::array::from_fn(|r| std::array::from_fn(|i| half(16 * warp + r, 16 * k + i))),
            b: std::array::from_fn(|r| std::array::from_fn(|i| half(64 + r, 16 * k + i))),
            c: *c,
        };
        let steps: Vec<Step> = c.iter().enumerate().map(|(warp, c)| of(warp, c)).collect();
        for (c, d) in c.iter_mut().zip(step(s, &steps, false)?.chunks(128)) {
            *c = Step::gathered(d);
        }
    }
    let lanes: Vec<Vec<u32>> = c.iter().map(|c| Step { c: *c, ..special() }.dealt()).collect();
    Ok((0..4).flat_map(|i| (0..128).map(move |thread| (i, thread))).map(|(i, t)| lanes[t / 32][4 * (t % 32) + i]).collect())
}
