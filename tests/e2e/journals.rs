//! Journals that are damaged, or of files that have changed under their names: what is missing is drawn or scored again, by the
//! policy of then, and said.

use super::program::{Ple, Said, ple};
use super::refused::Stage;
use super::{files, same};
use anyhow::{Context, Result, ensure};
use std::path::Path;

/// Two iterations of four steps, with a checkpoint after each.
fn train(stage: &Stage, out: &Path) -> Ple {
    stage.train().key("output_dir", out).and(
        "--ple_iters 2 --ple_queries_per_iter 4 --ple_epochs_per_iter 2 --ple_empty keep --learning_rate 0.01 \
         --per_device_train_batch_size 2 --gradient_accumulation_steps 1 --save_steps 1 --save_total_limit 0",
    )
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    for name in files(from)? {
        let target = to.join(&name);
        std::fs::create_dir_all(target.parent().context("a file without a folder")?)?;
        std::fs::copy(from.join(name), target)?;
    }
    Ok(())
}

/// The run once more from its checkpoint of this step, in a copy of its folder that something happens to.
fn resumed(stage: &Stage, straight: &Path, step: u32, spoil: impl Fn(&Path) -> Result<()>) -> Result<(tempfile::TempDir, Ple)> {
    let dir = tempfile::tempdir()?;
    copy(straight, dir.path())?;
    spoil(dir.path())?;
    let call = train(stage, dir.path()).key("resume_from_checkpoint", dir.path().join(format!("checkpoint-{step}")));
    Ok((dir, call))
}

/// Both runs have ended with the same bytes.
fn compare(straight: &Path, out: &Path) -> Result<()> {
    let said = ple(&format!("diff {} {}", straight.display(), out.display())).end()?;
    ensure!(said.code == 0, "{}{}", said.out, said.err);
    let names = ["rollouts/iter-00000.jsonl", "rollouts/iter-00001.jsonl", "completions/iter-00001.jsonl", "ple.json"];
    same(straight, out, &names)
}

fn count(said: &Said, words: &str) -> usize {
    said.out.matches(words).count()
}

/// What happens to a run's folder.
type Spoil<'a> = dyn Fn(&Path) -> Result<()> + 'a;

/// One thing that can happen to the lines of a journal.
type Damage = (&'static str, fn(&mut Vec<String>), &'static str);

const DAMAGES: [Damage; 5] = [
    ("cut in half", |lines| lines.truncate(lines.len() / 2), "4 answers are drawn again"),
    ("a bit of the first answer", |lines| lines[1] = lines[1].replacen("\"row\"", "\"rov\"", 1), "8 answers are drawn again"),
    ("a bit of the head", |lines| lines[0] = lines[0].replacen("seed", "sead", 1), "8 answers are drawn again"),
    ("the last reward", |lines| drop(lines.pop()), "has 8 answers and 7 rewards"),
    ("everything", Vec::clear, "8 answers are drawn again"),
];

#[test]
fn a_damaged_journal_is_drawn_again_while_its_examples_are_trained() -> Result<()> {
    let (stage, dir) = (Stage::new()?, tempfile::tempdir()?);
    let straight = dir.path().join("straight");
    train(&stage, &straight).succeed()?;
    let journal = "rollouts/iter-00001.jsonl";
    for (what, damage, words) in DAMAGES {
        let spoil = |out: &Path| {
            let text = std::fs::read_to_string(out.join(journal))?;
            let mut lines: Vec<String> = text.split_inclusive('\n').map(String::from).collect();
            damage(&mut lines);
            Ok(std::fs::write(out.join(journal), lines.concat())?)
        };
        let (out, call) = resumed(&stage, &straight, 6, spoil)?;
        let said = call.succeed().context(what)?;
        ensure!(count(&said, words) == 1, "{what}: {}", said.out);
        compare(&straight, out.path()).context(what)?;
    }
    let (out, call) = resumed(&stage, &straight, 6, |out| Ok(std::fs::remove_file(out.join(journal))?))?;
    ensure!(count(&call.succeed()?, "8 answers are drawn again") == 1, "a journal that is gone");
    compare(&straight, out.path())?;
    // Without the policy of then, or with another in its place, they cannot be drawn.
    let adapter = "adapters/iter-00001/adapter_model.safetensors";
    let other =
        |out: &Path| Ok(std::fs::copy(out.join("adapters/iter-00000/adapter_model.safetensors"), out.join(adapter)).map(|_| ())?);
    let spoils: [(&Spoil<'_>, &str); 2] =
        [(&|out| Ok(std::fs::remove_file(out.join(adapter))?), "adapter_model.safetensors"), (&other, "wanted the policy")];
    for (spoil, words) in spoils {
        let gone = |out: &Path| spoil(out).and_then(|()| Ok(std::fs::remove_file(out.join(journal))?));
        let (_out, call) = resumed(&stage, &straight, 6, gone)?;
        call.refuse(3, &[journal, "wanted the 8 answers", words, "name an earlier checkpoint"])?;
    }
    Ok(())
}

#[test]
fn full_tuning_goes_on_and_says_what_it_cannot_draw_again() -> Result<()> {
    let (stage, dir) = (Stage::new()?, tempfile::tempdir()?);
    let straight = dir.path().join("straight");
    train(&stage, &straight).and("--tune full").succeed()?;
    for step in [2, 4, 7] {
        let (out, call) = resumed(&stage, &straight, step, |_| Ok(()))?;
        call.and("--tune full").succeed()?;
        compare(&straight, out.path())?;
        same(&straight, out.path(), &["model.safetensors"])?;
    }
    let journal = "rollouts/iter-00001.jsonl";
    let (_out, call) = resumed(&stage, &straight, 7, |out| Ok(std::fs::remove_file(out.join(journal))?))?;
    call.and("--tune full").refuse(3, &[journal, "wanted the 8 answers", "full tuning keeps none", "an earlier checkpoint"])?;
    // From the end of an iteration nothing is missing: the policy is there.
    let (out, call) = resumed(&stage, &straight, 4, |out| Ok(std::fs::remove_file(out.join(journal))?))?;
    call.and("--tune full").succeed()?;
    compare(&straight, out.path())
}

#[test]
fn files_that_change_under_their_names_are_noticed() -> Result<()> {
    let (stage, dir) = (Stage::new()?, tempfile::tempdir()?);
    let out = dir.path().join("out");
    let script = stage.path("reward.sh");
    let reward = |formula: &str| {
        stage.write(
            "reward.sh",
            format!("while read -r line; do echo x >> {}; echo {formula}; done\n", stage.path("asked").display()),
        )
    };
    reward("${#line}")?;
    stage.write("words.txt", "w4\n")?;
    let call = || {
        let call = train(&stage, &out).and("--resume_from_checkpoint true --ple_iters 1");
        call.key("reward_funcs", format!("exec:sh {}", script.display()))
            .key("reward_funcs", format!("lexicon:{}", stage.path("words.txt").display()))
    };
    // From the beginning, with the journal that is there.
    let again = || -> Result<Said> {
        let old = std::fs::read_dir(&out)?.flatten().map(|entry| entry.path());
        let checkpoints = old.filter(|path| path.file_name().is_some_and(|n| n.to_string_lossy().starts_with("checkpoint-")));
        checkpoints.into_iter().try_for_each(std::fs::remove_dir_all)?;
        call().succeed()
    };
    let asked = || std::fs::read_to_string(stage.path("asked")).map_or(0, |text| text.lines().count());
    call().succeed()?;
    let held = asked();
    ensure!(held == 8 && count(&again()?, "has 8 answers and 8 rewards") == 1 && asked() == held, "{} asked", asked());
    let (scored, drawn) = ("8 answers are scored again", "put aside as");
    reward("$((${#line} * 2))")?;
    let said = again()?;
    ensure!(count(&said, scored) == 1 && asked() == 2 * held, "the command: {}", said.out);
    stage.write("words.txt", "w4\nw5\n")?;
    let said = again()?;
    ensure!(count(&said, scored) == 1 && asked() == 3 * held, "the words: {}", said.out);
    let rows = String::from_utf8(std::fs::read(stage.path("rows.jsonl"))?)?;
    stage.write("rows.jsonl", rows.replace("w7", "w6"))?;
    let said = again()?;
    ensure!(
        count(&said, scored) == 0 && count(&said, drawn) == 1 && count(&said, "files that have changed") == 1,
        "{}",
        said.out
    );
    ensure!(asked() == 4 * held && count(&again()?, "has 8 answers and 8 rewards") == 1, "{} asked", asked());

    // In the middle of an iteration too, where the policy has moved on.
    stage.write("rows.jsonl", rows)?;
    let middle = || call().key("resume_from_checkpoint", out.join("checkpoint-2")).succeed();
    let said = middle()?;
    ensure!(count(&said, drawn) == 1 && count(&said, "8 answers are drawn again") == 1, "{}", said.out);
    reward("${#line}")?;
    let said = middle()?;
    ensure!(count(&said, scored) == 1 && count(&said, "drawn again") == 0, "{}", said.out);
    Ok(())
}
