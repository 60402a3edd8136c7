//! What a run leaves behind, and what it needs to go on: `checkpoint-STEP/` holds what was tuned (an adapter folder that PEFT
//! loads, or a model folder that transformers loads), `optimizer.safetensors` and `ple_state.json`, which is written last and
//! names the SHA-256 of every other file. Under its name there is either a whole checkpoint or none.

mod folder;
mod stale;
mod state;
mod tuned;

pub use folder::{Newest, clear, load, newest, prune};
pub use stale::remove_stale;
pub use state::{Drawn, Stage, State, cut, lengths};
pub use tuned::{borrow, create_folder, fingerprint, give_back, restore_tuned, save};

use crate::Result;
use crate::trainer::Trainer;
use model::Tune;
use std::path::{Path, PathBuf};

/// Moments and steps of the optimizer.
const OPTIMIZER: &str = "optimizer.safetensors";

/// Writes `checkpoint-STEP/` in a run's folder, STEP being the state's; `base` as in [`save`]. Killed at any moment, it leaves
/// what was there before or the new checkpoint whole; an error leaves what was there before.
/// `more` writes what else belongs to it.
pub fn write(
    output: &Path,
    trainer: &Trainer,
    tune: Tune,
    base: &Path,
    state: &State,
    more: impl FnOnce(&Path) -> Result<()>,
) -> Result<PathBuf> {
    folder::write(output, state, |folder| {
        save(&trainer.stream, &trainer.model, tune, base, folder)?;
        let (_, tensors) = trainer.model.trained(tune)?;
        trainer.optimizer.save(&trainer.stream, tensors, &folder.join(OPTIMIZER))?;
        more(folder)
    })
}

/// Takes parameters, moments and steps from a checkpoint that [`load`] or [`newest`] has found whole: the next step is then the
/// one that followed it, bit for bit. The trainer is one of the same model, adapter and settings.
pub fn restore(trainer: &mut Trainer, tune: Tune, folder: &Path) -> Result<()> {
    restore_tuned(&trainer.stream, &trainer.model, tune, folder)?;
    let (_, tensors) = trainer.model.trained(tune)?;
    trainer.optimizer.restore(&trainer.stream, tensors, &folder.join(OPTIMIZER))
}
