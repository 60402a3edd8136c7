//! Rotary positions in the spellings of transformers 4 (`rope_theta`, `rope_scaling`) and 5 (`rope_parameters`).

use super::{Family, MOST_POSITIONS, Positions, assumed, positive};
use crate::Result;
use crate::json::Object;

/// How heads turn by their position.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rope {
    /// Base of the frequencies.
    pub theta: f64,
    /// None = plain.
    pub scaling: Option<RopeScaling>,
}

/// Frequencies beyond the trained context.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RopeScaling {
    /// All are divided (`rope_type` linear).
    Linear {
        /// By this.
        factor: f64,
    },
    /// As Llama 3 does it (`rope_type` llama3).
    Llama3 {
        /// Low frequencies are divided by it.
        factor: f64,
        /// Wavelengths above original / low are divided.
        low_freq_factor: f64,
        /// Wavelengths below original / high stay.
        high_freq_factor: f64,
        /// Positions of the original training.
        original_max_position_embeddings: usize,
    },
}

/// The kinds of layers that may have parameters of their own.
const KINDS: [&str; 2] = ["full_attention", "sliding_attention"];

/// Of all layers, and of those with a window where the family has another there; `rope_parameters` (transformers 5) wins over
/// `rope_theta`, `rope_scaling` and `rope_local_base_freq` (4).
pub(super) fn read(file: &Object, family: &Family, warnings: &mut Vec<String>) -> Result<(Option<Rope>, Option<Rope>)> {
    if family.positions == Positions::Learned {
        return Ok((None, None));
    }
    let by_kind = family.positions == Positions::RotaryByKind;
    for field in ["partial_rotary_factor", "rope_local_base_freq"] {
        let known = by_kind && field == "rope_local_base_freq";
        if !known && file.get(field).is_some_and(|v| v.as_f64() != Some(1.0)) {
            return Err(file.wrong(field, format_args!("nothing (not supported for {})", family.model_type)));
        }
    }
    let new = file.object("rope_parameters")?;
    if let Some(nested) = new.as_ref().filter(|_| by_kind) {
        let kind = |name| match nested.object(name)? {
            Some(kind) => Ok(Rope { theta: needed(&kind, "rope_theta")?, scaling: scaling_of(&kind, false)? }),
            None => Err(nested.wrong(name, "an object of rope_theta and rope_type")),
        };
        return Ok((Some(kind(KINDS[0])?), Some(kind(KINDS[1])?)));
    }
    if by_kind {
        let scaling = file.object("rope_scaling")?.as_ref().map(|o| scaling_of(o, true)).transpose()?.flatten();
        let local = Rope { theta: needed(file, "rope_local_base_freq")?, scaling: None };
        return Ok((Some(Rope { theta: needed(file, "rope_theta")?, scaling }), Some(local)));
    }
    Ok((Some(alike(file, new, warnings)?), None))
}

fn needed(object: &Object, field: &str) -> Result<f64> {
    positive(object, field)?.ok_or_else(|| object.wrong(field, "a number above 0"))
}

/// One table for all layers.
fn alike(file: &Object, new: Option<Object>, warnings: &mut Vec<String>) -> Result<Rope> {
    let old = file.object("rope_scaling")?;
    let scaling = |o: &Option<Object>| o.as_ref().map(|o| scaling_of(o, true)).transpose().map(Option::flatten);
    let theta = match &new {
        Some(parameters) => positive(parameters, "rope_theta")?,
        None => None,
    };
    let theta = match theta {
        Some(theta) => theta,
        None => positive(file, "rope_theta")?.unwrap_or_else(|| assumed(warnings, "rope_theta", 10000.0)),
    };
    if new.is_none() {
        return Ok(Rope { theta, scaling: scaling(&old)? });
    }
    let chosen = scaling(&new)?;
    let differs = old.is_some() && scaling(&old).map_or(true, |other| other != chosen);
    if differs || positive(file, "rope_theta")?.is_some_and(|other| other != theta) {
        warnings.push("rope_parameters and rope_theta/rope_scaling disagree; rope_parameters is used".into());
    }
    Ok(Rope { theta, scaling: chosen })
}

/// `alone` = not of one kind of layers among others.
fn scaling_of(object: &Object, alone: bool) -> Result<Option<RopeScaling>> {
    let field = if object.get("rope_type").is_some() { "rope_type" } else { "type" };
    let nested = object.keys().find(|(_, v)| v.is_object() && object.get(field).is_none());
    if let Some((layers, _)) = nested.filter(|_| alone) {
        return Err(object.wrong(layers, "no parameters per kind of layer (not supported for this family)"));
    }
    match object.text(field)? {
        Some("llama3") => llama3(object).map(Some),
        Some("linear") => {
            let factor = needed(object, "factor")?;
            if factor < 1.0 { Err(object.wrong("factor", "at least 1")) } else { Ok(Some(RopeScaling::Linear { factor })) }
        }
        Some("default") => Ok(None),
        None if object.keys().all(|(key, _)| key == "rope_theta") => Ok(None),
        _ => Err(object.wrong(field, "\"default\", \"linear\" or \"llama3\"")),
    }
}

fn llama3(object: &Object) -> Result<RopeScaling> {
    let original = "original_max_position_embeddings";
    let [factor, low_freq_factor, high_freq_factor] =
        [needed(object, "factor")?, needed(object, "low_freq_factor")?, needed(object, "high_freq_factor")?];
    let original_max_position_embeddings =
        object.integer(original, 1, MOST_POSITIONS)?.ok_or_else(|| object.wrong(original, "an integer of at least 1"))?;
    if factor < 1.0 {
        return Err(object.wrong("factor", "at least 1"));
    }
    if high_freq_factor <= low_freq_factor {
        return Err(object.wrong("high_freq_factor", format_args!("more than low_freq_factor {low_freq_factor}")));
    }
    Ok(RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings })
}
