//! GFLOP/s of attention forward and backward and of decoding on this machine: `cargo run --release -p ple-kernels --example
//! attention_speed [threads [case]]`. Counted are 4·d FLOPs forward and 10·d backward per visible pair of query and key and per query head.

use ple_kernels::attention::{self, Heads, Params, ROOT};
use ple_kernels::decode_attention;
use ple_kernels::kv_store::{self, PAGE, Pages};
use runtime::{Isa, Result, Stream};
use std::time::Instant;

/// Seconds of processor time that this process has used (Linux; 0 elsewhere).
fn processor() -> f64 {
    let text = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let ticks = text.rsplit(')').next().unwrap_or("").split_whitespace().skip(11).take(2).filter_map(|t| t.parse::<f64>().ok());
    ticks.sum::<f64>() / 100.0
}

/// What one call takes.
struct Time {
    /// Wall clock, the best of all repeats.
    best: f64,
    /// Processor seconds of all threads, the mean: what a busy machine leaves comparable.
    work: f64,
}

fn time(mut run: impl FnMut() -> Result<()>) -> Result<Time> {
    run()?;
    {
        use std::sync::atomic::*;
        static N: AtomicUsize = AtomicUsize::new(0);
        let n = N.fetch_add(1, Ordering::Relaxed);
        if std::env::var("ONLY").is_ok_and(|w| w != n.to_string()) {
            return Ok(Time { best: 1.0, work: 1.0 });
        }
    }
    let (mut best, mut repeats, start, work) = (f64::INFINITY, 0, Instant::now(), processor());
    while start.elapsed().as_secs_f64() < 1.0 {
        let at = Instant::now();
        run()?;
        best = best.min(at.elapsed().as_secs_f64());
        repeats += 1;
    }
    Ok(Time { best, work: (processor() - work) / repeats as f64 })
}

/// GFLOP/s by the wall clock, per processor second, and the best time.
fn rate(flops: f64, time: &Time) -> String {
    format!("{:.1} GFLOP/s, {:.1} per core ({:.2} ms)", 1e-9 * flops / time.best, 1e-9 * flops / time.work, 1e3 * time.best)
}

/// Values in −1…1 from a small generator.
fn values(len: usize) -> Vec<f32> {
    let mut state = 1u64;
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

/// `count` sequences of `len` tokens each.
fn training(s: &Stream, count: usize, len: usize, heads: Heads) -> Result<()> {
    let n = count * len;
    let params = Params { scale: 1.0 / (heads.d as f32).sqrt(), softcap: 0.0, window: 0, causal: true };
    let segments: Vec<u32> = (0..count).flat_map(|i| [(i * len) as u32, len as u32, 0, ROOT]).collect();
    let (qkv, dout) = (s.upload(&values(n * heads.stride()))?, s.upload(&values(n * heads.h * heads.d))?);
    let (out, dqkv) = (s.zeros::<f32>(n * heads.h * heads.d)?, s.zeros::<f32>(n * heads.stride())?);
    let (m, l, segments) = (s.zeros::<i32>(n * heads.h)?, s.zeros::<f32>(n * heads.h)?, s.upload(&segments)?);
    let (m, l, segments) = (m.view(), l.view(), segments.view());
    let forward = time(|| attention::forward(s, out.view(), m, l, qkv.view(), segments, heads, params))?;
    let backward =
        time(|| attention::backward(s, dqkv.view(), dout.view(), out.view(), qkv.view(), m, l, segments, heads, params))?;
    let pairs = (count * heads.h * len * (len + 1) / 2 * heads.d) as f64;
    let what = format!("{count} x {len} h {} k {} d {}", heads.h, heads.k, heads.d);
    println!("{what}: forward {}; backward {}", rate(4.0 * pairs, &forward), rate(10.0 * pairs, &backward));
    Ok(())
}

/// `count` sequences that each ask at position `len − 1`.
fn decoding(s: &Stream, count: usize, len: usize, heads: Heads) -> Result<()> {
    let params = Params { scale: 1.0 / (heads.d as f32).sqrt(), softcap: 0.0, window: 0, causal: true };
    let blocks = len.div_ceil(PAGE);
    let size = count * blocks * heads.k * heads.d * PAGE;
    let (k, v) = (s.zeros::<f32>(size)?, s.zeros::<f32>(size)?);
    let pages = Pages { k: k.view(), v: v.view() };
    let prompt = s.upload(&values(count * len * heads.stride()))?;
    let slot = |i: usize| (i / len * blocks * PAGE + i % len) as u32;
    let slots = s.upload(&(0..count * len).map(slot).collect::<Vec<u32>>())?;
    let store = time(|| kv_store::forward(s, pages, prompt.view(), slots.view(), heads))?;
    let piece = |i: usize| [i as u32, (i % blocks) as u32, 0, (len - i % blocks * PAGE).min(PAGE) as u32];
    let pieces = s.upload(&(0..count * blocks).flat_map(piece).collect::<Vec<u32>>())?;
    let first = s.upload(&(0..=count).map(|i| (i * blocks) as u32).collect::<Vec<u32>>())?;
    let pos = s.upload(&vec![len as u32 - 1; count])?;
    let (qkv, out) = (s.upload(&values(count * heads.stride()))?, s.zeros::<f32>(count * heads.h * heads.d)?);
    let (q, o) = (qkv.view(), out.view());
    let seconds = time(|| decode_attention::forward(s, o, q, pages, pieces.view(), first.view(), pos.view(), heads, params))?;
    let (flops, bytes) = ((4 * count * heads.h * len * heads.d) as f64, (8 * count * heads.k * len * heads.d) as f64);
    let what = format!("decode {count} x {len} h {} k {} d {}", heads.h, heads.k, heads.d);
    let (read, written) = (1e-9 * bytes / seconds.best, 2e-9 * bytes / store.best);
    println!("{what}: {}, {read:.1} GB/s; store {written:.1} GB/s", rate(flops, &seconds));
    Ok(())
}

fn main() -> Result<()> {
    let all = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = std::env::args().nth(1).and_then(|t| t.parse().ok()).unwrap_or(all);
    let s = Stream::cpu(threads, Isa::from_env()?);
    println!("{} threads, {}", threads, s.backend().info().arch);
    type Case = fn(&Stream) -> Result<()>;
    let cases: [Case; 8] = [
        |s| training(s, 8, 256, Heads { h: 6, k: 6, d: 48 }),
        |s| training(s, 1, 1024, Heads { h: 8, k: 8, d: 64 }),
        |s| training(s, 1, 1024, Heads { h: 8, k: 2, d: 64 }),
        |s| training(s, 1, 1024, Heads { h: 4, k: 1, d: 128 }),
        |s| training(s, 8, 256, Heads { h: 8, k: 4, d: 8 }),
        |s| decoding(s, 16, 300, Heads { h: 6, k: 6, d: 48 }),
        |s| decoding(s, 16, 300, Heads { h: 8, k: 2, d: 64 }),
        |s| decoding(s, 64, 1000, Heads { h: 8, k: 4, d: 8 }),
    ];
    let only: Option<usize> = std::env::args().nth(2).and_then(|t| t.parse().ok());
    cases.iter().enumerate().filter(|(i, _)| only.is_none_or(|o| o == *i)).try_for_each(|(_, case)| case(&s))
}
