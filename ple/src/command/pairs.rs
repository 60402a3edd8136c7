//! `ple dpo` and `ple reward`: what is trained on pairs of given answers.

use super::required;
use super::sft::{Rows, train};
use super::train::reference;
use crate::Result;
use crate::config::Config;
use crate::data::{self, Fit};
use crate::method::dpo::Dpo;
use crate::method::reward_model::RewardModel;
use crate::open::Opened;
use crate::reward::scalar;
use model::Adapter;
use std::path::Path;

/// Runs `ple dpo`.
pub fn dpo(c: &Config) -> Result<()> {
    let mut opened = Opened::for_training(c)?;
    let mut method = Dpo::new(c);
    let (mut said, tokenizer) = (Vec::new(), opened.tokenizer.clone());
    let longest = (c.max_length as usize).min(opened.model()?.positions());
    let groups = |path: &Path| data::pairs(path, &tokenizer, longest, Fit::Cut);
    let path = required(&c.dataset_name, "dataset_name")?;
    let rows = Rows::read(c, &opened, &mut method, path, c.eval_dataset_name.as_deref(), groups, &mut |line| said.push(line))?;
    let slot = reference(c, &mut opened, &method)?;
    train(c, opened, rows, &method, slot, said)
}

/// Runs `ple reward`: an adapter (or, with tune full, a model folder) with a scalar head, which `adapter:` (or `model:`) rewards load.
pub fn reward(c: &Config) -> Result<()> {
    let opened = Opened::for_training(c)?;
    let mut method = RewardModel::new(c);
    let (mut said, tokenizer) = (Vec::new(), opened.tokenizer.clone());
    let longest = (c.max_length as usize).min(opened.model()?.positions());
    let ends = scalar::ends(&tokenizer, &opened.model()?.config);
    let groups = |path: &Path| data::pairs(path, &tokenizer, longest, Fit::Leave(&ends));
    let path = required(&c.dataset_name, "dataset_name")?;
    let rows = Rows::read(c, &opened, &mut method, path, c.eval_dataset_name.as_deref(), groups, &mut |line| said.push(line))?;
    train(c, opened, rows, &method, Adapter::Off, said)
}
