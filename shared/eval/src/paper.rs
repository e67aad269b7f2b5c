/// A figure of the paper (E2LLM, arXiv 2409.06679), measured with a 7B decoder: a yardstick of the harness, nothing that a small
/// decoder is held to.
///
/// `suite` and `task` as in results; `tokens` is the upper bound of a document's length. In percent, by the metric that the
/// score of the task is.
pub fn paper(suite: &str, task: &str, tokens: Option<usize>) -> Option<f64> {
    let family = task.split('_').next().unwrap_or_default();
    match (suite, family, tokens.map(|tokens| tokens >> 10)) {
        ("ruler", "niah", Some(8)) => Some(60.66),
        ("ruler", "niah", Some(128)) => Some(48.38),
        ("ruler", "vt", Some(4)) => Some(7.2),
        ("ruler", "vt", Some(32)) => Some(8.6),
        ("ruler", "qa", Some(64)) => Some(34.5),
        ("qmsum", ..) => Some(15.47),
        ("govreport", ..) => Some(18.43),
        ("triviaqa", ..) => Some(38.57),
        ("longbench-v2", ..) => Some(31.8),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_is_that_of_its_length() {
        assert_eq!(paper("ruler", "niah_multikey_2", Some(8192)), Some(60.66));
        assert_eq!(paper("ruler", "niah_single_1", Some(4096)), None);
        assert_eq!(paper("ruler", "vt", Some(32768)), Some(8.6));
        assert_eq!(paper("qmsum", "qa", None), Some(15.47));
        assert_eq!(paper("", "qa", Some(65536)), None, "a user's own tasks have no counterpart");
    }
}
