//! Keys of TRL and transformers that have no effect here: accepted with a line, or accepted with one value only and refused by
//! name otherwise.

use super::{Arity, Given, KEYS, nearest::nearest};
use crate::{Error, Result};
use serde_json::Value;

/// What becomes of such a key.
pub enum Rule {
    /// It has no effect; why.
    Ignored(&'static str),
    /// Only these spellings are accepted (they change nothing); why.
    Only(&'static [&'static str], &'static str),
}

use Rule::{Ignored, Only};

const OFF: &[&str] = &["false"];
const ON: &[&str] = &["true"];

const RULES: &[(&str, Rule)] = &[
    ("attn_implementation", Ignored("there is one attention")),
    ("packing", Ignored("sequences are always packed, without padding")),
    ("padding_free", Ignored("there is no padding")),
    ("bf16", Ignored("dtype decides")),
    ("gradient_checkpointing_kwargs", Ignored("memory is planned")),
    ("use_liger_kernel", Ignored("the kernels are this program's")),
    ("deepspeed", Ignored("there is one process")),
    ("accelerate_config", Ignored("there is one process")),
    ("push_to_hub", Ignored("nothing is sent over the network")),
    ("per_device_eval_batch_size", Ignored("evaluation is cut by max_tokens_per_micro_batch")),
    ("logging_first_step", Ignored("the first step is always logged")),
    ("logging_strategy", Ignored("logging_steps decides")),
    ("run_name", Ignored("output_dir names the run")),
    ("remove_unused_columns", Ignored("columns that nothing reads are left alone")),
    ("dataset_num_proc", Ignored("rows are read one at a time")),
    ("log_completions", Ignored("completions are always written")),
    ("shuffle_dataset", Ignored("rows are always shuffled")),
    ("env", Ignored("environment variables are set outside")),
    ("overwrite_output_dir", Ignored("files of an earlier run are replaced")),
    ("do_train", Ignored("the command says what is done")),
    ("do_eval", Ignored("the command says what is done")),
    ("logging_dir", Ignored("the log lies in output_dir")),
    ("disable_tqdm", Ignored("quiet decides")),
    ("use_cpu", Ignored("device decides")),
    ("tf32", Ignored("there is one precision per device")),
    ("group_by_length", Ignored("sequences are packed, whatever their lengths")),
    ("average_tokens_across_devices", Ignored("there is one process")),
    ("torch_empty_cache_steps", Ignored("memory is planned")),
    ("pad_token", Ignored("there is no padding")),
    ("num_completions_to_print", Ignored("completions are written to files")),
    ("dataset_test_split", Ignored("a dataset is a file; eval_dataset_name names the held-out one")),
    ("dataset_streaming", Ignored("rows are read here")),
    ("lora_task_type", Ignored("it is CAUSAL_LM")),
    ("trust_remote_code", Only(OFF, "there is no code to trust")),
    ("use_dora", Only(OFF, "DoRA is not supported")),
    ("load_in_8bit", Only(OFF, "quantisation is not supported")),
    ("load_in_4bit", Only(OFF, "quantisation is not supported")),
    ("bnb_4bit_quant_type", Only(&[], "quantisation is not supported")),
    ("use_bnb_nested_quant", Only(OFF, "quantisation is not supported")),
    ("quantization_config", Only(&[], "quantisation is not supported")),
    ("fp16", Only(OFF, "mixed f16 training with loss scaling is not supported; dtype float16 stores the base so")),
    ("use_peft", Only(ON, "tune full trains all weights")),
    ("dataset_config", Only(&[], "a dataset is a file")),
    ("dataset_train_split", Only(&["train"], "a dataset is a file: name that of the split")),
    ("dataset_text_field", Only(&["text"], "rows of text have the field text")),
    ("model_revision", Only(&["main"], "a model is a folder: fetch that revision")),
    ("auto_find_batch_size", Only(OFF, "a batch that does not fit is an error before the run")),
    ("optim", Only(&["adamw_torch", "adamw_torch_fused", "adamw_hf"], "the optimizer is AdamW")),
    ("truncation_mode", Only(&["keep_start"], "the end is cut off")),
    ("eval_strategy", Only(&["no", "steps"], "eval_steps decides")),
    ("save_strategy", Only(&["no", "steps"], "save_steps decides")),
    ("chat_template_path", Only(&[], "the template is the model's own: put chat_template.jinja into its folder")),
    ("precompute_ref_log_probs", Ignored("the reference's log-probabilities are always computed once, before the first step")),
    ("disable_dropout", Ignored("there is no dropout")),
    ("f_divergence_type", Only(&["reverse_kl"], "the reference is compared by log-ratios alone")),
    ("reference_free", Only(OFF, "dpo compares with a reference")),
    ("sync_ref_model", Only(OFF, "the reference is what the run starts from")),
    ("importance_sampling_level", Only(&["token"], "grpo has a ratio per token, rloo one per answer")),
    ("neftune_noise_alpha", Only(&[], "embedding noise is not supported")),
    ("lora_modules_to_save", Only(&[], "fully trained modules beside an adapter are not supported")),
    ("label_smoothing_factor", Only(&["0", "0.0"], "label smoothing is not supported")),
];

/// Families of the same fate, by how the name begins.
const PREFIXES: &[(&str, &str)] = &[
    ("vllm_", "answers are generated here"),
    ("use_vllm", "answers are generated here"),
    ("fsdp", "there is one process"),
    ("dataloader_", "rows are read here"),
    ("ddp_", "there is one process"),
    ("torch_compile", "there is no graph to compile"),
    ("hub_", "nothing is sent over the network"),
    ("bnb_", "quantisation is off"),
];

/// Keys that were renamed: old, new.
pub const RENAMED: &[(&str, &str)] = &[
    ("ple_preset", "preset"),
    ("max_seq_length", "max_length"),
    ("torch_dtype", "dtype"),
    ("reward_model_path", "reward_model_name_or_path"),
    ("max_new_tokens", "max_completion_length"),
    ("num_iterations", "ple_epochs_per_iter"),
    ("num_raft_iteration", "ple_iters"),
];

fn spelling(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_string)
}

/// Whether the name is one of these keys.
pub fn knows(name: &str) -> bool {
    RULES.iter().any(|(n, _)| *n == name) || PREFIXES.iter().any(|(p, _)| name.starts_with(p))
}

/// Whether it has no effect whatever its value.
pub fn is_ignored(name: &str) -> bool {
    knows(name) && !matches!(rule(name), Some(Only(..)))
}

/// Words of its flag; an ignored one may have any number, or none.
pub fn arity(name: &str) -> Arity {
    match rule(name) {
        Some(Only(values, _)) if *values == OFF || *values == ON => Arity::Switch,
        Some(Only(..)) => Arity::One,
        _ => Arity::Many,
    }
}

fn rule(name: &str) -> Option<&'static Rule> {
    RULES.iter().find(|(n, _)| *n == name).map(|(_, rule)| rule)
}

/// Why a key is ignored, None where its value changes nothing, or why it is refused.
pub fn verdict(given: &Given) -> std::result::Result<Option<&'static str>, String> {
    match rule(&given.name) {
        Some(Only(values, why)) => {
            let value = spelling(&given.value);
            if given.value.is_null() || values.iter().any(|v| v.eq_ignore_ascii_case(&value)) {
                return Ok(None);
            }
            let accepted = if values.is_empty() { String::new() } else { format!(" (accepted: {})", values.join(", ")) };
            Err(format!("{value} is refused: {why}{accepted}"))
        }
        Some(Ignored(why)) => Ok(Some(why)),
        None => Ok(Some(PREFIXES.iter().find(|(p, _)| given.name.starts_with(p)).map_or("", |(_, why)| why))),
    }
}

/// The line for an ignored key, or the refusal.
pub fn judge(given: &Given) -> Result<Option<String>> {
    let why = verdict(given).map_err(|why| Error::Usage(format!("{}: {why}", given.from)))?;
    Ok(why.map(|why| format!("{}: ignored: {why}", given.from)))
}

/// The known key nearest to a name that nothing knows.
pub fn near(name: &str) -> &'static str {
    nearest(name, KEYS.iter().map(|k| k.name).chain(RULES.iter().map(|(n, _)| *n)))
}

/// The error for a name that nothing knows.
pub fn unknown(from: &super::Origin, name: &str, known: &[&'static str]) -> Error {
    let all = known.iter().copied().chain(RULES.iter().map(|(n, _)| *n));
    Error::Usage(format!("{from}: unknown key `{name}`; the nearest known is `{}`", nearest(name, all)))
}
