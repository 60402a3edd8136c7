//! Batches, adapters and plans that a pass cannot run.

use super::refused;
use anyhow::{Result, ensure};
use model::adapter::Adapter as HostAdapter;
use model::batch::PrefixId;
use model::{Adapter, Batch, Head, Keep, Limits, Lora, Parent, Span, Transformer, Tune};
use ple_tests::pass::{self, LOGPROB};
use ple_tests::tiny::{self, POSITIONS, Random, VOCABULARY};
use runtime::{DType, Isa, Stream};
use std::panic::{AssertUnwindSafe, catch_unwind};

fn batch() -> Result<Batch> {
    let mut random = Random(4);
    let mut of = |n| random.ids(n);
    pass::batch(&[(of(5), vec![of(4), of(3)]), (of(70), vec![of(2), of(9)]), (Vec::new(), vec![of(6)])])
}

/// A fault, and the words of its error.
type Row = (&'static str, fn(&mut Batch), &'static [&'static str]);

const BATCHES: [Row; 16] = [
    ("token", |b| b.tokens[7] = VOCABULARY, &["token 7 is 323", "below 323"]),
    ("target", |b| b.targets[2] = u32::MAX, &["target 2", "below 323"]),
    ("loss row", |b| b.rows[1] = b.tokens.len() as u32, &["loss row 1"]),
    ("position", |b| b.pos[3] = POSITIONS as u32, &["position 3 is 512", "below 512"]),
    ("too few positions", |b| b.pos.truncate(9), &["equal lengths"]),
    ("too few targets", |b| b.targets.truncate(3), &["equal lengths"]),
    ("too few trees", |b| b.trees.truncate(1), &["equal lengths"]),
    ("a parent after its child", |b| b.segments[1].parent = Parent::Segment(5), &["segment 1", "parent 5"]),
    ("a parent of another tree", |b| b.segments[4].parent = Parent::Segment(0), &["segment 4", "parent 0"]),
    ("a parent that is not there", |b| b.segments[1].parent = Parent::Segment(1000), &["segment 1", "parent 1000"]),
    ("a cached parent", |b| b.segments[0].parent = Parent::Cached(PrefixId(3)), &["cached parent"]),
    ("a root in the middle of a path", |b| b.segments[0].pos0 = 8, &["segment 0", "pos0"]),
    ("a child at the wrong position", |b| b.segments[1].pos0 += 1, &["segment 1", "pos0"]),
    ("a segment of too many rows", |b| b.segments[0].len = u32::MAX, &["segment 0"]),
    ("a segment beyond the rows", |b| b.segments[0].start = u32::MAX, &["segment 0"]),
    ("rows of no segment", |b| b.segments.truncate(3), &["segments cover"]),
];

fn model() -> Result<(Stream, Transformer, Adapter, tempfile::TempDir)> {
    let folder = tiny::folder(true, DType::F32)?;
    let s = Stream::cpu(1, Isa::detect());
    let (model, slot) = tiny::load(&s, folder.path())?;
    Ok((s, model, slot, folder))
}

#[test]
fn broken_batches() -> Result<()> {
    let (s, model, slot, _folder) = model()?;
    let mut acts = model.acts(&s, pass::limits(&batch()?), Keep::Backward, None)?;
    for (what, change, words) in BATCHES {
        let mut b = batch()?;
        change(&mut b);
        refused(what, model.forward(&s, &mut acts, &b, slot, LOGPROB, Keep::Backward), words)?;
    }
    // The same activations still run what is right.
    Ok(model.forward(&s, &mut acts, &batch()?, slot, LOGPROB, Keep::Backward)?)
}

#[test]
fn examples_without_answers() -> Result<()> {
    type Given = (&'static str, &'static [u32], &'static [&'static [u32]]);
    let cases: [Given; 4] = [
        ("no answer", &[1, 2], &[]),
        ("an empty answer", &[1, 2], &[&[3], &[]]),
        ("two answers and no prompt", &[], &[&[3, 4], &[5, 6]]),
        ("a text of one token", &[], &[&[3]]),
    ];
    for (what, prompt, answers) in cases {
        let mut b = Batch::default();
        refused(what, b.example(prompt, answers, 0), &["token"])?;
        ensure!(b == Batch::default(), "{what}: left something in the batch");
    }
    Ok(())
}

#[test]
fn plans_that_are_too_small() -> Result<()> {
    let (s, model, slot, _folder) = model()?;
    let b = batch()?;
    let all = pass::limits(&b);
    for (what, limits) in [
        ("tokens", Limits { tokens: all.tokens - 1, ..all }),
        ("loss rows", Limits { loss_rows: all.loss_rows - 1, ..all }),
        ("segments", Limits { segments: all.segments - 1, ..all }),
        ("examples", Limits { examples: all.examples - 1, ..all }),
    ] {
        let mut acts = model.acts(&s, limits, Keep::Nothing, None)?;
        refused(what, model.forward(&s, &mut acts, &b, slot, LOGPROB, Keep::Nothing), &[what, "planned for"])?;
    }
    let mut forward_only = model.acts(&s, all, Keep::Nothing, None)?;
    let kept = model.forward(&s, &mut forward_only, &b, slot, LOGPROB, Keep::Backward);
    refused("a backward that was not planned", kept, &["planned without a backward"])?;
    let overlay = runtime::Arena::new(&s, 64)?;
    refused("an overlay that is too small", model.acts(&s, all, Keep::Nothing, Some(overlay)), &["overlay of 64 bytes"])
}

#[test]
fn adapters_heads_and_gradients_that_do_not_belong() -> Result<()> {
    let (s, mut model, slot, folder) = model()?;
    let b = batch()?;
    let mut acts = model.acts(&s, pass::limits(&b), Keep::Backward, None)?;
    let missing = model.forward(&s, &mut acts, &b, Adapter::Slot(9), LOGPROB, Keep::Nothing);
    refused("a slot that is not there", missing, &["adapter slot 9 of 1"])?;
    refused("gradients of a slot that is not there", model.grads(&s, Tune::Lora(9)), &["adapter slot 9 of 1"])?;
    refused("a scalar head that is not there", model.scalar_head(&s), &["score.weight"])?;

    let mut grads = model.grads(&s, Tune::Lora(0))?;
    let dout = s.zeros::<f32>(b.loss_rows())?;
    model.forward(&s, &mut acts, &b, Adapter::Off, LOGPROB, Keep::Backward)?;
    let off = model.backward(&s, &mut acts, &b, Adapter::Off, LOGPROB, &dout, &mut grads);
    refused("a backward without the adapter that is tuned", off, &["adapter that is tuned"])?;
    model.forward(&s, &mut acts, &b, slot, LOGPROB, Keep::Backward)?;
    let other = pass::batch(&[(vec![1, 2], vec![vec![3]])])?;
    let other = model.backward(&s, &mut acts, &other, slot, LOGPROB, &dout, &mut grads);
    refused("a backward of another batch", other, &["another batch"])?;
    let short = s.zeros::<f32>(b.loss_rows() - 1)?;
    let short = model.backward(&s, &mut acts, &b, slot, LOGPROB, &short, &mut grads);
    refused("too few gradients", short, &["view"])?;

    let mut stranger: HostAdapter = tiny::adapter(&model, 4, 1);
    stranger.modules[0].path = "model.layers.7.mlp.up_proj".into();
    refused("an adapter of another model", Lora::upload(&s, model.base(), stranger), &["model.layers.7.mlp.up_proj"])?;
    let mut misshapen = tiny::adapter(&model, 4, 1);
    misshapen.modules[3].a.pop();
    refused("an adapter with a short A", Lora::upload(&s, model.base(), misshapen), &["wanted"])?;
    let rank4 = Lora::upload(&s, model.base(), tiny::adapter(&model, 4, 1))?;
    let second = model.add_slot(rank4)?;
    model.forward(&s, &mut acts, &b, second, LOGPROB, Keep::Nothing)?;
    let rank20 = Lora::upload(&s, model.base(), tiny::adapter(&model, 20, 1))?;
    let large = model.add_slot(rank20)?;
    let larger = model.forward(&s, &mut acts, &b, large, LOGPROB, Keep::Nothing);
    refused("an adapter larger than the plan", larger, &["view"])?;

    let half = tiny::folder(true, DType::Bf16)?;
    let half = Transformer::load(&s, half.path(), None)?;
    refused("full tuning of 16-bit weights", half.grads(&s, Tune::Full), &["float32"])?;
    drop(folder);
    Ok(())
}

#[test]
fn a_scalar_checkpoint_has_no_log_probabilities() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut config = tiny::config(false);
    config["architectures"] = serde_json::json!(["LlamaForSequenceClassification"]);
    config["num_labels"] = serde_json::json!(1);
    std::fs::write(folder.path().join("config.json"), config.to_string())?;
    let s = Stream::cpu(1, Isa::detect());
    let model = Transformer::fresh(&s, folder.path(), DType::F32, 1)?;
    let b = batch()?;
    let mut acts = model.acts(&s, pass::limits(&b), Keep::Backward, None)?;
    refused("a head that is not there", model.forward(&s, &mut acts, &b, Adapter::Off, LOGPROB, Keep::Nothing), &["no LM head"])?;
    let head = model.scalar_head(&s)?;
    Ok(model.forward(&s, &mut acts, &b, Adapter::Off, Head::Scalar(head.weight.view()), Keep::Nothing)?)
}

/// Any number of a batch replaced by any other: an error or a result, but no panic.
#[test]
fn no_batch_panics() -> Result<()> {
    let (s, model, slot, _folder) = model()?;
    let whole = pass::limits(&batch()?);
    let mut random = Random(99);
    let (mut refusals, mut results) = (0, 0);
    for round in 0..600 {
        let mut b = batch()?;
        (0..1 + round % 3).for_each(|_| disturb(&mut b, &mut random));
        for tune in [Tune::Lora(0), Tune::Full] {
            let outcome = catch_unwind(AssertUnwindSafe(|| -> model::Result<()> {
                let mut acts = model.acts(&s, whole, Keep::Backward, None)?;
                let adapter = if tune == Tune::Full { Adapter::Off } else { slot };
                model.forward(&s, &mut acts, &b, adapter, LOGPROB, Keep::Backward)?;
                let dout = s.upload(&vec![0.5f32; b.loss_rows()])?;
                model.backward(&s, &mut acts, &b, adapter, LOGPROB, &dout, &mut model.grads(&s, tune)?)
            }));
            match outcome {
                Ok(Ok(())) => results += 1,
                Ok(Err(_)) => refusals += 1,
                Err(_) => anyhow::bail!("round {round}, {tune:?}: a panic on {b:?}"),
            }
        }
    }
    ensure!(refusals > 100 && results > 100, "{refusals} refused, {results} run");
    Ok(())
}

/// Replaces one number by one that is likely to be wrong.
fn disturb(b: &mut Batch, random: &mut Random) {
    let n = b.tokens.len() as u32;
    let choices = [0, 1, 2, 5, n - 1, n, n + 1, VOCABULARY, u32::MAX, u32::MAX - 1, 1 << 31];
    let value = choices[random.below(choices.len() as u32) as usize];
    let (kind, end, at) = (random.below(12), random.below(2) == 1, random.below(1 << 20) as usize);
    let numbers = |list: &mut Vec<u32>| {
        let len = list.len();
        list[at % len] = value;
    };
    let spans = |list: &mut Vec<Span>| {
        let len = list.len();
        *(if end { &mut list[at % len].end } else { &mut list[at % len].start }) = value;
    };
    let segments = b.segments.len();
    let segment = &mut b.segments[at % segments];
    match kind {
        0 => numbers(&mut b.tokens),
        1 => numbers(&mut b.pos),
        2 => numbers(&mut b.rows),
        3 => numbers(&mut b.targets),
        4 => segment.start = value,
        5 => segment.len = value,
        6 => segment.pos0 = value,
        7 => segment.parent = Parent::Segment(value),
        8 => segment.parent = Parent::Root,
        9 => spans(&mut b.sequences),
        10 => spans(&mut b.examples),
        _ => spans(&mut b.trees),
    }
}
