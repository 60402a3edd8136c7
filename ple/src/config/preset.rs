//! Built-in settings per task, under all files and flags.

use super::{Config, Norm, nearest::nearest};
use crate::{Error, Result};

/// Known presets.
pub const PRESETS: [&str; 4] = ["hh", "imdb", "tldr", "literal"];

/// Applies one preset; the principle of a task is chosen in [`crate::principle`].
pub fn apply(config: &mut Config, name: &str) -> Result<()> {
    match name {
        "hh" => config.max_completion_length = 128,
        "imdb" => {
            config.max_completion_length = 48;
            config.reward_norm = Norm::None;
        }
        "tldr" => config.max_completion_length = 53,
        "literal" => {
            config.reward_norm = Norm::None;
            config.ple_weight_temp = 1.0;
        }
        _ => {
            let near = nearest(name, PRESETS);
            let known = PRESETS.join(", ");
            return Err(Error::Usage(format!("preset: wanted one of {known}, got `{name}`; the nearest is `{near}`")));
        }
    }
    Ok(())
}
