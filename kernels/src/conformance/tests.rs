//! Twins against plain loops over whole matrices.

use super::*;
use crate::check::on_cuda;

fn wide(bits: u32) -> f32 {
    f32::from_bits(bits << 16)
}

/// A, B and C as matrices, dealt out to lanes by the layout that NVIDIA's manual gives.
#[test]
fn on_cuda_mma_is_the_law_s_chain() {
    on_cuda("conformance", |s| {
        let (a, b) = (words(1, 16 * 8).into_iter().map(bf16_pair).collect::<Vec<_>>(), words(2, 8 * 8));
        let b: Vec<u32> = b.into_iter().map(bf16_pair).collect();
        let a_at = |row: usize, k: usize| a[row * 8 + k / 2] >> (16 * (k % 2)) & 0xffff;
        let b_at = |k: usize, column: usize| b[column * 8 + k / 2] >> (16 * (k % 2)) & 0xffff;
        let c = |row: usize, column: usize| (row as f32 - 7.5) * 0.37 + column as f32;
        let pair = |low: u32, high: u32| low | high << 16;
        let (mut d, mut fa, mut fb) = (vec![], vec![], vec![]);
        for lane in 0..32 {
            let (g, t) = (lane / 4, lane % 4 * 2);
            d.extend([c(g, t), c(g, t + 1), c(g + 8, t), c(g + 8, t + 1)].map(f32::to_bits));
            for (row, k) in [(g, t), (g + 8, t), (g, t + 8), (g + 8, t + 8)] {
                fa.push(pair(a_at(row, k), a_at(row, k + 1)));
            }
            fb.extend([t, t + 8].map(|k| pair(b_at(k, g), b_at(k + 1, g))));
        }
        let got = run(s, "dump_mma", 32, 0, &[d, fa, fb].concat(), 128, &[])?;
        for lane in 0..32 {
            let (g, t) = (lane / 4, lane % 4 * 2);
            for (i, (row, column)) in [(g, t), (g, t + 1), (g + 8, t), (g + 8, t + 1)].into_iter().enumerate() {
                let chain = |acc: f32, k| wide(a_at(row, k)).mul_add(wide(b_at(k, column)), acc);
                let want = (0..16).fold(c(row, column), chain);
                assert_eq!(f32::from_bits(got[lane * 4 + i]), want, "D[{row}][{column}]");
            }
        }
        Ok::<(), runtime::Error>(())
    });
}

#[test]
fn on_cuda_copies_and_matrices_lie_where_they_should() {
    on_cuda("conformance", |s| {
        let input = words(3, 128);
        let element = |m: usize, r: usize, c: usize| input[m * 32 + r * 4 + c / 2] >> (16 * (c % 2)) & 0xffff;
        let got = run(s, "dump_ldmatrix", 32, 0, &input, 448, &[])?;
        for (first, count) in [(0, 1), (32, 2), (96, 4)] {
            for lane in 0..32 {
                for m in 0..count {
                    let (r, c) = (lane / 4, lane % 4 * 2);
                    let at = first + lane * count + m;
                    assert_eq!(got[at], element(m, r, c) | element(m, r, c + 1) << 16);
                    assert_eq!(got[224 + at], element(m, c, r) | element(m, c + 1, r) << 16);
                }
            }
        }
        let got = run(s, "dump_cp_async", 32, 1024, &input, 256, &[])?;
        assert_eq!(got[..128], input);
        let bytes = |w: &[u32]| w.iter().flat_map(|w| w.to_le_bytes()).collect::<Vec<u8>>();
        for (lane, (got, want)) in bytes(&got[128..]).chunks(16).zip(bytes(&input).chunks(16)).enumerate() {
            let copied = lane % 17;
            assert!(got[..copied] == want[..copied] && got[copied..].iter().all(|&b| b == 0), "lane {lane}");
        }
        let got = run(s, "dump_bar_sync", 96, 0, &input[..96], 96, &[])?;
        assert!((0..96).all(|i| got[i] == input[if i < 64 { 63 - i } else { i }]));
        let got = run(s, "dump_shuffle", 32, 0, &input[..64], 96, &[])?;
        for lane in 0..32 {
            let down = if lane + 5 < 32 { lane + 5 } else { lane };
            assert_eq!(got[lane], input[down]);
            assert_eq!(got[32 + lane], input[lane ^ 9]);
            assert_eq!(got[64 + lane], input[(input[32 + lane] % 32) as usize]);
        }
        Ok::<(), runtime::Error>(())
    });
}

#[test]
fn on_cuda_rounding_to_bf16_is_half_s() {
    on_cuda("conformance", |s| {
        let special = [0x3f808000, 0x3f818000, 0x7f7fffff, 0xff800000, 0x80000001, 0x007fffff, 0x00018000, 0x80000000];
        let input = [&words(4, 504)[..], &special].concat();
        let got = run(s, "dump_cvt", 32, 0, &input, 1024, &[Arg::U32(512)])?;
        for (i, &x) in input.iter().enumerate() {
            let want = |x: u32| match f32::from_bits(x) {
                v if v.is_nan() => 0x7fff,
                v => u32::from(half::bf16::from_f32(v).to_bits()),
            };
            assert_eq!(got[i], want(x), "{x:#x}");
            assert_eq!(got[512 + i], want(x) | want(input[i ^ 1]) << 16, "{x:#x}");
        }
        Ok::<(), runtime::Error>(())
    });
}
