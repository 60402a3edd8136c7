//! The calls that are measured: every room at the sizes of an 8B and a 0.5B model on accelerators, of a 15M one on the CPU.

use crate::kv_store::{self, PAGE};
use crate::linear::{self, Lora, Part};
use crate::weight::{self, Layout};
use crate::{adamw, attention, decode_attention, embedding, gelu, head_norm, layer_norm, logprob, rms_norm, rope, score, swiglu};
use half::bf16;
use runtime::{Buffer, DType, Element, Result, Stream, View};

/// A prepared call; it owns its operands.
pub type Call = Box<dyn Fn(&Stream) -> Result<()>>;

/// Makes a call.
type Prepare = Box<dyn Fn(&Stream) -> Result<Call>>;

/// One call at one size.
pub struct Work {
    /// The room.
    pub room: &'static str,
    /// The function and its size.
    pub name: String,
    /// Of one call.
    pub flops: f64,
    /// That one call must read and write.
    pub bytes: f64,
    /// The call waits for the device.
    pub waits: bool,
    /// The name of the call of the same room that does the same without an adapter.
    pub base: Option<String>,
    /// Makes the call with operands of its own.
    pub prepare: Prepare,
}

impl Work {
    fn new(
        room: &'static str,
        name: String,
        [flops, bytes]: [f64; 2],
        prepare: impl Fn(&Stream) -> Result<Call> + 'static,
    ) -> Work {
        Work { room, name, flops, bytes, waits: false, base: None, prepare: Box::new(prepare) }
    }
}

/// Sizes of one model: rows of a batch, hidden, feed-forward, query heads, key heads, head dim, vocabulary.
#[derive(Clone, Copy)]
pub(super) struct Shape {
    rows: usize,
    c: usize,
    f: usize,
    h: usize,
    k: usize,
    d: usize,
    v: usize,
}

const LARGE: [Shape; 2] = [
    Shape { rows: 16_384, c: 4096, f: 14_336, h: 32, k: 8, d: 128, v: 128_256 },
    Shape { rows: 16_384, c: 896, f: 4864, h: 14, k: 2, d: 64, v: 151_936 },
];
const SMALL: [Shape; 1] = [Shape { rows: 2048, c: 288, f: 768, h: 6, k: 6, d: 48, v: 32_000 }];

/// Sizes for a device whose speed nobody asks: whether every work runs.
#[cfg(test)]
pub(super) const TINY: [Shape; 1] = [Shape { rows: 20, c: 64, f: 72, h: 2, k: 1, d: 16, v: 100 }];

/// Everything that is measured on this device. A room without a kernel there says so when it is called.
pub fn works(s: &Stream) -> Vec<Work> {
    of(s, if s.host().is_some() { &SMALL } else { &LARGE })
}

/// Every work at these sizes: in f32, and on a device also in bf16.
pub(super) fn of(s: &Stream, shapes: &[Shape]) -> Vec<Work> {
    let mut works: Vec<Work> =
        shapes.iter().flat_map(|shape| [elementwise::<f32>(*shape), products(*shape), decoding(*shape)]).flatten().collect();
    if s.host().is_none() {
        works.extend(shapes.iter().flat_map(|shape| [elementwise::<bf16>(*shape), tensor_cores(*shape)]).flatten());
    }
    works.extend(optimizer());
    works
}

/// What activations are stored in.
trait Acts: Element {
    const NAME: &'static str;
    fn stored(v: f32) -> Self;
}

impl Acts for f32 {
    const NAME: &'static str = "f32";
    fn stored(v: f32) -> f32 {
        v
    }
}

impl Acts for bf16 {
    const NAME: &'static str = "bf16";
    fn stored(v: f32) -> bf16 {
        bf16::from_f32(v)
    }
}

/// Uniform in [−1, 1), repeatable.
pub fn noise(n: usize, seed: u32) -> Vec<f32> {
    let mut x = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
    let mut step = || {
        x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (x >> 8) as f32 / 8_388_608.0 - 1.0
    };
    (0..n).map(|_| step()).collect()
}

fn up<T: Acts>(s: &Stream, n: usize, seed: u32) -> Result<Buffer<T>> {
    s.upload(&noise(n, seed).into_iter().map(T::stored).collect::<Vec<_>>())
}

fn ids(s: &Stream, n: usize, limit: usize) -> Result<Buffer<u32>> {
    s.upload(&(0..n).map(|i| (i * 7919 % limit) as u32).collect::<Vec<_>>())
}

/// Norm, rotation, activation, embedding: bound by memory.
fn elementwise<T: Acts>(Shape { rows: n, c, f, h, k, d, v }: Shape) -> Vec<Work> {
    let (nc, nf, nr) = ((n * c) as f64, (n * f) as f64, (n * (h + k) * d) as f64);
    let norm = move |s: &Stream| -> Result<Call> {
        let (x, delta, w) = (up::<T>(s, n * c, 1)?, up::<T>(s, n * c, 2)?, up::<f32>(s, c, 3)?);
        let (y, sum, rstd) = (s.zeros::<T>(n * c)?, s.zeros::<T>(n * c)?, s.zeros::<f32>(n)?);
        Ok(Box::new(move |s| {
            let (y, rstd, sum) = (y.view(), rstd.view(), sum.view());
            rms_norm::forward(s, y, rstd, sum, x.view(), Some(delta.view()), w.view(), 1e-5, 0.0)
        }))
    };
    let norm_back = move |s: &Stream| -> Result<Call> {
        let (x, dy, dx) = (up::<T>(s, n * c, 1)?, up::<T>(s, n * c, 2)?, s.zeros::<T>(n * c)?);
        let (w, rstd) = (up::<f32>(s, c, 3)?, up::<f32>(s, n, 4)?);
        Ok(Box::new(move |s| rms_norm::backward(s, dx.view(), dy.view(), x.view(), rstd.view(), w.view(), None, 0.0)))
    };
    let turn = move |s: &Stream| -> Result<Call> {
        let stride = (h + 2 * k) * d;
        let (x, pos, table) = (up::<T>(s, n * stride, 1)?, ids(s, n, 2048)?, s.upload(&rope::table(2048, d, 1e4, None))?);
        Ok(Box::new(move |s| rope::forward(s, x.view(), pos.view(), table.view(), h + k, d, stride)))
    };
    let act = move |s: &Stream| -> Result<Call> {
        let (x, y) = (up::<T>(s, 2 * n * f, 1)?, s.zeros::<T>(n * f)?);
        Ok(Box::new(move |s| swiglu::forward(s, y.view(), x.view(), f)))
    };
    let act_back = move |s: &Stream| -> Result<Call> {
        let (x, dy, dx) = (up::<T>(s, 2 * n * f, 1)?, up::<T>(s, n * f, 2)?, s.zeros::<T>(2 * n * f)?);
        Ok(Box::new(move |s| swiglu::backward(s, dx.view(), dy.view(), x.view(), f)))
    };
    let look_up = move |s: &Stream| -> Result<Call> {
        let (x, tokens, table) = (s.zeros::<T>(n * c)?, ids(s, n, v)?, s.zeros::<T>(Layout::of(s, &[]).len(&[v], c))?);
        Ok(Box::new(move |s| {
            let laid = Layout::of(s, &[]).weight(table.view(), &[v], c, 0)?;
            embedding::forward(s, x.view(), tokens.view(), laid, 1.0)
        }))
    };
    let nv = (n * (h + 2 * k) * d) as f64;
    let layer = move |s: &Stream| -> Result<Call> {
        let (x, y, stats) = (up::<T>(s, n * c, 1)?, s.zeros::<T>(n * c)?, s.zeros::<f32>(2 * n)?);
        let (w, b) = (up::<f32>(s, c, 3)?, up::<f32>(s, c, 4)?);
        Ok(Box::new(move |s| {
            let none = View::none(T::DTYPE);
            layer_norm::forward(s, y.view(), stats.view(), none, x.view(), None, [w.view(), b.view()], 1e-5)
        }))
    };
    let heads = move |s: &Stream| -> Result<Call> {
        let (x, y) = (up::<T>(s, n * (h + 2 * k) * d, 1)?, s.zeros::<T>(n * (h + 2 * k) * d)?);
        let (rstd, q, key) = (s.zeros::<f32>(n * (h + k))?, up::<f32>(s, d, 3)?, up::<f32>(s, d, 4)?);
        let shape = head_norm::Shape { queries: h, keys: k, d, stride: (h + 2 * k) * d };
        Ok(Box::new(move |s| head_norm::forward(s, y.view(), rstd.view(), x.view(), [q.view(), key.view()], shape, 1e-6, 0.0)))
    };
    let curve = move |s: &Stream| -> Result<Call> {
        let (x, y) = (up::<T>(s, n * f, 1)?, s.zeros::<T>(n * f)?);
        Ok(Box::new(move |s| gelu::forward(s, y.view(), x.view(), f, gelu::Curve::Tanh)))
    };
    let gated = move |s: &Stream| -> Result<Call> {
        let (x, y) = (up::<T>(s, 2 * n * f, 1)?, s.zeros::<T>(n * f)?);
        Ok(Box::new(move |s| gelu::forward(s, y.view(), x.view(), f, gelu::Curve::Tanh)))
    };
    let scored = move |s: &Stream| -> Result<Call> {
        let (x, w, rows, out) = (up::<T>(s, n * c, 1)?, up::<f32>(s, c, 3)?, ids(s, n, n)?, s.zeros::<f32>(n)?);
        Ok(Box::new(move |s| score::forward(s, out.view(), x.view(), rows.view(), w.view())))
    };
    let (name, b) = (T::NAME, size_of::<T>() as f64);
    vec![
        Work::new("rms_norm", format!("forward + residual {name} {n}x{c}"), [5.0 * nc, 4.0 * b * nc], norm),
        Work::new("rms_norm", format!("backward {name} {n}x{c}"), [9.0 * nc, 3.0 * b * nc], norm_back),
        Work::new("rope", format!("forward {name} {n}x{}x{d}", h + k), [3.0 * nr, 2.0 * b * nr], turn),
        Work::new("swiglu", format!("forward {name} {n}x{f}"), [20.0 * nf, 3.0 * b * nf], act),
        Work::new("swiglu", format!("backward {name} {n}x{f}"), [26.0 * nf, 5.0 * b * nf], act_back),
        Work::new("layer_norm", format!("forward {name} {n}x{c}"), [8.0 * nc, 2.0 * b * nc], layer),
        Work::new("head_norm", format!("forward {name} {n}x{}x{d}", h + k), [5.0 * nr, 2.0 * b * nv], heads),
        Work::new("gelu", format!("forward {name} {n}x{f}"), [25.0 * nf, 2.0 * b * nf], curve),
        Work::new("gelu", format!("gated {name} {n}x{f}"), [25.0 * nf, 3.0 * b * nf], gated),
        Work::new("score", format!("forward {name} {n}x{c}"), [2.0 * nc, b * nc], scored),
        Work::new("embedding", format!("forward {name} {n}x{c} of {v}"), [0.0, 2.0 * b * nc], look_up),
    ]
}

/// Products with weights, the head and attention: bound by arithmetic.
fn products(Shape { rows: m, c, f, h, k, d, v }: Shape) -> Vec<Work> {
    let mut works = Vec::new();
    for (columns, outputs) in [(c, (h + 2 * k) * d), (c, 2 * f), (f, c)] {
        for rank in [0, 8] {
            let flops = (2 * m * (columns * outputs + rank * (columns + outputs))) as f64;
            let bytes = 4.0 * (columns * outputs + m * (columns + outputs)) as f64;
            let prepare = move |s: &Stream| linear_call(s, m, columns, outputs, rank);
            let size = format!("f32 {m}x{columns}x{outputs}");
            let base = (rank > 0).then(|| format!("forward {size}"));
            let name = if rank == 0 { "forward" } else { "forward + LoRA 8" };
            works.push(Work { base, ..Work::new("linear", format!("{name} {size}"), [flops, bytes], prepare) });
        }
    }
    let (heads, len) = (attention::Heads { h, k, d }, 256);
    let flops = (4 * m * h * d * (len + 1) / 2) as f64;
    let bytes = 4.0 * (m * (2 * h + 2 * k) * d) as f64;
    works.push(Work::new("attention", format!("forward f32 {m} rows of {len} h{h} k{k} d{d}"), [flops, bytes], move |s| {
        let (qkv, out, l) = (up::<f32>(s, m * (h + 2 * k) * d, 1)?, s.zeros::<f32>(m * h * d)?, s.zeros::<f32>(m * h)?);
        let (most, starts) = (s.zeros::<i32>(m * h)?, (0..m / len).map(|i| (i * len) as u32));
        let segments: Vec<u32> = starts.flat_map(|at| [at, len as u32, 0, attention::ROOT]).collect();
        let segments = s.upload(&segments)?;
        let params = attention::Params { scale: 1.0 / (d as f32).sqrt(), softcap: 0.0, window: 0, causal: true };
        Ok(Box::new(move |s| {
            attention::forward(s, out.view(), most.view(), l.view(), qkv.view(), segments.view(), heads, params)
        }))
    }));
    let rows = m / 2;
    let (flops, bytes) = ((2 * rows * v * c) as f64, 4.0 * (v * c + rows * c) as f64);
    works.push(Work::new("logprob", format!("forward f32 {rows}x{c}x{v}"), [flops, bytes], move |s| {
        let (x, w, logp) = (up::<f32>(s, rows * c, 1)?, s.zeros::<f32>(Layout::of(s, &[]).len(&[v], c))?, s.zeros::<f32>(rows)?);
        let kept = [s.zeros::<f32>(rows)?, s.zeros::<f32>(rows)?, s.zeros::<f32>(rows)?];
        let (entries, targets) = (ids(s, rows, rows)?, ids(s, rows, v)?);
        Ok(Box::new(move |s| {
            let [z_target, sum, max] = [0, 1, 2].map(|i| kept[i].view());
            let kept = logprob::Kept { z_target, sum, max, way: View::none(DType::F32) };
            let (head, scaling) =
                (Layout::of(s, &[]).weight(w.view(), &[v], c, 0)?, logprob::Scaling { softcap: 0.0, inv_temperature: 1.0 });
            logprob::forward(s, logp.view(), kept, x.view(), entries.view(), targets.view(), head, scaling)
        }))
    }));
    works
}

/// One token of every running sequence of 256 positions, and storing a prompt's keys and values.
fn decoding(Shape { rows, h, k, d, .. }: Shape) -> Vec<Work> {
    let (count, blocks, width) = (rows.div_ceil(PAGE), 4, (h + 2 * k) * d);
    let (heads, len) = (attention::Heads { h, k, d }, blocks * PAGE);
    let params = attention::Params { scale: 1.0 / (d as f32).sqrt(), softcap: 0.0, window: 0, causal: true };
    let flops = (4 * count * h * d * len) as f64;
    let bytes = 4.0 * (count * (2 * k * d * len + (2 * h + 2 * k) * d)) as f64;
    let pages =
        move |s: &Stream| -> Result<[Buffer<f32>; 2]> { Ok([up(s, count * k * d * len, 2)?, up(s, count * k * d * len, 3)?]) };
    let attend = move |s: &Stream| -> Result<Call> {
        let ([keys, values], qkv, out) = (pages(s)?, up::<f32>(s, count * width, 1)?, s.zeros::<f32>(count * h * d)?);
        let pieces: Vec<u32> = (0..count * blocks).flat_map(|p| [p as u32, (p % blocks) as u32, 0, PAGE as u32]).collect();
        let first: Vec<u32> = (0..=count).map(|i| (i * blocks) as u32).collect();
        let (pieces, first, pos) = (s.upload(&pieces)?, s.upload(&first)?, s.upload(&vec![len as u32 - 1; count])?);
        Ok(Box::new(move |s| {
            let pages = kv_store::Pages { k: keys.view(), v: values.view() };
            decode_attention::forward(s, out.view(), qkv.view(), pages, pieces.view(), first.view(), pos.view(), heads, params)
        }))
    };
    let store = move |s: &Stream| -> Result<Call> {
        let ([keys, values], qkv, slots) = (pages(s)?, up::<f32>(s, rows * width, 1)?, ids(s, rows, rows)?);
        Ok(Box::new(move |s| {
            kv_store::forward(s, kv_store::Pages { k: keys.view(), v: values.view() }, qkv.view(), slots.view(), heads)
        }))
    };
    let size = format!("f32 {count}x{len} h{h} k{k} d{d}");
    vec![
        Work::new("decode_attention", format!("forward {size}"), [flops, bytes], attend),
        Work::new("kv_store", format!("forward f32 {rows} k{k} d{d}"), [0.0, 16.0 * (rows * k * d) as f64], store),
    ]
}

fn linear_call(s: &Stream, m: usize, k: usize, n: usize, rank: usize) -> Result<Call> {
    let (x, y, w) = (up::<f32>(s, m * k, 1)?, s.zeros::<f32>(m * n)?, up::<f32>(s, Layout::of(s, &[]).len(&[n], k), 2)?);
    let (a, b, kept) = (up::<f32>(s, rank * k, 3)?, up::<f32>(s, n * rank, 4)?, s.zeros::<f32>(m * rank)?);
    Ok(Box::new(move |s| {
        let lora = (rank > 0).then(|| Lora { rank, scale: 2.0, a: a.view(), b: b.view() });
        let part = Part { weight: Layout::of(s, &[]).weight(w.view(), &[n], k, 0)?, bias: None, lora };
        let kept = if rank > 0 { kept.view() } else { View::none(DType::F32) };
        linear::forward(s, y.view(), kept, x.view(), &[part])
    }))
}

/// Modules in bf16 with an adapter, forward and back, by the room and by the vendor's library.
fn tensor_cores(Shape { rows: m, c, f, h, k, d, .. }: Shape) -> Vec<Work> {
    let mut works = Vec::new();
    for (columns, outputs) in [(c, (h + 2 * k) * d), (h * d, c), (c, 2 * f), (f, c)] {
        for (way, library) in [("own", false), ("library", true)] {
            for back in [false, true] {
                for rank in [0, 8] {
                    let flops = (2 * m * (columns * outputs + rank * (columns + outputs))) as f64;
                    let bytes = 2.0 * (columns * outputs + m * (columns + outputs)) as f64;
                    let prepare = move |s: &Stream| mma_call(s, [m, columns, outputs, rank], library, back);
                    let (verb, size) = (if back { "backward" } else { "forward" }, format!("{way} bf16 {m}x{columns}x{outputs}"));
                    let name = if rank == 0 { format!("{verb} {size}") } else { format!("{verb} + LoRA 8 {size}") };
                    let base = (rank > 0).then(|| format!("{verb} {size}"));
                    works.push(Work { base, ..Work::new("linear", name, [flops, bytes], prepare) });
                }
            }
        }
    }
    works
}

fn mma_call(s: &Stream, [m, k, n, rank]: [usize; 4], library: bool, back: bool) -> Result<Call> {
    let (layout, tail) = (Layout::of(s, &[rank]), weight::strip(rank));
    let (w, adapter) = (up::<bf16>(s, layout.len(&[n], k), 1)?, up::<f32>(s, rank * (k + n), 3)?);
    let ld = move |n: usize| if library { linear::library::pitch(n, tail) } else { n };
    let (x, y) = (up::<bf16>(s, m * ld(k), 2)?, up::<bf16>(s, m * ld(n), 4)?);
    let (out, strips) = (s.zeros::<bf16>(m * if back { k } else { n })?, s.zeros::<bf16>(m * tail)?);
    Ok(Box::new(move |s| {
        let (a, b) = (adapter.view().slice(0..rank * k)?, adapter.view().slice(rank * k..rank * (k + n))?);
        let lora = (rank > 0).then_some(Lora { rank, scale: 2.0, a, b });
        let parts = [Part { weight: layout.weight(w.view(), &[n], k, 0)?, bias: None, lora }];
        match (library, back) {
            (false, false) => linear::forward(s, out.view(), strips.view(), x.view(), &parts),
            (false, true) => linear::backward(s, out.view(), strips.view(), y.view(), &parts),
            (true, false) => linear::library::forward(s, out.view(), strips.view(), x.view().apart(k, ld(k))?, &parts, None),
            (true, true) => linear::library::backward(s, out.view(), strips.view(), y.view().apart(n, ld(n))?, &parts),
        }
    }))
}

/// A step over the adapters of the 8B model's size in miniature, and the norm before it.
fn optimizer() -> Vec<Work> {
    let n = 4 << 20;
    let params = adamw::Params { lr: 1e-3, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01, step: 10, grad_scale: 1.0 };
    let step = move |s: &Stream| -> Result<Call> {
        let (p, m, v, g) = (up::<f32>(s, n, 1)?, up::<f32>(s, n, 2)?, s.zeros::<f32>(n)?, up::<f32>(s, n, 4)?);
        Ok(Box::new(move |s| adamw::step(s, p.view(), m.view(), v.view(), g.view(), &params)))
    };
    let norm = move |s: &Stream| -> Result<Call> {
        let (g, tensors) = (up::<f32>(s, n, 1)?, (0..n / 4096).map(|i| 4096 * i..4096 * (i + 1)).collect::<Vec<_>>());
        Ok(Box::new(move |s| adamw::grad_norm(s, g.view(), &tensors).map(|_| ())))
    };
    let of = |name: &str| format!("{name} f32 {n}");
    let (elements, norm_bytes) = (n as f64, 4.0 * n as f64);
    vec![
        Work::new("adamw", of("step"), [16.0 * elements, 28.0 * elements], step),
        Work { waits: true, ..Work::new("adamw", of("grad_norm"), [2.0 * elements, norm_bytes], norm) },
    ]
}
