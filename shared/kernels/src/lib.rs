//! CPU kernels: the one crate with `unsafe` and intrinsics, behind functions that check every length first.
//!
//! * [`Matrix`] holds weights in compact forms, [`Rows`] the activations rounded for them, [`Linear`] multiplies: at memory speed for
//!   one row, faster than f32 for many. A row's result does not depend on the rows beside it.
//! * [`attention::Heads`] reads keys and values in pages of 16-bit floats.
//! * [`bidirectional`] is the encoder's attention.
//! * [`gemm`] and [`element`] are the f32 forms that training differentiates.
//! * [`Pool`] runs regions of a few microseconds on all cores.
//!
//! Every kernel has a portable form with the same bits, used where AVX2, FMA or F16C is missing.
#![allow(unsafe_code)]

pub mod attention;
pub mod bidirectional;
pub mod element;
pub mod gemm;
mod linear;
mod matrix;
mod pool;
mod rows;
mod shared_mut;
mod simd;

pub use linear::{Gated, Into, Linear, Lora, Scratch};
pub use matrix::{Format, Matrix};
pub use pool::Pool;
pub use rows::Rows;
