//! What the tests of the rooms share: inputs, streams, limits, and the golden files of `PLE_SHARED`.

pub use crate::selftest::inputs::{below, normal};
use half::bf16;
pub use law::{examples_add, lawful};
use runtime::{Buffer, DType, Isa, Result, Stream, View};
use std::path::PathBuf;

mod law;

/// Every instruction set with 1, 2 and 4 threads; the first is the law.
pub fn streams() -> Vec<Stream> {
    Isa::all().into_iter().flat_map(|isa| [1, 2, 4].map(|threads| Stream::cpu(threads, isa))).collect()
}

/// The best instruction set on two threads.
pub fn stream() -> Stream {
    Stream::cpu(2, Isa::detect())
}

/// Runs `f` on the emulated CUDA device in each of [`emulator::Mode::PAIRS`] and says which device it was; nothing happens, said
/// aloud, where there is none.
pub fn on_cuda<E: std::fmt::Debug>(room: &str, f: impl Fn(&Stream) -> std::result::Result<(), E>) {
    let Some(cuda) = emulator::cuda() else { return };
    for mode in emulator::Mode::PAIRS {
        cuda.mode(mode);
        println!("room {room} cuda:0 (emulated) {mode}");
        f(&cuda.stream).unwrap();
    }
}

/// Activations on a device, in f32 or in bf16.
pub enum Acts {
    F32(Buffer<f32>),
    Bf16(Buffer<bf16>),
}

impl Acts {
    /// The values, rounded to the storage.
    pub fn put(s: &Stream, dtype: DType, values: &[f32]) -> Result<Acts> {
        match dtype {
            DType::Bf16 => Ok(Acts::Bf16(s.upload(&values.iter().map(|v| bf16::from_f32(*v)).collect::<Vec<_>>())?)),
            _ => Ok(Acts::F32(s.upload(values)?)),
        }
    }

    /// NaNs: what an output holds before a checked launch.
    pub fn nan(s: &Stream, dtype: DType, len: usize) -> Result<Acts> {
        Acts::put(s, dtype, &vec![f32::NAN; len])
    }

    /// As an operand.
    pub fn view(&self) -> View<'_> {
        match self {
            Acts::F32(b) => b.view(),
            Acts::Bf16(b) => b.view(),
        }
    }

    /// The values, widened.
    pub fn get(&self) -> Result<Vec<f32>> {
        match self {
            Acts::F32(b) => b.to_vec(),
            Acts::Bf16(b) => Ok(b.to_vec()?.iter().map(|v| v.to_f32()).collect()),
        }
    }
}

/// Rounded to bf16.
pub fn rounded(x: &[f32]) -> Vec<f32> {
    x.iter().map(|v| bf16::from_f32(*v).to_f32()).collect()
}

/// Rows [N, 2F] of gate [N, F] and up [N, F].
pub fn beside(gate: &[f32], up: &[f32], f: usize) -> Vec<f32> {
    gate.chunks(f).zip(up.chunks(f)).flat_map(|(g, u)| [g, u].concat()).collect()
}

/// The reverse.
pub fn apart(rows: &[f32], f: usize) -> [Vec<f32>; 2] {
    [0, f].map(|start| rows.chunks(2 * f).flat_map(|r| r[start..start + f].to_vec()).collect())
}

/// What a norm sees: x, or x + delta.
pub fn summed(x: &[f32], delta: Option<&[f32]>) -> Vec<f32> {
    delta.map_or(x.to_vec(), |delta| x.iter().zip(delta).map(|(x, d)| x + d).collect())
}

/// Widened.
pub fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&v| v as f64).collect()
}

/// The bits, so that NaN and the sign of zero count.
pub fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|v| v.to_bits()).collect()
}

/// Largest deviation relative to the largest wanted value; infinite if anything is not a number.
pub fn deviation(got: &[f32], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len());
    let largest = want.iter().fold(f64::MIN_POSITIVE, |a, w| a.max(w.abs()));
    let each = got.iter().zip(want).map(|(g, w)| (*g as f64 - w).abs());
    each.fold(0.0, |a: f64, d| if d.is_nan() { f64::INFINITY } else { a.max(d) }) / largest
}

/// Fails if [`deviation`] is above the limit.
pub fn close(what: &str, got: &[f32], want: &[f64], limit: f64) {
    let error = deviation(got, want);
    println!("{what}: {error:.2e} of {limit:.0e}");
    assert!(error <= limit, "{what}: deviation {error:e} above {limit:e}");
}

/// Fails if the error relative to the norm of what is wanted is above `tensor` over the tensor, or above `row` over its worst row of
/// `width`.
pub fn within(what: &str, got: &[f32], want: &[f64], width: usize, tensor: f64, row: f64) {
    assert_eq!(got.len(), want.len(), "{what}");
    let error = |got: &[f32], want: &[f64]| {
        let diff: f64 = got.iter().zip(want).map(|(g, w)| (*g as f64 - w).powi(2)).sum();
        (diff / want.iter().map(|w| w * w).sum::<f64>().max(1e-30)).sqrt()
    };
    let rows = got.chunks(width).zip(want.chunks(width)).map(|(g, w)| error(g, w));
    let (all, worst) = (error(got, want), rows.fold(0.0, |a: f64, b| if b <= a { a } else { b }));
    assert!(all <= tensor && worst <= row, "{what}: tensor {all:e} (limit {tensor:e}), worst row {worst:e} (limit {row:e})");
}

/// Prints and checks ‖got − want‖ / ‖want‖ over the tensor and over the worst row of `width`, with one limit for both. A row smaller
/// than a thousandth of the tensor's mean row counts as that: gradients of queries that see one key are zero.
pub fn held(what: &str, got: &[f32], want: &[f64], width: usize, limit: f64) {
    assert_eq!(got.len(), want.len(), "{what}");
    let size = |x: &[f64]| x.iter().map(|x| x * x).sum::<f64>().sqrt();
    let difference: Vec<f64> = got.iter().zip(want).map(|(g, w)| *g as f64 - w).collect();
    let least = 1e-3 * size(want) / (want.len() as f64 / width as f64).sqrt();
    let rows = difference.chunks(width).zip(want.chunks(width)).map(|(d, w)| size(d) / size(w).max(least));
    let (all, worst) = (size(&difference) / size(want), rows.fold(0.0, |a: f64, b| if b <= a { a } else { b }));
    println!("{what}: tensor {all:.2e}, worst row {worst:.2e} of {limit:.0e}");
    assert!(all <= limit && worst <= limit, "{what}: tensor {all:e}, worst row {worst:e} (limit {limit:e})");
}

/// [`within`] the limits of a result that was rounded once to bf16: 2.2e-3, and 4e-3 in the worst row. A single value may be off by
/// 2^-8, so a tensor of less than 16 is judged as a row.
pub fn rounds_once(what: &str, got: &[f32], want: &[f64], width: usize) {
    within(what, got, want, width, if want.len() < 16 { 4e-3 } else { 2.2e-3 }, 4e-3);
}

/// Fails unless `gradient` is the derivative of `f` at `x`, by central differences in f64.
pub fn differentiates(what: &str, f: &dyn Fn(&[f64]) -> f64, x: &[f64], gradient: &[f64]) {
    let h = 1e-5;
    for (i, g) in gradient.iter().enumerate() {
        let mut at = x.to_vec();
        at[i] = x[i] + h;
        let up = f(&at);
        at[i] = x[i] - h;
        let slope = (up - f(&at)) / (2.0 * h);
        assert!((slope - g).abs() < 1e-7 * (1.0 + g.abs()), "{what} [{i}]: slope {slope}, gradient {g}");
    }
}

/// One golden file of `fixtures/ops` and its settings in the manifest.
pub struct Golden {
    bytes: Vec<u8>,
    /// The manifest's entry.
    pub settings: serde_json::Value,
}

impl Golden {
    /// None, said aloud, where the shared data is absent.
    pub fn open(name: &str) -> Option<Golden> {
        let default = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared");
        let root = PathBuf::from(std::env::var("PLE_SHARED").unwrap_or_else(|_| default.to_string())).join("fixtures");
        let Ok(text) = std::fs::read(root.join("manifest.json")) else {
            eprintln!("skip: {name}: no manifest.json in {}", root.display());
            return None;
        };
        let manifest: serde_json::Value = serde_json::from_slice(&text).unwrap();
        let ops = manifest["ops"].as_array().unwrap();
        let Some(settings) = ops.iter().find(|op| op["name"] == name).cloned() else {
            eprintln!("skip: {name}: not in the manifest of {}", root.display());
            return None;
        };
        let bytes = std::fs::read(root.join(settings["file"].as_str().unwrap())).unwrap();
        Some(Golden { bytes, settings })
    }

    /// A setting as a number.
    pub fn number(&self, field: &str) -> f64 {
        self.settings[field].as_f64().unwrap()
    }

    fn shaped<T: bytemuck::Pod>(&self, name: &str) -> (Vec<T>, Vec<usize>) {
        let file = safetensors::SafeTensors::deserialize(&self.bytes).unwrap();
        let tensor = file.tensor(name).unwrap();
        let values = tensor.data().chunks_exact(size_of::<T>()).map(bytemuck::pod_read_unaligned).collect();
        (values, tensor.shape().to_vec())
    }

    /// An f32 tensor.
    pub fn f32(&self, name: &str) -> Vec<f32> {
        self.shaped(name).0
    }

    /// An f32 tensor, widened.
    pub fn f64(&self, name: &str) -> Vec<f64> {
        wide(&self.f32(name))
    }

    /// An i32 tensor of ids or positions.
    pub fn u32(&self, name: &str) -> Vec<u32> {
        self.shaped(name).0
    }

    /// An i64 tensor of u32 halves.
    pub fn i64(&self, name: &str) -> Vec<i64> {
        self.shaped(name).0
    }

    /// A tensor's shape.
    pub fn shape(&self, name: &str) -> Vec<usize> {
        self.shaped::<u8>(name).1
    }
}
