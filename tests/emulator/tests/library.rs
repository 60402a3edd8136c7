//! The vendor's products through the runtime: right, repeatable, and in the hostile mode of the stand-in no more than that.

use ple_emulator as emulator;

use runtime::{Buffer, DType, Error, Gemm, Gemmed, Ptr, Result, Stream};

const K: usize = 1000;
const N: usize = 24;

fn values(seed: u64, n: usize) -> Vec<f32> {
    let mut state = seed;
    let next = |_| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as f32 / 8388608.0 - 1.0
    };
    (0..n).map(next).collect()
}

fn gemm(c: &Buffer<f32>, a: &Buffer<f32>, b: &Buffer<f32>, m: usize, down: bool) -> Gemm {
    let [c, a, b] = [c, a, b].map(|v| v.view().ptr());
    let ld = [N, K, if down { N } else { K }].map(|n| n as u32);
    Gemm { c, a, b, size: [m as u32, N as u32, K as u32], ld, down, dtype: DType::F32, bias: None }
}

/// The first `m` rows of a times b.
fn product(s: &Stream, a: &[f32], b: &[f32], m: usize, down: bool) -> Result<Vec<f32>> {
    let (a, b, c) = (s.upload(&a[..m * K])?, s.upload(b)?, s.upload(&vec![f32::NAN; m * N])?);
    // SAFETY: buffers of the sizes that the product has.
    assert_eq!(unsafe { s.gemm(&gemm(&c, &a, &b, m, down))? }, Gemmed::Done);
    c.to_vec()
}

#[test]
fn on_cuda_the_library_adds_as_it_likes() -> Result<()> {
    let Some(cuda) = emulator::cuda() else { return Ok(()) };
    let (s, m) = (&cuda.stream, 70);
    let (a, b) = (values(1, m * K), values(2, N * K));
    for down in [false, true] {
        let at = |n: usize, k: usize| if down { b[k * N + n] } else { b[n * K + k] };
        let chain = |m: usize, n: usize| (0..K).fold(0f32, |acc, k| a[m * K + k].mul_add(at(n, k), acc));
        let want: Vec<f32> = (0..m * N).map(|i| chain(i / N, i % N)).collect();
        assert_eq!(product(s, &a, &b, m, down)?, want);
        cuda.hostile(true);
        let whole = product(s, &a, &b, m, down)?;
        let again = product(s, &a, &b, m, down)?;
        let alone = product(s, &a, &b, 1, down)?;
        cuda.hostile(false);
        assert_eq!(whole, again);
        assert_ne!(whole[..N], alone[..], "a row in company has the bits of a row alone");
        assert!(whole.iter().zip(&want).all(|(g, w)| (g - w).abs() < 1e-4), "down {down}");
    }
    Ok(())
}

#[test]
fn on_cuda_a_bias_is_added_to_every_row_before_the_rounding() -> Result<()> {
    let Some(cuda) = emulator::cuda() else { return Ok(()) };
    let (s, m) = (&cuda.stream, 3);
    let (a, b) = (s.upload(&values(1, m * K))?, s.upload(&values(2, N * K))?);
    for seed in [4, 5] {
        let (added, c) = (values(seed, N), s.upload(&vec![f32::NAN; m * N])?);
        let bias = s.upload(&added)?;
        let plain = product(s, &a.to_vec()?, &b.to_vec()?, m, false)?;
        // SAFETY: buffers of the sizes that the product has.
        let done = unsafe { s.gemm(&Gemm { bias: Some(bias.view().ptr()), ..gemm(&c, &a, &b, m, false) })? };
        assert_eq!(done, Gemmed::Done);
        let want: Vec<f32> = plain.iter().enumerate().map(|(i, v)| v + added[i % N]).collect();
        assert_eq!(c.to_vec()?, want, "the second bias is not the plan's first");
    }
    Ok(())
}

#[test]
fn on_cuda_the_first_product_comes_before_the_capture() -> Result<()> {
    let Some(cuda) = emulator::cuda() else { return Ok(()) };
    let s = cuda.stream.beside(runtime::Queue(5));
    let [a, b, c] = [K, N * K, N].map(|n| s.upload(&values(3, n)));
    let (a, b, c) = (a?, b?, c?);
    let product = gemm(&c, &a, &b, 1, false);
    // SAFETY: buffers of the sizes that the product has, alive until the queue is empty.
    let mut go = || unsafe { s.gemm(&product).map(|done| assert_eq!(done, Gemmed::Done)) };
    let text = s.backend().capture(s.queue(), &mut go).unwrap_err().to_string();
    assert!(text.contains("gemm: the first product of a queue takes memory"), "{text}");
    go()?;
    let want = c.to_vec()?;
    c.view().zero(&s)?;
    let graph = s.backend().capture(s.queue(), &mut go)?.expect("the device records");
    s.backend().replay(s.queue(), &graph)?;
    assert_eq!(c.to_vec()?, want);
    Ok(())
}

#[test]
fn on_cuda_what_the_library_does_not_take_is_said() -> Result<()> {
    let Some(cuda) = emulator::cuda() else { return Ok(()) };
    let s = &cuda.stream;
    let [a, b, c] = [4 * K, N * K, 4 * N].map(|n| s.upload(&values(3, n)));
    let (a, b, c) = (a?, b?, c?);
    let good = gemm(&c, &a, &b, 2, false);
    // SAFETY: what does not fit is refused before it is touched.
    let go = |g: Gemm| unsafe { s.gemm(&g) };
    assert_eq!(go(good)?, Gemmed::Done);
    assert_eq!(go(Gemm { size: [0, N as u32, K as u32], ..good })?, Gemmed::Done);
    assert_eq!(go(Gemm { a: Ptr(good.a.0 + 4), ..good })?, Gemmed::Unsupported);
    assert_eq!(go(Gemm { ld: [N as u32, K as u32 + 1, K as u32], ..good })?, Gemmed::Unsupported);
    assert_eq!(go(Gemm { dtype: DType::F16, ..good })?, Gemmed::Unsupported);
    match go(Gemm { size: [1000, N as u32, K as u32], ..good }) {
        Err(Error::Device { call: "cublasLtMatmul", code: 7, text }) => assert!(text.contains("INVALID_VALUE"), "{text}"),
        other => panic!("{other:?}"),
    }
    Ok(())
}
