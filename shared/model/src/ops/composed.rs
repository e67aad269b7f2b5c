//! The same operations out of candle's differentiable ones: for devices other than the CPU, and dtypes other than f32.
//!
//! Norms, softmax and losses are computed in f32 whatever the dtype of the tensors.

use candle_core::{D, DType, Device, Result, Tensor};
use candle_nn::ops::{log_softmax, softmax};

use super::attention::{Attention, Span};
use super::rope::{Rope, RopePairs};

pub(super) fn rms_norm(x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
    let dtype = x.dtype();
    let x = x.to_dtype(DType::F32)?;
    let rms = (x.sqr()?.mean_keepdim(D::Minus1)? + f64::from(eps))?.sqrt()?;
    x.broadcast_div(&rms)?.broadcast_mul(weight)?.to_dtype(dtype)
}

pub(super) fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f32) -> Result<Tensor> {
    let dtype = x.dtype();
    let x = x.to_dtype(DType::F32)?;
    let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
    let deviation = (centred.sqr()?.mean_keepdim(D::Minus1)? + f64::from(eps))?.sqrt()?;
    centred.broadcast_div(&deviation)?.broadcast_mul(weight)?.broadcast_add(bias)?.to_dtype(dtype)
}

pub(super) fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    gate.silu()? * up
}

/// One sequence after the other: each is a batch of heads.
pub(super) fn attention(of: &Attention, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
    let mut next = 0;
    let mut outputs = Vec::with_capacity(of.spans.len());
    for span in of.spans.iter() {
        if span.queries.start != next {
            candle_core::bail!("attention needs spans in the order of their rows, row {next} is missing");
        }
        next = span.queries.end;
        outputs.push(attend(of, span, q, k, v)?);
    }
    let rows = q.dim(0)?;
    if next != rows || outputs.is_empty() {
        candle_core::bail!("attention of {rows} rows got spans that end at row {next}");
    }
    Tensor::cat(&outputs, 0)
}

fn attend(of: &Attention, span: &Span, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
    let Attention { heads, kv_heads, head_dim, .. } = *of;
    let (rows, seen) = (span.queries.len(), span.keys.len());
    let by_head = |x: &Tensor, start, count, heads| -> Result<Tensor> {
        x.narrow(0, start, count)?.reshape((count, heads, head_dim))?.transpose(0, 1)?.contiguous()
    };
    // Every key-value head serves the query heads of its group.
    let shared = |x: &Tensor| -> Result<Tensor> {
        let x = by_head(x, span.keys.start, seen, kv_heads)?.unsqueeze(1)?;
        x.broadcast_as((kv_heads, heads / kv_heads, seen, head_dim))?.contiguous()?.reshape((heads, seen, head_dim))
    };
    let q = by_head(q, span.queries.start, rows, heads)?;
    let scores = (q.matmul(&shared(k)?.t()?)? * f64::from(of.scale()))?.to_dtype(DType::F32)?;
    let scores = match mask(of, span, scores.device())? {
        Some(mask) => scores.broadcast_add(&mask)?,
        None => scores,
    };
    let mixed = softmax(&scores, D::Minus1)?.to_dtype(v.dtype())?.matmul(&shared(v)?)?;
    mixed.transpose(0, 1)?.contiguous()?.reshape((rows, heads * head_dim))
}

/// 0 where a row sees a key, −∞ where not, `[rows, keys]`; none where every row sees all.
fn mask(of: &Attention, span: &Span, device: &Device) -> Result<Option<Tensor>> {
    let (rows, keys) = (span.queries.len(), span.keys.len());
    if (0..rows).all(|row| of.visible(span, row) == (0..keys)) {
        return Ok(None);
    }
    let mut mask = vec![f32::NEG_INFINITY; rows * keys];
    for row in 0..rows {
        mask[row * keys..][of.visible(span, row)].fill(0.0);
    }
    Tensor::from_vec(mask, (rows, keys), device).map(Some)
}

pub(super) fn rope(rope: &Rope, x: &Tensor) -> Result<Tensor> {
    let (tokens, width) = x.dims2()?;
    let (cos, sin) = rope.angles(tokens)?;
    let half = cos.len() / tokens.max(1);
    let heads = width / (2 * half).max(1);
    let dtype = x.dtype();
    let angle = |values: Vec<f32>| Tensor::from_vec(values, (tokens, 1, half), x.device());
    let (cos, sin) = (angle(cos)?, angle(sin)?);
    // The dimension that holds the two numbers of a pair.
    let (shape, pair) = match rope.table.pairs() {
        RopePairs::Halves => ((tokens, heads, 2, half), 2),
        RopePairs::Neighbours => ((tokens, heads, half, 2), 3),
    };
    let x = x.to_dtype(DType::F32)?.reshape(shape)?;
    let (a, b) = (x.narrow(pair, 0, 1)?.squeeze(pair)?, x.narrow(pair, 1, 1)?.squeeze(pair)?);
    let first = (a.broadcast_mul(&cos)? - b.broadcast_mul(&sin)?)?;
    let second = (a.broadcast_mul(&sin)? + b.broadcast_mul(&cos)?)?;
    Tensor::stack(&[first, second], pair)?.reshape((tokens, width))?.to_dtype(dtype)
}

/// `ln p(targetᵢ)`, `[targets]`, f32, with gradient.
pub(super) fn log_likelihoods(logits: &Tensor, targets: &[u32]) -> Result<Tensor> {
    let targets = Tensor::new(targets, logits.device())?.unsqueeze(1)?;
    log_softmax(&logits.to_dtype(DType::F32)?, D::Minus1)?.gather(&targets, 1)?.squeeze(1)
}

pub(super) fn probabilities(logits: &Tensor) -> Result<Tensor> {
    softmax(&logits.detach().to_dtype(DType::F32)?, D::Minus1)
}

/// `KL(teacherᵢ ‖ studentᵢ)`, `[rows]`, f32.
pub(super) fn divergences(logits: &Tensor, teacher: &Tensor) -> Result<Tensor> {
    // 0 · ln 0 is 0.
    let entropy = (teacher * teacher.maximum(f64::from(f32::MIN_POSITIVE))?.log()?)?.sum(D::Minus1)?;
    let student = log_softmax(&logits.to_dtype(DType::F32)?, D::Minus1)?;
    entropy - (teacher * student)?.sum(D::Minus1)?
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use candle_core::Var;

    use super::super::{self as fused, RopeTable};
    use super::*;

    fn numbers(rows: usize, width: usize, step: f32) -> Tensor {
        let values = (0..rows * width).map(|i| (i as f32 * step).sin() * 1.5).collect();
        Tensor::from_vec(values, (rows, width), &Device::Cpu).unwrap()
    }

    /// Both forms give the same values and, weighted by anything, the same gradients.
    #[track_caller]
    fn assert_same(inputs: &[Tensor], one: impl Fn(&[Tensor]) -> Tensor, other: impl Fn(&[Tensor]) -> Tensor) {
        let run = |f: &dyn Fn(&[Tensor]) -> Tensor| {
            let vars: Vec<Var> = inputs.iter().map(|x| Var::from_tensor(x).unwrap()).collect();
            let out = f(&vars.iter().map(|var| var.as_tensor().clone()).collect::<Vec<_>>());
            let weights = numbers(1, out.elem_count(), 0.37).reshape(out.shape()).unwrap();
            let gradients = (&out * weights).unwrap().sum_all().unwrap().backward().unwrap();
            let gradients = vars.iter().map(|var| gradients.get(var.as_tensor()).expect("a gradient").clone());
            let all: Vec<Tensor> = std::iter::once(out.detach()).chain(gradients).collect();
            all.iter().map(|t| t.flatten_all().unwrap().to_vec1::<f32>().unwrap()).collect::<Vec<_>>()
        };
        for (which, (a, b)) in run(&one).iter().zip(&run(&other)).enumerate() {
            assert_eq!(a.len(), b.len());
            let far = a.iter().zip(b).find(|(a, b)| (**a - **b).abs() > 2e-5 * (1.0 + a.abs()));
            assert!(far.is_none(), "tensor {which}: {far:?}");
        }
    }

    #[test]
    fn norms_and_activations_are_those_of_the_fused_form() {
        let (weight, bias) = (numbers(1, 8, 0.9).get(0).unwrap(), numbers(1, 8, 0.4).get(0).unwrap());
        let x = [numbers(3, 8, 0.7)];
        assert_same(
            &x,
            |x| rms_norm(&x[0], &weight, 1e-5).unwrap(),
            |x| fused::rms_norm(&x[0], &weight, 1e-5).unwrap(),
        );
        assert_same(
            &x,
            |x| layer_norm(&x[0], &weight, &bias, 1e-5).unwrap(),
            |x| fused::layer_norm(&x[0], &weight, &bias, 1e-5).unwrap(),
        );
        let pair = [numbers(3, 8, 0.7), numbers(3, 8, 1.3)];
        assert_same(&pair, |x| swiglu(&x[0], &x[1]).unwrap(), |x| fused::swiglu(&x[0], &x[1]).unwrap());
    }

    #[test]
    fn attention_is_that_of_the_fused_form() {
        let spans = vec![Span { queries: 0..5, keys: 0..5 }, Span { queries: 5..7, keys: 5..9 }];
        let inputs = [numbers(7, 16, 0.7), numbers(9, 8, 0.9), numbers(9, 8, 0.5)];
        for (causal, window) in [(true, None), (true, Some(2)), (false, None)] {
            let of = Attention { heads: 4, kv_heads: 2, head_dim: 4, causal, window, spans: Arc::new(spans.clone()) };
            assert_same(
                &inputs,
                |x| attention(&of, &x[0], &x[1], &x[2]).unwrap(),
                |x| of.apply(&x[0], &x[1], &x[2]).unwrap(),
            );
        }
    }

    #[test]
    fn rotation_is_that_of_the_fused_form() {
        for pairs in [RopePairs::Halves, RopePairs::Neighbours] {
            let table = Arc::new(RopeTable::new(&[1.0, 0.3], 10, pairs));
            let of = Rope { table, positions: Arc::new(vec![0, 3, 7]) };
            assert_same(&[numbers(3, 8, 0.7)], |x| rope(&of, &x[0]).unwrap(), |x| of.apply(&x[0]).unwrap());
        }
    }

    #[test]
    fn losses_are_those_of_the_fused_form() {
        let logits = [numbers(3, 5, 0.7)];
        let targets = [4, 0, 2];
        assert_same(
            &logits,
            |x| log_likelihoods(&x[0], &targets).unwrap().neg().unwrap(),
            |x| fused::token_losses(&x[0], &targets).unwrap(),
        );
        let teacher = fused::probabilities(&numbers(3, 5, 2.1)).unwrap();
        assert_same(
            &logits,
            |x| divergences(&x[0], &teacher).unwrap(),
            |x| fused::divergences(&x[0], &teacher).unwrap(),
        );
        let (ours, theirs) = (probabilities(&logits[0]).unwrap(), fused::probabilities(&logits[0]).unwrap());
        let far = (ours - theirs).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
        assert!(far < 1e-6, "{far}");
    }

    #[test]
    fn half_precision_goes_through_and_stays_near() {
        let x = numbers(3, 8, 0.7).to_dtype(DType::BF16).unwrap();
        let weight = numbers(1, 8, 0.9).get(0).unwrap();
        let half = super::super::rms_norm(&x, &weight, 1e-5).unwrap();
        assert_eq!(half.dtype(), DType::BF16);
        let full = super::super::rms_norm(&x.to_dtype(DType::F32).unwrap(), &weight, 1e-5).unwrap();
        let far = (half.to_dtype(DType::F32).unwrap() - full).unwrap().abs().unwrap().max_all().unwrap();
        assert!(far.to_scalar::<f32>().unwrap() < 0.02, "one part in 128");
    }
}
