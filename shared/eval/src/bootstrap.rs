use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

/// Resamples of an interval.
const RESAMPLES: usize = 2_000;

/// A statistic of samples, such as their mean, and its 95 % confidence interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Interval {
    /// Of all samples.
    pub mean: f64,
    /// 2.5th percentile over resamples.
    pub low: f64,
    /// 97.5th percentile.
    pub high: f64,
    /// Samples.
    pub count: usize,
}

/// The percentile bootstrap of a mean; `None` without samples. The same values give the same interval.
pub fn interval(values: &[f64]) -> Option<Interval> {
    resampled(values.len(), |of| of.iter().map(|at| values[*at]).sum::<f64>() / of.len() as f64)
}

/// The percentile bootstrap of a statistic of `count` samples, given by their places; `None` without samples.
pub(crate) fn resampled(count: usize, statistic: impl Fn(&[usize]) -> f64) -> Option<Interval> {
    if count == 0 {
        return None;
    }
    let mut rng = ChaCha8Rng::seed_from_u64(count as u64);
    let mut draw = |_| {
        let of: Vec<usize> = (0..count).map(|_| rng.random_range(0..count)).collect();
        statistic(&of)
    };
    let mut drawn: Vec<f64> = (0..RESAMPLES).map(&mut draw).collect();
    drawn.sort_by(f64::total_cmp);
    let at = |share: f64| drawn[(share * (RESAMPLES - 1) as f64).round() as usize];
    let all: Vec<usize> = (0..count).collect();
    Some(Interval { mean: statistic(&all), low: at(0.025), high: at(0.975), count })
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

    #[test]
    fn any_statistic_can_be_resampled() {
        let largest = resampled(50, |of| of.iter().copied().max().unwrap_or(0) as f64).unwrap();
        assert_eq!((largest.mean, largest.high), (49.0, 49.0));
        assert!(largest.low < 49.0);
    }
}
