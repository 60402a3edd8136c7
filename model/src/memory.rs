//! What a model takes of its device, in bytes: the parts of a plan beside [`Transformer::plan`] and [`Transformer::cache_plan`].

use crate::Result;
use crate::grads::Tune;
use crate::lora::Lora;
use crate::transformer::Transformer;

impl Transformer {
    /// The base weights, a master and its copies among them.
    pub fn weights(&self) -> usize {
        self.base.bytes()
    }

    /// All adapter slots, with what keeps their copies up.
    pub fn adapters(&self) -> usize {
        self.slots.iter().map(Lora::bytes).sum()
    }

    /// What [`Transformer::grads`] takes.
    pub fn grads_plan(&self, tune: Tune) -> Result<usize> {
        Ok(self.trained(tune)?.0.bytes() + 4 * self.partial(tune))
    }

    /// Rotary tables, once there were paths of `positions`.
    pub fn tables_plan(&self, positions: usize) -> usize {
        self.rotary.bytes(positions)
    }
}
