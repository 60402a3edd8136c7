//! From raw rewards to the scale on which tau is compared (ALGORITHMS §6.5).
//!
//! - `sigmoid`: r = σ(clamp((raw − mean)/scale, ±30)), mean and (population) standard deviation of the plain answers' raw
//!   rewards; Delta = r' − r; weights from r.
//! - `none`: r = raw.
//! - `bt`: Delta = tanh((raw' − raw)/2) = 2·P(y' beats y) − 1; weights from raw.
//!
//! scale = max(std, 1e-6·max(1, |mean|)).

use crate::config::{Calib, Norm};
use crate::{Error, Result};
use serde_json::{Value, json};

/// σ(x), without overflow.
pub fn sigmoid(x: f64) -> f64 {
    if x >= 0.0 { 1.0 / (1.0 + (-x).exp()) } else { x.exp() / (1.0 + x.exp()) }
}

/// The normalisation and its calibration.
#[derive(Clone, Debug, PartialEq)]
pub struct Normalisation {
    norm: Norm,
    calib: Calib,
    mean_scale: Option<(f64, f64)>,
}

impl Normalisation {
    /// `auto` is resolved by whether the rewards lie in [0, 1].
    pub fn new(norm: Norm, calib: Calib, unit: bool) -> Normalisation {
        let norm = match norm {
            Norm::Auto if unit => Norm::None,
            Norm::Auto => Norm::Sigmoid,
            given => given,
        };
        let mean_scale = match calib {
            Calib::Fixed { mean, std } => Some((mean, scale(mean, std))),
            Calib::FirstIter | Calib::EachIter => None,
        };
        Normalisation { norm, calib, mean_scale }
    }

    /// Which normalisation holds, never `auto`.
    pub fn norm(&self) -> Norm {
        self.norm
    }

    /// Mean and scale, once known.
    pub fn mean_scale(&self) -> Option<(f64, f64)> {
        self.mean_scale
    }

    /// Shows it the raw rewards of an iteration's plain answers. True if their spread is so small that the floor of the scale holds.
    pub fn calibrate(&mut self, plain: &[f64]) -> bool {
        let due = self.mean_scale.is_none() || self.calib == Calib::EachIter;
        if !due || self.norm != Norm::Sigmoid || plain.is_empty() {
            return false;
        }
        let n = plain.len() as f64;
        let mean = plain.iter().sum::<f64>() / n;
        let std = (plain.iter().map(|r| (r - mean) * (r - mean)).sum::<f64>() / n).sqrt();
        self.mean_scale = Some((mean, scale(mean, std)));
        scale(mean, std) > std
    }

    /// The reward on the scale of the weights.
    pub fn normalise(&self, raw: f64) -> f64 {
        match (self.norm, self.mean_scale) {
            (Norm::Sigmoid, Some((mean, scale))) => sigmoid(((raw - mean) / scale).clamp(-30.0, 30.0)),
            _ => raw,
        }
    }

    /// What is compared with tau: how much better the guided answer is.
    pub fn delta(&self, plain: f64, guided: f64) -> f64 {
        match self.norm {
            Norm::Bt => ((guided - plain) / 2.0).tanh(),
            _ => self.normalise(guided) - self.normalise(plain),
        }
    }

    /// Mean and scale, for a checkpoint.
    pub fn state(&self) -> Value {
        self.mean_scale.map_or(Value::Null, |(mean, scale)| json!([mean, scale]))
    }

    /// The reverse of [`Normalisation::state`].
    pub fn restore(&mut self, state: &Value) -> Result<()> {
        let pair = || {
            let [mean, scale] = state.as_array()?.as_slice() else { return None };
            Some((mean.as_f64()?, scale.as_f64().filter(|s| *s > 0.0)?))
        };
        self.mean_scale = match state {
            Value::Null => Normalisation::new(self.norm, self.calib, false).mean_scale,
            _ => Some(pair().ok_or_else(|| Error::Usage(format!("reward calibration: wanted [mean, scale], got {state}")))?),
        };
        Ok(())
    }
}

fn scale(mean: f64, std: f64) -> f64 {
    std.max(1e-6 * mean.abs().max(1.0))
}
