//! Accuracy against f64, and bits against LAW A2, A4 and A6 written out.

mod bf16;
mod cuda;
mod law;

use super::{Kept, Scaling, backward, backward_weight, forward, of_logits, reference};
use crate::linear::tests::{Case, Packed, close, fixture, nans, same, streams, values};
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
