use super::*;
use crate::check::{Golden, below, bits, normal, stream, streams};

fn halves(draws: &[u64]) -> Vec<u32> {
    draws.iter().flat_map(|d| [*d as u32, (*d >> 32) as u32]).collect()
}

fn run(s: &Stream, logits: &[f32], draws: &[u64], seen: &[u32], sampling: &Sampling) -> Result<(Vec<u32>, Vec<f32>)> {
    let ids = s.upload(&vec![u32::MAX; draws.len()])?;
    let logps = s.upload(&vec![f32::NAN; draws.len()])?;
    let (logits, draws, seen) = (s.upload(logits)?, s.upload(&halves(draws))?, s.upload(seen)?);
    forward(s, ids.view(), logps.view(), logits.view(), draws.view(), seen.view(), sampling)?;
    Ok((ids.to_vec()?, logps.to_vec()?))
}

/// Every filter off, alone, and with the others.
fn grid() -> Vec<Sampling> {
    let mut all = vec![];
    for (temperature, softcap) in [(1.0, 0.0), (0.7, 0.0), (1.9, 30.0), (0.0, 5.0)] {
        for (top_k, top_p, min_p) in [
            (0, 1.0, 0.0),
            (7, 1.0, 0.0),
            (0, 0.9, 0.0),
            (0, 1e-6, 0.0),
            (0, 1.0, 0.1),
            (40, 0.95, 0.02),
            (1, 0.5, 1.0),
            (9999, 0.3, 0.0),
        ] {
            let plain = Sampling { temperature, top_k, top_p, min_p, softcap, ..Sampling::default() };
            all.push(plain);
            all.push(Sampling { repetition_penalty: 1.3, frequency_penalty: 0.2, presence_penalty: -0.4, ..plain });
        }
    }
    all
}

/// Rows [B, V] of five kinds in turn: wide, flat, many ties, all equal, masked but for a few.
fn logits(seed: u64, b: usize, v: usize) -> Vec<f32> {
    let mut x = normal(seed, b * v);
    for (i, row) in x.chunks_mut(v).enumerate() {
        for (j, z) in row.iter_mut().enumerate() {
            *z = match i % 5 {
                0 => *z * 6.0,
                1 => *z,
                2 => (*z * 2.0).round() * 0.5,
                3 => 1.25,
                _ if j % 9 == 4 || j == 0 => *z,
                _ => f32::NEG_INFINITY,
            };
        }
    }
    x
}

/// [B, V]: a third in the prompt, some of them and others in the completion.
fn seen(seed: u64, n: usize) -> Vec<u32> {
    let x = below(seed, n, 12);
    x.iter().map(|x| if *x < 4 { IN_PROMPT } else { 0 } | if *x > 2 && *x < 7 { *x } else { 0 }).collect()
}

#[test]
fn equal_to_the_law_with_a_full_sort() -> Result<()> {
    let (s, mut pairs) = (stream(), 0);
    for (i, sampling) in grid().iter().enumerate() {
        let (b, v) = (165, [1, 17, 50, 211][i % 4]);
        let (logits, seen) = (logits(i as u64, b, v), if i % 2 == 1 { seen(i as u64, b * v) } else { vec![] });
        let draws: Vec<u64> = (0..b as u32).map(|row| draw(i as u64, row, 0, 0, 3, 1)).collect();
        let (ids, logps) = run(&s, &logits, &draws, &seen, sampling)?;
        for row in 0..b {
            let part = row * v..(row + 1) * v;
            let known = seen.get(part.clone()).unwrap_or(&[]);
            let (id, logp) = reference::pick(&logits[part], known, draws[row], sampling);
            assert_eq!((ids[row], logps[row].to_bits()), (id, logp.to_bits()), "row {row} of {sampling:?}");
            pairs += 1;
        }
    }
    assert!(pairs > 10_000, "{pairs} pairs");
    Ok(())
}

#[test]
fn masses_are_exact() {
    let (b, v) = (10, 211);
    let (logits, seen) = (logits(99, b, v), seen(99, b * v));
    let (mut x, mut spare) = (vec![f32::NAN; cpu::padded(v)], vec![f32::NAN; cpu::padded(v)]);
    for sampling in grid().iter().filter(|s| s.temperature > 0.0) {
        for (logits, seen) in logits.chunks(v).zip(seen.chunks(v)) {
            let want = reference::masses(logits, seen, sampling);
            for isa in runtime::Isa::all() {
                assert!(cpu::filter_on(isa, &mut x, &mut spare, logits, seen, sampling).is_some());
                let got: Vec<u64> = x[..v].iter().map(|m| *m as u64).collect();
                assert_eq!(got, want, "{isa} {sampling:?}");
            }
            assert!(x[..v].iter().all(|m| m.fract() == 0.0 && *m <= cpu::ONE) && want.contains(&(cpu::ONE as u64)));
        }
    }
}

#[test]
fn no_mass_exceeds_that_of_the_maximum() {
    for i in 0..2_000_000u32 {
        let x = f32::from_bits(0x3e00_0000 - 97 * i);
        assert!(crate::math::exp(-x) <= 1.0, "exp(-{x:e}) = {}", crate::math::exp(-x));
    }
}

#[test]
fn the_law() -> Result<()> {
    let (b, v) = (64, 77);
    let (logits, seen) = (logits(5, b, v), seen(6, b * v));
    let draws: Vec<u64> = (0..b as u32).map(|row| draw(8, row, 1, 2, 9, 4)).collect();
    let backwards: Vec<f32> = logits.chunks(v).rev().flatten().copied().collect();
    let seen_backwards: Vec<u32> = seen.chunks(v).rev().flatten().copied().collect();
    let draws_backwards: Vec<u64> = draws.iter().rev().copied().collect();
    for sampling in grid().iter().step_by(5) {
        let law = run(&streams()[0], &logits, &draws, &seen, sampling)?;
        for s in streams() {
            for cut in [0..64, 0..1, 1..4, 4..21] {
                let part = cut.start * v..cut.end * v;
                let got = run(&s, &logits[part.clone()], &draws[cut.clone()], &seen[part], sampling)?;
                assert_eq!((&law.0[cut.clone()], bits(&law.1[cut])), (&got.0[..], bits(&got.1)), "{:?}", s.host());
            }
            let (mut ids, mut logps) = run(&s, &backwards, &draws_backwards, &seen_backwards, sampling)?;
            ids.reverse();
            logps.reverse();
            assert_eq!((&law.0, bits(&law.1)), (&ids, bits(&logps)), "another slot, {:?}", s.host());
        }
    }
    Ok(())
}

#[test]
fn frequencies_follow_the_distribution() -> Result<()> {
    let (v, n) = (40, 40_000u32);
    let row = normal(11, v);
    let sampling = Sampling { temperature: 1.4, min_p: 0.05, ..Sampling::default() };
    let masses = reference::masses(&row, &[], &sampling);
    let kept: u64 = masses.iter().sum();
    let mut counts = vec![0f64; v];
    for batch in 0..n / 1000 {
        let draws: Vec<u64> = (0..1000).map(|i| draw(12, batch, 0, 0, i, 0)).collect();
        let (ids, _) = run(&stream(), &row.repeat(1000), &draws, &[], &sampling)?;
        ids.iter().for_each(|id| counts[*id as usize] += 1.0);
    }
    let cells = counts.iter().zip(&masses).filter(|(_, m)| **m > 0);
    let expected = |m: u64| m as f64 / kept as f64 * n as f64;
    let chi: f64 = cells.clone().map(|(c, m)| (c - expected(*m)).powi(2) / expected(*m)).sum();
    assert!(counts.iter().zip(&masses).all(|(c, m)| *m > 0 || *c == 0.0) && cells.clone().all(|(_, m)| expected(*m) > 5.0));
    // Wilson–Hilferty: the cube root is normal; 4.75 standard deviations are p = 1e-6.
    let spread = 2.0 / (9.0 * (cells.count() as f64 - 1.0));
    let z = ((chi * spread * 4.5).cbrt() - (1.0 - spread)) / spread.sqrt();
    println!("chi-square {chi:.1}, {z:.2} standard deviations");
    assert!(z < 4.75);
    Ok(())
}

/// The law's probabilities [B, V] of the file's rows, held to the file's.
fn golden_probabilities(logits: &[f32], v: usize, sampling: &Sampling, file: &[f64]) -> Vec<f64> {
    let mut all = vec![];
    for (logits, file) in logits.chunks(v).zip(file.chunks(v)) {
        let masses = reference::masses(logits, &[], sampling);
        let kept: u64 = masses.iter().sum();
        all.extend(masses.iter().map(|m| *m as f64 / kept as f64));
        let (mut ours, mut theirs) = (all[all.len() - v..].to_vec(), file.to_vec());
        if logits.iter().all(|z| *z == logits[0]) {
            // Of equals the file's probabilities keep as many as the law, but not the lowest ids (its picks do).
            ours.sort_by(f64::total_cmp);
            theirs.sort_by(f64::total_cmp);
        }
        assert!(ours.iter().zip(&theirs).all(|(a, b)| (a - b).abs() < 2e-7), "{sampling:?}");
    }
    all
}

#[test]
fn golden() -> Result<()> {
    let Some(file) = Golden::open("sampling") else { return Ok(()) };
    let (logits, v, each) = (file.f32("logits"), file.shape("logits")[1], file.shape("u64_draws_lo")[1]);
    let halves = file.i64("u64_draws_lo").into_iter().zip(file.i64("u64_draws_hi"));
    let draws: Vec<u64> = halves.map(|(low, high)| low as u64 | (high as u64) << 32).collect();
    let rows: Vec<f32> = logits.chunks(v).flat_map(|row| row.repeat(each)).collect();
    for (i, setting) in file.settings["grid"].as_array().unwrap().iter().enumerate() {
        let number = |name: &str| setting[name].as_f64().unwrap();
        let sampling = Sampling {
            temperature: number("temperature"),
            top_k: number("top_k") as u32,
            top_p: number("top_p") as f32,
            min_p: number("min_p") as f32,
            ..Sampling::default()
        };
        let probabilities = golden_probabilities(&logits, v, &sampling, &file.f64(&format!("probs_{i}")));
        let (ids, logps) = run(&stream(), &rows, &draws, &[], &sampling)?;
        let (picks, margins) = (file.u32(&format!("pick_{i}")), file.f32(&format!("pick_margin_{i}")));
        let clear = (0..ids.len()).filter(|row| margins[*row] > 1e-6);
        println!("sampling {i}: {} picks of {}", clear.clone().count(), ids.len());
        assert!(clear.clone().count() > ids.len() / 2);
        for row in clear {
            assert_eq!(ids[row], picks[row], "row {row} of {sampling:?}");
            let p = probabilities[row / each * v + ids[row] as usize];
            assert!((f64::from(logps[row]) - p.ln()).abs() < 1e-6, "row {row}: {} for ln {p}", logps[row]);
        }
    }
    Ok(())
}

#[test]
fn settings_out_of_range_are_named() {
    assert_eq!(Sampling::default().validate(), Ok(()));
    let plain = Sampling::default();
    for (name, wrong) in [
        ("top_p", Sampling { top_p: 0.0, ..plain }),
        ("top_p", Sampling { top_p: f32::NAN, ..plain }),
        ("min_p", Sampling { min_p: 1.5, ..plain }),
        ("temperature", Sampling { temperature: -1.0, ..plain }),
        ("temperature", Sampling { temperature: 1e-39, ..plain }),
        ("temperature", Sampling { temperature: f64::INFINITY, ..plain }),
        ("repetition_penalty", Sampling { repetition_penalty: 0.0, ..plain }),
        ("frequency_penalty", Sampling { frequency_penalty: f32::NAN, ..plain }),
        ("presence_penalty", Sampling { presence_penalty: f32::INFINITY, ..plain }),
        ("softcap", Sampling { softcap: -30.0, ..plain }),
    ] {
        assert!(wrong.validate().unwrap_err().starts_with(name), "{wrong:?}");
        assert!(run(&stream(), &[0.0], &[0], &[], &wrong).unwrap_err().to_string().contains(name));
    }
}

#[test]
fn the_inverse_is_rounded_once() {
    let of = |temperature| Sampling { temperature, ..Sampling::default() }.inv_temperature();
    let twice = |t: f64| 1.0 / (t as f32);
    assert!((1..300).all(|i| of(i as f64 / 100.0) == (100.0 / i as f64) as f32));
    assert!((1..300).any(|i| of(i as f64 / 100.0) != twice(i as f64 / 100.0)), "the rounding of T never shows");
}

#[test]
fn rows_without_a_maximum_are_named() -> Result<()> {
    let (s, greedy) = (stream(), Sampling { temperature: 0.0, ..Sampling::default() });
    for bad in [f32::NAN, f32::INFINITY] {
        let mut logits = vec![0.5; 60];
        logits[47] = bad;
        logits[55] = bad;
        for sampling in [greedy, Sampling::default()] {
            let error = run(&s, &logits, &[0; 6], &[], &sampling).unwrap_err();
            assert!(matches!(&error, Error::Numeric(text) if text.contains("row 4")), "{error}");
        }
    }
    assert!(run(&s, &[f32::NEG_INFINITY; 3], &[0], &[], &greedy).is_err());
    assert_eq!(run(&s, &[-0.0, 0.0, -1.0], &[0], &[], &greedy)?.0, [0]);
    let ties = Sampling { top_k: 1, ..Sampling::default() };
    assert_eq!(run(&s, &[-1.0, 0.0, -0.0], &[u64::MAX], &[], &ties)?, (vec![2], vec![-std::f32::consts::LN_2]));
    Ok(())
}

#[test]
fn wrong_operands_are_refused() -> Result<()> {
    let s = stream();
    assert!(run(&s, &[0.0; 7], &[0, 0], &[], &Sampling::default()).is_err());
    assert!(run(&s, &[], &[0], &[], &Sampling::default()).is_err());
    assert!(run(&s, &[0.0; 6], &[0, 0], &[0; 3], &Sampling::default()).is_err());
    assert_eq!(run(&s, &[], &[], &[], &Sampling::default())?, (vec![], vec![]));
    Ok(())
}
