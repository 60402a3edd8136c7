//! A decoder reward model: the scalar head on the last token of each text.

use super::{Case, json, number};
use anyhow::{Context, Result, ensure};
use model::{Adapter, Batch, Head, Keep, Parent, Transformer};
use ple_tests::pass;
use ple_tests::tensors::Golden;
use runtime::{Isa, Stream};

/// Compares a whole case.
pub fn run(case: &Case, public: bool) -> Result<bool> {
    let mut golden = Golden::open(&case.path.join("golden.safetensors"))?;
    let atol =
        number(&json(&case.path.join("case.json"))?["tolerances"]["logits"]["suggested_atol"], "case.json: tolerances.logits")?;
    let (padded, mask) = (golden.input_ids("input_ids")?, golden.ids("attention_mask")?);
    let width = *golden.shape("input_ids")?.last().context("input_ids without a shape")?;
    let kept =
        |(ids, mask): (&[u32], &[u32])| ids.iter().zip(mask).filter(|(_, m)| **m == 1).map(|(id, _)| *id).collect::<Vec<u32>>();
    let texts: Vec<Vec<u32>> = padded.chunks(width).zip(mask.chunks(width)).map(kept).collect();
    ensure!(texts.iter().all(|t| !t.is_empty()), "a text of no tokens");
    golden.same("lens", &texts.iter().map(|t| t.len() as u32).collect::<Vec<_>>())?;
    golden.expect("attention_mask", true, String::new);

    let s = Stream::cpu(2, Isa::detect());
    let model = Transformer::load(&s, &case.path.join("model"), None)?;
    let head = model.scalar_head(&s)?;
    let mut b = Batch::default();
    for text in &texts {
        b.segment(text, Parent::Root, 0);
        b.rows.push(b.tokens() as u32 - 1);
        b.targets.push(0);
    }
    let mut acts = model.acts(&s, pass::limits(&b), Keep::Nothing, None)?;
    model.forward(&s, &mut acts, &b, Adapter::Off, Head::Scalar(&head), Keep::Nothing)?;
    let mut scores = Vec::new();
    acts.out(&s, &mut scores)?;
    golden.close("logits", &scores, atol)?;
    Ok(golden.report(&case.name, public))
}
