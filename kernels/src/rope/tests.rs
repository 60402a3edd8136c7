use super::*;
use crate::check::{self, Acts, Golden, below, bits, close, normal, on_cuda, rounded, rounds_once, stream, streams, wide};
use runtime::DType;

const LLAMA3: Scaling =
    Scaling { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_max_position_embeddings: 8192.0 };

/// The rows turned, and turned back.
fn run(s: &Stream, dtype: DType, x: &[f32], pos: &[u32], table: &[f32], shape: [usize; 3]) -> Result<[Vec<f32>; 2]> {
    let [heads, d, stride] = shape;
    let (x, pos, table) = (Acts::put(s, dtype, x)?, s.upload(pos)?, s.upload(table)?);
    forward(s, x.view(), pos.view(), table.view(), heads, d, stride)?;
    let y = x.get()?;
    backward(s, x.view(), pos.view(), table.view(), heads, d, stride)?;
    Ok([y, x.get()?])
}

#[test]
fn against_f64_and_back() -> Result<()> {
    accurate(&stream())
}

#[test]
fn on_cuda_against_f64_and_as_on_the_cpu() {
    on_cuda("rope", |s| accurate(s).and_then(|()| lawful(std::slice::from_ref(s))));
}

#[test]
fn on_cuda_a_position_beyond_the_table_is_nan() {
    on_cuda("rope", |s| {
        let [y, _] = run(s, F32, &[1.0; 12], &[0, 4], &table(4, 6, 1e4, None), [1, 6, 6])?;
        assert!(y[..6].iter().all(|v| *v == 1.0) && y[6..].iter().all(|v| v.is_nan()), "{y:?}");
        Result::Ok(())
    });
}

#[test]
fn on_cuda_in_bf16_the_cpus_values_rounded_once() {
    on_cuda("rope bf16", |s| {
        let (n, heads, d, stride) = (17, 3, 22, 80);
        let (x, pos, table) = (rounded(&normal(1, n * stride)), below(2, n, 131_072), table(131_072, d, 5e5, None));
        let [y, back] = run(s, DType::Bf16, &x, &pos, &table, [heads, d, stride])?;
        let turned = run(&streams()[0], F32, &x, &pos, &table, [heads, d, stride])?[0].clone();
        assert_eq!(bits(&y), bits(&rounded(&turned)));
        let frequencies: Vec<f64> = frequencies(d, 5e5, None).collect();
        let heads_of = |rows: &[f32]| -> Vec<f32> { rows.chunks(stride).flat_map(|r| r[..heads * d].to_vec()).collect() };
        let want = reference::rotate(&wide(&heads_of(&x)), &pos, &frequencies, heads, 1.0);
        rounds_once("rope y", &heads_of(&y), &want, heads * d);
        // Turned back, the rows have been rounded twice.
        let again = reference::rotate(&wide(&heads_of(&y)), &pos, &frequencies, heads, -1.0);
        rounds_once("rope back", &heads_of(&back), &again, heads * d);
        Result::Ok(())
    });
}

fn accurate(s: &Stream) -> Result<()> {
    for (heads, d, stride, scaling) in
        [(3, 2, 7, None), (2, 16, 48, Some(&LLAMA3)), (5, 48, 240, None), (2, 64, 128, Some(&LLAMA3))]
    {
        let n = 17;
        let (x, pos) = (normal(1, n * stride), below(2, n, 131_072));
        let table = table(131_072, d, 5e5, scaling);
        let [y, back] = run(s, F32, &x, &pos, &table, [heads, d, stride])?;
        let frequencies: Vec<f64> = frequencies(d, 5e5, scaling).collect();
        let turned = |rows: &[f32]| -> Vec<f32> { rows.chunks(stride).flat_map(|r| r[..heads * d].to_vec()).collect() };
        close("rope y", &turned(&y), &reference::rotate(&wide(&turned(&x)), &pos, &frequencies, heads, 1.0), 2e-7);
        close("rope back", &back, &wide(&x), 3e-7);
        for (before, after) in x.chunks(stride).zip(y.chunks(stride)) {
            assert_eq!(bits(&before[heads * d..]), bits(&after[heads * d..]));
        }
    }
    Ok(())
}

#[test]
fn the_reference_turns_back_by_its_transpose() {
    let (x, g, pos) = (wide(&normal(3, 24)), wide(&normal(4, 24)), [5, 90]);
    let frequencies: Vec<f64> = frequencies(6, 1e4, None).collect();
    let inner = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let forward = inner(&reference::rotate(&x, &pos, &frequencies, 2, 1.0), &g);
    assert!((forward - inner(&x, &reference::rotate(&g, &pos, &frequencies, 2, -1.0))).abs() < 1e-12);
}

#[test]
fn the_law() -> Result<()> {
    lawful(&streams())
}

/// Every stream and every cut writes the bits of the portable CPU.
fn lawful(on: &[Stream]) -> Result<()> {
    let (n, shape) = (64, [3, 22, 80]);
    let (x, pos, table) = (normal(5, n * 80), below(6, n, 300), table(300, 22, 1e4, None));
    check::lawful(on, n, 2, |s, cut| run(s, F32, &x[cut.start * 80..cut.end * 80], &pos[cut], &table, shape))
}

#[test]
fn golden() -> Result<()> {
    for (d, llama3) in [(16, false), (64, false), (128, false), (16, true), (64, true), (128, true)] {
        let name = format!("rope_{}_hd{d}", if llama3 { "llama3" } else { "plain" });
        let Some(file) = Golden::open(&name) else { continue };
        let scaling = file.settings["llama3"].as_array().map(|v| {
            let v: Vec<f64> = v.iter().map(|v| v.as_f64().unwrap()).collect();
            Scaling { factor: v[0], low_freq_factor: v[1], high_freq_factor: v[2], original_max_position_embeddings: v[3] }
        });
        assert_eq!(scaling.is_some(), llama3);
        let theta = file.number("theta");
        let inverse: Vec<f32> = frequencies(d, theta, scaling.as_ref()).map(|f| f as f32).collect();
        close(&format!("{name} inv_freq"), &inverse, &file.f64("inv_freq"), 1e-7);
        let (pos, heads) = (file.u32("positions"), file.shape("x")[1]);
        let table = table(1 + *pos.iter().max().unwrap() as usize, d, theta, scaling.as_ref());
        let [y, _] = run(&stream(), F32, &file.f32("x"), &pos, &table, [heads, d, heads * d])?;
        close(&format!("{name} y"), &y, &file.f64("y"), 2e-7);
        let (s, shape) = (stream(), [heads, d, heads * d]);
        let (g, pos, table) = (s.upload(&file.f32("g"))?, s.upload(&pos)?, s.upload(&table)?);
        backward(&s, g.view(), pos.view(), table.view(), shape[0], shape[1], shape[2])?;
        close(&format!("{name} dx"), &g.to_vec()?, &file.f64("d_x"), 2e-7);
    }
    Ok(())
}

#[test]
fn wrong_operands_are_refused() -> Result<()> {
    let s = stream();
    let (x, table) = (s.zeros::<f32>(24)?, s.upload(&table(4, 6, 1e4, None))?);
    let go = |pos: &[u32], heads, d, stride| forward(&s, x.view(), s.upload(pos)?.view(), table.view(), heads, d, stride);
    assert!(go(&[0, 3], 2, 6, 12).is_ok() && go(&[0, 3], 1, 6, 12).is_ok());
    let error = go(&[0, 4], 2, 6, 12).unwrap_err().to_string();
    assert!(error.contains("row 1") && error.contains("position 4"), "{error}");
    assert!(go(&[0, 3], 3, 6, 12).is_err() && go(&[0], 2, 6, 12).is_err() && go(&[0, 3], 2, 5, 12).is_err());
    Ok(())
}
