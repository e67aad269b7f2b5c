use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use e2llm_api::v1::{ByteRange, ContextOptions, Reading};

/// What of a document the decoder reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum System {
    /// Soft tokens alone.
    Soft,
    /// Soft tokens, and behind them raw text of the chunks nearest to the question.
    Expand,
    /// As [`System::Expand`], the soft tokens being those of another document.
    Other,
    /// As [`System::Expand`], the chunks that hold the evidence being raw text before all others: what is left to gain by
    /// choosing them better.
    Evidence,
    /// Raw text of the chunks that [`System::Expand`] reads as text, in as many positions as that may use.
    Rag,
    /// Raw text of the chunks nearest to the question until as many positions are used up: top k.
    RagFilled,
    /// The opening of the text, in as many positions.
    Opening,
    /// The text, cut in its middle to the decoder's window.
    Full,
    /// No document.
    None,
}

/// Decoder positions of the systems on one document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Positions {
    /// For a document, at most.
    pub most: u32,
    /// Chunks as raw text behind soft tokens.
    pub expand_chunks: u32,
    /// Positions of those.
    pub expand: u32,
    /// Soft tokens of the document.
    pub soft: u32,
    /// Prompt windows of a summary from soft tokens, at most.
    pub windows: Option<u32>,
}

impl System {
    /// All of them, in the order of tables.
    pub const ALL: [Self; 9] = [
        Self::Soft,
        Self::Expand,
        Self::Evidence,
        Self::Other,
        Self::Rag,
        Self::RagFilled,
        Self::Opening,
        Self::Full,
        Self::None,
    ];

    /// As it is written on the command line and in results.
    pub fn name(self) -> &'static str {
        match self {
            Self::Soft => "soft",
            Self::Expand => "expand",
            Self::Evidence => "evidence",
            Self::Other => "other",
            Self::Rag => "rag",
            Self::RagFilled => "rag-filled",
            Self::Opening => "opening",
            Self::Full => "full",
            Self::None => "none",
        }
    }

    /// How the decoder is told; `other` is the id of another document, `evidence` bytes of its own.
    pub fn context(self, positions: Positions, other: &str, evidence: &[Range<usize>]) -> ContextOptions {
        let Positions { most, expand_chunks, expand, soft, windows } = positions;
        let reading = |reading: Reading, max_positions| ContextOptions {
            max_positions,
            reading: reading.into(),
            ..ContextOptions::default()
        };
        let soft_and_text = |expand_chunks| ContextOptions {
            expand_chunks: Some(expand_chunks),
            expand_positions: Some(expand),
            max_windows: windows,
            ..reading(Reading::Soft, Some(most))
        };
        // With raw text behind soft tokens no more than this is used.
        let equal = Some(most.min(soft.saturating_add(expand)));
        match self {
            Self::Soft => soft_and_text(0),
            Self::Expand => soft_and_text(expand_chunks),
            Self::Evidence => {
                let range = |range: &Range<usize>| ByteRange { start: range.start as u64, end: range.end as u64 };
                ContextOptions { expand_first: evidence.iter().map(range).collect(), ..soft_and_text(expand_chunks) }
            }
            Self::Other => ContextOptions { soft_from: other.to_owned(), ..soft_and_text(expand_chunks) },
            Self::Rag => reading(Reading::Retrieved, equal),
            Self::RagFilled => reading(Reading::Filled, equal),
            Self::Opening => reading(Reading::Opening, equal),
            Self::Full => reading(Reading::Full, None),
            Self::None => reading(Reading::None, None),
        }
    }
}

impl fmt::Display for System {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for System {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let names = Self::ALL.map(Self::name).join(", ");
        Self::ALL.into_iter().find(|system| system.name() == name).ok_or(format!("{name:?} is none of {names}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn raw_text_gets_as_many_positions_as_soft_tokens_with_expansion_and_no_more() {
        let positions = |soft| Positions { most: 2_000, expand_chunks: 6, expand: 700, soft, windows: None };
        let most = |system: System, soft| system.context(positions(soft), "b", &[]).max_positions;
        assert_eq!((most(System::Rag, 1_000), most(System::RagFilled, 1_000)), (Some(1_700), Some(1_700)));
        assert_eq!(most(System::Opening, 5_000), Some(2_000));
        assert_eq!((most(System::Expand, 1_000), most(System::Full, 1_000)), (Some(2_000), None));
        let other = System::Other.context(positions(1_000), "b", &[]);
        let expand = System::Expand.context(positions(1_000), "b", &[]);
        assert_eq!(ContextOptions { soft_from: String::new(), ..other.clone() }, expand);
        assert_eq!(other.soft_from, "b");
        assert_eq!(System::Soft.context(positions(1), "", &[]).expand_chunks, Some(0));
        let told = System::Evidence.context(positions(1_000), "b", std::slice::from_ref(&(3..9)));
        assert_eq!(told, ContextOptions { expand_first: vec![ByteRange { start: 3, end: 9 }], ..expand });
    }

    #[test]
    fn names_are_read_back() {
        for system in System::ALL {
            assert_eq!(system.name().parse(), Ok(system));
        }
        assert!("text".parse::<System>().unwrap_err().contains("\"text\""));
    }
}
