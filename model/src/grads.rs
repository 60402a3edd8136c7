//! What is trained: an adapter or every weight, and its gradients.

use crate::lora::{Lora, Tensor};
use crate::transformer::{Adapter, Transformer};
use crate::{Error, Result};
use runtime::{Arena, Buffer, Region, Stream, View};

/// What is trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tune {
    /// An adapter slot.
    Lora(u8),
    /// Every weight of the base, in f32 or over an f32 master.
    Full,
}

/// Gradients of what is trained, in an arena of the same layout; `+=` until [`Grads::zero`].
#[derive(Debug)]
pub struct Grads {
    pub(crate) tune: Tune,
    pub(crate) arena: Arena,
    /// Full tuning: one example's partial of embedding, positions or head (LAW A7).
    pub(crate) partial: Option<Buffer<f32>>,
    tensors: Vec<Tensor>,
}

impl Grads {
    /// Everything, as one f32 vector in arena order.
    pub fn flat(&self) -> View<'_> {
        self.arena.flat()
    }
    /// Sets all to zero.
    pub fn zero(&self) -> Result<()> {
        Ok(self.arena.zero()?)
    }
    /// The parts of `flat` that are tensors, in arena order.
    pub fn ranges(&self) -> Vec<std::ops::Range<usize>> {
        self.tensors.iter().map(|t| t.region.words()).collect()
    }
    /// The tensors, in arena order.
    pub fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }
    /// One tensor's elements as stored (base matrices in panel layout).
    pub fn of(&self, s: &Stream, tensor: &Tensor) -> Result<Vec<f32>> {
        let mut out = vec![0.0; tensor.region.len()];
        self.arena.view(tensor.region)?.read(s, &mut out)?;
        Ok(out)
    }
    pub(crate) fn view(&self, region: Region) -> Result<View<'_>> {
        Ok(self.arena.view(region)?)
    }
}

impl Transformer {
    /// What is tuned: all parameters in one arena, and the tensors in it.
    pub fn trained(&self, tune: Tune) -> Result<(&Arena, &[Tensor])> {
        match tune {
            Tune::Lora(i) => match self.slot(Adapter::Slot(i))? {
                Some(lora) if lora.is_dora() => Err(Error::Batch("DoRA adapters can be run, not trained".into())),
                Some(lora) => Ok((lora.arena(), lora.tensors())),
                None => Err(Error::Batch("no adapter to tune".into())),
            },
            Tune::Full => {
                if !self.base.tunable()? {
                    let text = "full tuning needs f32 weights: load with dtype float32, or for full tuning";
                    return Err(Error::Batch(text.into()));
                }
                Ok((self.base.arena(), self.base.tensors()))
            }
        }
    }

    /// The scalar head that is tuned with `tune`: its gradient is one of [`Grads`].
    pub fn trained_head(&self, tune: Tune) -> Result<View<'_>> {
        let missing = || Error::Batch("what is tuned has no scalar head (score.weight)".into());
        match tune {
            Tune::Lora(slot) => self.slot(Adapter::Slot(slot))?.and_then(Lora::score).ok_or_else(missing)?,
            Tune::Full => Ok(self.base.arena().view(self.base.score.ok_or_else(missing)?)?),
        }
    }

    /// Where that head lies, also in a gradient arena of the same layout.
    pub(crate) fn trained_head_region(&self, tune: Tune) -> Result<Option<Region>> {
        match tune {
            Tune::Lora(slot) => Ok(self.slot(Adapter::Slot(slot))?.and_then(Lora::score_region)),
            Tune::Full => Ok(self.base.score),
        }
    }

    /// Zeroed gradients of what is tuned.
    pub fn grads(&self, s: &Stream, tune: Tune) -> Result<Grads> {
        let (arena, tensors) = self.trained(tune)?;
        let tensors = tensors.to_vec();
        let partial = match self.partial(tune) {
            0 => None,
            len => Some(s.zeros(len)?),
        };
        Ok(Grads { tune, arena: Arena::new(s, arena.bytes())?, partial, tensors })
    }

    /// Elements of the partial beside the gradients: the largest of embedding, positions and head; none of an adapter's.
    pub(crate) fn partial(&self, tune: Tune) -> usize {
        let positions = self.base.positions.map_or(0, |p| p.weight.len());
        if tune == Tune::Full { self.base.embedding.weight.len().max(positions) } else { 0 }
    }
}
