//! Decoding against f64, and its bits against those of attention over the same path.

use super::*;
use crate::attention::tests::fixtures::{File, cases, folder, interleave, settings};
use crate::attention::tests::{CAUSAL, forest_of, normal, relative, rows_of, run_forward, wide};
use crate::check::on_cuda;
use crate::kv_store;
use runtime::{Buffer, Isa};

/// A forest whose keys and values lie in pages of its own: every segment begins a page of its own wherever it starts.
struct Paged {
    k: Buffer<f32>,
    v: Buffer<f32>,
    /// Per segment: pages in order of its blocks.
    pages: Vec<Vec<u32>>,
    segments: Vec<[u32; 4]>,
    heads: Heads,
}

impl Paged {
    fn store(s: &Stream, qkv: &[f32], segments: &[[u32; 4]], heads: Heads) -> Result<Paged> {
        let (mut pages, mut slots, mut next) = (Vec::new(), Vec::new(), 0);
        // Pages are handed out from both ends, so that a path's pages lie anywhere.
        let total = segments.iter().map(|s| (s[2] + s[1]).div_ceil(64) - s[2] / 64).sum::<u32>() + 1;
        for &[_, len, pos0, _] in segments {
            let blocks = pos0 / 64..(pos0 + len).div_ceil(64);
            let own: Vec<u32> = blocks
                .map(|_| {
                    next += 1;
                    if next % 2 == 0 { next / 2 } else { total - 1 - next / 2 }
                })
                .collect();
            slots.extend((pos0..pos0 + len).map(|pos| own[(pos / 64 - pos0 / 64) as usize] * 64 + pos % 64));
            pages.push(own);
        }
        let empty = vec![f32::NAN; total as usize * heads.k * heads.d * 64];
        let (k, v) = (s.upload(&empty)?, s.upload(&empty)?);
        let (qkv, slots) = (s.upload(qkv)?, s.upload(&slots)?);
        kv_store::forward(s, Pages { k: k.view(), v: v.view() }, qkv.view(), slots.view(), heads)?;
        Ok(Paged { k, v, pages, segments: segments.to_vec(), heads })
    }

    /// Pieces of the path of segment `i`.
    fn pieces(&self, i: usize) -> Vec<Piece> {
        let [_, len, pos0, parent] = self.segments[i];
        let mut pieces = if parent == crate::attention::ROOT { Vec::new() } else { self.pieces(parent as usize) };
        for (page, block) in self.pages[i].iter().zip(pos0 / 64..) {
            pieces.push([*page, block, pos0.max(block * 64) - block * 64, (pos0 + len).min(block * 64 + 64) - block * 64]);
        }
        pieces
    }

    /// Decodes the given rows of the batch as queries, all in one call.
    fn decode(&self, s: &Stream, qkv: &[f32], rows: &[usize], params: Params) -> Result<Vec<f32>> {
        let (mut pieces, mut first, mut pos, mut queries) = (Vec::new(), vec![0], Vec::new(), Vec::new());
        for &row in rows {
            let i = self.segments.iter().position(|s| (s[0]..s[0] + s[1]).contains(&(row as u32))).expect("a row");
            pieces.extend(self.pieces(i));
            first.push(pieces.len() as u32);
            pos.push(self.segments[i][2] + row as u32 - self.segments[i][0]);
            queries.extend_from_slice(&qkv[row * self.heads.stride()..(row + 1) * self.heads.stride()]);
        }
        let out = s.upload(&vec![f32::NAN; rows.len() * self.heads.h * self.heads.d])?;
        let (qkv, pieces) = (s.upload(&queries)?, s.upload(pieces.as_flattened())?);
        let (first, pos) = (s.upload(&first)?, s.upload(&pos)?);
        let pages = Pages { k: self.k.view(), v: self.v.view() };
        forward(s, out.view(), qkv.view(), pages, pieces.view(), first.view(), pos.view(), self.heads, params)?;
        out.to_vec()
    }
}

impl Paged {
    /// Attends the rows of some successive segments: `out` and `l`.
    fn prefill(&self, s: &Stream, qkv: &[f32], chosen: std::ops::Range<usize>, params: Params) -> Result<(Vec<f32>, Vec<f32>)> {
        let (mut pieces, mut first, mut segments) = (Vec::new(), vec![0], Vec::new());
        let start = self.segments[chosen.start][0];
        for i in chosen.clone() {
            let [row, len, pos0, parent] = self.segments[i];
            let inside = parent != crate::attention::ROOT && chosen.contains(&(parent as usize));
            let parent = if inside { parent - chosen.start as u32 } else { crate::attention::ROOT };
            segments.push([row - start, len, pos0, parent]);
            pieces.extend(self.pieces(i));
            first.push(pieces.len() as u32);
        }
        let last = self.segments[chosen.end - 1];
        let rows = start as usize..(last[0] + last[1]) as usize;
        let (n, h, d) = (rows.len(), self.heads.h, self.heads.d);
        let qkv = s.upload(&qkv[rows.start * self.heads.stride()..rows.end * self.heads.stride()])?;
        let (out, l, m) = (s.upload(&vec![f32::NAN; n * h * d])?, s.upload(&vec![f32::NAN; n * h])?, s.zeros::<i32>(n * h)?);
        let (pieces, first) = (s.upload(pieces.as_flattened())?, s.upload(&first)?);
        let (segments, pages) = (s.upload(segments.as_flattened())?, Pages { k: self.k.view(), v: self.v.view() });
        let (pieces, first, segments) = (pieces.view(), first.view(), segments.view());
        prefill(s, out.view(), m.view(), l.view(), qkv.view(), segments, pages, pieces, first, self.heads, params)?;
        Ok((out.to_vec()?, l.to_vec()?))
    }
}

const CASES: [(Heads, Params); 4] = [
    (Heads { h: 2, k: 1, d: 16 }, CAUSAL),
    (Heads { h: 4, k: 2, d: 8 }, Params { scale: 3.0, softcap: 0.0, window: 70, causal: true }),
    (Heads { h: 5, k: 1, d: 20 }, Params { scale: 0.3, softcap: 2.0, window: 0, causal: true }),
    (Heads { h: 1, k: 1, d: 48 }, Params { scale: 90.0, softcap: 0.0, window: 3, causal: true }),
];

#[test]
fn decoding_gives_the_bits_of_attention() -> Result<()> {
    // The children start inside pages: at 70, 95 and 64 + 6.
    let tree = forest_of(&[(70, -1), (25, 0), (40, 1), (1, 1), (66, 0)]);
    for (heads, params) in CASES {
        let n = rows_of(&tree);
        let qkv = normal(n * heads.stride(), 21);
        for isa in Isa::all() {
            let whole = run_forward(&Stream::cpu(1, isa), &qkv, &tree, heads, params)?.out;
            for threads in [1, 2, 4] {
                let s = Stream::cpu(threads, isa);
                let paged = Paged::store(&s, &qkv, &tree, heads)?;
                for batch in [1, 3, 17, 64] {
                    let rows: Vec<usize> = (0..batch).map(|i| (i * 37 + batch * 11) % n).collect();
                    let got = paged.decode(&s, &qkv, &rows, params)?;
                    for (row, got) in rows.iter().zip(got.chunks(heads.h * heads.d)) {
                        let want = &whole[row * heads.h * heads.d..][..heads.h * heads.d];
                        let equal = got.iter().zip(want).all(|(g, w)| g.to_bits() == w.to_bits());
                        assert!(equal, "{isa} {threads} {heads:?} batch {batch} row {row}: {got:?} {want:?}");
                    }
                }
            }
        }
    }
    Ok(())
}

#[test]
fn on_cuda_decoding_and_prefilling_give_the_bits_of_attention_on_the_cpu() {
    let tree = forest_of(&[(70, -1), (25, 0), (20, 1), (1, 1)]);
    let params = Params { scale: 0.3, softcap: 2.0, window: 70, causal: true };
    for (heads, params) in [(Heads { h: 2, k: 1, d: 16 }, CAUSAL), (Heads { h: 4, k: 2, d: 20 }, params)] {
        let (n, width) = (rows_of(&tree), heads.h * heads.d);
        let qkv = normal(n * heads.stride(), 25);
        let whole = run_forward(&Stream::cpu(1, Isa::portable()), &qkv, &tree, heads, params).unwrap();
        let same = |what: &str, got: &[f32], want: &[f32]| crate::linear::tests::same(&format!("{what} {heads:?}"), got, want);
        on_cuda("decode_attention", |s| {
            let paged = Paged::store(s, &qkv, &tree, heads)?;
            for rows in [vec![0, 69, 70, 115], vec![94, 114, 63, 64, 1, 95, 95]] {
                let got = paged.decode(s, &qkv, &rows, params)?;
                for (row, got) in rows.iter().zip(got.chunks(width)) {
                    same(&format!("row {row}"), got, &whole.out[row * width..(row + 1) * width]);
                }
            }
            for chosen in [1..4, 0..4, 2..3] {
                let rows = tree[chosen.start][0] as usize..(tree[chosen.end - 1][0] + tree[chosen.end - 1][1]) as usize;
                let (out, l) = paged.prefill(s, &qkv, chosen, params)?;
                same("prefill", &out, &whole.out[rows.start * width..rows.end * width]);
                same("prefill l", &l, &whole.l[rows.start * heads.h..rows.end * heads.h]);
            }
            Result::Ok(())
        });
    }
}

#[test]
fn on_cuda_pieces_that_hold_nothing_make_nan() {
    let heads = Heads { h: 1, k: 1, d: 4 };
    on_cuda("decode_attention", |s| {
        let (k, v, qkv) = (s.upload(&[1.0f32; 512])?, s.upload(&[1.0f32; 512])?, s.upload(&[1.0f32; 36])?);
        let pages = Pages { k: k.view(), v: v.view() };
        // A whole path; one with a gap; pages, pieces and positions that are not there.
        let pieces = s.upload(&[1, 0, 0, 3, 1, 0, 0, 2, 2, 0, 0, 3u32])?;
        let (first, pos) = (s.upload(&[0u32, 1, 2, 9])?, s.upload(&[2u32, 2, u32::MAX])?);
        let out = s.upload(&[0.0f32; 12])?;
        forward(s, out.view(), qkv.view(), pages, pieces.view(), first.view(), pos.view(), heads, CAUSAL)?;
        let out = out.to_vec()?;
        assert!(out[..4] == [1.0; 4] && out[4..].iter().all(|v| v.is_nan()), "{out:?}");
        Result::Ok(())
    });
}

/// Every segment but the first as a batch of its own, whose path begins in pages alone; then all of them at once.
#[test]
fn prefilling_from_pages_gives_the_bits_of_attention() -> Result<()> {
    let tree = forest_of(&[(70, -1), (25, 0), (40, 1), (1, 1), (66, 0)]);
    for (heads, params) in CASES {
        let (n, width, stride) = (rows_of(&tree), heads.h * heads.d, heads.stride());
        let qkv = normal(n * stride, 23);
        for isa in Isa::all() {
            let whole = run_forward(&Stream::cpu(1, isa), &qkv, &tree, heads, params)?;
            for threads in [1, 4] {
                let s = Stream::cpu(threads, isa);
                let paged = Paged::store(&s, &qkv, &tree, heads)?;
                for chosen in [0..1, 1..2, 2..3, 3..4, 1..5, 0..5] {
                    let got = paged.prefill(&s, &qkv, chosen.clone(), params)?;
                    let first = tree[chosen.start][0] as usize;
                    for (name, got, want) in
                        [("out", got.0, &whole.out[first * width..]), ("l", got.1, &whole.l[first * heads.h..])]
                    {
                        let equal = got.iter().zip(want).all(|(g, w)| g.to_bits() == w.to_bits());
                        assert!(equal, "{isa} {threads} {heads:?} segments {chosen:?}: {name}: {got:?} {want:?}");
                    }
                }
            }
        }
    }
    Ok(())
}

#[test]
fn decoding_agrees_with_f64() -> Result<()> {
    let (s, tree) = (Stream::cpu(2, Isa::detect()), forest_of(&[(70, -1), (130, 0)]));
    for (heads, params) in CASES {
        let qkv = normal(200 * heads.stride(), 22);
        let paged = Paged::store(&s, &qkv, &tree, heads)?;
        let (k, v) = (wide(&paged.k.to_vec()?), wide(&paged.v.to_vec()?));
        let got = paged.decode(&s, &qkv, &[3, 70, 199], params)?;
        for (row, got) in [3, 70, 199].into_iter().zip(got.chunks(heads.h * heads.d)) {
            let query = wide(&qkv[row * heads.stride()..(row + 1) * heads.stride()]);
            let want = reference::forward(&query, &k, &v, &paged.pieces(usize::from(row >= 70)), row, heads, params);
            // A score of size t is rounded by t·6e-8, which is the relative error of its weight: at scale 90 scores reach 1000.
            let limit = if params.scale > 1.0 { 2e-5 } else { 1e-6 };
            assert!(relative(got, &want) < limit, "{heads:?} {params:?} row {row}: {:e}", relative(got, &want));
        }
    }
    Ok(())
}

#[test]
fn fixtures_through_pages_and_through_segments() -> Result<()> {
    let Some(folder) = folder() else { return Ok(()) };
    let found = cases(&folder, "attn_decode");
    assert!(found.len() >= 6, "{} cases", found.len());
    let s = Stream::cpu(2, Isa::detect());
    for case in found {
        let (heads, params) = settings(&case);
        let file = File::open(&folder, case["file"].as_str().expect("file"));
        let (ends_q, ends_k) = (file.i32("cu_q"), file.i32("cu_k"));
        let (q, width) = (file.f32("q"), heads.h * heads.d);
        // Only the last rows of a sequence have queries; the others ask with zeros and are not looked at.
        let mut all = vec![0.0; ends_k[ends_k.len() - 1] as usize * width];
        let mut asked = Vec::new();
        for (i, ends) in ends_q.windows(2).enumerate() {
            for back in (1..=ends[1] - ends[0]).rev() {
                let (row, from) = ((ends_k[i + 1] - back) as usize, (ends[1] - back) as usize);
                all[row * width..(row + 1) * width].copy_from_slice(&q[from * width..(from + 1) * width]);
                asked.push(row);
            }
        }
        let qkv = interleave(&all, &file.f32("k"), &file.f32("v"), heads);
        let lens: Vec<(u32, i32)> = ends_k.windows(2).map(|w| ((w[1] - w[0]) as u32, -1)).collect();
        let segments = forest_of(&lens);
        let saved = run_forward(&s, &qkv, &segments, heads, params)?;
        let paged = Paged::store(&s, &qkv, &segments, heads)?.decode(&s, &qkv, &asked, params)?;
        let packed: Vec<f32> = asked.iter().flat_map(|row| &saved.out[row * width..(row + 1) * width]).copied().collect();
        let lse: Vec<f32> = asked.iter().flat_map(|row| saved.lse()[row * heads.h..(row + 1) * heads.h].to_vec()).collect();
        let errors = [
            relative(&paged, &wide(&file.f32("out"))),
            relative(&packed, &wide(&file.f32("out"))),
            relative(&lse, &wide(&file.f32("lse"))),
        ];
        assert!(errors.iter().all(|e| *e < 1e-6), "{}: {errors:?}", case["name"]);
    }
    Ok(())
}

#[test]
fn invalid_pieces_are_errors() -> Result<()> {
    let (s, heads) = (Stream::cpu(1, Isa::detect()), Heads { h: 2, k: 1, d: 8 });
    let (k, v) = (s.zeros::<f32>(3 * 8 * 64)?, s.zeros::<f32>(3 * 8 * 64)?);
    let pages = Pages { k: k.view(), v: v.view() };
    let (out, qkv) = (s.zeros::<f32>(16)?, s.zeros::<f32>(32)?);
    let run = |pieces: &[Piece], first: [u32; 2], pos: u32, window: u32| -> Result<()> {
        let (pieces, first, pos) = (s.upload(pieces.as_flattened())?, s.upload(&first)?, s.upload(&[pos])?);
        let params = Params { window, ..CAUSAL };
        forward(&s, out.view(), qkv.view(), pages, pieces.view(), first.view(), pos.view(), heads, params)
    };
    let fails = |pieces: &[Piece], first: [u32; 2], pos: u32, window: u32, text: &str| {
        let error = run(pieces, first, pos, window).expect_err(text).to_string();
        assert!(error.contains(text), "wanted {text:?}, got {error:?}");
    };
    let whole = [[2, 0, 0, 64], [0, 1, 0, 6], [1, 1, 6, 20]];
    run(&whole, [0, 3], 83, 0)?;
    run(&whole[1..], [0, 2], 83, 20)?;
    fails(&whole[1..], [0, 2], 83, 21, "no page holds position 63");
    fails(&whole, [0, 3], 84, 0, "no page holds position 84");
    fails(&whole, [0, 4], 83, 0, "pieces [0, 4] of 3");
    fails(&whole, [3, 0], 83, 0, "pieces [3, 0] of 3");
    fails(&whole, [0, 0], 0, 0, "no page holds position 0");
    fails(&[[3, 0, 0, 64]], [0, 1], 5, 0, "page 3 of 3");
    fails(&[[0, 0, 0, 65]], [0, 1], 5, 0, "offsets 0 to 65");
    fails(&[[0, 0, 6, 6]], [0, 1], 5, 0, "offsets 6 to 6");
    fails(&[whole[1], whole[0]], [0, 2], 69, 1, "piece 1: position 0 after 70");
    fails(&[whole[0], [0, 1, 0, 7], [1, 1, 6, 20]], [0, 3], 80, 0, "position 70 after 71");
    fails(&[whole[0], [0, 1, 0, 5], [1, 1, 6, 20]], [0, 3], 80, 0, "no page holds position 69");
    fails(&[[0, u32::MAX, 0, 64]], [0, 1], 5, 0, "no page holds position 0");
    let (m, l) = (s.zeros::<i32>(2)?, s.zeros::<f32>(2)?);
    let prefilled = |pieces: &[Piece], pos0: u32, params: Params| -> Result<()> {
        let (pieces, first) = (s.upload(pieces.as_flattened())?, s.upload(&[0, pieces.len() as u32])?);
        let (segments, first, pieces) = (s.upload(&[0, 1, pos0, crate::attention::ROOT])?, first.view(), pieces.view());
        let (out, qkv) = (out.view(), qkv.view());
        prefill(&s, out, m.view(), l.view(), qkv, segments.view(), pages, pieces, first, heads, params)
    };
    prefilled(&whole, 83, CAUSAL)?;
    for (pieces, pos0, params, text) in [
        (&whole[..], 84, CAUSAL, "no page holds position 84"),
        (&whole[1..], 83, CAUSAL, "no page holds position 0"),
        (&whole[..], 83, Params { causal: false, ..CAUSAL }, "causal order"),
    ] {
        let error = prefilled(pieces, pos0, params).expect_err(text).to_string();
        assert!(error.contains(text), "wanted {text:?}, got {error:?}");
    }
    let mut short = pages;
    short.v = v.view().slice(0..100)?;
    let (p, f, z) = (s.upload(&[0u32, 0, 0, 64])?, s.upload(&[0u32, 1])?, s.upload(&[5u32])?);
    let error = forward(&s, out.view(), qkv.view(), short, p.view(), f.view(), z.view(), heads, CAUSAL);
    assert!(error.expect_err("short pages").to_string().contains("pages.v: wanted 1536"));
    let error = forward(&s, k.view().slice(0..16)?, qkv.view(), pages, p.view(), f.view(), z.view(), heads, CAUSAL);
    assert!(error.expect_err("overlap").to_string().contains("overlaps"));
    Ok(())
}
