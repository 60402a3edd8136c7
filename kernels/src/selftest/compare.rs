//! Outputs against what they should be: by bits, or by norms in f64.

use super::case::{Limit, Operand};
use half::{bf16, f16};
use runtime::{DType, Element};

/// What an output should be.
pub enum Wanted {
    /// These bytes.
    Bytes(Vec<u8>),
    /// These numbers.
    Values(Vec<f64>),
}

fn typed<T: Element>(bytes: &[u8], widen: impl Fn(T) -> f64) -> Vec<f64> {
    bytes.chunks_exact(size_of::<T>()).map(|one| widen(bytemuck::pod_read_unaligned(one))).collect()
}

/// Elements as f64, exactly.
pub fn widened(operand: &Operand, bytes: &[u8]) -> Vec<f64> {
    match operand.dtype {
        DType::F32 => typed::<f32>(bytes, f64::from),
        DType::Bf16 => typed::<bf16>(bytes, f64::from),
        DType::F16 => typed::<f16>(bytes, f64::from),
        DType::U32 => typed::<u32>(bytes, f64::from),
        DType::I32 => typed::<i32>(bytes, f64::from),
    }
}

/// The first element with other bits, in words.
pub fn bits(operands: &[&Operand], got: &[Vec<u8>], wanted: &[Vec<u8>]) -> Option<String> {
    let first = |(operand, (got, wanted)): (&&Operand, (&Vec<u8>, &Vec<u8>))| {
        let at = got.iter().zip(wanted).position(|(a, b)| a != b)? / operand.dtype.size();
        let (got, wanted) = (widened(operand, got)[at], widened(operand, wanted)[at]);
        Some(format!("{}[{at}]: wanted the bits of {wanted:e}, got {got:e}", operand.name))
    };
    operands.iter().zip(got.iter().zip(wanted)).find_map(first)
}

/// f32 bytes as the operand stores them.
pub fn narrowed(operand: &Operand, bytes: Vec<u8>) -> Vec<u8> {
    match operand.dtype {
        DType::Bf16 => typed::<f32>(&bytes, f64::from).iter().flat_map(|v| bf16::from_f32(*v as f32).to_ne_bytes()).collect(),
        _ => bytes,
    }
}

/// The largest share of a limit that an output uses, or the first output beyond its own, in words.
pub fn outputs(operands: &[&Operand], got: &[Vec<u8>], wanted: &[Wanted], limit: Limit) -> Result<f64, String> {
    let mut share = 0f64;
    for ((operand, bytes), wanted) in operands.iter().zip(got).zip(wanted) {
        let (values, [tensor, row]) = match (operand.limit.unwrap_or(limit), wanted) {
            (Limit::Bits, Wanted::Bytes(wanted)) => {
                match bits(&[operand], std::slice::from_ref(bytes), std::slice::from_ref(wanted)) {
                    Some(text) => return Err(text),
                    None => continue,
                }
            }
            (Limit::Bits, Wanted::Values(values)) => (values.clone(), [0.0; 2]),
            (Limit::Norm { tensor, row }, Wanted::Values(values)) => (values.clone(), [tensor, row]),
            (Limit::Norm { tensor, row }, Wanted::Bytes(wanted)) => (widened(operand, wanted), [tensor, row]),
        };
        let got = widened(operand, bytes);
        let width = operand.width.unwrap_or(got.len()).max(1);
        let rows = got.chunks(width).zip(values.chunks(width)).map(|(got, wanted)| deviation(got, wanted));
        for (what, error, limit) in [("tensor", deviation(&got, &values), tensor), ("worst row", rows.fold(0.0, f64::max), row)] {
            if error > limit || got.len() != values.len() {
                return Err(format!("{}: {what} deviates by {error:.2e}, limit {limit:.0e}", operand.name));
            }
            share = share.max(if error > 0.0 { error / limit } else { 0.0 });
        }
    }
    Ok(share)
}

/// ‖got − wanted‖ / ‖wanted‖; infinite where anything is not a number, 0 where both are 0.
fn deviation(got: &[f64], wanted: &[f64]) -> f64 {
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|v| v * v).sum::<f64>().sqrt();
    let apart = norm(&mut got.iter().zip(wanted).map(|(g, w)| g - w));
    let size = norm(&mut wanted.iter().copied());
    if apart == 0.0 {
        0.0
    } else if apart.is_nan() || size == 0.0 {
        f64::INFINITY
    } else {
        apart / size
    }
}
