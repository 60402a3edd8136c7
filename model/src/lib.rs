//! Second floor: a transformer that knows no task. It loads checkpoints, gives log-probabilities of loss rows and takes their
//! gradients, and decodes.
#![forbid(unsafe_code)]

pub mod acts;
pub mod adapter;
mod backward;
pub mod base;
pub mod batch;
pub mod chat;
pub mod config;
pub mod decode;
pub mod error;
mod forward;
pub mod generate;
pub mod grads;
mod header;
mod json;
pub mod kv_cache;
pub mod lora;
mod memory;
pub mod merge;
mod norm;
mod products;
mod rotary;
pub mod sequence;
mod stop;
mod storage;
pub mod tokenizer;
pub mod transformer;
pub mod weights;

pub use acts::{Acts, Keep, Limits};
pub use adapter::{AdapterConfig, Targets};
pub use batch::{Batch, Columns, Parent, PrefixId, Segment, Span};
pub use chat::{Conversation, Rendered, Template};
pub use config::{Activation, Config, ModuleSpec, Norm, Rope, RopeScaling, TensorSpec};
pub use decode::{DecodeRun, Settings};
pub use error::{Error, Result};
pub use generate::{Progress, Request, generate};
pub use grads::{Grads, Tune};
pub use kv_cache::{CacheLimits, KvCache};
pub use lora::Lora;
pub use sequence::{Finished, SampleKey};
pub use tokenizer::{TextStream, Tokenizer};
pub use transformer::{Adapter, Head, ScalarHead, Transformer};

#[cfg(test)]
mod shared;
