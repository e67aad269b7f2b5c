use std::ops::Range;

use crate::v1::{ContextOptions, Reading};

impl ContextOptions {
    /// How `documents` documents are read, [`Reading::Unspecified`] named as what it means.
    ///
    /// # Errors
    /// A reading that is not known, or a control that does not go with it: what is wrong and what to do.
    pub fn checked_reading(&self, documents: usize) -> Result<Reading, String> {
        let reading = match Reading::try_from(self.reading) {
            Ok(Reading::Unspecified) => Reading::Soft,
            Ok(reading) => reading,
            Err(_) => return Err(format!("reading {} is none that is known; see ContextOptions", self.reading)),
        };
        let name = reading.as_str_name();
        if !self.soft_from.is_empty() && reading != Reading::Soft {
            let donor = &self.soft_from;
            return Err(format!(
                "soft tokens of {donor:?} cannot stand in where none are read ({name}); leave soft_from out"
            ));
        }
        if self.expand_first.is_empty() {
            return Ok(reading);
        }
        if reading != Reading::Soft || documents != 1 {
            return Err(format!(
                "expand_first names chunks of one document read as soft tokens, and here {documents} are read ({name}); leave it out"
            ));
        }
        match self.expand_first.iter().find(|range| range.start >= range.end) {
            Some(range) => {
                Err(format!("expand_first has the empty range {}..{}; leave it out", range.start, range.end))
            }
            None => Ok(reading),
        }
    }

    /// The ranges of `expand_first` in bytes of the text.
    pub fn first_ranges(&self) -> Vec<Range<u64>> {
        self.expand_first.iter().map(|range| range.start..range.end).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v1::ByteRange;

    #[test]
    fn controls_go_with_soft_tokens_alone() {
        let soft = ContextOptions::default();
        assert_eq!(soft.checked_reading(2), Ok(Reading::Soft));
        let full = ContextOptions { reading: Reading::Full.into(), ..soft.clone() };
        assert_eq!(full.checked_reading(1), Ok(Reading::Full));
        let donated = |context: &ContextOptions| ContextOptions { soft_from: "b".to_owned(), ..context.clone() };
        assert_eq!(donated(&soft).checked_reading(2), Ok(Reading::Soft));
        assert!(donated(&full).checked_reading(1).unwrap_err().contains("\"b\""));
        let unknown = ContextOptions { reading: 77, ..soft };
        assert!(unknown.checked_reading(1).unwrap_err().contains("reading 77"));
    }

    #[test]
    fn chunks_are_named_of_one_document() {
        let named = |start, end| ContextOptions { expand_first: vec![ByteRange { start, end }], ..Default::default() };
        assert_eq!(named(2, 9).checked_reading(1), Ok(Reading::Soft));
        assert_eq!(named(2, 9).first_ranges(), std::iter::once(2..9).collect::<Vec<_>>());
        assert!(named(2, 9).checked_reading(2).unwrap_err().contains("here 2 are read"));
        assert!(named(9, 9).checked_reading(1).unwrap_err().contains("9..9"));
        let retrieved = ContextOptions { reading: Reading::Retrieved.into(), ..named(2, 9) };
        assert!(retrieved.checked_reading(1).unwrap_err().contains("READING_RETRIEVED"));
    }
}
