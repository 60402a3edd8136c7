//! Who multiplies: the room's own products, which keep the law, or the vendor's library, which repeats itself. For the library, rows of what
//! goes through a module leave room for the strips of an adapter (`linear::library`).

use crate::transformer::{Adapter, Transformer};
use crate::{Error, Result};
use half::bf16;
use kernels::linear::{self, Part, library};
use kernels::weight::strip;
use runtime::{Buffer, DType, Stream, View};

/// What the library needs beside what a model has.
#[derive(Debug)]
pub(crate) struct Library {
    /// `[L][group]`, each `[ΣN]`: biases, rounded; None where a group has none.
    biases: Vec<[Option<Buffer<bf16>>; 4]>,
}

impl Transformer {
    /// From here on the vendor's library multiplies, in modules whose base is bf16 on a device; activations are planned afterwards, biases
    /// rounded now. Errors: activations in f32; sizes that the library does not take; a device without it.
    pub fn through_library(&mut self, s: &Stream) -> Result<()> {
        if self.stored() != DType::Bf16 {
            return Err(Error::Batch("the library's products want bf16 activations: load the base as bf16 on a device".into()));
        }
        if let Some(odd) = self.modules().iter().find(|m| m.in_features % 8 + m.out_features % 8 > 0) {
            let text = format!(
                "{} is [{}, {}], the library's products want multiples of 8",
                odd.path, odd.out_features, odd.in_features
            );
            return Err(Error::Batch(text));
        }
        let mut biases = Vec::with_capacity(self.base.layers());
        for layer in 0..self.base.layers() {
            let mut own = [const { None }; 4];
            for (group, bias) in own.iter_mut().enumerate() {
                *bias = self.group(layer, group, Adapter::Off, |parts| Ok(library::bias(s, parts)?))?;
                // The first product of a queue takes the library's memory, and tells whether there is a library.
                if layer == 0 {
                    self.group(layer, group, Adapter::Off, |parts| tried(s, parts, bias.as_ref().map(Buffer::view)))?;
                }
            }
            biases.push(own);
        }
        self.library = Some(Library { biases });
        Ok(())
    }

    /// Columns that rows leave room for: the most that a group's strips have; 0 without the library.
    pub(crate) fn room(&self) -> usize {
        let ranks = &self.base.storage.ranks;
        let of = |layer: &Vec<usize>| self.groups.iter().map(|g| layer[g.clone()].iter().map(|r| strip(*r)).sum()).max();
        self.library.as_ref().and_then(|_| ranks.iter().filter_map(of).max()).unwrap_or(0)
    }

    /// y and S of the group's x.
    pub(crate) fn product(
        &self,
        s: &Stream,
        y: View<'_>,
        lora_s: View<'_>,
        x: View<'_>,
        (layer, group): (usize, usize),
        parts: &[Part<'_>],
    ) -> Result<()> {
        let Some(Library { biases }) = &self.library else { return Ok(linear::forward(s, y, lora_s, x, parts)?) };
        Ok(library::forward(s, y, lora_s, x, parts, biases[layer][group].as_ref().map(Buffer::view))?)
    }

    /// dx (or nothing if it is empty) and dS of a group's dy.
    pub(crate) fn product_back(&self, s: &Stream, dx: View<'_>, ds: View<'_>, dy: View<'_>, parts: &[Part<'_>]) -> Result<()> {
        match self.library {
            Some(_) => Ok(library::backward(s, dx, ds, dy, parts)?),
            None => Ok(linear::backward(s, dx, ds, dy, parts)?),
        }
    }
}

/// One row through a group, there and back.
fn tried(s: &Stream, parts: &[Part<'_>], bias: Option<View<'_>>) -> Result<()> {
    let (n, k) = (parts.iter().map(|p| p.weight.shape().0).sum(), parts.first().map_or(0, |p| p.weight.shape().1));
    let (x, y, none) = (s.zeros::<bf16>(k)?, s.zeros::<bf16>(n)?, View::none(DType::Bf16));
    library::forward(s, y.view(), none, x.view(), parts, bias)?;
    Ok(library::backward(s, x.view(), none, y.view(), parts)?)
}
