use std::collections::BTreeMap;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

/// Resamples of an interval.
const RESAMPLES: usize = 2_000;

/// A statistic of samples, such as their mean, and its 95 % confidence interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Interval {
    /// The statistic of all samples.
    pub value: f64,
    /// 2.5th percentile over resamples.
    pub low: f64,
    /// 97.5th percentile.
    pub high: f64,
    /// Samples.
    pub count: usize,
}

/// The percentile bootstrap of a mean over samples, each with the document it is about; `None` without samples. The same
/// samples give the same interval.
pub(crate) fn interval<'d>(samples: impl IntoIterator<Item = (&'d str, f64)>) -> Option<Interval> {
    let (documents, values): (Vec<&str>, Vec<f64>) = samples.into_iter().unzip();
    resampled(&documents, |of| of.iter().map(|at| values[*at]).sum::<f64>() / of.len() as f64)
}

/// The percentile bootstrap of a statistic of samples, given by their places; `None` without samples. Documents are drawn and
/// not samples, for what is asked about one document is answered well or badly together.
pub(crate) fn resampled(documents: &[&str], statistic: impl Fn(&[usize]) -> f64) -> Option<Interval> {
    let count = documents.len();
    if count == 0 {
        return None;
    }
    let mut clusters: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    documents.iter().enumerate().for_each(|(at, document)| clusters.entry(document).or_default().push(at));
    // In the order of samples: what documents are called shall not matter.
    let mut clusters: Vec<Vec<usize>> = clusters.into_values().collect();
    clusters.sort_unstable();
    let mut rng = ChaCha8Rng::seed_from_u64(count as u64);
    let mut draw = |_| {
        let of: Vec<usize> =
            clusters.iter().flat_map(|_| &clusters[rng.random_range(0..clusters.len())]).copied().collect();
        statistic(&of)
    };
    let mut drawn: Vec<f64> = (0..RESAMPLES).map(&mut draw).collect();
    drawn.sort_by(f64::total_cmp);
    let at = |share: f64| drawn[(share * (RESAMPLES - 1) as f64).round() as usize];
    let all: Vec<usize> = (0..count).collect();
    Some(Interval { value: statistic(&all), low: at(0.025), high: at(0.975), count })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Samples that are each about a document of their own.
    fn alone(values: &[f64]) -> Option<Interval> {
        let documents: Vec<String> = (0..values.len()).map(|number| number.to_string()).collect();
        interval(documents.iter().map(String::as_str).zip(values.iter().copied()))
    }

    #[test]
    fn an_interval_is_about_two_standard_errors_to_each_side() {
        // 100 coin flips, 40 of them heads: standard error 0.049.
        let values: Vec<f64> = (0..100).map(|i| f64::from(u8::from(i % 5 < 2))).collect();
        let Interval { value, low, high, count } = alone(&values).unwrap();
        assert_eq!((value, count), (0.4, 100));
        assert!((0.28..0.33).contains(&low) && (0.47..0.52).contains(&high), "{low} {high}");
        assert_eq!(alone(&values), alone(&values));
    }

    #[test]
    fn one_value_or_none_has_no_spread() {
        assert_eq!(alone(&[]), None);
        assert_eq!(alone(&[0.3]), Some(Interval { value: 0.3, low: 0.3, high: 0.3, count: 1 }));
    }

    #[test]
    fn questions_about_one_document_do_not_make_a_figure_surer() {
        // Ten documents of ten questions, which are all answered or none.
        let names: Vec<String> = (0..10).map(|number| number.to_string()).collect();
        let samples = || (0..100).map(|i| (names[i / 10].as_str(), f64::from(u8::from(i / 10 % 2 == 0))));
        let (clustered, apart) =
            (interval(samples()).unwrap(), alone(&samples().map(|s| s.1).collect::<Vec<_>>()).unwrap());
        assert_eq!((clustered.value, clustered.count), (apart.value, apart.count));
        let width = |interval: Interval| interval.high - interval.low;
        assert!(width(clustered) > 2.5 * width(apart), "{clustered:?} {apart:?}");
    }

    #[test]
    fn any_statistic_can_be_resampled() {
        let names: Vec<String> = (0..50).map(|number| number.to_string()).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let largest = resampled(&names, |of| of.iter().copied().max().unwrap_or(0) as f64).unwrap();
        assert_eq!((largest.value, largest.high), (49.0, 49.0));
        assert!(largest.low < 49.0);
    }
}
