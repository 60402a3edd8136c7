//! `adapter_config.json` of PEFT: what is read, what is refused by name, which modules it selects.

use super::select::{Layers, Patterns, Selector};
use crate::json::{self, Object};
use crate::{Error, ModuleSpec, Result};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::Path;

/// Which linear modules an adapter sits on.
#[derive(Clone, Debug, PartialEq)]
pub enum Targets {
    /// Every one (`"all-linear"`).
    AllLinear,
    /// Those whose whole path matches.
    Regex(String),
    /// Those whose path is in the list or ends with a dot and a name of it.
    List(Vec<String>),
}

/// What PEFT's LoRA configuration says; the fields keep its names.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterConfig {
    /// R, where `rank_pattern` says nothing else.
    pub r: usize,
    /// The scale is alpha / r, or alpha / sqrt(r) with `use_rslora`.
    pub lora_alpha: f64,
    /// Of the adapter's input while training, in 0..1.
    pub lora_dropout: f64,
    /// See `lora_alpha`.
    pub use_rslora: bool,
    /// DoRA: every row of W + scale · B A is brought to a length of its own.
    pub use_dora: bool,
    /// Whether the base stores weights as `[in, out]`; A and B are as ever.
    pub fan_in_fan_out: bool,
    /// Where the adapter sits.
    pub target_modules: Targets,
    /// Of these, where it does not.
    pub exclude_modules: Option<Targets>,
    /// Of those that a list names by their end, the layers; empty = all.
    pub layers_to_transform: Vec<usize>,
    /// What stands before the number of a layer; empty = anything.
    pub layers_pattern: Vec<String>,
    /// Pattern of a path's end -> R; the first that matches counts.
    pub rank_pattern: Vec<(String, usize)>,
    /// Pattern of a path's end -> alpha.
    pub alpha_pattern: Vec<(String, f64)>,
    /// Modules saved whole: nothing, the scalar head (`score`), or embedding and LM head.
    pub modules_to_save: Vec<String>,
    /// As the file gives it; nothing is looked up.
    pub base_model_name_or_path: Option<String>,
    /// CAUSAL_LM, SEQ_CLS or nothing.
    pub task_type: Option<String>,
    /// Keys that are not known and were passed over.
    pub warnings: Vec<String>,
}

/// A module that is selected: its index in the list, its rank and its scale.
pub(super) struct Selected {
    pub(super) index: usize,
    pub(super) r: usize,
    pub(super) scale: f32,
}

const MOST_RANK: u64 = 1 << 16;

/// Modules outside the layers that a list or an expression may name; PEFT puts an adapter on them too.
const OUTSIDE: [&str; 5] = ["model.embed_tokens", "lm_head", "transformer.wte", "transformer.wpe", "score"];

/// Keys that change what an adapter means; each is refused unless it is null, false or empty.
const REFUSED: [&str; 17] = [
    "lora_bias",
    "use_qalora",
    "use_bdlora",
    "layer_replication",
    "target_parameters",
    "trainable_token_indices",
    "alora_invocation_tokens",
    "alora_invocation_string",
    "arrow_config",
    "corda_config",
    "kasa_config",
    "lora_ga_config",
    "megatron_config",
    "monteclora_config",
    "velora_config",
    "use_velora",
    "use_kasa",
];

/// Keys that change nothing for a finished adapter, and those that are read.
const KNOWN: [&str; 27] = [
    "alpha_pattern",
    "auto_mapping",
    "base_model_name_or_path",
    "bias",
    "ensure_weight_tying",
    "eva_config",
    "exclude_modules",
    "fan_in_fan_out",
    "inference_mode",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "loftq_config",
    "lora_alpha",
    "lora_dropout",
    "megatron_core",
    "modules_to_save",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "r",
    "rank_pattern",
    "revision",
    "target_modules",
    "task_type",
    "use_dora",
    "use_rslora",
];

/// Last names of modules that `modules_to_save` may hold.
const SAVED: [&str; 7] = ["score", "classifier", "embed_tokens", "lm_head", "wte", "wpe", "embed_out"];

impl AdapterConfig {
    /// A plain LoRA of this rank and alpha for a causal language model.
    pub fn new(r: usize, lora_alpha: f64, target_modules: Targets) -> AdapterConfig {
        AdapterConfig {
            r,
            lora_alpha,
            lora_dropout: 0.0,
            use_rslora: false,
            use_dora: false,
            fan_in_fan_out: false,
            target_modules,
            exclude_modules: None,
            layers_to_transform: Vec::new(),
            layers_pattern: Vec::new(),
            rank_pattern: Vec::new(),
            alpha_pattern: Vec::new(),
            modules_to_save: Vec::new(),
            base_model_name_or_path: None,
            task_type: Some("CAUSAL_LM".into()),
            warnings: Vec::new(),
        }
    }

    /// Reads `adapter_config.json` of a folder.
    pub fn from_folder(folder: &Path) -> Result<AdapterConfig> {
        let path = folder.join("adapter_config.json");
        AdapterConfig::parse(&path, &json::read(&path)?)
    }

    /// Reads the text of an `adapter_config.json`; `path` is for errors. What this crate does not run is refused by name.
    pub fn parse(path: &Path, text: &str) -> Result<AdapterConfig> {
        let map = json::parse(path, text)?;
        let file = Object::new(path, &map);
        refuse(&file)?;
        let r = file.integer("r", 1, MOST_RANK)?.ok_or_else(|| file.wrong("r", "an integer of at least 1"))?;
        let lora_alpha =
            file.number("lora_alpha")?.filter(|x| *x > 0.0).ok_or_else(|| file.wrong("lora_alpha", "a number above 0"))?;
        let lora_dropout = file.number("lora_dropout")?.unwrap_or(0.0);
        if !(0.0..1.0).contains(&lora_dropout) {
            return Err(file.wrong("lora_dropout", "a number from 0 to below 1"));
        }
        let target_modules = targets(&file, "target_modules")?;
        let (layers_to_transform, layers_pattern) = layers(&file, target_modules.as_ref())?;
        Ok(AdapterConfig {
            lora_dropout,
            use_rslora: file.boolean("use_rslora")?.unwrap_or(false),
            use_dora: file.boolean("use_dora")?.unwrap_or(false),
            fan_in_fan_out: file.boolean("fan_in_fan_out")?.unwrap_or(false),
            layers_to_transform,
            layers_pattern,
            exclude_modules: targets(&file, "exclude_modules")?.filter(|t| !matches!(t, Targets::List(l) if l.is_empty())),
            rank_pattern: pattern(&file, "rank_pattern", |o, key| o.integer(key, 1, MOST_RANK))?,
            alpha_pattern: pattern(&file, "alpha_pattern", |o, key| o.number(key))?,
            modules_to_save: file.texts("modules_to_save")?.unwrap_or_default().into_iter().map(str::to_string).collect(),
            base_model_name_or_path: file.text("base_model_name_or_path")?.map(str::to_string),
            task_type: file.text("task_type")?.map(str::to_string),
            warnings: unknown(&file),
            ..AdapterConfig::new(r, lora_alpha, target_modules.ok_or_else(|| file.wrong("target_modules", WANTED_TARGETS))?)
        })
    }

    /// The modules that carry a LoRA, in the order of `expected`; `path` is for errors.
    pub(super) fn select(&self, path: &Path, expected: &[ModuleSpec]) -> Result<Vec<Selected>> {
        let layers = Layers::new(path, &self.layers_to_transform, &self.layers_pattern)?;
        let target = Selector::new(path, "target_modules", &self.target_modules, layers)?;
        let exclude = self.exclude_modules.as_ref().map(|t| Selector::new(path, "exclude_modules", t, None)).transpose()?;
        let ranks = Patterns::new(path, "rank_pattern", &self.rank_pattern)?;
        let alphas = Patterns::new(path, "alpha_pattern", &self.alpha_pattern)?;
        let chosen = |module: &str| -> Result<bool> {
            Ok(!exclude.as_ref().map_or(Ok(false), |e| e.matches(module))? && target.matches(module)?)
        };
        if !matches!(self.target_modules, Targets::AllLinear) {
            for module in OUTSIDE {
                if !self.saves(module) && chosen(module)? {
                    let wanted = "target_modules: wanted linear modules inside the layers";
                    return Err(Error::file(path, format!("{wanted}, got {module}: LoRA on embedding or head is not supported")));
                }
            }
        }
        let mut list = Vec::new();
        for (index, module) in expected.iter().enumerate() {
            if !chosen(&module.path)? {
                continue;
            }
            let r = ranks.first(&module.path)?.unwrap_or(self.r);
            let alpha = alphas.first(&module.path)?.unwrap_or(self.lora_alpha);
            let scale = alpha / if self.use_rslora { (r as f64).sqrt() } else { r as f64 };
            if !(scale as f32).is_finite() {
                return Err(Error::file(
                    path,
                    format!("lora_alpha: wanted one whose scale fits f32, got {alpha} for {}", module.path),
                ));
            }
            list.push(Selected { index, r, scale: scale as f32 });
        }
        let wanted = "target_modules: wanted at least one linear module of the base model, got none";
        if list.is_empty() { Err(Error::file(path, format!("{wanted} for {:?}", self.target_modules))) } else { Ok(list) }
    }

    /// Whether `modules_to_save` names this module.
    pub(super) fn saves(&self, module: &str) -> bool {
        let ends = |name: &String| module.strip_suffix(name.as_str()).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
        self.modules_to_save.iter().any(ends)
    }

    /// The file's text: the keys that PEFT needs, sorted, indented by 2; patterns keep their order, since the first that matches counts.
    pub(super) fn text(&self) -> String {
        let number = |x: f64| if x.fract() == 0.0 && x.abs() < 1e15 { json!(x as i64) } else { json!(x) };
        let object = |pairs: Vec<(String, Value)>| Value::Object(pairs.into_iter().collect::<Map<_, _>>());
        let mut keys: BTreeMap<&str, Value> = BTreeMap::from([
            ("alpha_pattern", object(self.alpha_pattern.iter().map(|(k, x)| (k.clone(), number(*x))).collect())),
            ("base_model_name_or_path", json!(self.base_model_name_or_path)),
            ("bias", json!("none")),
            ("fan_in_fan_out", json!(self.fan_in_fan_out)),
            ("inference_mode", json!(true)),
            ("init_lora_weights", json!(true)),
            ("lora_alpha", number(self.lora_alpha)),
            ("lora_dropout", json!(self.lora_dropout)),
            ("modules_to_save", if self.modules_to_save.is_empty() { Value::Null } else { json!(self.modules_to_save) }),
            ("peft_type", json!("LORA")),
            ("peft_version", json!("0.21.2")),
            ("r", json!(self.r)),
            ("rank_pattern", object(self.rank_pattern.iter().map(|(k, r)| (k.clone(), json!(r))).collect())),
            ("target_modules", self.target_modules.value()),
            ("task_type", json!(self.task_type)),
            ("use_dora", json!(self.use_dora)),
            ("use_rslora", json!(self.use_rslora)),
        ]);
        if let Some(exclude) = &self.exclude_modules {
            keys.insert("exclude_modules", exclude.value());
        }
        format!("{:#}", Value::Object(keys.into_iter().map(|(k, v)| (k.to_string(), v)).collect()))
    }
}

impl Targets {
    fn value(&self) -> Value {
        match self {
            Targets::AllLinear => json!("all-linear"),
            Targets::Regex(text) => json!(text),
            Targets::List(list) => json!(list),
        }
    }
}

const WANTED_TARGETS: &str = "\"all-linear\", a regular expression or a list of names";

fn targets(file: &Object, field: &str) -> Result<Option<Targets>> {
    match file.get(field) {
        None => Ok(None),
        Some(Value::String(text)) if text.eq_ignore_ascii_case("all-linear") => Ok(Some(Targets::AllLinear)),
        Some(Value::String(text)) => Ok(Some(Targets::Regex(text.clone()))),
        Some(Value::Array(_)) => match file.texts(field)? {
            Some(list) => Ok(Some(Targets::List(list.into_iter().map(str::to_string).collect()))),
            None => Ok(None),
        },
        Some(_) => Err(file.wrong(field, WANTED_TARGETS)),
    }
}

/// `layers_to_transform`, a number or a list of them, and `layers_pattern`, a name or a list of them. PEFT takes them only beside a list
/// of modules, and the second only beside the first.
fn layers(file: &Object, targets: Option<&Targets>) -> Result<(Vec<usize>, Vec<String>)> {
    let layers = match file.get("layers_to_transform") {
        Some(Value::Array(list)) => {
            let index = |v: &Value| v.as_u64().and_then(|x| usize::try_from(x).ok());
            let list: Option<Vec<usize>> = list.iter().map(index).collect();
            list.ok_or_else(|| file.wrong("layers_to_transform", "a layer's number or a list of them"))?
        }
        Some(_) => file.integer("layers_to_transform", 0, MOST_RANK)?.into_iter().collect(),
        None => Vec::new(),
    };
    let pattern = match file.get("layers_pattern") {
        Some(Value::String(name)) => vec![name.clone()],
        _ => file.texts("layers_pattern")?.unwrap_or_default().into_iter().map(str::to_string).collect(),
    };
    if !layers.is_empty() && !matches!(targets, Some(Targets::List(_))) {
        return Err(file.wrong("layers_to_transform", "nothing unless target_modules is a list"));
    }
    if layers.is_empty() && !pattern.is_empty() {
        return Err(file.wrong("layers_pattern", "nothing without layers_to_transform"));
    }
    Ok((layers, pattern))
}

fn pattern<T>(file: &Object, field: &str, read: impl Fn(&Object, &str) -> Result<Option<T>>) -> Result<Vec<(String, T)>> {
    let Some(object) = file.object(field)? else { return Ok(Vec::new()) };
    let value = |key: &String| read(&object, key)?.ok_or_else(|| object.wrong(key, "a number"));
    object.keys().map(|(key, _)| Ok((key.clone(), value(key)?))).collect()
}

fn inert(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    }
}

fn refuse(file: &Object) -> Result<()> {
    if file.text("peft_type")? != Some("LORA") {
        return Err(file.wrong("peft_type", "\"LORA\", the one method supported"));
    }
    if !matches!(file.text("task_type")?, None | Some("CAUSAL_LM" | "SEQ_CLS")) {
        return Err(file.wrong("task_type", "\"CAUSAL_LM\" or \"SEQ_CLS\""));
    }
    if file.text("bias")?.is_some_and(|bias| bias != "none") {
        return Err(file.wrong("bias", "\"none\""));
    }
    if let Some(field) = REFUSED.into_iter().find(|field| file.get(field).is_some_and(|v| !inert(v))) {
        return Err(file.wrong(field, "nothing (not supported)"));
    }
    let plain = ["gaussian", "orthogonal", "eva", "mica"];
    if file.get("init_lora_weights").is_some_and(|v| !v.is_boolean() && !v.as_str().is_some_and(|s| plain.contains(&s))) {
        return Err(file.wrong("init_lora_weights", "an init that leaves the base weights as they are"));
    }
    if file.boolean("ensure_weight_tying")? == Some(true) && file.get("modules_to_save").is_some_and(|v| !inert(v)) {
        return Err(file.wrong("ensure_weight_tying", "false beside modules_to_save"));
    }
    let last = |m: &str| m.rsplit('.').next().unwrap_or_default().to_string();
    if file.texts("modules_to_save")?.unwrap_or_default().iter().any(|m| !SAVED.contains(&last(m).as_str())) {
        return Err(file.wrong("modules_to_save", "nothing but \"score\", \"embed_tokens\" and \"lm_head\""));
    }
    Ok(())
}

fn unknown(file: &Object) -> Vec<String> {
    let unknown = file.keys().filter(|(k, v)| !inert(v) && !KNOWN.contains(&k.as_str()));
    unknown.map(|(k, v)| format!("adapter_config.json: {k} = {} is not known and passed over", json::got(Some(v)))).collect()
}
