//! A decoder reward model: the scalar head on the last token of each text, through the model and as `model:DIR` scores.

use super::{Case, json, number};
use anyhow::{Context, Result, ensure};
use model::{Adapter, Batch, Head, Keep, Parent, Tokenizer, Transformer};
use ple::config::{Command, Config};
use ple::reward::{Rewards, Scored, scalar};
use ple_tests::pass;
use ple_tests::tensors::{Golden, same_bits};
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
    model.forward(&s, &mut acts, &b, Adapter::Off, Head::Scalar(head.weight.view()), Keep::Nothing)?;
    let mut scores = Vec::new();
    acts.out(&s, &mut scores)?;
    golden.close("logits", &scores, atol)?;
    for budget in [1, 50, 4096] {
        same_bits(
            "scores by budget",
            &scores,
            &scalar::last_token(&s, &model, Adapter::Off, head.weight.view(), &texts, budget)?,
        )?;
    }
    as_text(case, &texts, |ended| Ok(scalar::last_token(&s, &model, Adapter::Off, head.weight.view(), ended, 4096)?))?;
    Ok(golden.report(&case.name, public))
}

/// The texts themselves, cut somewhere into prompt and completion, as `model:DIR`: the scores of their ids with the end token.
fn as_text(case: &Case, texts: &[Vec<u32>], scores: impl Fn(&[Vec<u32>]) -> Result<Vec<f32>>) -> Result<()> {
    let folder = case.path.join("model");
    let tokenizer = Tokenizer::open(&folder)?;
    let end = tokenizer.eos.context("eos_token")?;
    let c = Config { reward_model_name_or_path: Some(folder), ..Config::defaults(Command::Score) };
    let rewards = Rewards::load(&c, None)?;
    let written: Vec<String> = texts.iter().map(|ids| tokenizer.decode(ids, true)).collect::<model::Result<_>>()?;
    let whole = |(text, ids): &(&String, &Vec<u32>)| tokenizer.encode(text, true).is_ok_and(|again| again == **ids);
    let known: Vec<(&String, &Vec<u32>)> = written.iter().zip(texts).filter(whole).collect();
    ensure!(2 * known.len() >= texts.len(), "only {} of {} texts are those of their ids", known.len(), texts.len());
    let scored = |(i, (text, _)): (u32, &(&'_ String, &Vec<u32>))| {
        let cut = text.char_indices().nth(text.chars().count() / 2).map_or(0, |(at, _)| at);
        (i, text[..cut].to_string(), text[cut..].to_string())
    };
    let parts: Vec<(u32, String, String)> = (0..).zip(&known).map(scored).collect();
    let rows: Vec<Scored<'_>> =
        parts.iter().map(|(row, prompt, completion)| Scored { row: *row, prompt, completion, tokens: 0 }).collect();
    let ended: Vec<Vec<u32>> = known.iter().map(|(_, ids)| [&ids[..], &[end]].concat()).collect();
    let got: Vec<f32> = rewards.score(None, &rows)?.total.iter().map(|r| *r as f32).collect();
    same_bits("scores of texts", &scores(&ended)?, &got)
}
