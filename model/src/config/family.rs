//! The families that run, one table of facts each. What differs between checkpoints of one family is a field of
//! [`super::Config`]; what differs between families is here, and nothing else in this crate asks for a family's name.

use super::window::Windows;

/// How rows are normed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Norm {
    /// By the root of the mean square, times offset + w.
    Rms {
        /// 0 or 1.
        offset: f32,
    },
    /// By mean and variance, times w, plus a bias.
    Layer,
}

/// What stands between the two halves of an MLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// silu(gate)·up.
    SwiGlu,
    /// gelu(gate)·up, by tanh.
    GeGlu,
    /// gelu(x), by tanh.
    Gelu,
}

impl Activation {
    /// Whether the first half is gate and up side by side.
    pub fn gated(self) -> bool {
        self != Activation::Gelu
    }
}

/// How rows know their positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Positions {
    /// Heads turn, all layers alike.
    Rotary,
    /// Heads turn, by another table in layers with a window.
    RotaryByKind,
    /// A row of a table is added to the embedding.
    Learned,
}

/// Whether the modules of a group have a bias.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bias {
    Never,
    Always,
    /// If this field of config.json is true.
    If(&'static str),
}

/// One width of a module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Width {
    /// C
    Hidden,
    /// H·D
    Queries,
    /// K·D
    Keys,
    /// (H + 2K)·D
    All,
    /// F
    Ffn,
}

/// A linear module of a layer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Module {
    /// Its path inside the layer.
    pub name: &'static str,
    /// O.
    pub output: Width,
    /// I.
    pub input: Width,
}

const fn module(name: &'static str, output: Width, input: Width) -> Module {
    Module { name, output, input }
}

/// Fields of config.json that have two spellings.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Fields {
    pub hidden_size: &'static str,
    pub intermediate_size: &'static str,
    pub num_hidden_layers: &'static str,
    pub num_attention_heads: &'static str,
    pub max_position_embeddings: &'static str,
    pub norm_eps: &'static str,
}

/// Names of tensors, without `.weight` and `.bias`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Names {
    pub embedding: &'static str,
    pub positions: &'static str,
    /// Before the layer's number, with the dot.
    pub layer: &'static str,
    /// Norms of a layer: before attention, of what attention adds, before the MLP, of what it adds.
    pub norms: [Option<&'static str>; 4],
    /// Norms of each query and key head.
    pub head_norms: Option<[&'static str; 2]>,
    pub final_norm: &'static str,
}

/// What a family is.
#[derive(Debug, PartialEq)]
pub(crate) struct Family {
    pub model_type: &'static str,
    /// What `architectures` may name: a language model, a scalar head.
    pub architectures: [&'static str; 2],
    pub fields: Fields,
    pub names: Names,
    /// The four groups of modules that share an input, in the order in which a layer runs them: q, k, v; o; gate, up; down.
    pub groups: [&'static [Module]; 4],
    /// Of each group.
    pub biases: [Bias; 4],
    /// Whether its matrices, but for embeddings and head, lie transposed on disk: `[I, O]`.
    pub conv1d: bool,
    pub norm: Norm,
    pub activation: Activation,
    /// The field that names the activation, and the names of it.
    pub act: (&'static str, &'static [&'static str]),
    pub positions: Positions,
    pub windows: Windows,
    /// Whether the head is the embedding where the file does not say.
    pub tied: bool,
    /// Whether K and D may be absent: K = H, D = C / H.
    pub derived: bool,
    /// Whether the softcaps and `query_pre_attn_scalar` are read.
    pub softcaps: bool,
    /// Whether embeddings are multiplied by the root of C.
    pub scaled_embeddings: bool,
    /// Fields that must be absent or have this value.
    pub fixed: &'static [(&'static str, bool)],
}

const LLAMA: Family = Family {
    model_type: "llama",
    architectures: ["LlamaForCausalLM", "LlamaForSequenceClassification"],
    fields: Fields {
        hidden_size: "hidden_size",
        intermediate_size: "intermediate_size",
        num_hidden_layers: "num_hidden_layers",
        num_attention_heads: "num_attention_heads",
        max_position_embeddings: "max_position_embeddings",
        norm_eps: "rms_norm_eps",
    },
    names: Names {
        embedding: "model.embed_tokens",
        positions: "",
        layer: "model.layers.",
        norms: [Some("input_layernorm"), None, Some("post_attention_layernorm"), None],
        head_norms: None,
        final_norm: "model.norm",
    },
    groups: [
        &[
            module("self_attn.q_proj", Width::Queries, Width::Hidden),
            module("self_attn.k_proj", Width::Keys, Width::Hidden),
            module("self_attn.v_proj", Width::Keys, Width::Hidden),
        ],
        &[module("self_attn.o_proj", Width::Hidden, Width::Queries)],
        &[module("mlp.gate_proj", Width::Ffn, Width::Hidden), module("mlp.up_proj", Width::Ffn, Width::Hidden)],
        &[module("mlp.down_proj", Width::Hidden, Width::Ffn)],
    ],
    biases: [Bias::If("attention_bias"), Bias::If("attention_bias"), Bias::If("mlp_bias"), Bias::If("mlp_bias")],
    conv1d: false,
    norm: Norm::Rms { offset: 0.0 },
    activation: Activation::SwiGlu,
    act: ("hidden_act", &["silu"]),
    positions: Positions::Rotary,
    windows: Windows::None,
    tied: false,
    derived: true,
    softcaps: false,
    scaled_embeddings: false,
    fixed: &[],
};

const MISTRAL: Family = Family {
    model_type: "mistral",
    architectures: ["MistralForCausalLM", "MistralForSequenceClassification"],
    biases: [Bias::Never; 4],
    windows: Windows::Every,
    ..LLAMA
};

const QWEN2: Family = Family {
    model_type: "qwen2",
    architectures: ["Qwen2ForCausalLM", "Qwen2ForSequenceClassification"],
    biases: [Bias::Always, Bias::Never, Bias::Never, Bias::Never],
    windows: Windows::From,
    ..LLAMA
};

const QWEN3: Family = Family {
    model_type: "qwen3",
    architectures: ["Qwen3ForCausalLM", "Qwen3ForSequenceClassification"],
    names: Names { head_norms: Some(["self_attn.q_norm", "self_attn.k_norm"]), ..LLAMA.names },
    biases: [Bias::If("attention_bias"), Bias::If("attention_bias"), Bias::Never, Bias::Never],
    windows: Windows::From,
    derived: false,
    ..LLAMA
};

const GPT2: Family = Family {
    model_type: "gpt2",
    architectures: ["GPT2LMHeadModel", "GPT2ForSequenceClassification"],
    fields: Fields {
        hidden_size: "n_embd",
        intermediate_size: "n_inner",
        num_hidden_layers: "n_layer",
        num_attention_heads: "n_head",
        max_position_embeddings: "n_positions",
        norm_eps: "layer_norm_epsilon",
    },
    names: Names {
        embedding: "transformer.wte",
        positions: "transformer.wpe",
        layer: "transformer.h.",
        norms: [Some("ln_1"), None, Some("ln_2"), None],
        head_norms: None,
        final_norm: "transformer.ln_f",
    },
    groups: [
        &[module("attn.c_attn", Width::All, Width::Hidden)],
        &[module("attn.c_proj", Width::Hidden, Width::Queries)],
        &[module("mlp.c_fc", Width::Ffn, Width::Hidden)],
        &[module("mlp.c_proj", Width::Hidden, Width::Ffn)],
    ],
    biases: [Bias::Always; 4],
    conv1d: true,
    norm: Norm::Layer,
    activation: Activation::Gelu,
    act: ("activation_function", &["gelu_new", "gelu_pytorch_tanh"]),
    positions: Positions::Learned,
    tied: true,
    fixed: &[("add_cross_attention", false), ("scale_attn_by_inverse_layer_idx", false), ("scale_attn_weights", true)],
    ..LLAMA
};

const GEMMA2: Family = Family {
    model_type: "gemma2",
    architectures: ["Gemma2ForCausalLM", "Gemma2ForSequenceClassification"],
    names: Names {
        norms: [
            Some("input_layernorm"),
            Some("post_attention_layernorm"),
            Some("pre_feedforward_layernorm"),
            Some("post_feedforward_layernorm"),
        ],
        ..LLAMA.names
    },
    biases: [Bias::If("attention_bias"), Bias::If("attention_bias"), Bias::Never, Bias::Never],
    norm: Norm::Rms { offset: 1.0 },
    activation: Activation::GeGlu,
    act: ("hidden_activation", &["gelu_pytorch_tanh"]),
    windows: Windows::AllBut(2, "sliding_window_pattern"),
    tied: true,
    derived: false,
    softcaps: true,
    scaled_embeddings: true,
    fixed: &[("use_bidirectional_attention", false)],
    ..LLAMA
};

const GEMMA3: Family = Family {
    model_type: "gemma3_text",
    architectures: ["Gemma3ForCausalLM", "Gemma3TextForSequenceClassification"],
    names: Names { head_norms: QWEN3.names.head_norms, ..GEMMA2.names },
    positions: Positions::RotaryByKind,
    windows: Windows::AllBut(6, "sliding_window_pattern"),
    ..GEMMA2
};

/// All of them.
pub(crate) const FAMILIES: [&Family; 7] = [&LLAMA, &MISTRAL, &QWEN2, &QWEN3, &GPT2, &GEMMA2, &GEMMA3];

/// Their names, quoted, for errors.
pub(crate) fn known() -> String {
    let names: Vec<String> = FAMILIES.iter().map(|f| format!("{:?}", f.model_type)).collect();
    format!("one of {}", names.join(", "))
}
