//! What stands behind a `ple_model`: a transformer, its active adapter, and activations that grow to the longest text seen.

use model::{Acts, Adapter, Keep, Lora, Transformer};
use ple::method::Example;
use ple::{Error, Result, logprob, pack};
use runtime::Stream;
use std::path::Path;

const MOST_THREADS: usize = Stream::MOST_THREADS;

/// A loaded model.
#[derive(Debug)]
pub(crate) struct Scorer {
    stream: Stream,
    transformer: Transformer,
    adapter: Adapter,
    /// The one slot; it keeps the last adapter while adapters are off.
    slot: Option<Adapter>,
    acts: Option<Acts>,
}

impl Scorer {
    /// Loads a model folder; 0 threads are all processors.
    pub(crate) fn open(folder: &Path, device: &str, threads: i32) -> Result<Scorer> {
        let threads = usize::try_from(threads).ok().filter(|threads| *threads <= MOST_THREADS);
        let threads = threads.ok_or_else(|| Error::Usage(format!("threads must be 0 to {MOST_THREADS}")))?;
        let stream = Stream::open(device, (threads > 0).then_some(threads))?;
        let transformer = Transformer::load(&stream, folder, None)?;
        Ok(Scorer { stream, transformer, adapter: Adapter::Off, slot: None, acts: None })
    }

    /// Makes the adapter of a folder the active one; None switches adapters off.
    pub(crate) fn adapter(&mut self, folder: Option<&Path>) -> Result<()> {
        let Some(folder) = folder else {
            self.adapter = Adapter::Off;
            return Ok(());
        };
        let adapter = model::adapter::Adapter::load(folder, &self.transformer.modules())?;
        let lora = Lora::upload(&self.stream, self.transformer.base(), adapter)?;
        self.adapter = match self.slot {
            Some(slot) => self.transformer.replace_slot(slot, lora).map(|()| slot)?,
            None => self.transformer.add_slot(lora)?,
        };
        self.slot = Some(self.adapter);
        // Activations are planned for the ranks of the slots.
        self.acts = None;
        Ok(())
    }

    /// Writes the log-probability of each id; NaN for the first one where there is no prompt.
    pub(crate) fn logprob(&mut self, prompt: &[u32], ids: &[u32], out: &mut [f32]) -> Result<()> {
        let given = usize::from(prompt.is_empty());
        if ids.len() <= given {
            return Err(Error::Usage(format!(
                "ids_len is {}, must be at least {} with prompt_len {}",
                ids.len(),
                given + 1,
                prompt.len()
            )));
        }
        let example = Example { prompt: prompt.to_vec(), answers: vec![ids.to_vec()], ..Example::default() };
        let tokens = pack::longest([&example]);
        let most = self.transformer.positions();
        if tokens > most {
            return Err(Error::Usage(format!("{tokens} positions are wanted, the model has {most}")));
        }
        if self.acts.as_ref().is_none_or(|acts| acts.limits().tokens < tokens) {
            self.acts = None;
            let limits = pack::limits(tokens.next_power_of_two());
            self.acts = Some(self.transformer.acts(&self.stream, limits, Keep::Nothing, None)?);
        }
        let Some(acts) = self.acts.as_mut() else { return Ok(()) };
        let scores = logprob::score(&self.stream, &self.transformer, acts, self.adapter, &[&example])?;
        let scores: Vec<f32> = std::iter::repeat_n(f32::NAN, given).chain(scores.into_iter().flatten()).collect();
        if scores.len() != out.len() {
            return Err(Error::Numeric(format!("{} log-probabilities for {} ids", scores.len(), out.len())));
        }
        out.copy_from_slice(&scores);
        Ok(())
    }
}
