//! Forms of adapters, and the shapes of their parameters.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::error::{ModelError, Result};

/// How chunks become soft tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AdapterForm {
    /// One soft token per `ratio` word pieces: a gated mix of their values and a residual of all of them.
    GatedSegments,
    /// One soft token per chunk: the first form of the paper.
    OneVector,
    /// `queries` soft tokens per chunk: learned queries attend to its word pieces, the second form of the paper (which
    /// has one query).
    AttentionPooling {
        /// Soft tokens per chunk.
        queries: usize,
        /// Attention heads over d_model.
        #[serde(default = "paper_heads")]
        heads: usize,
    },
}

fn paper_heads() -> usize {
    4
}

/// Shape of an adapter.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdapterConfig {
    /// How chunks become soft tokens.
    pub form: AdapterForm,
    /// Word pieces per soft token.
    pub ratio: usize,
    /// Width of the encoder's states.
    pub d_enc: usize,
    /// Width of the decoder's embeddings.
    pub d_model: usize,
    /// Hidden width of the value path, and of the feed-forward path of attention pooling.
    pub value_hidden: usize,
    /// Hidden width of the gate.
    pub gate_hidden: usize,
    /// Hidden width of the segment's residual path.
    pub segment_hidden: usize,
    /// Root mean square of the decoder's token embeddings; soft tokens are scaled to it.
    pub embedding_rms: f32,
    /// Heads of the gate, each over d_model / heads dimensions with weights of its own and a learned bias per slot. None:
    /// one gate without slot bias, as in the first bundles. Left out of JSON then, so that their fingerprints stay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gate_heads: Option<usize>,
}

impl AdapterConfig {
    /// Names and shapes of the parameters.
    pub fn parameters(&self) -> Vec<(&'static str, Vec<usize>)> {
        match self.form {
            AdapterForm::GatedSegments => [self.value_path(), self.gate_and_segment()].concat(),
            AdapterForm::OneVector => self.value_path(),
            AdapterForm::AttentionPooling { queries, .. } => self.attention(queries),
        }
    }

    fn value_path(&self) -> Vec<(&'static str, Vec<usize>)> {
        let (features, d) = (2 * self.d_enc, self.d_model);
        vec![
            ("value.up.weight", vec![self.value_hidden, features]),
            ("value.up.bias", vec![self.value_hidden]),
            ("value.down.weight", vec![d, self.value_hidden]),
            ("value.skip.weight", vec![d, features]),
            ("value.skip.bias", vec![d]),
            ("scale", vec![1]),
        ]
    }

    fn gate_and_segment(&self) -> Vec<(&'static str, Vec<usize>)> {
        let (features, d) = (2 * self.d_enc, self.d_model);
        let mut list = vec![
            ("gate.up.weight", vec![self.gate_hidden, features]),
            ("gate.up.bias", vec![self.gate_hidden]),
            ("gate.down.weight", vec![self.gate_heads.unwrap_or(1), self.gate_hidden]),
            ("segment.up.weight", vec![self.segment_hidden, self.ratio * d]),
            ("segment.up.bias", vec![self.segment_hidden]),
            ("segment.down.weight", vec![d, self.segment_hidden]),
        ];
        list.extend(self.gate_heads.map(|heads| ("gate.slots", vec![heads, self.ratio])));
        list
    }

    fn attention(&self, queries: usize) -> Vec<(&'static str, Vec<usize>)> {
        let (features, d, hidden) = (2 * self.d_enc, self.d_model, self.value_hidden);
        vec![
            ("queries", vec![queries, d]),
            ("attend.q.weight", vec![d, d]),
            ("attend.k.weight", vec![d, features]),
            ("attend.v.weight", vec![d, features]),
            ("attend.v.bias", vec![d]),
            ("attend.o.weight", vec![d, d]),
            ("norm1.weight", vec![d]),
            ("norm1.bias", vec![d]),
            ("ffn.up.weight", vec![hidden, d]),
            ("ffn.up.bias", vec![hidden]),
            ("ffn.down.weight", vec![d, hidden]),
            ("ffn.down.bias", vec![d]),
            ("norm2.weight", vec![d]),
            ("norm2.bias", vec![d]),
            ("scale", vec![1]),
        ]
    }

    /// Refuses shapes that cannot be computed.
    pub fn check(&self) -> Result<()> {
        let heads = match self.form {
            AdapterForm::AttentionPooling { heads, .. } => heads,
            _ => self.gate_heads.unwrap_or(1),
        };
        let problem = if self.ratio == 0 {
            "adapter ratio is 0; it must be at least 1".to_owned()
        } else if matches!(self.form, AdapterForm::AttentionPooling { queries: 0, .. }) {
            "attention pooling has 0 queries; it needs at least 1".to_owned()
        } else if heads == 0 || !self.d_model.is_multiple_of(heads) {
            format!("adapter width {} cannot be split into {heads} heads; choose a divisor", self.d_model)
        } else {
            return Ok(());
        };
        Err(ModelError::Config { problem })
    }

    /// Soft tokens of a chunk of `pieces` word pieces.
    pub fn soft_tokens(&self, pieces: usize) -> usize {
        match self.form {
            AdapterForm::GatedSegments => pieces.div_ceil(self.ratio),
            AdapterForm::OneVector => 1,
            AdapterForm::AttentionPooling { queries, .. } => queries,
        }
    }

    /// The word pieces each soft token of a chunk of `pieces` (at least 1) stands for; what pretraining holds it to. Queries
    /// of attention pooling see the whole chunk; each is given an equal share of it to begin with.
    pub fn segments(&self, pieces: usize) -> Vec<Range<usize>> {
        match self.form {
            AdapterForm::GatedSegments => {
                (0..pieces).step_by(self.ratio).map(|start| start..(start + self.ratio).min(pieces)).collect()
            }
            AdapterForm::OneVector => std::iter::once(0..pieces).collect(),
            AdapterForm::AttentionPooling { queries, .. } => (0..queries)
                .map(|query| {
                    let start = (query * pieces / queries).min(pieces.saturating_sub(1));
                    start..((query + 1) * pieces / queries).max(start + 1)
                })
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(form: AdapterForm) -> AdapterConfig {
        AdapterConfig {
            form,
            ratio: 4,
            d_enc: 3,
            d_model: 8,
            value_hidden: 5,
            gate_hidden: 2,
            segment_hidden: 6,
            embedding_rms: 0.1,
            gate_heads: None,
        }
    }

    #[test]
    fn a_bundle_of_the_first_kind_is_read_and_written_unchanged() {
        let old = r#"{"form":"gated_segments","ratio":4,"d_enc":3,"d_model":8,"value_hidden":5,"gate_hidden":2,"segment_hidden":6,"embedding_rms":0.1}"#;
        let read: AdapterConfig = serde_json::from_str(old).unwrap();
        assert_eq!(read, config(AdapterForm::GatedSegments));
        assert_eq!(serde_json::to_string(&read).unwrap(), old);
    }

    #[test]
    fn every_soft_token_has_its_word_pieces() {
        for form in
            [AdapterForm::GatedSegments, AdapterForm::OneVector, AdapterForm::AttentionPooling { queries: 5, heads: 4 }]
        {
            for pieces in 1..30 {
                let segments = config(form).segments(pieces);
                assert_eq!(segments.len(), config(form).soft_tokens(pieces), "{form:?} {pieces}");
                assert!(segments.iter().all(|s| !s.is_empty() && s.end <= pieces), "{form:?} {pieces}: {segments:?}");
                assert_eq!((segments[0].start, segments.last().unwrap().end), (0, pieces), "{form:?} {pieces}");
            }
        }
    }

    #[test]
    fn heads_that_do_not_divide_the_width_are_refused() {
        let odd = AdapterConfig { gate_heads: Some(3), ..config(AdapterForm::GatedSegments) };
        assert!(odd.check().unwrap_err().to_string().contains("3 heads"));
        let none = config(AdapterForm::AttentionPooling { queries: 0, heads: 4 });
        assert!(none.check().unwrap_err().to_string().contains("0 queries"));
    }
}
