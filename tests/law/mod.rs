//! The law on the model's scale: a row's result is a function of that row's path, the weights and the adapter alone. Bits are
//! compared, on a tiny model that needs no data, and on the golden checkpoints where they are.

mod decoding;
mod gradients;
mod scoring;
mod sharing;

use anyhow::Result;
use model::{Adapter, Transformer};
use ple_tests::pass::Example;
use ple_tests::tiny::Random;
use runtime::{Isa, Stream, cpu::Level};
use std::path::Path;

/// How a run is set up; no result may depend on it.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    threads: usize,
    isa: Isa,
}

impl Setup {
    pub fn stream(self) -> Stream {
        Stream::cpu(self.threads, self.isa)
    }
    pub fn load(self, folder: &Path) -> Result<(Stream, Transformer, Adapter)> {
        let s = self.stream();
        let (model, slot) = ple_tests::tiny::load(&s, folder)?;
        Ok((s, model, slot))
    }
}

/// One thread and the best instructions: what the others are compared with.
pub fn reference() -> Setup {
    Setup { threads: 1, isa: Isa::detect() }
}

/// More threads, then every other instruction set. The portable path is the slow one: callers give it less to do.
pub fn setups() -> Vec<Setup> {
    let threads = [2, 4].map(|threads| Setup { threads, isa: Isa::detect() });
    let isas = Isa::all().into_iter().filter(|isa| *isa != Isa::detect()).map(|isa| Setup { threads: 2, isa });
    threads.into_iter().chain(isas).collect()
}

pub fn is_portable(setup: Setup) -> bool {
    setup.isa.level() == Level::Portable
}

/// Examples with prompts and answers around the edges of a page, some of one token.
pub fn examples(n: usize, answers: usize) -> Vec<Example> {
    let mut random = Random(3);
    let lengths = [1, 2, 7, 63, 64, 65, 20, 130, 33];
    let of = |random: &mut Random, i: usize| random.ids(lengths[i % lengths.len()]);
    (0..n).map(|i| (of(&mut random, i), (0..answers).map(|a| of(&mut random, 3 * i + 5 * a + 1)).collect())).collect()
}
