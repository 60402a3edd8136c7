//! Keys that hold one of a few words.

use super::field::{Arity, Field, Hint};
use serde_json::Value;
use std::path::PathBuf;

/// An enum whose variants are spelled in flags and files as given.
macro_rules! choice {
    ($(#[$meta:meta])* $name:ident { $($(#[$variant_meta:meta])* $variant:ident = $text:literal),+ $(,)? }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name {
            $($(#[$variant_meta])* $variant),+
        }

        impl $name {
            /// As spelled in flags and files.
            pub fn name(self) -> &'static str {
                match self {
                    $($name::$variant => $text),+
                }
            }
        }

        impl Field for $name {
            const ARITY: Arity = Arity::One;
            const HINT: Hint = Hint::Words(&[$($text),+]);
            fn wanted() -> String {
                format!("one of {}", [$($text),+].join(", "))
            }
            fn read(value: &Value) -> Option<$name> {
                match value.as_str()? {
                    $($text => Some($name::$variant),)+
                    _ => None,
                }
            }
            fn write(&self) -> Value {
                self.name().into()
            }
        }
    };
}

choice! {
    /// Which parameters are trained.
    Tune {
        /// An adapter.
        Lora = "lora",
        /// All weights.
        Full = "full",
    }
}

choice! {
    /// Who multiplies matrices on a device.
    Gemm {
        /// Own kernels: one order for any batch.
        Own = "own",
        /// The vendor's library: repeatable, no more.
        Library = "library",
    }
}

choice! {
    /// Element type of the base weights in memory.
    Dtype {
        /// As in the checkpoint.
        Auto = "auto",
        /// 32 bits.
        Float32 = "float32",
        /// 16 bits, 8 of them exponent.
        Bfloat16 = "bfloat16",
        /// 16 bits, 5 of them exponent.
        Float16 = "float16",
    }
}

choice! {
    /// Learning rate over the steps, see [`crate::optim`].
    Scheduler {
        /// Falls to 0 in a line.
        Linear = "linear",
        /// Falls to 0 along half a cosine.
        Cosine = "cosine",
        /// Falls to `min_lr_rate` of itself along half a cosine.
        CosineWithMinLr = "cosine_with_min_lr",
        /// Always the same, without warm-up.
        Constant = "constant",
        /// The same after the warm-up.
        ConstantWithWarmup = "constant_with_warmup",
    }
}

choice! {
    /// Loss of the rank branch; `m_l`, `m_h` are the log-probabilities of the lower and the higher answer.
    Rank {
        /// max(0, m_l − m_h + margin).
        Hinge = "hinge",
        /// softplus(−beta_rank·(m_h − m_l)).
        Logistic = "logistic",
        /// max(0, e^m_l − e^m_h).
        ProbHinge = "prob_hinge",
        /// −log sigmoid(beta·h), h against the reference.
        Dpo = "dpo",
    }
}

choice! {
    /// The form of a loss; each method takes its own.
    LossType {
        /// sft: the mean of −logp.
        Nll = "nll",
        /// The same: TRL's name for computing it in parts.
        ChunkedNll = "chunked_nll",
        /// dpo: −log σ(beta·h).
        Sigmoid = "sigmoid",
        /// dpo: max(0, 1 − beta·h).
        Hinge = "hinge",
        /// dpo: (h − 1/(2 beta))^2, h per token.
        Ipo = "ipo",
        /// dpo: without bias where a share `label_smoothing` of the orders is wrong.
        Robust = "robust",
        /// dpo: −log σ(beta·h), h per token.
        SigmoidNorm = "sigmoid_norm",
        /// grpo: the mean over all tokens of the optimizer batch.
        Dapo = "dapo",
    }
}

choice! {
    /// What advantages are divided by.
    Scale {
        /// The deviation of the group's rewards.
        Group = "group",
        /// The deviation of the iteration's rewards.
        Batch = "batch",
        /// Nothing.
        None = "none",
    }
}

choice! {
    /// What a loss falls on.
    LossOn {
        /// The answer.
        Completion = "completion",
        /// Query and answer.
        All = "all",
    }
}

choice! {
    /// What `ple train` does with its answers.
    Recipe {
        /// PLE.
        Ple = "ple",
        /// The authors' released code.
        Release = "release",
    }
}

choice! {
    /// Weights of the release recipe.
    WeightMode {
        /// Σ w·l / Σ w over the optimizer batch.
        Intended = "intended",
        /// The plain mean.
        None = "none",
    }
}

choice! {
    /// In which order queries come.
    Order {
        /// Shuffled once a pass.
        Shuffled = "shuffled",
        /// As in the file.
        File = "file",
    }
}

choice! {
    /// Weights of the two answers in the weighted branch.
    Weight {
        /// Two-way softmax of the rewards at `ple_weight_temp`.
        Softmax = "softmax",
        /// r / (r + r').
        Proportional = "proportional",
        /// One half each.
        Equal = "equal",
    }
}

choice! {
    /// What becomes of a pair whose guided answer is worse by more than tau.
    Worse {
        /// The weighted branch.
        Weighted = "weighted",
        /// Rank the plain answer over the guided one.
        Swap = "swap",
        /// The weighted branch with weights 1 and 0.
        BestOnly = "best_only",
        /// Leave the pair out.
        Skip = "skip",
    }
}

choice! {
    /// Whether a kind of pair is trained.
    Keep {
        /// It is.
        Keep = "keep",
        /// It is not.
        Drop = "drop",
    }
}

choice! {
    /// What becomes of a pair with an answer that reached the length limit.
    Truncated {
        /// Trained as it is, no end token added.
        Keep = "keep",
        /// Left out.
        Drop = "drop",
        /// Kept, and `missing_eos_penalty` is taken from the raw reward.
        Penalize = "penalize",
    }
}

choice! {
    /// Normalisation of raw rewards.
    Norm {
        /// `sigmoid` for real rewards, `none` for rewards in [0, 1].
        Auto = "auto",
        /// sigmoid((raw − mean)/std), calibrated on the plain answers.
        Sigmoid = "sigmoid",
        /// The raw reward.
        None = "none",
        /// Delta is 2·P − 1 of Bradley and Terry.
        Bt = "bt",
    }
}

choice! {
    /// Files that other tools read, beside log.jsonl and trainer_state.json.
    Report {
        /// Every one of them.
        All = "all",
        /// None of them.
        None = "none",
        /// Event files under `runs`.
        Tensorboard = "tensorboard",
        /// `metrics.csv`.
        Csv = "csv",
    }
}

choice! {
    /// How progress is printed.
    LogFormat {
        /// For a reader.
        Pretty = "pretty",
        /// One JSON object a line.
        Json = "json",
    }
}

/// Where mean and scale of the reward normalisation come from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Calib {
    /// The plain answers of the first iteration, then frozen.
    FirstIter,
    /// The plain answers of each iteration.
    EachIter,
    /// Given.
    Fixed {
        /// Subtracted.
        mean: f64,
        /// Divides.
        std: f64,
    },
}

impl Field for Calib {
    const ARITY: Arity = Arity::Many;
    const HINT: Hint = Hint::Words(&["first_iter", "each_iter"]);
    fn wanted() -> String {
        "first_iter, each_iter, or a mean and a standard deviation above 0".into()
    }
    fn read(value: &Value) -> Option<Calib> {
        match value {
            Value::String(s) if s == "first_iter" => Some(Calib::FirstIter),
            Value::String(s) if s == "each_iter" => Some(Calib::EachIter),
            Value::Array(items) => match items.as_slice() {
                [one] => Calib::read(one),
                [mean, std] => {
                    Some(Calib::Fixed { mean: f64::read(mean)?, std: f64::read(std)? }).filter(|_| f64::read(std) > Some(0.0))
                }
                _ => None,
            },
            _ => None,
        }
    }
    fn write(&self) -> Value {
        match *self {
            Calib::FirstIter => "first_iter".into(),
            Calib::EachIter => "each_iter".into(),
            Calib::Fixed { mean, std } => vec![mean, std].into(),
        }
    }
}

/// Where a run goes on from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resume {
    /// It begins.
    No,
    /// The newest whole checkpoint of its folder.
    Newest,
    /// This one.
    From(PathBuf),
}

impl Field for Resume {
    const ARITY: Arity = Arity::One;
    fn wanted() -> String {
        "true, false or the folder of a checkpoint".into()
    }
    fn read(value: &Value) -> Option<Resume> {
        match (bool::read(value), value) {
            (Some(true), _) => Some(Resume::Newest),
            (Some(false), _) | (None, Value::Null) => Some(Resume::No),
            (None, value) => PathBuf::read(value).map(Resume::From),
        }
    }
    fn write(&self) -> Value {
        match self {
            Resume::No => false.into(),
            Resume::Newest => true.into(),
            Resume::From(folder) => folder.write(),
        }
    }
}

/// Whether the backward makes activations again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checkpointing {
    /// Where they do not fit otherwise.
    Auto,
    /// Yes.
    On,
    /// No.
    Off,
}

impl Field for Checkpointing {
    const ARITY: Arity = Arity::Switch;
    const HINT: Hint = Hint::Words(&["auto", "true", "false"]);
    fn wanted() -> String {
        "auto, true or false".into()
    }
    fn read(value: &Value) -> Option<Checkpointing> {
        match (bool::read(value), value.as_str()) {
            (Some(on), _) => Some(if on { Checkpointing::On } else { Checkpointing::Off }),
            (None, Some("auto")) => Some(Checkpointing::Auto),
            _ => None,
        }
    }
    fn write(&self) -> Value {
        match self {
            Checkpointing::Auto => "auto".into(),
            Checkpointing::On => true.into(),
            Checkpointing::Off => false.into(),
        }
    }
}
