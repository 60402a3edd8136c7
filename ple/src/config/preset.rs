//! Built-in settings per task, under all files and flags.

use super::{Config, Norm, Order, Recipe, Scheduler, nearest::nearest};
use crate::{Error, Result};

/// Known presets.
pub const PRESETS: [&str; 4] = ["hh", "imdb", "tldr", "literal"];

/// What a recipe of `ple train` sets beside its method: of the released code, its script's settings (ALGORITHMS §2.1).
pub fn recipe(c: &mut Config) {
    if c.recipe == Recipe::Ple {
        return;
    }
    (c.ple_iters, c.ple_queries_per_iter, c.ple_order, c.ple_persist_optimizer) = (5, 10_240, Order::File, false);
    (c.num_generations, c.temperature, c.top_p) = (8, 0.9, 0.95);
    (c.max_prompt_length, c.max_completion_length) = (1536, 768);
    (c.learning_rate, c.lr_scheduler_type, c.min_lr_rate, c.warmup_ratio) = (3e-6, Scheduler::CosineWithMinLr, 0.1, 0.03);
    (c.gradient_accumulation_steps, c.adam_beta2) = (16, 0.95);
}

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
