//! Accuracy against f64, and bits against LAW A2, A4 and A6 written out.

use super::{Kept, Scaling, backward, backward_weight, forward, of_logits, reference};
use crate::check::{Acts, held, on_cuda, rounded, within};
use crate::linear::tests::{Case, Packed, close, fixture, nans, same, streams, values, with_both_adders};
use crate::linear::{self, Part};
use crate::weight::{self, Layout, Weight};
use runtime::{Buffer, DType, Isa, Result, Stream, View};

const PLAIN: Scaling = Scaling { softcap: 0.0, inv_temperature: 1.0 };
const CAPPED: Scaling = Scaling { softcap: 5.0, inv_temperature: 1.0 / 0.7 };

/// Everything that the calls take.
struct Problem {
    head: Case,
    x: Vec<f32>,
    rows: Vec<u32>,
    targets: Vec<u32>,
    dlogp: Vec<f32>,
    scaling: Scaling,
}

impl Problem {
    /// `m` entries over `n` rows, every third row named twice or more and some not at all.
    fn new(m: usize, n: usize, c: usize, v: usize, dtype: DType, scaling: Scaling) -> Problem {
        let head = Case::new(v, c, 0, false, dtype, 7);
        let rows = (0..m).map(|i| (if i % 3 == 2 { i / 3 } else { i * 5 } % n) as u32).collect();
        let targets = (0..m).map(|i| (i * 37 % v) as u32).collect();
        Problem { head, x: values(n * c, 8), rows, targets, dlogp: values(m, 9), scaling }
    }

    /// Elements of dhead.
    fn dhead_len(&self, s: &Stream) -> usize {
        Layout::of(s, &[]).len(&[self.head.n], self.head.k)
    }

    /// dhead's rows [V, C].
    fn plain(&self, s: &Stream, dhead: &[f32]) -> Vec<f32> {
        let held = s.upload(dhead).unwrap();
        weight::read(s, Layout::of(s, &[]).weight(held.view(), &[self.head.n], self.head.k, 0).unwrap()).unwrap()
    }
}

/// A problem on a device.
struct Loaded<'a> {
    p: &'a Problem,
    head: Packed,
    x: Buffer<f32>,
    rows: Buffer<u32>,
    targets: Buffer<u32>,
    dlogp: Buffer<f32>,
    kept: [Buffer<f32>; 4],
}

struct Results {
    logp: Vec<f32>,
    dx: Vec<f32>,
    dhead: Vec<f32>,
}

impl<'a> Loaded<'a> {
    fn new(s: &Stream, p: &'a Problem) -> Loaded<'a> {
        let (x, rows, targets) = (s.upload(&p.x).unwrap(), s.upload(&p.rows).unwrap(), s.upload(&p.targets).unwrap());
        let kept = [1, 1, 1, p.head.k].map(|c| nans(s, p.rows.len() * c));
        Loaded { p, head: p.head.upload(s), x, rows, targets, dlogp: s.upload(&p.dlogp).unwrap(), kept }
    }

    fn kept(&self) -> Kept<'_> {
        let [z_target, sum, max, way] = self.kept.each_ref().map(|b| b.view());
        Kept { z_target, sum, max, way }
    }

    fn operands(&self, s: &Stream) -> (View<'_>, View<'_>, View<'_>, Weight<'_>) {
        let head = self.head.weight(s, self.p.head.n, self.p.head.k);
        (self.x.view(), self.rows.view(), self.targets.view(), head)
    }

    fn run(&self, s: &Stream, start: f32) -> Result<Results> {
        let (x, rows, targets, head) = self.operands(s);
        let (logp, dx) = (nans(s, self.p.rows.len()), nans(s, self.p.x.len()));
        let dhead = s.upload(&vec![start; self.p.dhead_len(s)])?;
        let scaling = self.p.scaling;
        forward(s, logp.view(), self.kept(), x, rows, targets, head, scaling)?;
        backward(s, dx.view(), self.dlogp.view(), self.kept(), rows, scaling)?;
        backward_weight(s, dhead.view(), self.dlogp.view(), self.kept(), x, rows, targets, head, scaling)?;
        Ok(Results { logp: logp.to_vec()?, dx: dx.to_vec()?, dhead: self.p.plain(s, &dhead.to_vec()?) })
    }

    /// logp over stored logits.
    fn stored(&self, s: &Stream) -> Result<Vec<f32>> {
        let (_, _, targets, head) = self.operands(s);
        let ((v, c), m) = (head.shape(), self.p.rows.len());
        let x: Vec<f32> = self.p.rows.iter().flat_map(|&r| self.p.x[r as usize * c..][..c].to_vec()).collect();
        let (x, logits, logp) = (s.upload(&x)?, nans(s, m * v), nans(s, m));
        let none = View::none(DType::F32);
        linear::forward(s, logits.view(), none, x.view(), &[Part { weight: head, bias: None, lora: None }])?;
        of_logits(s, logp.view(), logits.view(), targets, self.p.scaling)?;
        logp.to_vec()
    }
}

/// The law, one number at a time.
mod law {
    use super::Problem;
    use crate::math;

    /// A2 over the elements that are not left out.
    fn sum(values: impl Iterator<Item = Option<f32>>) -> f32 {
        let mut l = [0f32; 16];
        for (i, value) in values.enumerate() {
            l[i % 16] = value.map_or(l[i % 16], |v| l[i % 16] + v);
        }
        for half in [8, 4, 2, 1] {
            (0..half).for_each(|i| l[i] += l[i + half]);
        }
        l[0]
    }

    fn tiles(t: &[f32], reference: f32, skip: Option<usize>) -> f32 {
        let term = |v: usize| (Some(v) != skip).then(|| math::exp(t[v] - reference));
        (0..t.len().div_ceil(256)).fold(0.0, |s, tile| s + sum((tile * 256..t.len().min(tile * 256 + 256)).map(term)))
    }

    /// logp, dz [V] and what the entry adds to its row of dx [C].
    pub fn entry(p: &Problem, m: usize) -> (f32, Vec<f32>, Vec<f32>) {
        let (c, target, cap, inv) = (p.head.k, p.targets[m] as usize, p.scaling.softcap, p.scaling.inv_temperature);
        let x = &p.x[p.rows[m] as usize * c..][..c];
        let dot = |w: &[f32]| x.iter().zip(w).fold(0f32, |acc, (x, w)| x.mul_add(*w, acc));
        let capped: Vec<f32> =
            p.head.w.chunks(c).map(dot).map(|z| if cap > 0.0 { cap * math::tanh(z / cap) } else { z }).collect();
        let t: Vec<f32> = capped.iter().map(|z| z * inv).collect();
        let (zt, max) = (t[target], t.iter().fold(f32::NEG_INFINITY, |a, &b| if b > a { b } else { a }));
        let second = max - zt > 60.0;
        let (reference, s) = if second { (max, tiles(&t, max, None)) } else { (zt, tiles(&t, zt, Some(target))) };
        let logp = if second { (zt - max) - math::log(s) } else { -math::log1p(s) };
        let under = if second { s } else { 1.0 + s };
        let slope = |v: usize| if cap > 0.0 { 1.0 - (capped[v] / cap) * (capped[v] / cap) } else { 1.0 };
        let weight = |v: usize| if v == target && !second { 0.0 } else { math::exp(t[v] - reference) * slope(v) };
        let push = |k: usize| {
            let u = (0..t.len()).fold(0f32, |acc, v| weight(v).mul_add(p.head.w[v * c + k], acc));
            (s * slope(target)).mul_add(p.head.w[target * c + k], 0.0 - u) * (p.dlogp[m] * inv / under)
        };
        let dz = t.iter().zip(&capped).enumerate().map(|(v, (t, capped))| {
            let own = if second { 1.0 - math::exp(t - reference) / under } else { s / under };
            let g = if v == target { own } else { 0.0 - math::exp(t - reference) / under };
            let q = capped / cap;
            let d = p.dlogp[m] * g * inv;
            if cap > 0.0 { d * (1.0 - q * q) } else { d }
        });
        (logp, dz.collect(), (0..c).map(push).collect())
    }

    /// logp, dx and dhead of all entries, the last from `start`.
    pub fn all(p: &Problem, start: f32) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
        let c = p.head.k;
        let (mut logp, mut dx, mut dhead) = (Vec::new(), vec![0.0; p.x.len()], vec![start; p.head.w.len()]);
        for m in 0..p.rows.len() {
            let (value, dz, push) = entry(p, m);
            logp.push(value);
            let row = p.rows[m] as usize * c;
            for k in 0..c {
                dx[row + k] += push[k];
                for (v, d) in dz.iter().enumerate() {
                    dhead[v * c + k] = d.mul_add(p.x[row + k], dhead[v * c + k]);
                }
            }
        }
        (logp, dx, dhead)
    }
}

/// exp errs by 3e-7 for arguments near 1 and by |t|·6e-8 beyond, a logit of 10 by about √C·2^-25·10: logp within 2e-6·(1 + |logp|);
/// gradients inherit the relative error of exp: 1e-6 over the tensor, 1e-5 in the worst row.
const TENSOR: f64 = 1e-6;
const ROW: f64 = 1e-5;

fn check(what: &str, p: &Problem, got: &Results) {
    let (logp, dx, dhead) = reference::all(&p.x, p.head.k, &p.head.w, &p.rows, &p.targets, &p.dlogp, p.scaling);
    for (m, (got, want)) in got.logp.iter().zip(&logp).enumerate() {
        assert!((*got as f64 - want).abs() <= 2e-6 * (1.0 + want.abs()), "{what}: logp[{m}] {got} want {want}");
    }
    close(&format!("{what} dx"), &got.dx, &dx, p.head.k, TENSOR, ROW);
    close(&format!("{what} dhead"), &got.dhead, &dhead, p.head.k, TENSOR, ROW);
}

#[test]
fn accuracy_against_f64() -> Result<()> {
    let s = Stream::cpu(2, Isa::detect());
    let shapes = [
        (1, 1, 8, 33),
        (2, 2, 16, 45),
        (3, 5, 7, 1000),
        (7, 7, 288, 257),
        (17, 9, 64, 255),
        (64, 40, 33, 512),
        (129, 65, 24, 300),
    ];
    for (m, n, c, v) in shapes {
        for scaling in [PLAIN, CAPPED] {
            let mut p = Problem::new(m, n, c, v, DType::F32, scaling);
            // Entries of one row must not cancel: a row is judged by its own size.
            p.dlogp.iter_mut().for_each(|d| *d += 1.5);
            // Logits within ±10 or so: p of a hopeless id errs by the absolute error of its logit.
            p.x.iter_mut().for_each(|x| *x *= 6.0 / (c as f32).sqrt());
            check(&format!("{m} of [{n}, {c}] over {v}"), &p, &Loaded::new(&s, &p).run(&s, 0.0)?);
        }
    }
    Ok(())
}

#[test]
fn bits_are_the_law() -> Result<()> {
    let far = |mut p: Problem| {
        p.x.iter_mut().for_each(|x| *x *= 40.0);
        p
    };
    let problems = [
        Problem::new(29, 13, 9, 300, DType::F32, PLAIN),
        Problem::new(7, 7, 17, 45, DType::Bf16, CAPPED),
        far(Problem::new(30, 20, 12, 270, DType::F16, PLAIN)),
        Problem::new(230, 50, 5, 33, DType::F32, CAPPED),
    ];
    for (i, p) in problems.iter().enumerate() {
        let (logp, dx, dhead) = law::all(p, 0.25);
        if i == 2 {
            assert!(logp.iter().any(|l| *l < -60.0) && logp.iter().any(|l| *l > -60.0), "both forms: {logp:?}");
        }
        for s in streams() {
            let what = format!("{i} {:?}", s.pool("test")?);
            let loaded = Loaded::new(&s, p);
            let got = loaded.run(&s, 0.25)?;
            same(&format!("logp {what}"), &got.logp, &logp);
            same(&format!("dx {what}"), &got.dx, &dx);
            same(&format!("dhead {what}"), &got.dhead, &dhead);
            same(&format!("stored {what}"), &loaded.stored(&s)?, &logp);
        }
    }
    Ok(())
}

#[test]
fn on_cuda_against_f64() {
    on_cuda("logprob", |s| {
        for (m, n, c, v, scaling) in [(3, 5, 7, 300, CAPPED), (17, 9, 40, 65, PLAIN)] {
            let mut p = Problem::new(m, n, c, v, DType::F32, scaling);
            p.dlogp.iter_mut().for_each(|d| *d += 1.5);
            p.x.iter_mut().for_each(|x| *x *= 6.0 / (c as f32).sqrt());
            check("cuda", &p, &Loaded::new(s, &p).run(s, 0.0)?);
        }
        Result::Ok(())
    });
}

#[test]
fn on_cuda_as_on_the_cpu() {
    let far = |mut p: Problem| {
        p.x.iter_mut().for_each(|x| *x *= 40.0);
        p
    };
    let problems = [
        Problem::new(70, 13, 9, 300, DType::F32, PLAIN),
        Problem::new(7, 7, 70, 45, DType::Bf16, CAPPED),
        far(Problem::new(30, 20, 12, 270, DType::F16, PLAIN)),
        Problem::new(1, 1, 1, 1, DType::F32, PLAIN),
        Problem::new(0, 3, 8, 40, DType::F32, PLAIN),
    ];
    let cpu = Stream::cpu(1, Isa::portable());
    let law: Vec<_> = problems
        .iter()
        .map(|p| {
            let loaded = Loaded::new(&cpu, p);
            let got = loaded.run(&cpu, 0.25).unwrap();
            (got, loaded.kept.each_ref().map(|kept| kept.to_vec().unwrap()))
        })
        .collect();
    assert!(law[2].0.logp.iter().any(|l| *l < -60.0) && law[2].0.logp.iter().any(|l| *l > -60.0), "both forms");
    on_cuda("logprob", |s| {
        for (i, (p, (want, kept))) in problems.iter().zip(&law).enumerate() {
            let loaded = Loaded::new(s, p);
            for _ in 0..2 {
                let got = loaded.run(s, 0.25)?;
                same(&format!("logp {i}"), &got.logp, &want.logp);
                same(&format!("dx {i}"), &got.dx, &want.dx);
                same(&format!("dhead {i}"), &got.dhead, &want.dhead);
                for (of, kept) in loaded.kept.iter().zip(kept) {
                    same(&format!("kept {i}"), &of.to_vec()?, kept);
                }
            }
            if p.head.dtype == DType::F32 && !p.rows.is_empty() {
                same(&format!("stored {i}"), &loaded.stored(s)?, &want.logp);
            }
        }
        Result::Ok(())
    });
}

#[test]
fn on_cuda_many_tiles_of_stored_logits() {
    // More than the sixteen tiles that a block sums at a time, and a hopeless id.
    let (v, scaling) = (5000, CAPPED);
    let mut logits: Vec<f32> = values(2 * v, 3).iter().map(|z| 4.0 * z).collect();
    logits[v + 7] = 100.0;
    let of = |s: &Stream, scaling| {
        let (logp, z, ids) = (nans(s, 2), s.upload(&logits)?, s.upload(&[4999u32, 4097])?);
        of_logits(s, logp.view(), z.view(), ids.view(), scaling)?;
        logp.to_vec()
    };
    let cpu = Stream::cpu(1, Isa::portable());
    let (capped, plain) = (of(&cpu, scaling).unwrap(), of(&cpu, PLAIN).unwrap());
    assert!(plain[1] < -60.0, "{plain:?}");
    on_cuda("logprob", |s| {
        same("capped", &of(s, scaling)?, &capped);
        same("plain", &of(s, PLAIN)?, &plain);
        Result::Ok(())
    });
}

/// The room in bf16: logp, the way, dx, and dhead from `start`.
fn in_bf16(s: &Stream, p: &Problem, m: std::ops::Range<usize>, start: f32) -> Result<[Vec<f32>; 4]> {
    let (c, head) = (p.head.k, p.head.upload(s));
    let (x, dx) = (Acts::put(s, DType::Bf16, &p.x)?, Acts::nan(s, DType::Bf16, p.x.len())?);
    let (rows, targets, dlogp) =
        (s.upload(&p.rows[m.clone()])?, s.upload(&p.targets[m.clone()])?, s.upload(&p.dlogp[m.clone()])?);
    let kept: [Buffer<f32>; 5] = [1, 1, 1, c, 1].map(|width| nans(s, m.len() * width));
    let [z_target, sum, max, way, logp] = kept.each_ref().map(Buffer::view);
    let (kept, weight) = (Kept { z_target, sum, max, way }, head.weight(s, p.head.n, c));
    let dhead = s.upload(&vec![start; p.dhead_len(s)])?;
    forward(s, logp, kept, x.view(), rows.view(), targets.view(), weight, p.scaling)?;
    backward(s, dx.view(), dlogp.view(), kept, rows.view(), p.scaling)?;
    backward_weight(s, dhead.view(), dlogp.view(), kept, x.view(), rows.view(), targets.view(), weight, p.scaling)?;
    let of = |view: View<'_>| -> Result<Vec<f32>> {
        let mut all = vec![0.0; view.len()];
        view.read(s, &mut all)?;
        Ok(all)
    };
    Ok([of(logp)?, of(way)?, dx.get()?, p.plain(s, &dhead.to_vec()?)])
}

#[test]
fn on_cuda_in_bf16_against_f64() {
    with_both_adders("logprob bf16", |s| {
        for (m, n, c, v, scaling) in [(70, 33, 24, 300, PLAIN), (5, 3, 72, 45, CAPPED), (3, 5, 8, 513, PLAIN)] {
            let mut p = Problem::new(m, n, c, v, DType::Bf16, scaling);
            p.x.iter_mut().for_each(|x| *x *= 6.0 / (c as f32).sqrt());
            p.x = rounded(&p.x);
            p.dlogp.iter_mut().for_each(|d| *d += 1.5);
            let [logp, _, dx, dhead] = in_bf16(s, &p, 0..m, 0.0)?;
            let (want, want_dx, want_dhead) = reference::all(&p.x, c, &p.head.w, &p.rows, &p.targets, &p.dlogp, scaling);
            let far = logp.iter().zip(&want).map(|(g, w)| (*g as f64 - w).abs()).fold(0.0, f64::max);
            println!("logp off by {far:.1e}");
            held("dx", &dx, &want_dx, c, 2.2e-3);
            held("dhead", &dhead, &want_dhead, c, 5e-3);
            assert!(far <= 2e-5, "{far:e}");
        }
        Ok(())
    });
}

/// d logp / dx of each entry before it is rounded, over flat rows, rows with a favourite and rows that are sure of their target.
#[test]
fn on_cuda_in_bf16_the_way_against_f64() {
    let (n, c, v) = (24, 64, 513);
    let mut p = Problem::new(n, n, c, v, DType::Bf16, PLAIN);
    p.rows = (0..n as u32).collect();
    for (i, x) in p.x.chunks_mut(c).enumerate() {
        let (target, other) = (&p.head.w[p.targets[i] as usize * c..][..c], &p.head.w[(i * 11 % v) * c..][..c]);
        x.iter_mut().zip(target).zip(other).for_each(|((x, t), o)| *x = [*x, 0.3 * *x + 0.5 * o, 2.0 * t][i % 3]);
    }
    p.x = rounded(&p.x);
    let entries = p.x.chunks(c).zip(&p.targets).map(|(x, t)| reference::row(x, &p.head.w, *t as usize, PLAIN));
    let (mut sure, mut want) = (0, Vec::new());
    let scales: Vec<f64> = entries
        .map(|(logp, dz)| {
            sure += (logp > -1e-6) as usize;
            let column = |k: usize| dz.iter().zip(p.head.w.chunks(c)).map(|(d, w)| d * w[k] as f64).sum::<f64>();
            want.extend((0..c).map(column));
            logp.exp()
        })
        .collect();
    assert!(sure >= n / 3, "{sure} rows are sure of their target");
    with_both_adders("logprob bf16", |s| {
        let [_, way, ..] = in_bf16(s, &p, 0..n, 0.0)?;
        let got: Vec<f32> = way.iter().enumerate().map(|(i, w)| (*w as f64 * scales[i / c]) as f32).collect();
        within("way", &got, &want, c, 1e-3, 5e-3);
        Ok(())
    });
}

#[test]
fn on_cuda_in_bf16_entries_do_not_know_their_company() {
    let p = Problem::new(70, 20, 16, 300, DType::Bf16, PLAIN);
    with_both_adders("logprob bf16", |s| {
        let [logp, way, dx, dhead] = in_bf16(s, &p, 0..70, 0.5)?;
        let again = in_bf16(s, &p, 0..70, 0.5)?;
        [&logp, &way, &dx, &dhead].into_iter().zip(&again).for_each(|(one, other)| same("again", other, one));
        for range in [0..1, 1..4, 4..69] {
            let [part, ways, ..] = in_bf16(s, &p, range.clone(), 0.0)?;
            same(&format!("logp {range:?}"), &part, &logp[range.clone()]);
            same(&format!("way {range:?}"), &ways, &way[range.start * 16..range.end * 16]);
        }
        Ok(())
    });
}

#[test]
fn on_cuda_in_bf16_both_forms_and_what_is_not_there() {
    let mut p = Problem::new(30, 20, 16, 270, DType::Bf16, PLAIN);
    p.x.iter_mut().for_each(|x| *x *= 15.0);
    p.x = rounded(&p.x);
    let (want, want_dx, _) = reference::all(&p.x, 16, &p.head.w, &p.rows, &p.targets, &p.dlogp, PLAIN);
    assert!(want.iter().any(|l| *l < -60.0) && want.iter().any(|l| *l > -60.0), "both forms");
    let mut lost = Problem::new(5, 4, 8, 40, DType::Bf16, PLAIN);
    (lost.rows[1], lost.targets[3]) = (4, 40);
    with_both_adders("logprob bf16", |s| {
        let [logp, _, dx, _] = in_bf16(s, &p, 0..30, 0.0)?;
        for (got, want) in logp.iter().zip(&want) {
            assert!((*got as f64 - want).abs() <= 2e-6 * (1.0 + want.abs()) + 2e-5, "{got} want {want}");
        }
        held("dx of both forms", &dx, &want_dx, 16, 5e-3);
        let [logp, ..] = in_bf16(s, &lost, 0..5, 0.0)?;
        assert_eq!(logp.iter().map(|l| l.is_nan()).collect::<Vec<_>>(), [false, true, false, true, false]);
        Ok(())
    });
}

#[test]
fn on_cuda_entries_do_not_know_their_company() {
    let p = Problem::new(70, 20, 12, 100, DType::F32, PLAIN);
    on_cuda("logprob", |s| {
        let loaded = Loaded::new(s, &p);
        let (whole, ways) = (loaded.run(s, 0.0)?, loaded.kept[3].to_vec()?);
        let (x, rows, targets, head) = loaded.operands(s);
        for range in [0..1, 1..4, 4..69, 69..70] {
            let (logp, way) = (nans(s, range.len()), nans(s, range.len() * 12));
            let [z_target, sum, max] = [0, 1, 2].map(|i| loaded.kept[i].view().slice(range.clone()).unwrap());
            let kept = Kept { z_target, sum, max, way: way.view() };
            let (rows, targets) = (rows.slice(range.clone())?, targets.slice(range.clone())?);
            forward(s, logp.view(), kept, x, rows, targets, head, p.scaling)?;
            same(&format!("logp {range:?}"), &logp.to_vec()?, &whole.logp[range.clone()]);
            same(&format!("way {range:?}"), &way.to_vec()?, &ways[range.start * 12..range.end * 12]);
        }
        Result::Ok(())
    });
}

#[test]
fn on_cuda_what_is_not_there_is_nan() {
    let mut p = Problem::new(5, 4, 8, 40, DType::F32, PLAIN);
    (p.rows[1], p.targets[3]) = (4, 40);
    on_cuda("logprob", |s| {
        let loaded = Loaded::new(s, &p);
        let got = loaded.run(s, 0.0)?;
        assert_eq!(got.logp.iter().map(|l| l.is_nan()).collect::<Vec<_>>(), [false, true, false, true, false]);
        let (logp, z, ids) = (nans(s, 2), s.upload(&[1.0f32, 2.0, 1.0, 2.0])?, s.upload(&[1u32, 2])?);
        of_logits(s, logp.view(), z.view(), ids.view(), PLAIN)?;
        assert_eq!(logp.to_vec()?.iter().map(|l| l.is_nan()).collect::<Vec<_>>(), [false, true]);
        Result::Ok(())
    });
}

#[test]
fn entries_do_not_know_their_company() -> Result<()> {
    let p = Problem::new(400, 90, 24, 600, DType::Bf16, PLAIN);
    let one = Stream::cpu(1, Isa::detect());
    let loaded = Loaded::new(&one, &p);
    let (whole, ways) = (loaded.run(&one, 0.0)?, loaded.kept[3].to_vec()?);
    for s in streams().iter().filter(|s| s.pool("test").is_ok_and(|pool| pool.isa() != Isa::portable())) {
        same("dx", &Loaded::new(s, &p).run(s, 0.0)?.dx, &whole.dx);
        for entries in [1, 3, 17, 64] {
            let (loaded, mut logp, dhead) = (Loaded::new(s, &p), Vec::new(), s.zeros::<f32>(p.dhead_len(s))?);
            let (x, rows, targets, head) = loaded.operands(s);
            for at in (0..128).step_by(entries) {
                let range = at..(at + entries).min(400);
                let (rows, targets) = (rows.slice(range.clone())?, targets.slice(range.clone())?);
                let kept = loaded.kept();
                let [z_target, sum, max] = [kept.z_target, kept.sum, kept.max].map(|v| v.slice(range.clone()).unwrap());
                let way = nans(s, range.len() * 24);
                let (kept, out) = (Kept { z_target, sum, max, way: way.view() }, nans(s, range.len()));
                forward(s, out.view(), kept, x, rows, targets, head, p.scaling)?;
                let dlogp = loaded.dlogp.view().slice(range.clone())?;
                backward_weight(s, dhead.view(), dlogp, kept, x, rows, targets, head, p.scaling)?;
                logp.extend(out.to_vec()?);
                same(&format!("way by {entries} from {at}"), &way.to_vec()?, &ways[range.start * 24..range.end * 24]);
            }
            same(&format!("logp by {entries}"), &logp, &whole.logp[..logp.len()]);
            let mut first = Problem::new(400, 90, 24, 600, DType::Bf16, PLAIN);
            first.rows.truncate(logp.len());
            first.targets.truncate(logp.len());
            first.dlogp.truncate(logp.len());
            let together = Loaded::new(s, &first).run(s, 0.0)?;
            same(&format!("dhead by {entries}"), &p.plain(s, &dhead.to_vec()?), &together.dhead);
        }
    }
    Ok(())
}

#[test]
fn entries_of_a_sure_target_and_a_hopeless_one() -> Result<()> {
    // One hidden value that multiplies logits 0, 80, −80: p of id 1 is 1 − 1.8e-35, and id 2 lies 160 below.
    let mut p = Problem::new(2, 1, 1, 3, DType::F32, PLAIN);
    (p.head.w, p.x, p.rows, p.targets, p.dlogp) = (vec![0.0, 80.0, -80.0], vec![1.0], vec![0, 0], vec![1, 2], vec![1.0, 1.0]);
    let s = Stream::cpu(1, Isa::detect());
    let loaded = Loaded::new(&s, &p);
    let got = loaded.run(&s, 0.0)?;
    // The argument of exp is rounded to 24 bits: 80·2^-24 relative.
    let sure = -(-80f64).exp();
    assert!((got.logp[0] as f64 / sure - 1.0).abs() < 80.0 * 6e-8 && got.logp[1] == -160.0, "{:?}", got.logp);
    assert_eq!(loaded.kept[2].to_vec()?, vec![f32::INFINITY, 80.0]);
    check("far", &p, &got);
    Ok(())
}

#[test]
fn nothing_named_is_zero_and_nan_comes_through() -> Result<()> {
    let s = Stream::cpu(2, Isa::detect());
    let mut p = Problem::new(0, 3, 8, 40, DType::F32, PLAIN);
    assert!(Loaded::new(&s, &p).run(&s, 0.5)?.dx.iter().all(|d| d.to_bits() == 0));
    p = Problem::new(3, 3, 8, 40, DType::F32, PLAIN);
    (p.rows, p.x[8]) = (vec![0, 1, 2], f32::NAN);
    let logp = Loaded::new(&s, &p).run(&s, 0.0)?.logp;
    assert_eq!(logp.iter().map(|l| l.is_nan()).collect::<Vec<_>>(), [false, true, false]);
    Ok(())
}

#[test]
fn wrong_operands_are_named() -> Result<()> {
    let s = Stream::cpu(1, Isa::portable());
    let mut p = Problem::new(3, 4, 8, 40, DType::F32, PLAIN);
    let text = |p: &Problem| Loaded::new(&s, p).run(&s, 0.0).err().map(|e| e.to_string()).unwrap_or_default();
    p.targets[1] = 40;
    assert!(text(&p).contains("targets[1] = 40, wanted below 40"), "{}", text(&p));
    (p.targets[1], p.rows[2]) = (0, 4);
    assert!(text(&p).contains("rows[2] = 4, wanted below 4"), "{}", text(&p));
    p.rows.pop();
    assert!(text(&p).contains("targets: wanted 2 elements, got 3"), "{}", text(&p));
    let (logp, logits, ids) = (s.zeros::<f32>(2)?, s.zeros::<f32>(10)?, s.upload(&[1u32, 5])?);
    let got = of_logits(&s, logp.view(), logits.view(), ids.view(), PLAIN);
    assert!(got.is_err_and(|e| e.to_string().contains("ids[1] = 5, wanted below 5")));
    Ok(())
}

#[test]
fn fixture_of_the_projected_log_probability() -> Result<()> {
    let Some(get) = fixture("linear_logprob") else { return Ok(()) };
    let (head, g, want) = (Case { w: get("w"), ..Case::new(211, 64, 0, false, DType::F32, 0) }, get("g"), get("logp"));
    let targets: Vec<i32> = get("targets").iter().map(|t| t.to_bits() as i32).collect();
    let named: Vec<usize> = (0..targets.len()).filter(|&i| targets[i] >= 0).collect();
    let p = Problem {
        head,
        x: get("h"),
        rows: named.iter().map(|&i| i as u32).collect(),
        targets: named.iter().map(|&i| targets[i] as u32).collect(),
        dlogp: named.iter().map(|&i| g[i]).collect(),
        scaling: PLAIN,
    };
    let f64s = |v: Vec<f32>| v.into_iter().map(f64::from).collect::<Vec<_>>();
    for s in streams() {
        let got = Loaded::new(&s, &p).run(&s, 0.0)?;
        for (got, &i) in got.logp.iter().zip(&named) {
            assert!((got - want[i]).abs() <= 2e-6 * (1.0 + want[i].abs()), "logp[{i}] {got} want {}", want[i]);
        }
        close("d_h", &got.dx, &f64s(get("d_h")), 64, TENSOR, ROW);
        close("d_w", &got.dhead, &f64s(get("d_w")), 64, TENSOR, ROW);
    }
    Ok(())
}
