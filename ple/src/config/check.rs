//! What the settings must satisfy before anything is read (ALGORITHMS §6.7).

use super::{Command, Config, LossType, Norm, Rank, Recipe, Report, Tune, Weight, WeightMode};
use crate::reward::{Kind, Spec, funcs, is_unit, weights};
use crate::{Error, Result};

/// Names the key, what was wanted and what was given.
fn ensure(holds: bool, key: &str, wanted: &str, got: impl std::fmt::Display) -> Result<()> {
    if holds { Ok(()) } else { Err(Error::Usage(format!("{key}: wanted {wanted}, got {got}"))) }
}

/// Threads that a pool may be asked for: more than any machine's, fewer than break a process.
const MOST_THREADS: u32 = 1024;

/// A setting that the device computes with in f32, where it must be neither 0 nor infinite.
fn positive_f32(x: f64, key: &str) -> Result<()> {
    ensure(x > 0.0 && (x as f32).is_normal(), key, "above 0, within the normal range of f32", x)
}

/// All of it.
pub fn check(c: &Config) -> Result<()> {
    ensure(c.threads <= MOST_THREADS, "threads", &format!("at most {MOST_THREADS}"), c.threads)?;
    match c.command {
        Command::Sft => fit(c).and_then(|()| loss_type(c, &[LossType::Nll, LossType::ChunkedNll])),
        Command::Reward => fit(c).and_then(|()| reward_model(c)),
        Command::Dpo => fit(c).and_then(|()| dpo(c)),
        Command::Train => fit(c).and_then(|()| sampling(c)).and_then(|()| ple(c)).and_then(|()| rewards(c)),
        Command::Raft => fit(c).and_then(|()| sampling(c)).and_then(|()| iterations(c)).and_then(|()| rewards(c)),
        Command::Rloo | Command::Grpo => {
            fit(c).and_then(|()| sampling(c)).and_then(|()| iterations(c)).and_then(|()| grouped(c)).and_then(|()| rewards(c))
        }
        Command::Eval => eval(c).and_then(|()| sampling(c)),
        Command::Generate => rows(c).and_then(|()| sampling(c)).and_then(|()| principle(c)),
        Command::Score => rows(c).and_then(|()| rewards(c)).and_then(|()| {
            ensure(c.adapter.is_none(), "adapter", "none: an adapter that scores is the reward adapter:DIR", "one")
        }),
        Command::Logprob => rows(c),
        Command::Chat => chat(c).and_then(|()| sampling(c)),
        Command::Report => ensure(!c.runs.is_empty(), "runs", "the folders of one or more runs", "nothing"),
        Command::Rerun => ensure(c.runs.len() == 1, "runs", "the folder of one run", c.runs.len())
            .and_then(|()| ensure(c.output_dir.is_some(), "output_dir", "the folder to write", "nothing")),
        Command::Diff => ensure(c.runs.len() == 2, "runs", "the folders of two runs", c.runs.len()),
        Command::Inspect
        | Command::Demo
        | Command::Selftest
        | Command::Bench
        | Command::Doctor
        | Command::Config
        | Command::Completions => Ok(()),
    }
}

fn loss_type(c: &Config, known: &[LossType]) -> Result<()> {
    let names: Vec<_> = known.iter().map(|k| k.name()).collect();
    let got = c.loss_type.map_or("", LossType::name);
    ensure(c.loss_type.is_none_or(|l| known.contains(&l)), "loss_type", &format!("one of {}", names.join(", ")), got)
}

/// What a reference asks for.
fn reference(c: &Config, who: &str) -> Result<()> {
    let wanted = "lora where a reference is needed (full has no weights left to compare with)";
    ensure(c.tune == Tune::Lora, "tune", wanted, format!("a full-weight run with {who}"))
}

fn reward_model(c: &Config) -> Result<()> {
    let coefficient = c.center_rewards_coefficient.unwrap_or(0.0);
    ensure(coefficient >= 0.0, "center_rewards_coefficient", "at least 0", coefficient)
}

fn dpo(c: &Config) -> Result<()> {
    use LossType::{Hinge, Ipo, Robust, Sigmoid, SigmoidNorm};
    loss_type(c, &[Sigmoid, Hinge, Ipo, Robust, SigmoidNorm])?;
    ensure(c.beta > 0.0, "beta", "above 0", c.beta)?;
    ensure((0.0..0.5).contains(&c.label_smoothing), "label_smoothing", "from 0 to below 0.5", c.label_smoothing)?;
    let smoothed = matches!(c.loss_type, None | Some(Sigmoid | Robust)) || c.label_smoothing == 0.0;
    ensure(smoothed, "label_smoothing", "0 but for loss_type sigmoid and robust", c.label_smoothing)?;
    reference(c, "dpo")
}

/// The loop of every method that samples.
fn iterations(c: &Config) -> Result<()> {
    let counts = [
        ("ple_iters", c.ple_iters),
        ("ple_queries_per_iter", c.ple_queries_per_iter),
        ("ple_epochs_per_iter", c.ple_epochs_per_iter),
    ];
    counts.iter().try_for_each(|(key, n)| ensure(*n > 0, key, "at least 1", n))?;
    ensure((0.0..=1.0).contains(&c.ple_max_nonfinite), "ple_max_nonfinite", "from 0 to 1", c.ple_max_nonfinite)
}

/// Methods that compare the answers of a group and weigh by the sampler's own probabilities.
fn grouped(c: &Config) -> Result<()> {
    loss_type(c, &[LossType::Dapo])?;
    let alone = "at least 2: a group of one has nothing to be compared with";
    ensure(c.num_generations > 1, "num_generations", alone, c.num_generations)?;
    let own = "1: ratios are of the model's own probabilities, which another temperature does not sample by";
    ensure(c.temperature == 1.0, "temperature", own, c.temperature)?;
    ensure(c.epsilon > 0.0 && c.epsilon < 1.0, "epsilon", "above 0 and below 1", c.epsilon)?;
    ensure(c.beta >= 0.0, "beta", "at least 0", c.beta)?;
    if c.beta > 0.0 { reference(c, "beta above 0") } else { Ok(()) }
}

fn eval(c: &Config) -> Result<()> {
    ensure(c.model_name_or_path.is_some(), "model_name_or_path", "the folder of a model", "nothing")?;
    ensure(c.dataset_name.is_some(), "dataset_name", "a file of rows", "nothing")?;
    ensure(c.dry_run || c.output_dir.is_some(), "output_dir", "the folder to write", "nothing")?;
    ensure(c.max_tokens_per_micro_batch > 0, "max_tokens_per_micro_batch", "at least 1", 0)?;
    if funcs(c).is_empty() { Ok(()) } else { rewards(c) }
}

fn chat(c: &Config) -> Result<()> {
    ensure(c.model_name_or_path.is_some(), "model_name_or_path", "the folder of a model", "nothing")
}

/// The released code's recipe.
fn release(c: &Config) -> Result<()> {
    ensure(c.num_generations > 1, "num_generations", "at least 2: a best and a worst answer", c.num_generations)?;
    let shares = &c.release_top_frac;
    ensure(!shares.is_empty(), "release_top_frac", "a share per iteration", "nothing")?;
    let outside = shares.iter().find(|q| !(0.0..=1.0).contains(*q));
    ensure(outside.is_none(), "release_top_frac", "shares from 0 to 1", outside.unwrap_or(&0.0))?;
    let temperature = c.release_sigmoid_temp;
    ensure(c.release_weight_mode == WeightMode::None || temperature > 0.0, "release_sigmoid_temp", "above 0", temperature)?;
    ensure(c.beta > 0.0, "beta", "above 0", c.beta)?;
    reference(c, "recipe release")
}

/// A file of rows to another.
fn rows(c: &Config) -> Result<()> {
    let without = c.command == Command::Score;
    ensure(without || c.model_name_or_path.is_some(), "model_name_or_path", "the folder of a model", "nothing")?;
    ensure(c.dataset_name.is_some(), "dataset_name", "a file of rows", "nothing")?;
    ensure(c.dry_run || c.output_file.is_some(), "output_file", "the file to write", "nothing")?;
    ensure(c.max_tokens_per_micro_batch > 0, "max_tokens_per_micro_batch", "at least 1", 0)
}

fn fit(c: &Config) -> Result<()> {
    let sources = [&c.model_name_or_path, &c.init_from_config].into_iter().flatten().count();
    ensure(sources == 1, "model_name_or_path", "either it or init_from_config", format!("{sources} of them"))?;
    ensure(c.dataset_name.is_some(), "dataset_name", "a file of rows", "nothing")?;
    ensure(c.dry_run || c.output_dir.is_some(), "output_dir", "the folder to write", "nothing")?;
    let full = c.tune == Tune::Full;
    ensure(full || c.init_from_config.is_none(), "tune", "full with init_from_config", c.tune.name())?;
    ensure(!full || c.adapter.is_none(), "adapter", "none with tune full", "one")?;
    ensure(c.lora_dropout == 0.0, "lora_dropout", "0: dropout is not supported yet", c.lora_dropout)?;
    let counts = [
        ("lora_r", c.lora_r),
        ("max_length", c.max_length),
        ("per_device_train_batch_size", c.per_device_train_batch_size),
        ("gradient_accumulation_steps", c.gradient_accumulation_steps),
        ("max_tokens_per_micro_batch", c.max_tokens_per_micro_batch),
        ("logging_steps", c.logging_steps),
    ];
    counts.iter().try_for_each(|(key, n)| ensure(*n > 0, key, "at least 1", n))?;
    ensure(c.lora_r <= 4096, "lora_r", "at most 4096", c.lora_r)?;
    ensure(c.max_steps >= -1, "max_steps", "-1 or at least 0", c.max_steps)?;
    ensure(!c.lora_target_modules.is_empty(), "lora_target_modules", "all-linear or names", "nothing")?;
    let positive = [("num_train_epochs", c.num_train_epochs), ("lora_alpha", c.lora_alpha), ("adam_epsilon", c.adam_epsilon)];
    positive.iter().try_for_each(|(key, x)| ensure(*x > 0.0, key, "above 0", x))?;
    let at_least_0 = [("learning_rate", c.learning_rate), ("weight_decay", c.weight_decay), ("max_grad_norm", c.max_grad_norm)];
    at_least_0.iter().try_for_each(|(key, x)| ensure(*x >= 0.0, key, "at least 0", x))?;
    let shares = [("warmup_ratio", c.warmup_ratio), ("min_lr_rate", c.min_lr_rate)];
    shares.iter().try_for_each(|(key, x)| ensure((0.0..=1.0).contains(x), key, "from 0 to 1", x))?;
    evaluation(c)?;
    let decays = [("adam_beta1", c.adam_beta1), ("adam_beta2", c.adam_beta2)];
    decays.iter().try_for_each(|(key, x)| ensure((0.0..1.0).contains(x), key, "from 0 to below 1", x))
}

/// What is done with evaluations, and where their numbers go.
fn evaluation(c: &Config) -> Result<()> {
    let judged = [
        ("load_best_model_at_end", c.load_best_model_at_end),
        ("early_stopping_patience", c.early_stopping_patience > 0),
        ("metric_for_best_model", c.metric_for_best_model.is_some()),
    ];
    let held_out = c.eval_dataset_name.is_some();
    judged.iter().try_for_each(|(key, set)| ensure(held_out || !set, key, "eval_dataset_name beside it", "nothing"))?;
    let threshold = c.early_stopping_threshold;
    ensure(threshold >= 0.0, "early_stopping_threshold", "at least 0", threshold)?;
    let alone = c.report_to.len() < 2 || !c.report_to.contains(&Report::None);
    ensure(alone, "report_to", "none alone", "none among others")?;
    let metric = c.metric_for_best_model.as_deref().map_or("loss", |name| name.strip_prefix("eval_").unwrap_or(name));
    let pairs = matches!(c.command, Command::Dpo | Command::Reward);
    let known = match metric {
        "loss" => true,
        "perplexity" => !pairs,
        "reward" => c.command.samples(),
        "rewards/accuracies" | "rewards/margins" => pairs,
        _ => false,
    };
    let wanted = "loss, perplexity, (on pairs) rewards/accuracies, rewards/margins or (where answers are sampled) reward";
    ensure(known, "metric_for_best_model", wanted, metric)
}

fn sampling(c: &Config) -> Result<()> {
    let counts = [
        ("max_completion_length", c.max_completion_length),
        ("max_prompt_length", c.max_prompt_length),
        ("num_generations", c.num_generations),
        ("max_num_seqs", c.max_num_seqs),
    ];
    counts.iter().try_for_each(|(key, n)| ensure(*n > 0, key, "at least 1", n))?;
    ensure(!c.stop_strings.iter().any(String::is_empty), "stop_strings", "texts", "an empty one")?;
    if c.temperature != 0.0 {
        positive_f32(c.temperature, "temperature")?;
    }
    positive_f32(c.top_p, "top_p")?;
    ensure((0.0..=1.0).contains(&c.min_p), "min_p", "from 0 to 1", c.min_p)?;
    positive_f32(c.repetition_penalty, "repetition_penalty")
}

fn ple(c: &Config) -> Result<()> {
    iterations(c)?;
    if c.recipe == Recipe::Release {
        return release(c);
    }
    ensure(c.num_generations == 1, "num_generations", "1 with recipe ple: one plain and one guided answer", c.num_generations)?;
    ensure(c.ple_tau0 > 0.0, "ple_tau0", "above 0", c.ple_tau0)?;
    ensure(c.ple_alpha > 0.0 && c.ple_alpha <= 1.0, "ple_alpha", "above 0 and at most 1", c.ple_alpha)?;
    ensure(c.ple_weight_temp > 0.0, "ple_weight_temp", "above 0", c.ple_weight_temp)?;
    let at_least_0 = [
        ("ple_tau_min", c.ple_tau_min),
        ("ple_margin", c.ple_margin),
        ("ple_rank_sft_coef", c.ple_rank_sft_coef),
        ("ple_lambda_rank", c.ple_lambda_rank),
        ("ple_lambda_sft", c.ple_lambda_sft),
        ("ple_kl_coef", c.ple_kl_coef),
        ("missing_eos_penalty", c.missing_eos_penalty),
    ];
    at_least_0.iter().try_for_each(|(key, x)| ensure(*x >= 0.0, key, "at least 0", x))?;
    ensure(c.ple_beta_rank > 0.0, "ple_beta_rank", "above 0", c.ple_beta_rank)?;
    ensure(c.beta > 0.0, "beta", "above 0", c.beta)?;
    let exp_of_sum = c.ple_rank == Rank::ProbHinge && !c.ple_len_norm;
    ensure(
        !exp_of_sum,
        "ple_rank",
        "another than prob_hinge without ple_len_norm: e^S of a whole answer is 0 in any float",
        "both",
    )?;
    if c.ple_rank == Rank::Dpo || c.ple_kl_coef > 0.0 {
        reference(c, "ple_rank dpo or ple_kl_coef above 0")?;
    }
    principle(c)
}

fn principle(c: &Config) -> Result<()> {
    let principles = [c.ple_principle.is_some(), c.ple_principle_file.is_some()];
    ensure(principles != [true, true], "ple_principle", "either it or ple_principle_file", "both")
}

fn rewards(c: &Config) -> Result<()> {
    let names = funcs(c);
    ensure(!names.is_empty(), "reward_funcs", "at least one reward", "nothing")?;
    let specs = names.iter().map(|text| Spec::parse(text)).collect::<Result<Vec<_>>>()?;
    let twice = names.iter().enumerate().find(|(i, name)| names[..*i].contains(name));
    ensure(twice.is_none(), "reward_funcs", "each reward once", twice.map_or("", |(_, name)| name))?;
    let timeout = c.reward_timeout;
    ensure(timeout > 0.0 && timeout <= 3.2e7, "reward_timeout", "seconds above 0, at most a year", timeout)?;
    let adapted = specs.iter().any(|spec| matches!(spec.kind, Kind::Adapter(_)));
    let base = !adapted || c.command != Command::Score || c.model_name_or_path.is_some();
    ensure(base, "model_name_or_path", "the base of an adapter: reward", "nothing")?;
    let kept = !adapted || !c.command.samples() || c.tune == Tune::Lora;
    ensure(kept, "tune", "lora with an adapter: reward (its base is the one that full trains)", c.tune.name())?;
    let unit = is_unit(&specs.iter().map(|spec| spec.unit).collect::<Vec<_>>(), &weights(specs.len(), &c.reward_weights)?);
    let in_range = match c.reward_norm {
        Norm::Sigmoid => true,
        Norm::Auto => true,
        Norm::None => unit,
        Norm::Bt => false,
    };
    let proportional = c.ple_weight == Weight::Proportional;
    let got = format!("reward_norm {} over rewards of {} range", c.reward_norm.name(), if unit { "unit" } else { "real" });
    ensure(!proportional || in_range, "ple_weight", "another than proportional, or normalised rewards in [0, 1]", got)
}
