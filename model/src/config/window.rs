//! Which layers see a window of the last positions only, in the spellings of transformers 4 and 5.

use super::{Family, MOST_POSITIONS, assumed};
use crate::Result;
use crate::json::Object;

/// What a family's `sliding_window` means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Windows {
    /// Must be null.
    None,
    /// Every layer has it; absent, it is 4096.
    Every,
    /// With `use_sliding_window`, the layers from `max_window_layers` on have it.
    From,
    /// All layers have it but every so many-th; `layer_types`, or a field of this name, may say otherwise.
    AllBut(usize, &'static str),
}

/// `[L]` windows, 0 = all positions.
pub(super) fn read(file: &Object, family: &Family, layers: usize, warnings: &mut Vec<String>) -> Result<Vec<u32>> {
    let window = || -> Result<Option<u32>> { Ok(file.integer("sliding_window", 1, MOST_POSITIONS)?.map(|w| w as u32)) };
    let all = |window: Option<u32>| vec![window.unwrap_or(0); layers];
    // Where layer_types is given it decides, and these are what transformers derives it from.
    let derived: Box<dyn Fn(usize) -> bool> = match family.windows {
        Windows::None if file.get("sliding_window").is_some() => {
            return Err(file.wrong("sliding_window", format_args!("null (not supported for {})", family.model_type)));
        }
        Windows::None => return Ok(all(None)),
        Windows::Every if file.keys().any(|(key, _)| key == "sliding_window") => return Ok(all(window()?)),
        Windows::Every => return Ok(all(Some(assumed(warnings, "sliding_window", 4096)))),
        Windows::From if !file.boolean("use_sliding_window")?.unwrap_or(false) => return Ok(all(None)),
        Windows::From => {
            let first = file.integer("max_window_layers", 0, 1 << 20)?.unwrap_or(28);
            Box::new(move |layer| layer >= first)
        }
        Windows::AllBut(every, field) => {
            let every = file.integer(field, 1, 1 << 20)?.or(file.integer(&format!("_{field}"), 1, 1 << 20)?).unwrap_or(every);
            Box::new(move |layer| !(layer + 1).is_multiple_of(every))
        }
    };
    let width = window()?.ok_or_else(|| file.wrong("sliding_window", "an integer of at least 1"));
    let types = file.texts("layer_types")?;
    if types.as_ref().is_some_and(|t| t.len() != layers) {
        return Err(file.wrong("layer_types", format_args!("{layers} kinds of layers")));
    }
    let slides = |layer: usize| match types.as_ref().map(|t| t[layer]) {
        None => Ok(derived(layer)),
        Some("sliding_attention") => Ok(true),
        Some("full_attention") => Ok(false),
        Some(_) => Err(file.wrong("layer_types", "\"sliding_attention\" and \"full_attention\"")),
    };
    let slides = (0..layers).map(slides).collect::<Result<Vec<bool>>>()?;
    if !slides.contains(&true) {
        return Ok(all(None));
    }
    let width = width?;
    Ok(slides.into_iter().map(|slides| if slides { width } else { 0 }).collect())
}
