//! Attention over segments, over a shared prefix, and over pages.

use super::super::number;
use super::Op;
use anyhow::{Context, Result};
use kernels::attention::{self, Heads, Params};
use kernels::decode_attention;
use kernels::kv_store::{self, PAGE, Pages};
use runtime::Buffer;

fn settings(op: &Op) -> Result<(Heads, Params)> {
    let e = &op.case.entry;
    let size = |field: &str| Ok::<_, anyhow::Error>(number(&e[field], field)? as usize);
    let heads = Heads { h: size("heads")?, k: size("kv_heads")?, d: size("head_dim")? };
    let optional = |field: &str| e[field].as_f64().unwrap_or(0.0);
    let scale = number(&e["scale"], "scale")? as f32;
    let causal = e["causal"].as_bool().unwrap_or(true);
    Ok((heads, Params { scale, softcap: optional("softcap") as f32, window: optional("window") as u32, causal }))
}

/// Rows of q, k and v side by side.
fn side_by_side(heads: Heads, q: &[f32], k: &[f32], v: &[f32]) -> Vec<f32> {
    let (wide, narrow) = (heads.h * heads.d, heads.k * heads.d);
    let rows = q.chunks(wide).zip(k.chunks(narrow)).zip(v.chunks(narrow));
    rows.flat_map(|((q, k), v)| [q, k, v].concat()).collect()
}

/// The columns of q, k and v of side-by-side rows.
fn apart(heads: Heads, rows: &[f32]) -> [Vec<f32>; 3] {
    let (q, k) = (heads.h * heads.d, heads.k * heads.d);
    [0..q, q..q + k, q + k..q + 2 * k]
        .map(|part| rows.chunks(heads.stride()).flat_map(|row| row[part.clone()].to_vec()).collect())
}

/// A forest of rows on the device with everything that forward leaves.
struct Attended {
    out: Buffer<f32>,
    m: Buffer<i32>,
    l: Buffer<f32>,
    qkv: Buffer<f32>,
    segments: Buffer<u32>,
}

impl Attended {
    fn forward(op: &Op, qkv: &[f32], segments: &[u32], heads: Heads, params: Params) -> Result<Attended> {
        let n = qkv.len() / heads.stride();
        let (out, m, l) = (op.output(n * heads.h * heads.d)?, op.s.zeros(n * heads.h)?, op.output(n * heads.h)?);
        let (qkv, segments) = (op.s.upload(qkv)?, op.s.upload(segments)?);
        attention::forward(&op.s, out.view(), m.view(), l.view(), qkv.view(), segments.view(), heads, params)?;
        Ok(Attended { out, m, l, qkv, segments })
    }

    /// log Σ exp = (M + log2 l)·ln 2
    fn lse(&self) -> Result<Vec<f32>> {
        let of = |(m, l): (&i32, &f32)| ((f64::from(*m) + f64::from(*l).log2()) * std::f64::consts::LN_2) as f32;
        Ok(self.m.to_vec()?.iter().zip(&self.l.to_vec()?).map(of).collect())
    }

    fn backward(&self, op: &Op, dout: &[f32], heads: Heads, params: Params) -> Result<Vec<f32>> {
        let (dqkv, dout) = (op.output(self.qkv.len())?, op.s.upload(dout)?);
        let (out, qkv, m, l) = (self.out.view(), self.qkv.view(), self.m.view(), self.l.view());
        attention::backward(&op.s, dqkv.view(), dout.view(), out, qkv, m, l, self.segments.view(), heads, params)?;
        Ok(dqkv.to_vec()?)
    }
}

/// Root segments that end at these rows.
fn roots(ends: &[u32]) -> Vec<u32> {
    ends.windows(2).flat_map(|w| [w[0], w[1] - w[0], 0, attention::ROOT]).collect()
}

pub fn segments(op: &mut Op) -> Result<()> {
    let (heads, params) = settings(op)?;
    let qkv = side_by_side(heads, &op.golden.input("q")?, &op.golden.input("k")?, &op.golden.input("v")?);
    let ends = op.golden.input_ids("cu_seqlens")?;
    let a = Attended::forward(op, &qkv, &roots(&ends), heads, params)?;
    op.close("out", &a.out.to_vec()?)?;
    op.close("lse", &a.lse()?)?;
    let dout = op.golden.input("g")?;
    let d = apart(heads, &a.backward(op, &dout, heads, params)?);
    ["d_q", "d_k", "d_v"].iter().zip(d).try_for_each(|(name, d)| op.close(name, &d))
}

/// A prompt and two answers that both go on from its end: one tree.
pub fn shared_prefix(op: &mut Op) -> Result<()> {
    let cuts = op.case.entry["cuts"].as_array().context("cuts")?.clone();
    for cut in &cuts {
        let at = |name: &str| format!("cut{cut}/{name}");
        let shape = op.golden.shape(&at("qp"))?;
        let [prompt, h, d] = shape[..] else { anyhow::bail!("qp is {shape:?}") };
        let heads = Heads { h, k: op.golden.shape(&at("kp"))?[1], d };
        let params = Params { scale: 1.0 / (d as f32).sqrt(), softcap: 0.0, window: 0, causal: true };
        let (mut qkv, mut dout, mut segments) = (Vec::new(), Vec::new(), Vec::new());
        for part in ["p", "a", "b"] {
            let [q, k, v, g] = ["q", "k", "v", "g"].map(|what| op.golden.input(&at(&format!("{what}{part}"))));
            let (start, q) = (dout.len() / (h * d), q?);
            let (pos0, parent) = if part == "p" { (0, attention::ROOT) } else { (prompt as u32, 0) };
            segments.extend([start as u32, (q.len() / (h * d)) as u32, pos0, parent]);
            qkv.extend(side_by_side(heads, &q, &k?, &v?));
            dout.extend(g?);
        }
        let a = Attended::forward(op, &qkv, &segments, heads, params)?;
        let (out, lse, [dq, dk, dv]) = (a.out.to_vec()?, a.lse()?, apart(heads, &a.backward(op, &dout, heads, params)?));
        for (part, segment) in ["p", "a", "b"].iter().zip(segments.chunks(4)) {
            let rows =
                |all: &[f32], width: usize| all[segment[0] as usize * width..(segment[0] + segment[1]) as usize * width].to_vec();
            for (name, all, width) in
                [("out_", &out, h * d), ("lse_", &lse, h), ("dq", &dq, h * d), ("dk", &dk, heads.k * d), ("dv", &dv, heads.k * d)]
            {
                // One tolerance for the three parts of a tensor: the prompt's only row has no gradient on its query.
                let mut atol: f64 = 0.0;
                for part in ["p", "a", "b"] {
                    atol = atol.max(op.golden.unit(&at(&format!("{name}{part}")))?);
                }
                op.golden.close(&at(&format!("{name}{part}")), &rows(all, width), atol)?;
            }
        }
    }
    Ok(())
}

/// The last rows of each sequence ask: over pages, and as the last rows of a whole forest.
pub fn decode(op: &mut Op) -> Result<()> {
    let (heads, params) = settings(op)?;
    let (q, k, v) = (op.golden.input("q")?, op.golden.input("k")?, op.golden.input("v")?);
    let (keys, queries) = (op.golden.input_ids("cu_k")?, op.golden.input_ids("cu_q")?);
    let wide = heads.h * heads.d;
    // Whole rows: a key's query is zero unless it is one of the last of its sequence.
    let mut all = vec![0.0; k.len() / (heads.k * heads.d) * wide];
    let mut asks = Vec::new();
    for (ends, of) in keys.windows(2).zip(queries.windows(2)) {
        for (i, from) in (of[0]..of[1]).enumerate() {
            let row = (ends[1] - (of[1] - of[0])) as usize + i;
            all[row * wide..(row + 1) * wide].copy_from_slice(&q[from as usize * wide..(from as usize + 1) * wide]);
            asks.push((row, ends[0]));
        }
    }
    let qkv = side_by_side(heads, &all, &k, &v);
    let a = Attended::forward(op, &qkv, &roots(&keys), heads, params)?;
    let pick = |all: Vec<f32>, width: usize| {
        asks.iter().flat_map(|(row, _)| all[row * width..(row + 1) * width].to_vec()).collect::<Vec<_>>()
    };
    op.close("out", &pick(a.out.to_vec()?, wide))?;
    op.close("lse", &pick(a.lse()?, heads.h))?;
    let over_pages = paged(op, &qkv, &keys, &asks, heads, params)?;
    ple_tests::tensors::same_bits("over pages and over rows", &over_pages, &pick(a.out.to_vec()?, wide))?;
    op.close("out", &over_pages)
}

/// Stores every row in the pages of its sequence, then asks for the last ones.
fn paged(op: &Op, qkv: &[f32], keys: &[u32], asks: &[(usize, u32)], heads: Heads, params: Params) -> Result<Vec<f32>> {
    let longest = keys.windows(2).map(|w| (w[1] - w[0]) as usize).max().unwrap_or(0);
    let per = longest.div_ceil(PAGE);
    let len = (keys.len() - 1) * per * heads.k * heads.d * PAGE;
    let (pages_k, pages_v) = (op.output(len)?, op.output(len)?);
    let pages = Pages { k: pages_k.view(), v: pages_v.view() };
    let slots = keys.windows(2).enumerate().flat_map(|(i, w)| (0..w[1] - w[0]).map(move |p| (i * per * PAGE) as u32 + p));
    let (rows, slots) = (op.s.upload(qkv)?, op.s.upload(&slots.collect::<Vec<_>>())?);
    kv_store::forward(&op.s, pages, rows.view(), slots.view(), heads)?;
    let (mut asked, mut pieces, mut first, mut pos) = (Vec::new(), Vec::new(), vec![0], Vec::new());
    for (row, start) in asks {
        let sequence = keys.iter().position(|k| k == start).context("a query of no sequence")?;
        let position = *row as u32 - start;
        asked.extend_from_slice(&qkv[row * heads.stride()..(row + 1) * heads.stride()]);
        for block in 0..=position / PAGE as u32 {
            let to = (position + 1 - block * PAGE as u32).min(PAGE as u32);
            pieces.extend([(sequence * per) as u32 + block, block, 0, to]);
        }
        first.push(pieces.len() as u32 / 4);
        pos.push(position);
    }
    let (asked, pieces, first, pos) = (op.s.upload(&asked)?, op.s.upload(&pieces)?, op.s.upload(&first)?, op.s.upload(&pos)?);
    let out = op.output(pos.len() * heads.h * heads.d)?;
    decode_attention::forward(&op.s, out.view(), asked.view(), pages, pieces.view(), first.view(), pos.view(), heads, params)?;
    Ok(out.to_vec()?)
}
