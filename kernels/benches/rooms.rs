//! Speed of every room at the sizes we train: `cargo bench -p ple-kernels [-- FILTER]`. Prints device, threads, the measured FMA peak,
//! and per row time, GFLOP/s (or GB/s) and share of the peak. Best of several runs: the machine is shared.

use ple_kernels as kernels;

use kernels::attention::{Heads, Params};
use kernels::bench::{multiply_adds, noise};
use kernels::panels::{Panels, packed_len};
use kernels::{adamw, attention, decode_attention, embedding, kv_store, linear, logprob, rms_norm, rope, sample, score, swiglu};
use runtime::{Buffer, DType, Isa, Result, Stream, View};
use std::time::Instant;

struct Bench {
    stream: Stream,
    peak: f64,
    filter: Option<String>,
}

impl Bench {
    fn new(threads: usize, filter: Option<String>) -> Bench {
        let stream = Stream::cpu(threads, Isa::detect());
        let mut bench = Bench { stream, peak: 0.0, filter };
        bench.peak = bench.measure_peak();
        bench
    }

    fn measure_peak(&self) -> f64 {
        self.stream.host().map_or(f64::NAN, |pool| multiply_adds(pool) / 1e9)
    }

    /// Best time of at least three runs and 0.3 s.
    fn row(&mut self, name: &str, flops: f64, bytes: f64, mut run: impl FnMut(&Stream) -> Result<()>) -> Result<()> {
        if self.filter.as_ref().is_some_and(|f| !name.contains(f.as_str())) {
            return Ok(());
        }
        run(&self.stream)?;
        let (mut best, mut spent, mut runs) = (f64::MAX, 0.0, 0);
        while runs < 3 || (spent < 0.3 && runs < 1000) {
            let start = Instant::now();
            run(&self.stream)?;
            let time = start.elapsed().as_secs_f64();
            (best, spent, runs) = (best.min(time), spent + time, runs + 1);
        }
        self.peak = self.peak.max(if runs < 6 { self.measure_peak() } else { 0.0 });
        let speed = flops / best / 1e9;
        let share = 100.0 * speed / self.peak;
        println!(
            "{name:<44} {:>10.3} ms {speed:>8.1} GFLOP/s {share:>5.1} % of FMA peak {:>7.1} GB/s",
            best * 1e3,
            bytes / best / 1e9
        );
        Ok(())
    }

    fn up(&self, n: usize, seed: u32) -> Result<Buffer<f32>> {
        self.stream.upload(&noise(n, seed))
    }
}

const M: usize = 2048;
const RANK: usize = 8;

fn linears(b: &mut Bench) -> Result<()> {
    for (k, n) in [(288, 288), (288, 768), (768, 288), (768, 768), (768, 2048), (2048, 768)] {
        for rows in [M, 8, 1] {
            let (x, y) = (b.up(rows * k, 1)?, b.up(rows * n, 2)?);
            let (w, a, bb) = (b.up(packed_len(n, k), 3)?, b.up(RANK * k, 4)?, b.up(n * RANK, 5)?);
            let (s, ds) = (b.up(rows * RANK, 6)?, b.up(rows * RANK, 7)?);
            let (da, db) = (b.up(RANK * k, 8)?, b.up(n * RANK, 9)?);
            let examples = b.stream.upload(&[0, rows as u32])?;
            let lora = linear::Lora { rank: RANK, scale: 2.0, a: a.view(), b: bb.view() };
            let base = linear::Part { weight: Panels::new(w.view(), n, k)?.into(), bias: None, lora: None };
            let tuned = [linear::Part { lora: Some(lora), ..base }];
            let (flops, extra) = ((2 * rows * n * k) as f64, (2 * rows * RANK * (n + k)) as f64);
            let bytes = 4.0 * (n * k + rows * (n + k)) as f64;
            let shape = format!("{rows}x{k}x{n}");
            let none = View::none(DType::F32);
            b.row(&format!("linear {shape}"), flops, bytes, |q| linear::forward(q, y.view(), none, x.view(), &[base]))?;
            b.row(&format!("linear+lora {shape}"), flops + extra, bytes, |q| {
                linear::forward(q, y.view(), s.view(), x.view(), &tuned)
            })?;
            if rows == M {
                b.row(&format!("linear dX+lora {shape}"), flops + extra, bytes, |q| {
                    linear::backward(q, x.view(), ds.view(), y.view(), &tuned)
                })?;
                b.row(&format!("linear dA dB {shape}"), extra, bytes, |q| {
                    linear::backward_lora(
                        q,
                        &[da.view()],
                        &[db.view()],
                        x.view(),
                        s.view(),
                        ds.view(),
                        y.view(),
                        &tuned,
                        examples.view(),
                    )
                })?;
                b.row(&format!("linear dW {shape}"), flops, bytes, |q| {
                    linear::backward_weight(q, &[w.view()], &[None], x.view(), y.view(), &[n], examples.view())
                })?;
            }
        }
    }
    Ok(())
}

fn heads(b: &mut Bench) -> Result<()> {
    for c in [288, 768] {
        let (v, m) = (32000, 1024);
        let (x, dx, w) = (b.up(m * c, 1)?, b.up(m * c, 2)?, b.up(packed_len(v, c), 3)?);
        let (logp, dlogp, kept) = (b.up(m, 4)?, b.up(m, 5)?, [b.up(m, 6)?, b.up(m, 7)?, b.up(m, 8)?, b.up(m * c, 9)?]);
        let rows: Vec<u32> = (0..m as u32).collect();
        let (rows, targets) = (b.stream.upload(&rows)?, b.stream.upload(&rows)?);
        let head = Panels::new(w.view(), v, c)?;
        let [z_target, sum, max, way] = kept.each_ref().map(|k| k.view());
        let kept = logprob::Kept { z_target, sum, max, way };
        let scored = logprob::Kept { way: View::none(DType::F32), ..kept };
        let scaling = logprob::Scaling { softcap: 0.0, inv_temperature: 1.0 };
        let flops = (2 * m * v * c) as f64;
        let bytes = 4.0 * (v * c) as f64;
        b.row(&format!("logprob {m}x{c}x{v}"), flops, bytes, |q| {
            logprob::forward(q, logp.view(), scored, x.view(), rows.view(), targets.view(), head.into(), scaling)
        })?;
        b.row(&format!("logprob+way {m}x{c}x{v}"), 2.0 * flops, 2.0 * bytes, |q| {
            logprob::forward(q, logp.view(), kept, x.view(), rows.view(), targets.view(), head.into(), scaling)
        })?;
        b.row(&format!("logprob dX {m}x{c}"), (2 * m * c) as f64, 8.0 * (m * c) as f64, |q| {
            logprob::backward(q, dx.view(), dlogp.view(), kept, rows.view(), scaling)
        })?;
        let (out, w) = (b.up(m, 1)?, b.up(c, 2)?);
        b.row(&format!("score {m}x{c}"), (2 * m * c) as f64, 4.0 * (m * c) as f64, |q| {
            score::forward(q, out.view(), x.view(), rows.view(), w.view())
        })?;
    }
    Ok(())
}

fn attentions(b: &mut Bench) -> Result<()> {
    for (h, k, d, len, count) in [(6, 6, 48, 256, 8), (12, 12, 64, 256, 8), (12, 4, 64, 1024, 2)] {
        let (n, heads) = (len * count, Heads { h, k, d });
        let params = Params { scale: 1.0 / (d as f32).sqrt(), softcap: 0.0, window: 0, causal: true };
        let width = (h + 2 * k) * d;
        let (qkv, dqkv) = (b.up(n * width, 1)?, b.up(n * width, 2)?);
        let (out, dout, l) = (b.up(n * h * d, 3)?, b.up(n * h * d, 4)?, b.up(n * h, 5)?);
        let m = b.stream.zeros::<i32>(n * h)?;
        let segments: Vec<u32> = (0..count as u32).flat_map(|i| [i * len as u32, len as u32, 0, attention::ROOT]).collect();
        let segments = b.stream.upload(&segments)?;
        let flops = (4 * count * h * d * len * (len + 1) / 2) as f64;
        let bytes = 4.0 * (n * width + n * h * d) as f64;
        let shape = format!("{count}x{len} h{h} k{k} d{d}");
        b.row(&format!("attention {shape}"), flops, bytes, |q| {
            attention::forward(q, out.view(), m.view(), l.view(), qkv.view(), segments.view(), heads, params)
        })?;
        b.row(&format!("attention backward {shape}"), 2.5 * flops, 2.0 * bytes, |q| {
            attention::backward(
                q,
                dqkv.view(),
                dout.view(),
                out.view(),
                qkv.view(),
                m.view(),
                l.view(),
                segments.view(),
                heads,
                params,
            )
        })?;
        let blocks = len / 64;
        let (keys, values) = (b.up(count * blocks * k * d * 64, 6)?, b.up(count * blocks * k * d * 64, 7)?);
        let pages = kv_store::Pages { k: keys.view(), v: values.view() };
        let slots: Vec<u32> = (0..n as u32).collect();
        let slots = b.stream.upload(&slots)?;
        b.row(&format!("kv_store {shape}"), 0.0, 8.0 * (n * k * d) as f64, |q| {
            kv_store::forward(q, pages, qkv.view(), slots.view(), heads)
        })?;
        let pieces: Vec<u32> = (0..(count * blocks) as u32).flat_map(|p| [p, p % blocks as u32, 0, 64]).collect();
        let first: Vec<u32> = (0..=count).map(|i| (i * blocks) as u32).collect();
        let pos = vec![len as u32 - 1; count];
        let (pieces, first, pos) = (b.stream.upload(&pieces)?, b.stream.upload(&first)?, b.stream.upload(&pos)?);
        let (o, q1) = (b.up(count * h * d, 8)?, b.up(count * width, 9)?);
        let (flops, bytes) = ((4 * count * h * d * len) as f64, 8.0 * (count * len * k * d) as f64);
        b.row(&format!("decode_attention {shape}"), flops, bytes, |q| {
            decode_attention::forward(q, o.view(), q1.view(), pages, pieces.view(), first.view(), pos.view(), heads, params)
        })?;
    }
    Ok(())
}

fn elementwise(b: &mut Bench) -> Result<()> {
    let (n, c, f, d) = (M, 288, 768, 48);
    let (x, y, z, r, w) = (b.up(n * c, 1)?, b.up(n * c, 2)?, b.up(n * c, 3)?, b.up(n, 4)?, b.up(c, 5)?);
    let gb = |n: usize| 4.0 * n as f64;
    let sum = b.up(n * c, 10)?;
    b.row("rms_norm + residual 2048x288", (5 * n * c) as f64, gb(4 * n * c), |q| {
        rms_norm::forward(q, y.view(), r.view(), sum.view(), x.view(), Some(z.view()), w.view(), 1e-5, 0.0)
    })?;
    b.row("rms_norm backward 2048x288", (8 * n * c) as f64, gb(3 * n * c), |q| {
        rms_norm::backward(q, z.view(), y.view(), x.view(), r.view(), w.view(), None, 0.0)
    })?;
    let (gate_up, act) = (b.up(n * 2 * f, 6)?, b.up(n * f, 7)?);
    let dgate_up = b.up(n * 2 * f, 8)?;
    b.row("swiglu 2048x768", (20 * n * f) as f64, gb(3 * n * f), |q| swiglu::forward(q, act.view(), gate_up.view(), f))?;
    b.row("swiglu backward 2048x768", (25 * n * f) as f64, gb(5 * n * f), |q| {
        swiglu::backward(q, dgate_up.view(), act.view(), gate_up.view(), f)
    })?;
    let table = b.stream.upload(&rope::table(n, d, 10000.0, None))?;
    let pos: Vec<u32> = (0..n as u32).collect();
    let pos = b.stream.upload(&pos)?;
    b.row("rope 2048 x 6 heads of 48", (6 * n * c) as f64, gb(2 * n * c), |q| {
        rope::forward(q, x.view(), pos.view(), table.view(), 6, d, c)
    })?;
    let v = 32000;
    let wte = b.up(packed_len(v, c), 9)?;
    b.row("embedding 2048x288 of 32000", 0.0, gb(2 * n * c), |q| {
        embedding::forward(q, y.view(), pos.view(), Panels::new(wte.view(), v, c)?, 1.0)
    })?;
    let p = b.up(1 << 20, 1)?;
    let (m, mut v2, g) = (b.up(1 << 20, 2)?, b.stream.zeros::<f32>(1 << 20)?, b.up(1 << 20, 4)?);
    v2.write(&[1e-3])?;
    let params = adamw::Params { lr: 1e-3, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01, step: 10, grad_scale: 1.0 };
    b.row("adamw 1M", (12 << 20) as f64, gb(7 << 20), |q| adamw::step(q, p.view(), m.view(), v2.view(), g.view(), &params))?;
    let range = 0..1usize << 20;
    b.row("grad_norm 1M", (2 << 20) as f64, gb(1 << 20), |q| {
        adamw::grad_norm(q, g.view(), std::slice::from_ref(&range)).map(|_| ())
    })?;
    let rows = 32;
    let (logits, lp) = (b.up(rows * 32000, 1)?, b.up(rows, 2)?);
    let (ids, draws) = (b.stream.zeros::<u32>(rows)?, b.stream.upload(&vec![123_456_789u32; 2 * rows])?);
    for (name, sampling) in [
        ("sample 32x32000", sample::Sampling { temperature: 0.85, ..Default::default() }),
        ("sample top-p 0.9 32x32000", sample::Sampling { temperature: 0.85, top_p: 0.9, ..Default::default() }),
    ] {
        b.row(name, 0.0, gb(rows * 32000), |q| {
            sample::forward(q, ids.view(), lp.view(), logits.view(), draws.view(), View::none(DType::U32), &sampling)
        })?;
    }
    Ok(())
}

fn main() -> Result<()> {
    let filter = std::env::args().skip(1).find(|a| !a.starts_with('-'));
    for threads in [1, std::thread::available_parallelism().map_or(1, usize::from)] {
        let mut bench = Bench::new(threads, filter.clone());
        let info = bench.stream.backend().info();
        println!("\n{} {}, {threads} threads, FMA peak {:.0} GFLOP/s", info.name, info.arch, bench.peak);
        linears(&mut bench)?;
        heads(&mut bench)?;
        attentions(&mut bench)?;
        elementwise(&mut bench)?;
    }
    Ok(())
}
