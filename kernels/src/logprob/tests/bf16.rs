//! bf16 on the emulated CUDA device: f64 within its limits, and one order for any company.

use super::*;
use crate::check::{Acts, held, rounded, with_both_adders, within};

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
