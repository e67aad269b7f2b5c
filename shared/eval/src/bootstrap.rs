use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

/// Resamples of an interval.
const RESAMPLES: usize = 2_000;

/// A mean and its 95 % confidence interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Interval {
    /// Mean over samples.
    pub mean: f64,
    /// 2.5th percentile of the means of resamples.
    pub low: f64,
    /// 97.5th percentile.
    pub high: f64,
    /// Samples.
    pub count: usize,
}

/// The percentile bootstrap; `None` without samples. The same values give the same interval.
pub fn interval(values: &[f64]) -> Option<Interval> {
    if values.is_empty() {
        return None;
    }
    let mut rng = ChaCha8Rng::seed_from_u64(values.len() as u64);
    let resampled_mean = |_| {
        let sum: f64 = (0..values.len()).map(|_| values[rng.random_range(0..values.len())]).sum();
        sum / values.len() as f64
    };
    let mut means: Vec<f64> = (0..RESAMPLES).map(resampled_mean).collect();
    means.sort_by(f64::total_cmp);
    let at = |share: f64| means[(share * (RESAMPLES - 1) as f64).round() as usize];
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    Some(Interval { mean, low: at(0.025), high: at(0.975), count: values.len() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interval_is_about_two_standard_errors_to_each_side() {
        // 100 coin flips, 40 of them heads: standard error 0.049.
        let values: Vec<f64> = (0..100).map(|i| f64::from(u8::from(i % 5 < 2))).collect();
        let Interval { mean, low, high, count } = interval(&values).unwrap();
        assert_eq!((mean, count), (0.4, 100));
        assert!((0.28..0.33).contains(&low) && (0.47..0.52).contains(&high), "{low} {high}");
        assert_eq!(interval(&values), interval(&values));
    }

    #[test]
    fn one_value_or_none_has_no_spread() {
        assert_eq!(interval(&[]), None);
        assert_eq!(interval(&[0.3]), Some(Interval { mean: 0.3, low: 0.3, high: 0.3, count: 1 }));
    }
}
