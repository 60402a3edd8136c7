//! f32 on the emulated CUDA device: the CPU's bits.

use super::*;
use crate::check::on_cuda;

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
        // So few that some lanes of a block have no entry, which must not stop before the others.
        far(Problem::new(14, 20, 12, 270, DType::F16, PLAIN)),
        // More entries than a block looks through at once.
        Problem::new(300, 7, 2, 5, DType::F32, PLAIN),
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
