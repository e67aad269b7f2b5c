use crate::report::NEEDLES;

/// A figure of the paper (E2LLM, arXiv 2409.06679), measured with a 7B decoder: a yardstick of the harness, nothing that a small
/// decoder is held to.
///
/// `name` as in rows without a label; `tokens` is the length that was asked for. In percent, by the metric that our score is:
/// its F1 of TriviaQA is left out, and its RULER questions, which are asked of other passages.
pub fn paper(name: &str, tokens: Option<usize>) -> Option<f64> {
    match (name, tokens.map(|tokens| tokens >> 10)) {
        (NEEDLES, Some(8)) => Some(60.66),
        (NEEDLES, Some(128)) => Some(48.38),
        ("ruler vt", Some(4)) => Some(7.2),
        ("ruler vt", Some(32)) => Some(8.6),
        ("qmsum", _) => Some(15.47),
        ("govreport", _) => Some(18.43),
        ("longbench-v2", _) => Some(31.8),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_is_that_of_its_length() {
        assert_eq!(paper(NEEDLES, Some(8192)), Some(60.66));
        assert_eq!(paper("ruler niah_single_1", Some(8192)), None, "one of several");
        assert_eq!(paper("ruler vt", Some(32768)), Some(8.6));
        assert_eq!(paper("qmsum", None), Some(15.47));
        assert_eq!(paper("qa", Some(65536)), None, "a user's own tasks have no counterpart");
    }
}
