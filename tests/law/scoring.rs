//! Log-probabilities of given ids: alone, in a batch of 64, packed in any order, prompts shared or not, segments cut anywhere.

use super::{Setup, examples, is_portable, reference, setups};
use anyhow::{Context, Result, ensure};
use model::{Adapter, Batch, Keep, Parent, Span, Transformer};
use ple_tests::data::{say, shared};
use ple_tests::pass::{self, Example};
use ple_tests::tensors::same_bits;
use ple_tests::tiny::{self, Random};
use runtime::{DType, Stream};
use std::path::Path;

/// Log-probabilities of every answer of every example.
type Scores = Vec<Vec<Vec<f32>>>;

/// A model and where it runs.
struct Scorer {
    s: Stream,
    model: Transformer,
    adapter: Adapter,
}

impl Scorer {
    fn new(setup: Setup, folder: &Path) -> Result<Scorer> {
        let (s, model, adapter) = setup.load(folder)?;
        Ok(Scorer { s, model, adapter })
    }

    fn score(&self, b: &Batch, keep: Keep) -> Result<Vec<Vec<f32>>> {
        Ok(pass::by_sequence(b, &pass::logps(&self.s, &self.model, b, self.adapter, keep)?))
    }

    /// Every answer in a batch of its own.
    fn alone(&self, examples: &[Example]) -> Result<Scores> {
        let one = |prompt: &Vec<u32>, answer: &Vec<u32>| {
            Ok(self.score(&pass::batch(&[(prompt.clone(), vec![answer.clone()])])?, Keep::Nothing)?.concat())
        };
        examples.iter().map(|(prompt, answers)| answers.iter().map(|a| one(prompt, a)).collect()).collect()
    }

    /// All examples in one batch, each prompt computed once.
    fn together(&self, examples: &[Example], keep: Keep) -> Result<Scores> {
        let mut rest = self.score(&pass::batch(examples)?, keep)?.into_iter();
        Ok(examples.iter().map(|(_, answers)| rest.by_ref().take(answers.len()).collect()).collect())
    }

    /// All answers in one batch in this order, each under a prompt of its own.
    fn shuffled(&self, examples: &[Example], random: &mut Random) -> Result<Scores> {
        let answers: Vec<(usize, usize)> =
            examples.iter().enumerate().flat_map(|(i, (_, answers))| (0..answers.len()).map(move |a| (i, a))).collect();
        let order = random.order(answers.len());
        let single = |at: &usize| {
            let (i, a) = answers[*at];
            (examples[i].0.clone(), vec![examples[i].1[a].clone()])
        };
        let packed = self.score(&pass::batch(&order.iter().map(single).collect::<Vec<_>>())?, Keep::Nothing)?;
        let mut scores: Scores = examples.iter().map(|(_, answers)| vec![Vec::new(); answers.len()]).collect();
        for (at, logps) in order.into_iter().zip(packed) {
            let (i, a) = answers[at];
            scores[i][a] = logps;
        }
        Ok(scores)
    }
}

fn same(what: &str, a: &Scores, b: &Scores) -> Result<()> {
    ensure!(a.concat().concat().iter().all(|l| l.is_finite() && *l <= 0.0), "{what}: a log-probability is none");
    same_bits(what, &a.concat().concat(), &b.concat().concat())
}

fn law_of(folder: &Path, examples: &[Example]) -> Result<()> {
    let scorer = Scorer::new(reference(), folder)?;
    let alone = scorer.alone(examples)?;
    same("a batch of 64", &scorer.together(examples, Keep::Nothing)?, &alone)?;
    same("what training keeps", &scorer.together(examples, Keep::Backward)?, &alone)?;
    for seed in [1, 2] {
        same("another order, no shared prompts", &scorer.shuffled(examples, &mut Random(seed))?, &alone)?;
    }
    for setup in setups() {
        let count = if is_portable(setup) { examples.len().min(6) } else { examples.len() };
        let scorer = Scorer::new(setup, folder)?;
        let what = format!("{} threads, {}", setup.threads, setup.isa);
        same(&what, &scorer.together(&examples[..count], Keep::Nothing)?, &alone[..count].to_vec())?;
    }
    Ok(())
}

#[test]
fn scores_depend_on_the_path_alone() -> Result<()> {
    law_of(tiny::folder(true, DType::F32)?.path(), &examples(64, 2))
}

#[test]
fn scores_over_16_bit_weights_too() -> Result<()> {
    law_of(tiny::folder(false, DType::Bf16)?.path(), &examples(12, 2))?;
    law_of(tiny::folder(false, DType::F16)?.path(), &examples(12, 2))
}

#[test]
fn scores_of_every_family() -> Result<()> {
    for config in tiny::families() {
        law_of(tiny::of(&config, DType::F32)?.path(), &examples(12, 2)).with_context(|| config["model_type"].to_string())?;
    }
    Ok(())
}

#[test]
fn scores_of_the_golden_checkpoint_too() -> Result<()> {
    let Some(folder) = shared("fixtures/lm/llama_untied/model") else { return Ok(()) };
    let mut examples = examples(64, 2);
    // Its vocabulary is a little smaller, and so is its longest path.
    let v = model::Config::from_folder(&folder)?.vocab_size as u32;
    for (prompt, answers) in &mut examples {
        prompt.truncate(100);
        answers.iter_mut().chain([prompt]).flatten().for_each(|id| *id %= v);
    }
    law_of(&folder, &examples)
}

/// A text cut into segments at these positions, every token but the first a loss row.
fn cut_text(text: &[u32], cuts: &[usize]) -> Batch {
    let mut b = Batch::default();
    let mut parent = Parent::Root;
    let ends: Vec<usize> = cuts.iter().copied().filter(|c| *c < text.len()).chain([text.len()]).collect();
    let mut start = 0;
    for end in ends {
        parent = Parent::Segment(b.segment(&text[start..end], parent, start as u32));
        start = end;
    }
    let n = text.len() as u32;
    b.rows = (0..n - 1).collect();
    b.targets = text[1..].to_vec();
    b.sequences = vec![Span { start: 0, end: n - 1 }];
    b.examples = vec![Span { start: 0, end: 1 }];
    b.trees = vec![Span { start: 0, end: n }];
    b.tags = vec![0];
    b
}

#[test]
fn a_cut_changes_nothing() -> Result<()> {
    let folder = tiny::folder(true, DType::F32)?;
    let text = Random(5).ids(200);
    let whole = Scorer::new(reference(), folder.path())?;
    let wanted = whole.score(&cut_text(&text, &[]), Keep::Nothing)?.concat();
    for setup in [reference()].into_iter().chain(setups()) {
        let scorer = Scorer::new(setup, folder.path())?;
        let all: &[&[usize]] = &[&[1], &[63], &[64], &[65], &[130], &[1, 63, 64, 65, 130], &[20, 21, 22, 150]];
        let few = if is_portable(setup) { 2 } else { all.len() };
        for cuts in &all[..few] {
            let b = cut_text(&text, cuts);
            same_bits(&format!("cut at {cuts:?}, {setup:?}"), &scorer.score(&b, Keep::Nothing)?.concat(), &wanted)?;
        }
    }
    Ok(())
}

#[test]
fn an_adapter_with_zero_b_is_no_adapter() -> Result<()> {
    let folder = tiny::folder(true, DType::F32)?;
    let s = reference().stream();
    let mut model = Transformer::load(&s, folder.path(), None)?;
    let mut adapter = tiny::adapter(&model, 8, 1);
    adapter.modules.iter_mut().for_each(|m| m.b.fill(0.0));
    let lora = model::Lora::upload(&s, model.base(), adapter)?;
    let slot = model.add_slot(lora)?;
    let b = pass::batch(&examples(6, 2))?;
    let with = pass::logps(&s, &model, &b, slot, Keep::Nothing)?;
    same_bits("B = 0", &with, &pass::logps(&s, &model, &b, Adapter::Off, Keep::Nothing)?)
}

#[test]
fn a_fresh_model_is_named_by_its_seed() -> Result<()> {
    let folder = tempfile::tempdir()?;
    std::fs::write(folder.path().join("config.json"), tiny::config(true).to_string())?;
    let text = vec![Random(9).ids(40)];
    let logits = |threads: usize, seed: u64| -> Result<Vec<f32>> {
        let s = Setup { threads, ..reference() }.stream();
        pass::logits(&s, &Transformer::fresh(&s, folder.path(), DType::F32, seed)?, &text, Adapter::Off)
    };
    let (one, two, other) = (logits(1, 42)?, logits(2, 42)?, logits(1, 43)?);
    same_bits("the same seed", &one, &two)?;
    let spread = one.iter().map(|z| z.abs()).fold(0.0, f32::max);
    ensure!(spread > 0.0 && spread < 1.0 && one != other, "fresh logits reach {spread}");
    say(&format!("  tests ran on {}", Stream::open("cpu", None).context("cpu")?.backend().info().name));
    Ok(())
}
