//! Norms, activations, softmax and rotation of rows, with their gradients; loops that the compiler vectorises.

/// Defines a function whose body is compiled three times on x86-64, for AVX-512, for AVX2 and for the baseline, and chosen at run time.
macro_rules! vectorized {
    ($(#[$meta:meta])* fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        pub fn $name($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            fn body($($arg: $ty),*) $(-> $ret)? $body

            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl")]
                fn avx512($($arg: $ty),*) $(-> $ret)? { body($($arg),*) }
                #[target_feature(enable = "avx2,fma,f16c")]
                fn avx2($($arg: $ty),*) $(-> $ret)? { body($($arg),*) }
                if crate::simd::has_vnni() {
                    // SAFETY: the features the function was compiled for were just detected.
                    return unsafe { avx512($($arg),*) };
                }
                if crate::simd::has_avx2() {
                    // SAFETY: the features the function was compiled for were just detected.
                    return unsafe { avx2($($arg),*) };
                }
            }
            body($($arg),*)
        }
    };
}

/// e^x for finite or −∞ x, relative error below 2e-7; branch-free, so that loops over it vectorise. Multiplications and additions are
/// fused, in software where the processor cannot: slow there, but with the same bits.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    const LOG2_E: f32 = std::f32::consts::LOG2_E;
    // ln 2 in two parts (Cody and Waite), so that x − n·ln 2 keeps its low bits.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let x = x.clamp(-87.3, 88.7);
    // Adding and subtracting 1.5·2^23 rounds to the nearest integer without a call.
    const ROUND: f32 = 12_582_912.0;
    let shifted = x.mul_add(LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = n.mul_add(-LN2_LOW, n.mul_add(-LN2_HIGH, x));
    let poly = horner(r, 0.001_393_1, [0.008_333_7, 0.041_666_57, 0.166_666_57, 0.5, 1.0, 1.0]);
    // The integer stands in the low bits of `shifted`; its bits become the exponent of 2^n.
    let bits = shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127) << 23;
    poly * f32::from_bits(bits)
}

/// A polynomial, the coefficient of the highest power first.
#[inline(always)]
fn horner<const N: usize>(x: f32, highest: f32, others: [f32; N]) -> f32 {
    others.into_iter().fold(highest, |sum, coefficient| sum.mul_add(x, coefficient))
}

#[inline(always)]
fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// Sum with 16 independent accumulators: a fixed order, and one that vectorises.
#[inline(always)]
fn fold16(a: &[f32], b: &[f32], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [0.0f32; 16];
    let (blocks_a, rest_a) = a.as_chunks::<16>();
    let (blocks_b, rest_b) = b.as_chunks::<16>();
    for (x, y) in blocks_a.iter().zip(blocks_b) {
        for lane in 0..16 {
            lanes[lane] += f(x[lane], y[lane]);
        }
    }
    let tail: f32 = rest_a.iter().zip(rest_b).map(|(x, y)| f(*x, *y)).sum();
    lanes.iter().sum::<f32>() + tail
}

vectorized! {
    /// Σ aᵢ·bᵢ.
    fn dot(a: &[f32], b: &[f32]) -> f32 { fold16(a, b, |x, y| x * y) }
}

vectorized! {
    /// y += c·x.
    fn axpy(y: &mut [f32], c: f32, x: &[f32]) {
        for (y, x) in y.iter_mut().zip(x) { *y += c * x; }
    }
}

vectorized! {
    /// out = x·w / rms(x).
    fn rms_norm_row(out: &mut [f32], x: &[f32], w: &[f32], eps: f32) {
        let mean_square = fold16(x, x, |a, b| a * b) / x.len() as f32;
        let inverse = 1.0 / (mean_square + eps).sqrt();
        for ((out, x), w) in out.iter_mut().zip(x).zip(w) { *out = x * inverse * w; }
    }
}

vectorized! {
    /// Gradient of [`rms_norm_row`] with respect to x; `scratch` has the row's length.
    fn rms_norm_row_backward(dx: &mut [f32], x: &[f32], w: &[f32], grad: &[f32], eps: f32, scratch: &mut [f32]) {
        let width = x.len() as f32;
        let inverse = 1.0 / (fold16(x, x, |a, b| a * b) / width + eps).sqrt();
        for ((s, g), w) in scratch.iter_mut().zip(grad).zip(w) { *s = g * w; }
        let projection = fold16(scratch, x, |g, x| g * x) * inverse * inverse / width;
        for ((dx, s), x) in dx.iter_mut().zip(scratch.iter()).zip(x) { *dx = inverse * (s - x * projection); }
    }
}

vectorized! {
    /// out = (x − mean)/σ · w + b.
    fn layer_norm_row(out: &mut [f32], x: &[f32], w: &[f32], b: &[f32], eps: f32) {
        let width = x.len() as f32;
        let mean = fold16(x, x, |a, _| a) / width;
        let variance = fold16(x, x, |a, _| (a - mean) * (a - mean)) / width;
        let inverse = 1.0 / (variance + eps).sqrt();
        for (((out, x), w), b) in out.iter_mut().zip(x).zip(w).zip(b) { *out = (x - mean) * inverse * w + b; }
    }
}

vectorized! {
    /// Gradient of [`layer_norm_row`] with respect to x; `scratch` has the row's length.
    fn layer_norm_row_backward(dx: &mut [f32], x: &[f32], w: &[f32], grad: &[f32], eps: f32, scratch: &mut [f32]) {
        let width = x.len() as f32;
        let mean = fold16(x, x, |a, _| a) / width;
        let variance = fold16(x, x, |a, _| (a - mean) * (a - mean)) / width;
        let inverse = 1.0 / (variance + eps).sqrt();
        for ((s, g), w) in scratch.iter_mut().zip(grad).zip(w) { *s = g * w; }
        let along_one = fold16(scratch, x, |g, _| g) / width;
        let along_x = fold16(scratch, x, |g, x| g * (x - mean)) * inverse * inverse / width;
        for ((dx, s), x) in dx.iter_mut().zip(scratch.iter()).zip(x) {
            *dx = inverse * (s - along_one - (x - mean) * along_x);
        }
    }
}

vectorized! {
    /// out = silu(gate)·up (SwiGLU).
    fn swiglu(out: &mut [f32], gate: &[f32], up: &[f32]) {
        for ((out, g), u) in out.iter_mut().zip(gate).zip(up) { *out = g * sigmoid(*g) * u; }
    }
}

vectorized! {
    /// Gradients of [`swiglu`].
    fn swiglu_backward(d_gate: &mut [f32], d_up: &mut [f32], gate: &[f32], up: &[f32], grad: &[f32]) {
        for ((((dg, du), g), u), d) in d_gate.iter_mut().zip(d_up).zip(gate).zip(up).zip(grad) {
            let s = sigmoid(*g);
            *du = d * g * s;
            *dg = d * u * s * (1.0 + g * (1.0 - s));
        }
    }
}

/// erf by Abramowitz and Stegun 7.1.26, absolute error below 2e-7.
#[inline(always)]
fn erf(x: f32) -> f32 {
    let t = 1.0 / x.abs().mul_add(0.327_591_1, 1.0);
    let poly = t * horner(t, 1.061_405_4, [-1.453_152, 1.421_413_7, -0.284_496_74, 0.254_829_6]);
    poly.mul_add(-exp(-x * x), 1.0).copysign(x)
}

vectorized! {
    /// out = x·Φ(x), the exact (erf) GELU.
    fn gelu(out: &mut [f32], x: &[f32]) {
        for (out, x) in out.iter_mut().zip(x) {
            *out = 0.5 * x * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2));
        }
    }
}

vectorized! {
    /// dx = grad · (Φ(x) + x·φ(x)).
    fn gelu_backward(dx: &mut [f32], x: &[f32], grad: &[f32]) {
        const INV_SQRT_2PI: f32 = 0.398_942_3;
        for ((dx, x), grad) in dx.iter_mut().zip(x).zip(grad) {
            let cdf = 0.5 * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2));
            *dx = grad * (cdf + x * INV_SQRT_2PI * exp(-0.5 * x * x));
        }
    }
}

vectorized! {
    /// In place: e^(x − max).
    fn exp_minus(row: &mut [f32], max: f32) {
        for x in row.iter_mut() { *x = exp(*x - max); }
    }
}

vectorized! {
    /// In place: e^(x − max) of whole panels; returns their sum.
    fn exp_minus_and_sum(panels: &mut [[f32; 16]], max: f32) -> f32 {
        let mut lanes = [0.0f32; 16];
        for panel in panels {
            for (x, lane) in panel.iter_mut().zip(&mut lanes) {
                *x = exp(*x - max);
                *lane += *x;
            }
        }
        // By halves: one after the other they would wait for each other.
        for half in [8, 4, 2, 1] {
            for lane in 0..half { lanes[lane] += lanes[lane + half]; }
        }
        lanes[0]
    }
}

vectorized! {
    /// The largest value; −∞ of none.
    fn max_of(row: &[f32]) -> f32 {
        let (blocks, rest) = row.as_chunks::<8>();
        let mut lanes = [f32::NEG_INFINITY; 8];
        for block in blocks {
            for (lane, x) in lanes.iter_mut().zip(block) { *lane = if *x > *lane { *x } else { *lane }; }
        }
        lanes.iter().chain(rest).copied().fold(f32::NEG_INFINITY, f32::max)
    }
}

vectorized! {
    /// Σ xᵢ, in a fixed order.
    fn sum_of(row: &[f32]) -> f32 { fold16(row, row, |a, _| a) }
}

vectorized! {
    /// In place: e^(x − max) / Σ; returns ln Σ + max. An empty row is left alone.
    fn softmax_row(row: &mut [f32]) -> f32 {
        let max = max_of(row);
        for x in row.iter_mut() { *x = exp(*x - max); }
        let sum = fold16(row, row, |a, _| a);
        let inverse = 1.0 / sum;
        for x in row.iter_mut() { *x *= inverse; }
        max + sum.ln()
    }
}

vectorized! {
    /// In place: ds = p·(dp − Σ p·dp), the softmax backward.
    fn softmax_row_backward(dp: &mut [f32], p: &[f32]) {
        let inner = fold16(p, dp, |p, d| p * d);
        for (d, p) in dp.iter_mut().zip(p) { *d = p * (*d - inner); }
    }
}

vectorized! {
    /// Rotates the pairs of one head. `cos` and `sin` have half the head's length; `sign` −1 rotates back.
    fn rope_head_halves(head: &mut [f32], cos: &[f32], sin: &[f32], sign: f32) {
        let half = cos.len();
        let (a, b) = head.split_at_mut(half);
        for (((a, b), c), s) in a.iter_mut().zip(b).zip(cos).zip(sin) {
            let (x, y) = (*a, *b);
            *a = x * c - y * s * sign;
            *b = y * c + x * s * sign;
        }
    }
}

/// [`rope_head_halves`] for weights whose pairs are neighbours (llama.cpp's permutation).
pub fn rope_head_neighbours(head: &mut [f32], cos: &[f32], sin: &[f32], sign: f32) {
    let (pairs, _) = head.as_chunks_mut::<2>();
    for ((pair, c), s) in pairs.iter_mut().zip(cos).zip(sin) {
        let [x, y] = *pair;
        *pair = [x * c - y * s * sign, y * c + x * s * sign];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(n: usize, seed: f32) -> Vec<f32> {
        (0..n).map(|i| (i as f32 * 0.37 + seed).sin() * 3.0).collect()
    }

    #[test]
    fn exp_is_within_two_ulp_of_the_library() {
        for i in -8700..8800 {
            let x = i as f32 * 0.01;
            let relative = (exp(x) as f64 / (x as f64).exp() - 1.0).abs();
            assert!(relative < 4e-7, "exp({x}) is off by {relative}");
        }
        assert!(exp(f32::NEG_INFINITY) < 1e-37);
    }

    #[test]
    fn gelu_matches_the_exact_formula() {
        // Reference values of x·Φ(x) from 30-digit arithmetic.
        let x = [-3.0f32, -1.0, -0.1, 0.0, 0.5, 2.0];
        let expected = [-0.004_049_7, -0.158_655_25, -0.046_017_216, 0.0, 0.345_731_23, 1.954_499_7];
        let mut out = [0.0; 6];
        gelu(&mut out, &x);
        for (a, b) in out.iter().zip(expected) {
            assert!((a - b).abs() < 2e-6, "{a} {b}");
        }
    }

    #[test]
    fn softmax_sums_to_one_and_returns_the_log_sum() {
        let mut row = values(37, 0.3);
        let plain = row.iter().map(|x| (*x as f64).exp()).sum::<f64>().ln();
        assert!((softmax_row(&mut row) as f64 - plain).abs() < 1e-5);
        assert!((row.iter().sum::<f32>() - 1.0).abs() < 1e-5);
    }
}
