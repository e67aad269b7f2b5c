//! Warm start across ratios: the parameters whose shape depends on the ratio, carried over to another one.
//!
//! Slots of a segment are intervals of it: slot s of r covers [s/r, (s+1)/r). A new slot takes from each old one in
//! proportion to their overlap. The residual path's weights are shared out so that their sum over slots stays (an input that
//! is the same in all slots gives the same output), slot biases are averaged. All other parameters do not know the ratio.

use std::collections::BTreeMap;

use candle_core::Var;
use e2llm_model::AdapterConfig;

use crate::error::Result;
use crate::optimizer::Parameters;

/// The parameters of `parameters` that change with the ratio, in their new shapes; all others keep their values.
pub(crate) fn resized(parameters: &Parameters, from: &AdapterConfig, to: usize) -> Result<BTreeMap<String, Var>> {
    let mut changed = BTreeMap::new();
    for (name, width, keeps_sum) in [("segment.up.weight", from.d_model, true), ("gate.slots", 1, false)] {
        if let Some(var) = parameters.0.get(name) {
            let (rows, _) = var.dims2()?;
            let old = var.flatten_all()?.to_vec1::<f32>()?;
            let new = resize(&old, rows, width, (from.ratio, to), keeps_sum);
            changed.insert(name.to_owned(), Var::from_vec(new, (rows, to * width), var.device())?);
        }
    }
    Ok(changed)
}

/// `[rows, from · width]` → `[rows, to · width]`.
fn resize(old: &[f32], rows: usize, width: usize, (from, to): (usize, usize), keeps_sum: bool) -> Vec<f32> {
    let scale = if keeps_sum { from } else { to } as f32;
    let mut new = vec![0.0; rows * to * width];
    for row in 0..rows {
        for (new_slot, old_slot) in (0..to).flat_map(|n| (0..from).map(move |o| (n, o))) {
            let share = overlap(new_slot, to, old_slot, from) * scale;
            if share > 0.0 {
                let source = &old[(row * from + old_slot) * width..][..width];
                let target = &mut new[(row * to + new_slot) * width..][..width];
                target.iter_mut().zip(source).for_each(|(t, s)| *t += share * s);
            }
        }
    }
    new
}

/// Length of [a/m, (a+1)/m) ∩ [b/n, (b+1)/n).
fn overlap(a: usize, m: usize, b: usize, n: usize) -> f32 {
    let (start, end) = ((a * n).max(b * m), ((a + 1) * n).min((b + 1) * m));
    end.saturating_sub(start) as f32 / (m * n) as f32
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};
    use e2llm_model::Adapter;

    use super::*;
    use crate::session::{initial_adapter, tiny};

    #[test]
    fn sums_and_means_over_slots_are_kept() {
        assert_eq!(resize(&[1.0, 2.0, 3.0, 4.0], 1, 1, (4, 2), true), [3.0, 7.0]);
        assert_eq!(resize(&[1.0, 2.0, 3.0, 4.0], 1, 1, (4, 2), false), [1.5, 3.5]);
        assert_eq!(resize(&[4.0, 6.0], 2, 1, (1, 2), true), [2.0, 2.0, 3.0, 3.0]);
        assert_eq!(resize(&[1.0, 5.0], 1, 1, (2, 4), false), [1.0, 1.0, 5.0, 5.0]);
        let odd = resize(&[1.0, 2.0, 3.0], 1, 1, (3, 2), true);
        assert!((odd[0] - 2.0).abs() < 1e-6 && (odd[1] - 4.0).abs() < 1e-6, "{odd:?}");
    }

    /// Where all word pieces say the same, a soft token is the same at every ratio.
    #[test]
    fn a_chunk_of_one_meaning_keeps_its_soft_token() {
        let config = tiny(2);
        let mut parameters = initial_adapter(&config, 3).unwrap();
        let random = |shape: &[usize]| Var::randn(0f32, 0.3, shape, &Device::Cpu).unwrap();
        for name in ["segment.down.weight", "gate.down.weight", "gate.slots"] {
            let shape = parameters.0[name].dims().to_vec();
            parameters.0.insert(name.to_owned(), random(&shape));
        }
        let features = Tensor::new(&[[0.3f32, -0.1, 0.7, 0.2, 0.9, -0.4]], &Device::Cpu).unwrap();
        let features = features.broadcast_as((16, 6)).unwrap().contiguous().unwrap();
        let soft = |config: &AdapterConfig, parameters: &Parameters| {
            let adapter = Adapter::new(config.clone(), parameters.tensors(), &Device::Cpu).unwrap();
            adapter.soft_tokens(&features, &[16]).unwrap().get(0).unwrap().to_vec1::<f32>().unwrap()
        };
        let before = soft(&config, &parameters);
        for ratio in [1, 2, 8, 16] {
            let mut carried = parameters.clone();
            carried.0.extend(resized(&parameters, &config, ratio).unwrap());
            let after = soft(&AdapterConfig { ratio, ..config.clone() }, &carried);
            assert!(before.iter().zip(&after).all(|(a, b)| (a - b).abs() < 1e-5), "{ratio}: {before:?} {after:?}");
        }
    }
}
