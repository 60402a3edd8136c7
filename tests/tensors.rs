//! A file of golden tensors, and how much of it has been compared.
//!
//! A tensor counts as checked when ours was compared with it, or, for what a case gives as input, when everything derived from it
//! was compared. A case is ok when every comparison held; `CHECKED/TOTAL` says how much of the file that covers.

use crate::data::say;
use anyhow::{Context, Result, ensure};
use safetensors::{Dtype, SafeTensors};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// A golden tensor; integers of any width as i64.
#[derive(Clone, Debug)]
pub enum Values {
    /// Of any floating type.
    Float(Vec<f32>),
    /// Of any integer type.
    Int(Vec<i64>),
}

/// One tensor.
#[derive(Clone, Debug)]
pub struct Tensor {
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its elements, row-major.
    pub values: Values,
}

/// The tensors of one case.
#[derive(Debug, Default)]
pub struct Golden {
    tensors: BTreeMap<String, Tensor>,
    checked: BTreeSet<String>,
    failures: Vec<String>,
    /// The comparison that came closest to its limit: share of it, name.
    tightest: (f64, String),
}

fn values(dtype: Dtype, bytes: &[u8]) -> Result<Values> {
    let words = || bytes.chunks_exact(4).map(|b| [b[0], b[1], b[2], b[3]]);
    Ok(match dtype {
        Dtype::F32 => Values::Float(words().map(f32::from_le_bytes).collect()),
        Dtype::I32 => Values::Int(words().map(|b| i64::from(i32::from_le_bytes(b))).collect()),
        Dtype::I64 => Values::Int(bytes.chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap_or_default())).collect()),
        other => anyhow::bail!("golden tensors of type {other:?}"),
    })
}

impl Golden {
    /// Reads a file.
    pub fn open(path: &Path) -> Result<Golden> {
        let mut golden = Golden::default();
        golden.add("", path)?;
        Ok(golden)
    }

    /// Adds another file's tensors under a prefix.
    pub fn add(&mut self, prefix: &str, path: &Path) -> Result<()> {
        let bytes = std::fs::read(path).with_context(|| format!("{}", path.display()))?;
        let file = SafeTensors::deserialize(&bytes).with_context(|| format!("{}", path.display()))?;
        for (name, view) in file.tensors() {
            let tensor = Tensor { shape: view.shape().to_vec(), values: values(view.dtype(), view.data())? };
            self.tensors.insert(format!("{prefix}{name}"), tensor);
        }
        Ok(())
    }

    /// Whether it holds this tensor.
    pub fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// What of the names begins with `prefix`, without it.
    pub fn under(&self, prefix: &str) -> Vec<String> {
        self.tensors.keys().filter_map(|name| name.strip_prefix(prefix)).map(str::to_string).collect()
    }

    fn tensor(&self, name: &str) -> Result<&Tensor> {
        self.tensors.get(name).with_context(|| format!("no golden tensor {name}"))
    }

    /// Shape of a tensor.
    pub fn shape(&self, name: &str) -> Result<Vec<usize>> {
        Ok(self.tensor(name)?.shape.clone())
    }

    /// A floating tensor.
    pub fn floats(&self, name: &str) -> Result<Vec<f32>> {
        match &self.tensor(name)?.values {
            Values::Float(v) => Ok(v.clone()),
            Values::Int(_) => anyhow::bail!("{name} holds integers"),
        }
    }

    /// An integer tensor.
    pub fn ints(&self, name: &str) -> Result<Vec<i64>> {
        match &self.tensor(name)?.values {
            Values::Int(v) => Ok(v.clone()),
            Values::Float(_) => anyhow::bail!("{name} holds floats"),
        }
    }

    /// An integer tensor of ids or sizes.
    pub fn ids(&self, name: &str) -> Result<Vec<u32>> {
        self.ints(name)?.into_iter().map(|i| Ok(u32::try_from(i)?)).collect()
    }

    /// An input of the case: counts as checked, since what is computed from it is compared.
    pub fn input(&mut self, name: &str) -> Result<Vec<f32>> {
        self.checked.insert(name.to_string());
        self.floats(name)
    }

    /// The same for ids.
    pub fn input_ids(&mut self, name: &str) -> Result<Vec<u32>> {
        self.checked.insert(name.to_string());
        self.ids(name)
    }

    /// Compares ours with a tensor: same length, finite, nowhere further apart than `atol`.
    pub fn close(&mut self, name: &str, ours: &[f32], atol: f64) -> Result<()> {
        let golden = self.floats(name)?;
        self.checked.insert(name.to_string());
        let worst = golden.iter().zip(ours).map(|(g, o)| (f64::from(*g) - f64::from(*o)).abs());
        let worst = worst.fold(0.0, |worst: f64, d| if d > worst || d.is_nan() { d } else { worst });
        if golden.len() != ours.len() {
            self.failures.push(format!("{name}: {} elements, wanted {}", ours.len(), golden.len()));
        } else if !worst.is_finite() || worst > atol {
            self.failures.push(format!("{name}: off by {worst:.3e}, allowed {atol:.3e}"));
        } else if worst / atol > self.tightest.0 {
            self.tightest = (worst / atol, name.to_string());
        }
        Ok(())
    }

    /// 2e-6 of the tensor's largest magnitude: the manifest's tolerance where no noise was measured.
    pub fn unit(&self, name: &str) -> Result<f64> {
        Ok(2e-6 * self.floats(name)?.iter().fold(0.0, |m: f64, v| m.max(f64::from(v.abs()))))
    }

    /// Compares ids or sizes exactly.
    pub fn same(&mut self, name: &str, ours: &[u32]) -> Result<()> {
        let golden = self.ids(name)?;
        self.expect(name, golden == ours, || format!("got {ours:?}, wanted {golden:?}"));
        Ok(())
    }

    /// Records a comparison made elsewhere.
    pub fn expect(&mut self, name: &str, holds: bool, text: impl FnOnce() -> String) {
        if self.tensors.contains_key(name) {
            self.checked.insert(name.to_string());
        }
        if !holds {
            self.failures.push(format!("{name}: {}", text()));
        }
    }

    /// Prints the case's line and what failed; says whether all held. `complete` also asks that no tensor was left out.
    pub fn report(&self, case: &str, complete: bool) -> bool {
        let (checked, total) = (self.checked.len(), self.tensors.len());
        let left: Vec<&String> = self.tensors.keys().filter(|name| !self.checked.contains(*name)).collect();
        self.failures.iter().take(12).for_each(|failure| say(&format!("  {case}: {failure}")));
        if !left.is_empty() {
            say(&format!("  {case}: not compared: {left:?}"));
        }
        let ok = self.failures.is_empty() && (left.is_empty() || !complete);
        say(&format!("case {case} {} {checked}/{total}", if ok { "ok" } else { "FAILED" }));
        if ok && self.tightest.0 > 0.0 {
            say(&format!("  {case}: closest to its limit is {}, {:.0} % of it", self.tightest.1, 100.0 * self.tightest.0));
        }
        ok
    }
}

/// An error unless two vectors hold the same bits.
pub fn same_bits(what: &str, a: &[f32], b: &[f32]) -> Result<()> {
    ensure!(a.len() == b.len(), "{what}: {} and {} values", a.len(), b.len());
    let differ = a.iter().zip(b).filter(|(x, y)| x.to_bits() != y.to_bits()).count();
    let first = a.iter().zip(b).position(|(x, y)| x.to_bits() != y.to_bits());
    ensure!(differ == 0, "{what}: {differ} of {} values differ, first at {first:?}", a.len());
    Ok(())
}
