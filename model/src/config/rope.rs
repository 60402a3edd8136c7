//! Rotary positions in the spellings of transformers 4 (`rope_theta`, `rope_scaling`) and 5 (`rope_parameters`).

use super::{MOST_POSITIONS, assumed, positive};
use crate::Result;
use crate::json::Object;

/// Frequencies of rotary positions beyond the trained context, as Llama 3 does it (`rope_type` llama3).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RopeScaling {
    /// Low frequencies are divided by it.
    pub factor: f64,
    /// Wavelengths above original / low are divided.
    pub low_freq_factor: f64,
    /// Wavelengths below original / high stay.
    pub high_freq_factor: f64,
    /// Positions of the original training.
    pub original_max_position_embeddings: usize,
}

/// Base and scaling; `rope_parameters` (transformers 5) wins over `rope_theta` and `rope_scaling` (4).
pub(super) fn read(file: &Object, warnings: &mut Vec<String>) -> Result<(f64, Option<RopeScaling>)> {
    for field in ["partial_rotary_factor", "rope_local_base_freq"] {
        if file.get(field).is_some_and(|v| v.as_f64() != Some(1.0)) {
            return Err(file.wrong(field, "nothing (not supported for llama)"));
        }
    }
    let (new, old) = (file.object("rope_parameters")?, file.object("rope_scaling")?);
    let scaling = |o: &Option<Object>| o.as_ref().map(scaling_of).transpose().map(Option::flatten);
    let theta = match &new {
        Some(parameters) => positive(parameters, "rope_theta")?,
        None => None,
    };
    let theta = match theta {
        Some(theta) => theta,
        None => positive(file, "rope_theta")?.unwrap_or_else(|| assumed(warnings, "rope_theta", 10000.0)),
    };
    if new.is_none() {
        return Ok((theta, scaling(&old)?));
    }
    let chosen = scaling(&new)?;
    let differs = old.is_some() && scaling(&old).map_or(true, |other| other != chosen);
    if differs || positive(file, "rope_theta")?.is_some_and(|other| other != theta) {
        warnings.push("rope_parameters and rope_theta/rope_scaling disagree; rope_parameters is used".into());
    }
    Ok((theta, chosen))
}

fn scaling_of(object: &Object) -> Result<Option<RopeScaling>> {
    let field = if object.get("rope_type").is_some() { "rope_type" } else { "type" };
    let nested = object.keys().find(|(_, v)| v.is_object() && object.get(field).is_none());
    if let Some((layers, _)) = nested {
        return Err(object.wrong(layers, "no parameters per kind of layer (not supported for llama)"));
    }
    match object.text(field)? {
        Some("llama3") => llama3(object).map(Some),
        Some("default") => Ok(None),
        None if object.keys().all(|(key, _)| key == "rope_theta") => Ok(None),
        _ => Err(object.wrong(field, "\"default\" or \"llama3\"")),
    }
}

fn llama3(object: &Object) -> Result<RopeScaling> {
    let number = |field| positive(object, field)?.ok_or_else(|| object.wrong(field, "a number above 0"));
    let original = "original_max_position_embeddings";
    let scaling = RopeScaling {
        factor: number("factor")?,
        low_freq_factor: number("low_freq_factor")?,
        high_freq_factor: number("high_freq_factor")?,
        original_max_position_embeddings: object
            .integer(original, 1, MOST_POSITIONS)?
            .ok_or_else(|| object.wrong(original, "an integer of at least 1"))?,
    };
    if scaling.factor < 1.0 {
        return Err(object.wrong("factor", "at least 1"));
    }
    if scaling.high_freq_factor <= scaling.low_freq_factor {
        return Err(object.wrong("high_freq_factor", format_args!("more than low_freq_factor {}", scaling.low_freq_factor)));
    }
    Ok(scaling)
}
