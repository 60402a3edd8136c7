//! Rotary tables as long as the paths seen: a model of long contexts starts as soon as one of short ones.

use crate::config::{Config, Rope, RopeScaling};
use crate::{Error, Result};
use kernels::rope;
use runtime::{Buffer, DType, Stream, View};
use std::sync::OnceLock;

/// Positions of the first table; each further one has twice as many, the last one all.
const FIRST: usize = 1024;

/// Tables end here; a longer path is an error before the run.
const MOST_POSITIONS: usize = 1 << 17;

/// cos and sin of every position, made when first wanted: of layers that see all positions, and of those with a window where they
/// turn otherwise. A model of learned positions has neither and the same bound.
#[derive(Debug)]
pub(crate) struct Rotary {
    positions: usize,
    d: usize,
    kinds: Vec<Kind>,
}

/// Layers that turn alike.
#[derive(Debug)]
struct Kind {
    theta: f64,
    scaling: Option<rope::Scaling>,
    /// `[min(FIRST·2^k, positions), D/2, 2]`, each from position 0
    tables: Vec<OnceLock<Buffer<f32>>>,
}

fn scaling(config: RopeScaling) -> rope::Scaling {
    match config {
        RopeScaling::Linear { factor } => rope::Scaling::linear(factor),
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => rope::Scaling {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_max_position_embeddings: original_max_position_embeddings as f64,
        },
    }
}

impl Rotary {
    /// No tables yet.
    pub(crate) fn new(config: &Config) -> Rotary {
        let positions = config.max_position_embeddings.min(MOST_POSITIONS);
        let kind = |rope: Rope| Kind {
            theta: rope.theta,
            scaling: rope.scaling.map(scaling),
            tables: (0..=table_of(positions)).map(|_| OnceLock::new()).collect(),
        };
        let kinds = config.rope.into_iter().chain(config.rope_local).map(kind).collect();
        Rotary { positions, d: config.head_dim, kinds }
    }

    /// The longest path.
    pub(crate) fn positions(&self) -> usize {
        self.positions
    }

    /// Makes the tables of paths of `positions` if they are not there.
    pub(crate) fn reach(&self, s: &Stream, positions: usize) -> Result<()> {
        if positions > self.positions {
            return Err(Error::Batch(format!("a path of {positions} positions, wanted at most {}", self.positions)));
        }
        let k = table_of(positions);
        for kind in &self.kinds {
            if let Some(table) = kind.tables.get(k).filter(|table| table.get().is_none()) {
                let positions = (FIRST << k).min(self.positions);
                let made = s.upload(&rope::table(positions, self.d, kind.theta, kind.scaling.as_ref()))?;
                // Who else made it meanwhile made the same.
                let _ = table.set(made);
            }
        }
        Ok(())
    }

    /// Bytes of all tables, once there were paths of up to `positions` of every length.
    pub(crate) fn bytes(&self, positions: usize) -> usize {
        let rows = (0..=table_of(positions.min(self.positions))).map(|k| (FIRST << k).min(self.positions)).sum::<usize>();
        4 * self.kinds.len() * rows * self.d
    }

    /// The longest table made, of layers with a window (`local`) or without; None if heads do not turn.
    pub(crate) fn view(&self, local: bool) -> Option<View<'_>> {
        let kind = if local { self.kinds.last() } else { self.kinds.first() }?;
        Some(kind.tables.iter().rev().find_map(|t| t.get()).map_or(View::none(DType::F32), Buffer::view))
    }
}

/// Index of the shortest table for so many positions.
fn table_of(positions: usize) -> usize {
    positions.div_ceil(FIRST).max(1).next_power_of_two().trailing_zeros() as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn tables_grow_with_the_paths() {
        let text = serde_json::json!({"model_type": "llama", "vocab_size": 32, "hidden_size": 32, "intermediate_size": 24,
            "num_hidden_layers": 1, "num_attention_heads": 4, "max_position_embeddings": 5000, "rope_theta": 10000.0});
        let rotary = Rotary::new(&Config::parse(Path::new("config.json"), &text.to_string()).unwrap());
        let (s, all) = (Stream::cpu(1, runtime::Isa::portable()), rope::table(5000, 8, 1e4, None));
        assert!(rotary.view(false).unwrap().is_empty(), "a table before the first path");
        for (path, covered) in [(1, 1024), (1024, 1024), (1025, 2048), (4097, 5000), (5000, 5000), (3, 5000)] {
            rotary.reach(&s, path).unwrap();
            let mut got = vec![0.0; rotary.view(false).unwrap().len()];
            rotary.view(false).unwrap().read(&s, &mut got).unwrap();
            assert_eq!(got, all[..covered * 8], "{path}");
            let made = s.backend().memory().used;
            assert!(
                made as usize <= rotary.bytes(5000) && (path < 4097 || made as usize + 4 * 8 * 4096 == rotary.bytes(5000)),
                "{made}"
            );
        }
        for path in [5001, 8193, usize::MAX] {
            let text = rotary.reach(&s, path).unwrap_err().to_string();
            assert!(text.contains(&format!("a path of {path} positions, wanted at most 5000")), "{text}");
        }
    }
}
