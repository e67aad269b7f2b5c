//! What the jobs are about: paragraphs of the licence, real prose of different lengths.

const LICENCE: &str = include_str!("../../../LICENSE");

/// Paragraphs taken, each a document.
pub(crate) const DOCUMENTS: usize = 6;
const BYTES: std::ops::RangeInclusive<usize> = 200..=800;

/// One document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Document {
    pub(crate) id: String,
    pub(crate) text: String,
}

/// The documents, always the same.
pub(crate) fn documents() -> Vec<Document> {
    let fitting = LICENCE.split("\n\n").map(str::trim).filter(|text| BYTES.contains(&text.len()));
    let document = |(number, text): (usize, &str)| Document { id: format!("licence-{number}"), text: text.to_owned() };
    fitting.take(DOCUMENTS).enumerate().map(document).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_enough_documents_and_all_differ() {
        let mut texts: Vec<String> = documents().into_iter().map(|document| document.text).collect();
        texts.sort_unstable();
        texts.dedup();
        assert_eq!(texts.len(), DOCUMENTS);
    }
}
