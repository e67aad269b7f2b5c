//! Inference on the CPU: the same models as [`crate::decoder`], [`crate::encoder`] and [`crate::adapter`] compute on tensors, on compact weights and
//! without a graph. Nothing here can be trained; everything here is checked against those.
//!
//! A row's result depends on its own sequence only, bit for bit: not on what shares its batch, nor on how its prompt was cut into
//! steps. Bulk jobs rely on that (a repeated task gives the same answer).

mod adapter;
mod cache;
mod decoder;
mod encoder;
mod pack;
mod prefixes;
mod products;

pub use adapter::CpuAdapter;
pub use cache::{Cache, Pages};
pub use decoder::{CpuDecoder, Step, Workspace};
pub use encoder::CpuEncoder;
pub use prefixes::{PageName, Prefixes};
