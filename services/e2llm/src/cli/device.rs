//! Where models compute.

use std::str::FromStr;

use anyhow::{Context, Result};
use candle_core::{DType, Device};

/// A device by name.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Place {
    /// All cores.
    #[default]
    Cpu,
    /// A GPU by number.
    Cuda(usize),
}

impl Place {
    /// Opens the device.
    pub(crate) fn open(self) -> Result<Device> {
        match self {
            Self::Cpu => Ok(Device::Cpu),
            Self::Cuda(_) if !cfg!(feature = "cuda") => {
                anyhow::bail!("this build has no CUDA; build it with --features cuda, or leave --device out")
            }
            Self::Cuda(number) => Device::new_cuda(number).with_context(|| format!("cannot use cuda:{number}")),
        }
    }
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            None if text == "cpu" => Ok(Self::Cpu),
            None if text == "cuda" => Ok(Self::Cuda(0)),
            Some(("cuda", number)) => number.parse().map(Self::Cuda).map_err(|_| unknown(text)),
            _ => Err(unknown(text)),
        }
    }
}

fn unknown(text: &str) -> String {
    format!("{text:?} is no device; give cpu, cuda or cuda:N")
}

/// In which dtype a decoder's blocks compute while it is trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Precision {
    /// 32 bits.
    F32,
    /// 16 bits, half the memory: for GPUs.
    Bf16,
}

impl Precision {
    /// What was asked for, or what suits the device.
    pub(crate) fn or_default(asked: Option<Self>, place: Place) -> DType {
        match (asked, place) {
            (Some(Self::F32), _) | (None, Place::Cpu) => DType::F32,
            (Some(Self::Bf16), _) | (None, Place::Cuda(_)) => DType::BF16,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_named_as_elsewhere() {
        assert_eq!(["cpu", "cuda", "cuda:3"].map(str::parse), [Ok(Place::Cpu), Ok(Place::Cuda(0)), Ok(Place::Cuda(3))]);
        for text in ["gpu", "cuda:x", "cpu:0", ""] {
            assert!(text.parse::<Place>().unwrap_err().contains("cuda:N"), "{text}");
        }
    }

    #[test]
    fn a_gpu_trains_in_half_precision_unless_told_otherwise() {
        assert_eq!(Precision::or_default(None, Place::Cpu), DType::F32);
        assert_eq!(Precision::or_default(None, Place::Cuda(0)), DType::BF16);
        assert_eq!(Precision::or_default(Some(Precision::F32), Place::Cuda(0)), DType::F32);
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn without_the_feature_a_gpu_is_refused_with_the_remedy() {
        assert!(Place::Cuda(0).open().unwrap_err().to_string().contains("--features cuda"));
    }
}
