//! The table of keys: TRL's names and meanings, PLE's own behind `ple_`, a few of ours marked so. One row per key; the flag,
//! the key of a file, the field of [`Config`] and the line of the help all come from it.

use super::Command;
use super::choice::*;
use super::field::Field;
use super::key::{Key, keys};
use std::path::PathBuf;

const SFT: u32 = Command::Sft.bit();
const PREFER: u32 = Command::Reward.bit();
const DPO: u32 = Command::Dpo.bit();
const TRAIN: u32 = Command::Train.bit();
const RAFT: u32 = Command::Raft.bit();
const RLOO: u32 = Command::Rloo.bit();
const GRPO: u32 = Command::Grpo.bit();
const GENERATE: u32 = Command::Generate.bit();
const SCORE: u32 = Command::Score.bit();
const LOGPROB: u32 = Command::Logprob.bit();
const EVAL: u32 = Command::Eval.bit();
const CHAT: u32 = Command::Chat.bit();
const INSPECT: u32 = Command::Inspect.bit();
const MERGE: u32 = Command::Merge.bit();
const REPORT: u32 = Command::Report.bit();
const DIFF: u32 = Command::Diff.bit();
const RERUN: u32 = Command::Rerun.bit();
const DEMO: u32 = Command::Demo.bit();
const DOCTOR: u32 = Command::Doctor.bit();
/// Commands that train on the answers of rows.
const ROWS: u32 = SFT | PREFER | DPO;
/// Commands that train on answers of their own.
const LOOP: u32 = TRAIN | RAFT | RLOO | GRPO;
const SELFTEST: u32 = Command::Selftest.bit();
const BENCH: u32 = Command::Bench.bit();
/// Commands that try kernels.
const TRY: u32 = SELFTEST | BENCH;
/// Commands that train.
const FIT: u32 = ROWS | LOOP;
/// Commands that sample.
const SAMPLE: u32 = LOOP | GENERATE | EVAL;
/// Commands that score answers.
const REWARD: u32 = LOOP | SCORE | EVAL;
/// Commands that turn a file of rows into another.
const MAP: u32 = GENERATE | SCORE | LOGPROB;
/// Commands that load a model.
const RUN: u32 = FIT | MAP | EVAL | CHAT;
/// Commands that read rows.
const FILES: u32 = FIT | MAP | EVAL | INSPECT;
/// Commands that draw answers, in a conversation too.
const DRAW: u32 = SAMPLE | CHAT;
const ALL: u32 = RUN | INSPECT | MERGE | REPORT | DIFF | RERUN | DEMO | DOCTOR | TRY;

keys! {
    /// Folder of the base model: config.json, weights, tokenizer.
    model_name_or_path: Option<PathBuf> = None, RUN | INSPECT | MERGE;
    /// Ours: folder with config.json and a tokenizer but no weights; training starts from weights drawn with the seed.
    init_from_config: Option<PathBuf> = None, FIT;
    /// Folder of an adapter to go on from, or to score with.
    adapter: Option<PathBuf> = None, RUN | INSPECT | MERGE;
    /// Element type of the base weights in memory (merge: of what is written).
    dtype: Dtype = Dtype::Auto, RUN | MERGE;
    /// Ours: who multiplies matrices on a CUDA device: own kernels, whose bits are the same in every batch, or the vendor's library (sft,
    /// dpo, reward, logprob with dtype bfloat16, bench with e2e).
    gemm: Gemm = Gemm::Own, RUN | BENCH;
    /// Which parameters are trained; full writes a model folder.
    tune: Tune = Tune::Lora, FIT;
    /// Rank of the adapter.
    lora_r: u32 = 8, FIT;
    /// The adapter's output is multiplied by alpha / r.
    lora_alpha: f64 = 16.0, FIT;
    /// Only 0 for now.
    lora_dropout: f64 = 0.0, FIT;
    /// Modules the adapter adapts: `all-linear`, or names.
    lora_target_modules: Vec<String> = vec!["all-linear".into()], FIT;
    /// Scale alpha / sqrt(r) instead of alpha / r.
    use_rslora: bool = false, FIT;

    /// Rows to train on, query or score: JSONL or JSONL.gz (merge: prompts to compare on; unset is a few that are built in).
    dataset_name: Option<PathBuf> = None, FILES | MERGE;
    /// Ours: held-out rows: their loss is reported and, by train, the reward of answers to them.
    eval_dataset_name: Option<PathBuf> = None, FIT;
    /// Rows of a supervised stage before the first iteration, on the same adapter.
    sft_dataset_name: Option<PathBuf> = None, LOOP;
    /// Folder that the run writes (sampling methods: with the answers and the adapter that drew them, per iteration).
    output_dir: Option<PathBuf> = None, FIT | EVAL | DEMO | RERUN | MERGE;
    /// Ours: the file of results, one line per row (report: the page).
    output_file: Option<PathBuf> = None, MAP | REPORT;
    /// Ours: folders of runs to report on (diff: the two to compare); may be given without the flag.
    runs: Vec<PathBuf> = Vec::new(), REPORT | DIFF | RERUN;
    /// Tokens of a prompt and an answer; the end is cut off (reward: pairs with a longer side are left out).
    max_length: u32 = 1024, FIT;
    /// Tokens of a query, principle included; a longer one is cut at turn boundaries from the left.
    max_prompt_length: u32 = 512, SAMPLE;
    /// Loss on the completion alone; unset means so for rows that have a prompt.
    completion_only_loss: Option<bool> = None, SFT | LOOP;
    /// Of rows of messages, loss on what the assistant wrote alone: what the template's generation blocks mark, else its turns.
    assistant_only_loss: bool = false, SFT | LOOP;

    /// Passes over the rows (TRL: 3).
    num_train_epochs: f64 = 1.0, FIT;
    /// Optimizer steps; on rows: above 0 it overrides the epochs, sampling methods: a limit on the iterations' steps; -1 is neither.
    max_steps: i64 = -1, FIT;
    /// Examples of an optimizer batch before accumulation; a pair is one.
    per_device_train_batch_size: u32 = 8, FIT;
    /// Times that many examples make the optimizer batch (all but sft: 8, so that it holds 64 pairs or groups).
    gradient_accumulation_steps: u32 = 1, FIT;
    /// Ours: token budget of a micro-batch; changes memory and speed, never a result.
    max_tokens_per_micro_batch: u32 = 4096, FIT | MAP | EVAL;
    /// Activations are made again from each layer's input, in less memory and with the same results: auto where they do not fit otherwise.
    gradient_checkpointing: Checkpointing = Checkpointing::Auto, FIT;
    /// Highest learning rate of the schedule (reward: 1e-4; dpo, rloo, grpo: 1e-6, as in TRL).
    learning_rate: f64 = 2e-5, FIT;
    /// Shape of the schedule (train, raft: constant).
    lr_scheduler_type: Scheduler = Scheduler::Linear, FIT;
    /// Where cosine_with_min_lr ends, as a share of the learning rate.
    min_lr_rate: f64 = 0.1, FIT;
    /// Steps of warm-up; above 0 it overrides the ratio.
    warmup_steps: u32 = 0, FIT;
    /// Warm-up as a share of all steps, rounded up.
    warmup_ratio: f64 = 0.0, FIT;
    /// Decoupled weight decay.
    weight_decay: f64 = 0.0, FIT;
    /// AdamW's decay of the first moment.
    adam_beta1: f64 = 0.9, FIT;
    /// AdamW's decay of the second moment.
    adam_beta2: f64 = 0.999, FIT;
    /// AdamW's epsilon.
    adam_epsilon: f64 = 1e-8, FIT;
    /// Gradients are scaled down to this norm; 0 is off.
    max_grad_norm: f64 = 1.0, FIT;
    /// Of every random number.
    seed: u64 = 42, FIT | GENERATE | EVAL | CHAT | DEMO | SELFTEST;
    /// Steps between lines of the log.
    logging_steps: u32 = 1, ROWS;
    /// Steps between evaluations on eval_dataset_name; 0 is only at the ends (train: above 0, after each iteration too).
    eval_steps: u32 = 0, FIT;
    /// What an evaluation is judged by: `loss`, `perplexity`, `reward` or, on pairs, `rewards/accuracies` or `rewards/margins`, with
    /// or without `eval_`; unset is loss (sampling methods: reward).
    metric_for_best_model: Option<String> = None, FIT;
    /// Whether more of it is better; unset: not of a loss or a perplexity.
    greater_is_better: Option<bool> = None, FIT;
    /// Whether the run's folder holds what the best evaluation saw in the end, not what the last step left.
    load_best_model_at_end: bool = false, FIT;
    /// Ours, an argument of a callback elsewhere: evaluations in a row without a better one that end the training; 0 is off.
    early_stopping_patience: u32 = 0, FIT;
    /// Ours, as the patience: by how much an evaluation must be better.
    early_stopping_threshold: f64 = 0.0, FIT;
    /// Files beside log.jsonl: `tensorboard`, `csv`, `all` or `none`.
    report_to: Vec<Report> = vec![Report::All], FIT;
    /// Ours: a file for the times of all phases, as `chrome://tracing` reads it.
    trace: Option<PathBuf> = None, FIT;
    /// Steps between checkpoints; a signal leaves one always, and train one after every iteration.
    save_steps: u32 = 0, FIT;
    /// Checkpoints that are kept, the newest ones and never without the newest; 0 is all.
    save_total_limit: u32 = 0, FIT;
    /// `true` goes on from the newest whole checkpoint in output_dir, a folder from that one.
    resume_from_checkpoint: Resume = Resume::No, FIT;

    /// Tokens of an answer at most (rloo, grpo: 512, as in TRL; chat: 512).
    max_completion_length: u32 = 128, DRAW;
    /// Divides the logits when sampling; 0 is greedy (rloo, grpo: 1, the only one that they weigh rightly).
    temperature: f64 = 0.85, DRAW;
    /// Keeps the smallest set of tokens with this probability; 1 is off.
    top_p: f64 = 1.0, DRAW;
    /// Keeps this many tokens; 0 is off.
    top_k: u32 = 0, DRAW;
    /// Keeps tokens with this share of the likeliest one's probability; 0 is off.
    min_p: f64 = 0.0, DRAW;
    /// Makes tokens seen before less likely; 1 is off.
    repetition_penalty: f64 = 1.0, DRAW;
    /// Answers per query (raft: 4, rloo: 2, grpo: 8, recipe release: 8).
    num_generations: u32 = 1, GENERATE | LOOP;
    /// Texts after which an answer ends; the token that completes one is kept.
    stop_strings: Vec<String> = Vec::new(), DRAW;
    /// Sequences decoded at once; changes memory and speed, never a result.
    max_num_seqs: u32 = 32, SAMPLE;
    /// Ours: positions that the KV cache holds; 0 is as many as the sequences can need. With fewer, sequences wait for others (chat: of a
    /// conversation; 0 is 4096).
    kv_cache_tokens: u32 = 0, DRAW;

    /// Rewards: `lexicon:POSITIVE[,NEGATIVE]` (files of words), `length:N`, `regex:PATTERN`, `contains:TEXT`, `model:DIR` (a
    /// checkpoint with a scalar head), `adapter:DIR` (one on the same base), `exec:COMMAND` (JSON lines); `@unit` behind one
    /// says that its scores lie in [0, 1].
    reward_funcs: Vec<String> = Vec::new(), REWARD;
    /// A checkpoint with a scalar head: `model:DIR` behind the other rewards.
    reward_model_name_or_path: Option<PathBuf> = None, REWARD;
    /// A weight per reward; all 1 if unset.
    reward_weights: Vec<f64> = Vec::new(), REWARD;
    /// Ours: seconds that a reward command may take for a batch.
    reward_timeout: f64 = 60.0, REWARD;
    /// Taken from the raw reward of an answer without an end, where ple_truncated is penalize.
    missing_eos_penalty: f64 = 1.0, TRAIN;
    /// Normalisation of raw rewards; auto is sigmoid for real rewards and none for rewards in [0, 1].
    reward_norm: Norm = Norm::Auto, TRAIN;
    /// Where mean and scale of reward_norm come from.
    reward_calib: Calib = Calib::FirstIter, TRAIN;
    /// How strongly the reference holds: of dpo and of the dpo rank loss; the factor of the KL term of rloo (0.05) and grpo (0).
    beta: f64 = 0.1, TRAIN | DPO | RLOO | GRPO;

    /// The form of the loss: dpo `sigmoid` (unset), `hinge`, `ipo`, `robust`, `sigmoid_norm`; sft `nll`; grpo `dapo`.
    loss_type: Option<LossType> = None, SFT | DPO | GRPO;
    /// Share of pairs whose order is taken to be wrong: of dpo's `sigmoid` and `robust`, below 0.5.
    label_smoothing: f64 = 0.0, DPO;
    /// Adds that many times the mean of (r_chosen + r_rejected)^2, which holds rewards around 0; unset is none.
    center_rewards_coefficient: Option<f64> = None, PREFER;
    /// Ratios to the sampling policy count within 1 ± this.
    epsilon: f64 = 0.2, RLOO | GRPO;
    /// Advantages of an iteration to mean 0 and deviation 1.
    normalize_advantages: bool = false, RLOO;
    /// What advantages are divided by: the deviation of their group, of the iteration, or nothing.
    scale_rewards: Scale = Scale::Group, GRPO;
    /// Ours: what the loss falls on; `all` takes the query too, as LMFlow does.
    raft_loss_on: LossOn = LossOn::Completion, RAFT;
    /// Ours: answers with this text in them are never chosen.
    raft_forbidden: Option<String> = None, RAFT;
    /// Ours: `ple`, or `release`: what the authors' released code does (best and worst of 8 answers, weighted DPO), with its settings.
    recipe: Recipe = Recipe::Ple, TRAIN;
    /// Of release: the share of pairs, by reward gap, that have weight 1, per iteration; the last holds on.
    release_top_frac: Vec<f64> = vec![0.1, 0.2, 0.3, 0.4, 0.5], TRAIN;
    /// Of release: the other pairs have weight sigmoid(gap / this).
    release_sigmoid_temp: f64 = 10.0, TRAIN;
    /// Of release: `intended` weighs over the whole optimizer batch; `none` is what the released code computes.
    release_weight_mode: WeightMode = WeightMode::Intended, TRAIN;

    /// Ours: built-in settings under all files and flags: hh, imdb, tldr, literal; several may be given.
    preset: Vec<String> = Vec::new(), FIT;
    /// The principle as a text.
    ple_principle: Option<String> = None, TRAIN | GENERATE;
    /// The principle as a file of text.
    ple_principle_file: Option<PathBuf> = None, TRAIN | GENERATE;
    /// Threshold of iteration 0.
    ple_tau0: f64 = 0.2, TRAIN;
    /// The threshold is multiplied by this each iteration.
    ple_alpha: f64 = 0.9, TRAIN;
    /// The threshold never falls below.
    ple_tau_min: f64 = 0.0, TRAIN;
    /// Iterations (raft: 20; rloo, grpo: 32; recipe release: 5).
    ple_iters: u32 = 8, LOOP;
    /// Queries answered per iteration (raft: 1024; rloo, grpo: 512; recipe release: 10240).
    ple_queries_per_iter: u32 = 2048, LOOP;
    /// Passes over the examples of an iteration (raft: 4).
    ple_epochs_per_iter: u32 = 1, LOOP;
    /// In which order queries come: `shuffled` once a pass, or as in the `file`.
    ple_order: Order = Order::Shuffled, LOOP;
    /// Whether moments and schedule of the optimizer go on over the iterations (recipe release: each begins anew).
    ple_persist_optimizer: bool = true, LOOP;
    /// Loss of the rank branch.
    ple_rank: Rank = Rank::Hinge, TRAIN;
    /// Of the hinge.
    ple_margin: f64 = 0.0, TRAIN;
    /// Of the logistic rank loss.
    ple_beta_rank: f64 = 1.0, TRAIN;
    /// Adds that many times −m of the higher answer to the rank branch.
    ple_rank_sft_coef: f64 = 0.0, TRAIN;
    /// Factor of the rank branch.
    ple_lambda_rank: f64 = 1.0, TRAIN;
    /// Factor of the weighted branch.
    ple_lambda_sft: f64 = 1.0, TRAIN;
    /// Log-probabilities per token instead of per answer.
    ple_len_norm: bool = true, TRAIN;
    /// Weights of the weighted branch.
    ple_weight: Weight = Weight::Softmax, TRAIN;
    /// Temperature of the softmax weights.
    ple_weight_temp: f64 = 0.2, TRAIN;
    /// A pair whose guided answer is worse by more than tau.
    ple_worse: Worse = Worse::Weighted, TRAIN;
    /// A pair with an empty answer.
    ple_empty: Keep = Keep::Drop, TRAIN;
    /// A pair with an answer that reached the length limit.
    ple_truncated: Truncated = Truncated::Keep, TRAIN;
    /// A pair of identical answers.
    ple_dup: Keep = Keep::Keep, TRAIN;
    /// Share of pairs or groups with a reward or log-probability that is not finite, above which the run stops.
    ple_max_nonfinite: f64 = 0.05, LOOP;
    /// Factor of the KL term against the reference (estimator k3, per token).
    ple_kl_coef: f64 = 0.0, TRAIN;

    /// Ours: completions of another model (a file of `ple generate`): both are written as pairs for a judge, in both orders; unset
    /// compares with the rows' own answers, where they have some.
    against: Option<PathBuf> = None, EVAL;

    /// Ours: the system message of the conversation.
    system: Option<String> = None, CHAT;

    /// Ours: a third of the demo.
    quick: bool = false, DEMO;

    /// Ours: rooms of kernels to try; all if unset.
    rooms: Vec<String> = Vec::new(), TRY;
    /// Ours: a file for the results, as JSON (bench: JSON lines, added to what is there).
    json: Option<PathBuf> = None, TRY;
    /// Ours: dump what each instruction wrapper does on the device, raw, into `out`, and test nothing.
    conformance: bool = false, SELFTEST;
    /// Ours: the file of that dump.
    out: Option<PathBuf> = None, SELFTEST;
    /// Ours: measure whole steps of LoRA training instead of rooms, at the shapes of 0.5B and 8B in bf16.
    e2e: bool = false, BENCH;
    /// Ours: files of results, or of the peers' scripts, to print as one table; nothing is measured.
    merge: Vec<PathBuf> = Vec::new(), BENCH;

    /// auto, cpu, cuda or cuda:0, ascend or ascend:0.
    device: String = "auto".into(), ALL;
    /// Threads of the CPU device; 0 is one per core.
    threads: u32 = 0, ALL;
    /// Print errors only.
    quiet: bool = false, ALL;
    /// How progress is printed.
    log_format: LogFormat = LogFormat::Pretty, ALL;
    /// Check the settings and stop.
    dry_run: bool = false, RUN | MERGE;
}
