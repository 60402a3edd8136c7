use super::*;
use crate::check::{Acts, Golden, below, bits, close, differentiates, normal, on_cuda, rounded, stream, streams, wide};
use runtime::Element;

fn look_up<T: Element>(s: &Stream, table: &[T], tokens: &[u32], c: usize, scale: f32) -> Result<Vec<f32>> {
    let v = table.len() / c;
    let held = s.zeros::<T>(Layout::of(s, &[]).len(&[v], c))?;
    let weight = Layout::of(s, &[]).weight(held.view(), &[v], c, 0)?;
    weight::load(s, weight, bytemuck::cast_slice(table))?;
    // A device stores activations as it does weights.
    let x = Acts::nan(s, if s.host().is_some() { F32 } else { T::DTYPE }, tokens.len() * c)?;
    forward(s, x.view(), s.upload(tokens)?.view(), weight, scale)?;
    x.get()
}

fn gather(s: &Stream, dtype: DType, dx: &[f32], tokens: &[u32], v: usize, c: usize) -> Result<Vec<f32>> {
    scaled(s, dtype, dx, tokens, [v, c], 1.0)
}

fn scaled(s: &Stream, dtype: DType, dx: &[f32], tokens: &[u32], [v, c]: [usize; 2], scale: f32) -> Result<Vec<f32>> {
    let dtable = s.zeros::<f32>(Layout::of(s, &[]).len(&[v], c))?;
    backward(s, dtable.view(), Acts::put(s, dtype, dx)?.view(), s.upload(tokens)?.view(), v, scale)?;
    weight::read(s, Layout::of(s, &[]).weight(dtable.view(), &[v], c, 0)?)
}

#[test]
fn against_f64() -> Result<()> {
    accurate(&stream())
}

#[test]
fn on_cuda_against_f64_and_as_on_the_cpu() {
    on_cuda("embedding", |s| accurate(s).and_then(|()| lawful(std::slice::from_ref(s))));
}

#[test]
fn on_cuda_in_bf16_values_are_rounded_once_and_an_unknown_id_is_nan() {
    let table: Vec<bf16> = (0..=u16::MAX).map(bf16::from_bits).collect();
    on_cuda("embedding bf16", |s| {
        let ids: Vec<u32> = (0..1024).collect();
        for scale in [1.0, 3.3] {
            let got = look_up(s, &table, &ids, 64, scale)?;
            let want = table.iter().map(|w| bf16::from_f32(if scale == 1.0 { w.to_f32() } else { w.to_f32() * scale }).to_f32());
            assert!(got.iter().zip(want).all(|(g, w)| g.to_bits() == w.to_bits() || (g.is_nan() && w.is_nan())));
        }
        let (tokens, dx) = (below(2, 40, 33), rounded(&normal(3, 40 * 7)));
        for scale in [1.0, 3.3] {
            let law = scaled(&streams()[0], F32, &dx, &tokens, [33, 7], scale)?;
            assert_eq!(bits(&scaled(s, DType::Bf16, &dx, &tokens, [33, 7], scale)?), bits(&law));
        }
        let rows = look_up(s, &[1f32; 10], &[0, 4, 5], 2, 1.0)?;
        assert!(rows[..4] == [1.0; 4] && rows[4..].iter().all(|v| v.is_nan()), "{rows:?}");
        Result::Ok(())
    });
}

fn accurate(s: &Stream) -> Result<()> {
    for (n, v, c) in [(1, 1, 1), (40, 33, 7), (64, 70, 48)] {
        let (table, tokens, dx) = (normal(1, v * c), below(2, n, v as u32), normal(3, n * c));
        let half: Vec<bf16> = table.iter().map(|w| bf16::from_f32(*w)).collect();
        let other: Vec<f16> = table.iter().map(|w| f16::from_f32(*w)).collect();
        let truth = |widened: Vec<f64>, scale| reference::forward(&tokens, &widened, c, scale);
        close("f32", &look_up(s, &table, &tokens, c, 1.0)?, &truth(wide(&table), 1.0), 0.0);
        close("bf16", &look_up(s, &half, &tokens, c, 1.0)?, &truth(half.iter().map(|w| w.to_f64()).collect(), 1.0), 0.0);
        if s.host().is_some() {
            close("f16", &look_up(s, &other, &tokens, c, 1.0)?, &truth(other.iter().map(|w| w.to_f64()).collect(), 1.0), 0.0);
        }
        close("scaled", &look_up(s, &table, &tokens, c, 3.3)?, &truth(wide(&table), 3.3f32 as f64), 6e-8);
        let want = reference::backward(&wide(&dx), &tokens, v, c);
        close("dtable", &gather(s, F32, &dx, &tokens, v, c)?, &want, 3e-7);
        let want: Vec<f64> = want.iter().map(|d| d * 3.3f32 as f64).collect();
        close("dtable scaled", &scaled(s, F32, &dx, &tokens, [v, c], 3.3)?, &want, 3e-7);
    }
    Ok(())
}

#[test]
fn the_reference_differentiates() {
    let (table, tokens, dx) = (wide(&normal(4, 15)), [4, 0, 4, 2], wide(&normal(5, 12)));
    let f = |t: &[f64]| reference::forward(&tokens, t, 3, 1.0).iter().zip(&dx).map(|(x, d)| x * d).sum();
    differentiates("dtable", &f, &table, &reference::backward(&dx, &tokens, 5, 3));
}

#[test]
fn the_law() -> Result<()> {
    lawful(&streams())
}

/// Every stream and every cut writes the bits of the portable CPU.
fn lawful(on: &[Stream]) -> Result<()> {
    let (n, v, c) = (64, 100, 9);
    let (table, tokens, dx) = (normal(6, v * c), below(7, n, 40), normal(8, n * c));
    let law = (look_up(&streams()[0], &table, &tokens, c, 0.7)?, gather(&streams()[0], F32, &dx, &tokens, v, c)?);
    let mut rows = vec![0f32; v * c];
    for (i, d) in dx.iter().enumerate() {
        rows[tokens[i / c] as usize * c + i % c] += d;
    }
    assert_eq!(bits(&law.1), bits(&rows));
    for s in on {
        assert_eq!(bits(&law.1), bits(&gather(s, F32, &dx, &tokens, v, c)?), "{:?}", s.host());
        for cut in [0..64, 0..1, 1..4, 4..21] {
            let part = look_up(s, &table, &tokens[cut.clone()], c, 0.7)?;
            assert_eq!(bits(&law.0[cut.start * c..cut.end * c]), bits(&part), "{:?} {cut:?}", s.host());
        }
    }
    Ok(())
}

#[test]
fn golden() -> Result<()> {
    let Some(file) = Golden::open("embedding") else { return Ok(()) };
    let (s, [v, c]) = (stream(), file.shape("table")[..].try_into().unwrap());
    let ids = file.u32("ids");
    close("embedding out", &look_up(&s, &file.f32("table"), &ids, c, 1.0)?, &file.f64("out"), 0.0);
    close("embedding dtable", &gather(&s, F32, &file.f32("dy"), &ids, v, c)?, &file.f64("dtable"), 2e-7);
    Ok(())
}

#[test]
fn wrong_operands_are_refused() -> Result<()> {
    let s = stream();
    let error = look_up(&s, &[1f32; 10], &[0, 4, 5], 2, 1.0).unwrap_err().to_string();
    assert!(error.contains("row 2") && error.contains("id 5"), "{error}");
    assert!(gather(&s, F32, &[1.0; 4], &[0, 5], 5, 2).is_err() && gather(&s, F32, &[1.0; 5], &[0, 1], 5, 2).is_err());
    assert_eq!(gather(&s, F32, &[], &[], 5, 2)?, [0.0; 10]);
    let (d, dx) = (s.zeros::<f32>(64)?, s.zeros::<f32>(4)?);
    assert!(backward(&s, d.view(), dx.view(), s.upload(&[1u32, 2])?.view(), 33, 1.0).is_err());
    Ok(())
}
