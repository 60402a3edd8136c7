//! How near the linear room comes to the arithmetic peak: measures a loop of independent fused multiply-adds and, beside it, every
//! product at the training shapes. Prints GFLOP/s and the share of the peak of as many threads; the best of several runs each.
//!
//! `cargo run --release -p ple-kernels --example gemm_peak [M]`

use ple_kernels::linear::{Lora, Part, backward, backward_lora, backward_weight, forward};
use ple_kernels::logprob::{self, Kept, Scaling};
use ple_kernels::panels::{Panels, packed_len};
use runtime::{DType, Isa, Result, Stream, View};
use std::time::Instant;

/// A name, its FLOPs, and what is timed.
type Call<'a> = (&'a str, f64, &'a dyn Fn() -> Result<()>);

/// Best time of `runs`, in seconds.
fn best(runs: usize, mut f: impl FnMut() -> Result<()>) -> Result<f64> {
    (0..runs).try_fold(f64::MAX, |best, _| {
        let start = Instant::now();
        f()?;
        Ok(best.min(start.elapsed().as_secs_f64()))
    })
}

/// GFLOP/s of 24 independent chains per thread, all threads at once.
fn peak(s: &Stream) -> Result<f64> {
    #[inline(always)]
    fn chains<S: ple_kernels::cpu::Lanes>(steps: usize, out: &mut f32) {
        let mut acc = [S::splat(1.0); 24];
        let x = S::splat(0.999);
        for _ in 0..steps {
            for a in &mut acc {
                *a = S::fma(*a, x, x);
            }
        }
        *out = acc.into_iter().map(S::sum).sum();
    }
    ple_kernels::per_isa! { fn on(steps: usize, out: &mut f32) = chains }
    let pool = s.pool("peak")?;
    let steps = 400_000;
    let time = best(8, || {
        pool.run(pool.threads(), 1, &|_, scratch| on(pool.isa(), steps, &mut scratch[0]));
        Ok(())
    })?;
    Ok((pool.threads() * steps * 24 * 32) as f64 / time / 1e9)
}

fn shape(s: &Stream, m: usize, k: usize, n: usize, rank: usize) -> Result<()> {
    let fill = |len: usize| s.upload(&(0..len).map(|i| ((i * 37) % 64) as f32 / 64.0 - 0.5).collect::<Vec<_>>());
    let (x, w, dy, spans) = (fill(m * k)?, fill(packed_len(n, k))?, fill(m * n)?, s.upload(&[0u32, m as u32])?);
    let (y, dx, dw) = (s.zeros::<f32>(m * n)?, s.zeros::<f32>(m * k)?, s.zeros::<f32>(packed_len(n, k))?);
    let (a, b, lora_s, ds) = (fill(rank * k)?, fill(n * rank)?, s.zeros::<f32>(m * rank)?, s.zeros::<f32>(m * rank)?);
    let (da, db) = (s.zeros::<f32>(rank * k)?, s.zeros::<f32>(n * rank)?);
    let weight = Panels::new(w.view(), n, k)?;
    let off = [Part { weight, bias: None, lora: None }];
    let on = [Part { lora: Some(Lora { rank, scale: 2.0, a: a.view(), b: b.view() }), ..off[0] }];
    let none = View::none(DType::F32);
    let flops = (2 * m * k * n) as f64;
    let low = (2 * m * rank * (k + n)) as f64;
    let runs = if flops > 2e10 { 3 } else { 12 };
    let rows: [Call<'_>; 6] = [
        ("forward", flops, &|| forward(s, y.view(), none, x.view(), &off)),
        ("+ LoRA", flops + low, &|| forward(s, y.view(), lora_s.view(), x.view(), &on)),
        ("dX", flops, &|| backward(s, dx.view(), none, dy.view(), &off)),
        ("+ LoRA", flops + low, &|| backward(s, dx.view(), ds.view(), dy.view(), &on)),
        ("dA dB", low, &|| {
            let views = (x.view(), lora_s.view(), ds.view(), dy.view());
            backward_lora(s, &[da.view()], &[db.view()], views.0, views.1, views.2, views.3, &on, spans.view())
        }),
        ("dW", flops, &|| backward_weight(s, &[dw.view()], &[None], x.view(), dy.view(), &[n], spans.view())),
    ];
    print!("{m:5} x {k:4} -> {n:5} |");
    for (name, flops, run) in rows {
        let before = peak(s)?;
        let rate = flops / best(runs, run)? / 1e9;
        print!(" {name} {rate:5.1} {:3.0}% |", 100.0 * rate / before.max(peak(s)?));
    }
    println!();
    Ok(())
}

/// The head with its softmax: FLOPs of the products only.
fn head(s: &Stream, m: usize, c: usize, v: usize) -> Result<()> {
    let fill = |len: usize| s.upload(&(0..len).map(|i| ((i * 37) % 64) as f32 / 256.0 - 0.125).collect::<Vec<_>>());
    let (x, w, dx, dw) = (fill(m * c)?, fill(packed_len(v, c))?, s.zeros::<f32>(m * c)?, s.zeros::<f32>(packed_len(v, c))?);
    let rows = s.upload(&(0..m as u32).collect::<Vec<_>>())?;
    let targets = s.upload(&(0..m).map(|i| (i * 37 % v) as u32).collect::<Vec<_>>())?;
    let (logp, dlogp) = (s.zeros::<f32>(m)?, fill(m)?);
    let [z, sum, max] = [s.zeros::<f32>(m)?, s.zeros::<f32>(m)?, s.zeros::<f32>(m)?];
    let kept = Kept { z_target: z.view(), sum: sum.view(), max: max.view() };
    let (x, rows, targets, panels) = (x.view(), rows.view(), targets.view(), Panels::new(w.view(), v, c)?);
    let scaling = Scaling { softcap: 0.0, inv_temperature: 1.0 };
    let flops = (2 * m * c * v) as f64;
    let calls: [Call<'_>; 3] = [
        ("forward", flops, &|| logprob::forward(s, logp.view(), kept, x, rows, targets, panels, scaling)),
        ("dX", 2.0 * flops, &|| logprob::backward(s, dx.view(), dlogp.view(), kept, x, rows, targets, panels, scaling)),
        ("dW", 2.0 * flops, &|| logprob::backward_weight(s, dw.view(), dlogp.view(), kept, x, rows, targets, panels, scaling)),
    ];
    print!("{m:5} x {c:4} -> {v:5} | logprob |");
    for (name, flops, run) in calls {
        let before = peak(s)?;
        let rate = flops / best(3, run)? / 1e9;
        print!(" {name} {rate:5.1} {:3.0}% |", 100.0 * rate / before.max(peak(s)?));
    }
    println!();
    Ok(())
}

/// One row: how fast weights stream.
fn decode(s: &Stream, m: usize, k: usize, n: usize) -> Result<()> {
    let (x, y, y16) = (s.zeros::<f32>(m * k)?, s.zeros::<f32>(m * n)?, s.zeros::<f32>(m * n)?);
    let (w, w16) = (s.zeros::<f32>(packed_len(n, k))?, s.zeros::<half::bf16>(packed_len(n, k))?);
    let part = |data: View<'_>| -> Result<f64> {
        let bytes = (data.len() * data.dtype().size()) as f64;
        let part = [Part { weight: Panels::new(data, n, k)?, bias: None, lora: None }];
        let out = if data.dtype() == DType::F32 { &y } else { &y16 };
        Ok(bytes / best(30, || forward(s, out.view(), View::none(DType::F32), x.view(), &part))? / 1e9)
    };
    println!("{m:5} x {k:4} -> {n:5} | f32 {:5.1} GB/s | bf16 {:5.1} GB/s", part(w.view())?, part(w16.view())?);
    Ok(())
}

fn main() -> Result<()> {
    let m = std::env::args().nth(1).and_then(|m| m.parse().ok()).unwrap_or(2048);
    for threads in [1, 2] {
        let s = Stream::cpu(threads, Isa::from_env()?);
        println!("{threads} threads, {}, peak {:.1} GFLOP/s", s.pool("peak")?.isa(), peak(&s)?);
        for (k, n) in [(288, 288), (288, 768), (768, 288), (768, 2048), (2048, 768), (288, 32000), (768, 32000)] {
            shape(&s, m, k, n, 8)?;
        }
        head(&s, m, 288, 32000)?;
        head(&s, m, 768, 32000)?;
        for (m, k, n) in
            [(1, 288, 768), (1, 768, 2048), (1, 768, 32000), (2, 768, 32000), (4, 768, 32000), (8, 768, 32000), (32, 768, 32000)]
        {
            decode(&s, m, k, n)?;
        }
    }
    Ok(())
}
