//! What a method knows beside the outputs of the training forward, filled once before the first step over its examples: the
//! reference's log-probabilities, then the method's advantages over all of them.

use crate::Result;
use crate::logprob;
use crate::method::{Example, Method};
use crate::trainer::{Trainer, Workspace};
use model::{Adapter, Columns};

/// Fills what [`Method::needs`] and [`Method::advantages`] give; `reference` is the frozen policy's slot.
pub fn fill(
    trainer: &Trainer,
    w: &mut Workspace,
    reference: Adapter,
    method: &dyn Method,
    examples: &mut [Example],
) -> Result<()> {
    if method.needs().reference {
        let all: Vec<&Example> = examples.iter().collect();
        let logps = logprob::score(&trainer.stream, &trainer.model, &mut w.acts, reference, &all)?;
        examples.iter_mut().zip(logps).for_each(|(example, logps)| example.ref_logp = logps);
    }
    let mut side = columns(examples);
    method.advantages(examples, &mut side)?;
    if !side.advantage.is_empty() {
        let mut rest = &side.advantage[..];
        for example in examples {
            let (own, later) = rest.split_at(example.old_logp.len());
            example.advantage = own.to_vec();
            rest = later;
        }
    }
    Ok(())
}

/// The columns of all examples, one after the other.
fn columns(examples: &[Example]) -> Columns {
    let mut side = Columns::default();
    for example in examples {
        side.ref_logp.extend_from_slice(&example.ref_logp);
        side.old_logp.extend_from_slice(&example.old_logp);
        side.weight.extend_from_slice(&example.weights);
    }
    side
}
