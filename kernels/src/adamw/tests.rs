use super::*;
use crate::check::{Golden, bits, close, normal, on_cuda, stream, streams, wide};
use crate::weight::{Layout, row, strip};
use half::bf16;
use runtime::Buffer;

const PARAMS: Params = Params { lr: 3e-4, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.1, step: 1, grad_scale: 0.37 };

/// p, m, v after `steps` steps from zero moments, with fresh gradients.
fn run(s: &Stream, n: usize, steps: u64) -> Result<[Vec<f32>; 3]> {
    let (p, m, v) = (s.upload(&normal(1, n))?, s.zeros::<f32>(n)?, s.zeros::<f32>(n)?);
    for i in 1..=steps {
        let g = s.upload(&normal(100 + i, n))?;
        step(s, p.view(), m.view(), v.view(), g.view(), &Params { step: i, ..PARAMS })?;
    }
    Ok([p.to_vec()?, m.to_vec()?, v.to_vec()?])
}

#[test]
fn against_f64() -> Result<()> {
    accurate(&stream(), 1000)
}

#[test]
fn on_cuda_against_f64_and_as_on_the_cpu() {
    on_cuda("adamw", |s| {
        accurate(s, 100)?;
        let (n, g) = (9001, normal(7, 9001));
        let [law, got] = [run(&streams()[0], n, 3)?, run(s, n, 3)?];
        assert!((0..3).all(|i| bits(&law[i]) == bits(&got[i])));
        let tensors = [0..9001, 5..5, 0..1, 1..17, 17..4096];
        let norm = |s: &Stream| grad_norm(s, s.upload(&g)?.view(), &tensors);
        let (here, there) = (norm(s)?, norm(&stream())?);
        assert!((here / there - 1.0).abs() < 1e-14 && here.to_bits() == norm(s)?.to_bits(), "{here} {there}");
        assert_eq!(grad_norm(s, s.upload(&[3f32, 4.0])?.view(), &[])?, 0.0);
        Result::Ok(())
    });
}

#[test]
fn a_clipped_step_is_a_step_with_the_factor() -> Result<()> {
    clips(&stream())
}

#[test]
fn on_cuda_a_clipped_step_waits_for_nothing_and_is_a_step_with_the_factor() {
    on_cuda("adamw clip", clips);
}

fn clips(s: &Stream) -> Result<()> {
    let (n, tensors) = (300, [0..7, 7..300]);
    let g = s.upload(&normal(7, n))?;
    let mut norm = Norm::new(s, &tensors)?;
    for most in [0.0, 0.5, 1e6, f64::NAN] {
        let held = [(); 2].map(|()| [1, 2, 3].map(|seed| s.upload(&normal(seed, n)).unwrap()));
        let [one, other] = held.each_ref().map(|[p, m, v]| [p.view(), m.view(), v.view()]);
        norm.measure(s, g.view(), most)?;
        step_clipped(s, one[0], one[1], one[2], g.view(), &PARAMS, Some(&norm), None)?;
        let factor = clip_scale(norm.value()?, most);
        let params = Params { grad_scale: PARAMS.grad_scale * factor, ..PARAMS };
        step(s, other[0], other[1], other[2], g.view(), &params)?;
        for (one, other) in held[0].iter().zip(&held[1]) {
            assert_eq!(bits(&one.to_vec()?), bits(&other.to_vec()?), "max_norm {most}");
        }
    }
    assert!(Norm::new(s, std::slice::from_ref(&(0..301)))?.measure(s, g.view(), 1.0).is_err());
    Ok(())
}

#[test]
fn on_cuda_a_step_writes_an_adapter_s_copies_in_place() {
    on_cuda("adamw copies", |s| {
        for rank in [1, 8, 12, 64, 70] {
            let (n, k, scale, other) = (24, 40, 1.7, 3);
            let layout = Layout::of(s, &[other, rank]);
            let (tail, ld) = (strip(other) + strip(rank), row(k, strip(other) + strip(rank)));
            let group = s.upload(&vec![bf16::ZERO; layout.len(&[8, n], k)])?;
            let weight = layout.weight(group.view(), &[8, n], k, 1)?.rows("test")?;
            // A after a gap of three elements, B after another of five.
            let (a, b) = (3..3 + rank * k, 8 + rank * k..8 + rank * (k + n));
            let len = b.end + 2;
            let target = |elements: &Range<usize>, side| Target {
                elements: elements.clone(),
                side,
                weight,
                slot: strip(other),
                rank,
                scale,
            };
            let table = Table::new(s, &[target(&a, Side::A), target(&b, Side::B)])?;
            assert!(table.over(group.view().slice(1..group.len())?).is_err());
            let copies = table.over(group.view())?;
            let (p, m, v) = (s.upload(&normal(1, len))?, s.zeros::<f32>(len)?, s.zeros::<f32>(len)?);
            let g = s.upload(&normal(2, len))?;
            step_clipped(s, p.view(), m.view(), v.view(), g.view(), &PARAMS, None, Some(&copies))?;
            let values = p.to_vec()?;
            let mut want = vec![0u16; group.len()];
            for j in 0..rank {
                let (at, twice) = if rank <= 64 { (j / 8 * 16 + j % 8, true) } else { (j, false) };
                let steps = [Some(at), twice.then_some(at + 8)].into_iter().flatten().map(|at| strip(other) + at);
                for at in steps {
                    for i in 0..k {
                        want[(8 + n + at) * ld + i] = bf16::from_f32(values[a.start + j * k + i]).to_bits();
                    }
                    for i in 0..n {
                        want[(8 + i) * ld + k + at] = bf16::from_f32(scale * values[b.start + i * rank + j]).to_bits();
                    }
                }
            }
            let got = |group: &Buffer<bf16>| Result::Ok(group.to_vec()?.iter().map(|v| v.to_bits()).collect::<Vec<_>>());
            assert_eq!(got(&group)?, want, "rank {rank}");
            group.view().zero(s)?;
            copies.write(s, p.view())?;
            assert_eq!(got(&group)?, want, "rank {rank}, written whole");
            assert!(copies.write(s, p.view().slice(0..b.end - 1)?).is_err() && tail > 0);
            assert!(Table::new(s, &[target(&b, Side::B), target(&a, Side::A)]).is_err());
            assert!(Table::new(s, &[target(&a, Side::B)]).is_err() || n == k);
        }
        Result::Ok(())
    });
}

/// Under full tuning: matrices of two groups, whose masters lie in one arena with vectors between them, sizes that fill no row.
#[test]
fn on_cuda_a_step_writes_whole_matrices_in_place() {
    on_cuda("adamw masters", |s| {
        let (k, layout) = (37, Layout::of(s, &[]));
        let ld = row(k, 0);
        let (n, other) = ([8, 5, 3], [7]);
        let lens = [layout.len(&n, k), layout.len(&other, k)];
        let stored = s.upload(&vec![bf16::NAN; lens[0] + lens[1]])?;
        let groups = [stored.view().slice(0..lens[0])?, stored.view().slice(lens[0]..lens[0] + lens[1])?];
        // Vectors of 5 elements lie between them.
        let (mut at, mut targets) = (5, Vec::new());
        for (group, n, part) in [(0, &n[..], 0), (0, &n[..], 1), (0, &n[..], 2), (1, &other[..], 0)] {
            let weight = layout.weight(groups[group], n, k, part)?.rows("test")?;
            targets.push(Target::whole(at..at + weight.n * ld, weight));
            at += weight.n * ld + 5;
        }
        let (table, len) = (Table::new(s, &targets)?, at);
        let (copies, mut values) = (table.over(stored.view())?, normal(1, len));
        // A tie to either side, what rounds to infinity, what is not finite, and less than bf16 has.
        let special = [257.0 / 256.0, 259.0 / 256.0, f32::MAX, f32::NEG_INFINITY, f32::NAN, -1e-44, -0.0];
        values[5..5 + special.len()].copy_from_slice(&special);
        let (p, m, v) = (s.upload(&values)?, s.zeros::<f32>(len)?, s.zeros::<f32>(len)?);
        let want = |p: &[f32]| -> Vec<u16> {
            targets.iter().flat_map(|t| &p[t.elements.clone()]).map(|v| bf16::from_f32(*v).to_bits()).collect()
        };
        let got = || Result::Ok(stored.to_vec()?.iter().map(|v| v.to_bits()).collect::<Vec<_>>());
        let same = |got: &[u16], want: &[u16], what: &str| {
            let nan = |bits: u16| bf16::from_bits(bits).is_nan();
            let apart = got.iter().zip(want).position(|(g, w)| g != w && !(nan(*g) && nan(*w)));
            assert!(got.len() == want.len() && apart.is_none(), "{what}: element {apart:?} of {}", want.len());
        };
        copies.write(s, p.view())?;
        same(&got()?, &want(&values), "written whole");
        let (alone, g) = (s.upload(&values)?, s.upload(&normal(2, len))?);
        let moments = [s.zeros::<f32>(len)?, s.zeros::<f32>(len)?];
        step_clipped(s, p.view(), m.view(), v.view(), g.view(), &PARAMS, None, Some(&copies))?;
        step(s, alone.view(), moments[0].view(), moments[1].view(), g.view(), &PARAMS)?;
        assert_eq!(bits(&p.to_vec()?), bits(&alone.to_vec()?), "the masters are those of a step without copies");
        same(&got()?, &want(&p.to_vec()?), "after a step");
        let weight = targets[1].weight;
        let text = |t: Target<'_>| Table::new(s, &[t]).err().map(|e| e.to_string()).unwrap_or_default();
        assert!(text(Target::whole(0..weight.n * k, weight)).contains("wanted 320 elements"));
        assert!(text(Target::whole(0..weight.n * ld, crate::weight::Rows { tail: 16, ..weight })).contains("of rank 0"));
        Result::Ok(())
    });
}

fn accurate(s: &Stream, many: u64) -> Result<()> {
    let n = 33;
    for (steps, limit) in [(1, 3e-7), (many, 1e-5)] {
        let (mut p, mut m, mut v) = (wide(&normal(1, n)), vec![0.0; n], vec![0.0; n]);
        for i in 1..=steps {
            reference::step(&mut p, &mut m, &mut v, &wide(&normal(100 + i, n)), &Params { step: i, ..PARAMS });
        }
        let got = run(s, n, steps)?;
        for (what, got, want) in [("p", &got[0], p), ("m", &got[1], m), ("v", &got[2], v)] {
            close(&format!("adamw {what} after {steps}"), got, &want, limit);
        }
    }
    Ok(())
}

#[test]
fn the_law() -> Result<()> {
    let n = 9001;
    let law = run(&streams()[0], n, 3)?;
    let g = normal(7, n);
    let tensors = [0..9001, 5..5, 0..1, 1..17, 17..4096];
    let chain = |t: &Range<usize>| g[t.clone()].iter().fold(0f64, |a, g| a + (*g as f64).powi(2));
    let norm = tensors.iter().fold(0.0, |a, t| a + chain(t)).sqrt();
    for s in streams() {
        let got = run(&s, n, 3)?;
        assert!((0..3).all(|i| bits(&law[i]) == bits(&got[i])), "{:?}", s.host());
        assert_eq!(grad_norm(&s, s.upload(&g)?.view(), &tensors)?.to_bits(), norm.to_bits());
    }
    Ok(())
}

#[test]
fn tensors_add_in_order_beyond_one_job() -> Result<()> {
    let (s, g) = (stream(), normal(8, 1500));
    let tensors: Vec<Range<usize>> = (0..150).map(|i| 10 * i..10 * i + 10).collect();
    let sums = g.chunks(10).map(|t| t.iter().fold(0f64, |a, g| a + (*g as f64).powi(2)));
    let want = sums.fold(0.0, |a, sum| a + sum).sqrt();
    assert_eq!(grad_norm(&s, s.upload(&g)?.view(), &tensors)?, want);
    Ok(())
}

#[test]
fn clipping() -> Result<()> {
    assert_eq!((clip_scale(0.5, 1.0), clip_scale(3.0, 0.0), clip_scale(3.0, -1.0)), (1.0, 1.0, 1.0));
    assert_eq!(clip_scale(4.0, 1.0), (1.0 / 4.000001) as f32);
    assert!(clip_scale(f64::NAN, 1.0).is_nan());
    assert_eq!(clip_scale(f64::INFINITY, 1.0), 0.0);
    let s = stream();
    let norm = |g: &[f32]| grad_norm(&s, s.upload(g)?.view(), &[0..1, 1..g.len()]);
    assert_eq!(norm(&[3.0, 4.0])?, 5.0);
    assert!((norm(&[3e38, 3e38])? / (2f64.sqrt() * f64::from(3e38f32)) - 1.0).abs() < 1e-15);
    assert!(norm(&[1.0, f32::NAN])?.is_nan());
    assert_eq!(norm(&[1.0, f32::NEG_INFINITY])?, f64::INFINITY);
    Ok(())
}

#[test]
fn golden() -> Result<()> {
    let s = stream();
    for name in ["adamw_first", "adamw_later"] {
        let Some(file) = Golden::open(name) else { continue };
        let [p, m, v, g] = ["p", "m", "v", "g"].map(|t| s.upload(&file.f32(t)));
        let (p, m, v, g) = (p?, m?, v?, g?);
        let beta = |i: usize| file.settings["betas"][i].as_f64().unwrap();
        let params = Params {
            lr: file.number("lr"),
            beta1: beta(0),
            beta2: beta(1),
            eps: file.number("eps"),
            weight_decay: file.number("weight_decay"),
            step: file.number("step") as u64,
            grad_scale: 1.0,
        };
        step(&s, p.view(), m.view(), v.view(), g.view(), &params)?;
        for (tensor, got) in [("p_new", &p), ("m_new", &m), ("v_new", &v)] {
            close(&format!("{name} {tensor}"), &got.to_vec()?, &file.f64(tensor), 3e-7);
        }
    }
    Ok(())
}

#[test]
fn wrong_operands_are_refused() -> Result<()> {
    let s = stream();
    let [p, m, v, g] = [3, 3, 3, 3].map(|n| s.zeros::<f32>(n));
    let (p, m, v, g) = (p?, m?, v?, g?);
    let go = |g: View, params| step(&s, p.view(), m.view(), v.view(), g, &params);
    assert!(go(g.view(), PARAMS).is_ok());
    assert!(go(g.view().slice(0..2)?, PARAMS).is_err() && go(m.view(), PARAMS).is_err());
    assert!(go(g.view(), Params { step: 0, ..PARAMS }).is_err());
    let error = go(g.view(), Params { beta2: 1.0, ..PARAMS }).unwrap_err().to_string();
    assert!(error.contains("beta2") && error.contains('1'), "{error}");
    assert!(grad_norm(&s, g.view(), &[0..1, 0..4]).is_err());
    Ok(())
}
