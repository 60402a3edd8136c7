//! Ground floor: devices, streams, buffers, launches. Knows bytes, no op and no model.
//!
//! A [`Stream`] is an in-order queue on one device and is the first argument of every op. Memory is a [`Buffer`]; what ops
//! see of it is a [`View`]: an address, a length and a [`DType`]. On the CPU an address is a host address and a view can be
//! read as a slice ([`View::host`]); on every other device only kernels may follow it.

pub mod backend;
pub mod buffer;
pub mod comm;
pub mod cpu;
pub mod cuda;
pub mod dtype;
pub mod error;
pub mod host;
pub mod memory;
pub mod pinned;
pub mod pool;
pub mod probe;
pub mod stream;

pub use backend::{Arg, Backend, Defines, DeviceInfo, Event, Gemm, Gemmed, Graph, Kernel, Launch, Ptr, Queue, TensorMap};
pub use buffer::{Arena, Buffer, Plan, Region, View, disjoint};
pub use cpu::Isa;
pub use dtype::{DType, Element, Precision};
pub use error::{Error, Result};
pub use memory::Memory;
pub use pinned::Pinned;
pub use pool::{Pool, Shared};
pub use stream::Stream;

/// Returns [`Error::Shape`] with the formatted text unless the condition holds.
#[macro_export]
macro_rules! ensure {
    ($cond:expr, $($text:tt)*) => {
        if !$cond {
            return Err($crate::Error::Shape(format!($($text)*)));
        }
    };
}
