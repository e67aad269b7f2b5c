//! Rows on their way to the coordinator.

use e2llm_api::v1::submit_job_request::Part as Message;
use e2llm_api::v1::{JobSpec, Row, RowResult, SubmitJobRequest, TextPiece};
use futures::{Stream, StreamExt, stream};
use prost::Message as _;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::input::Part;

/// Failed rows kept while looking for one that has work in it.
const LOOK_AHEAD: usize = 1000;

/// The rows of a job, the first of which may have been looked at.
pub(crate) struct Rows {
    head: Vec<Part>,
    rest: mpsc::Receiver<Part>,
}

impl Rows {
    /// Reads ahead until something needs the services. An input of nothing but errors needs none.
    pub(crate) async fn look_ahead(mut rest: mpsc::Receiver<Part>) -> Self {
        let mut head = Vec::new();
        while head.len() < LOOK_AHEAD {
            let Some(part) = rest.recv().await else { break };
            let is_failure = matches!(part, Part::Failed { .. });
            head.push(part);
            if !is_failure {
                break;
            }
        }
        Self { head, rest }
    }

    /// The rows as results, if all have failed already.
    pub(crate) fn only_failures(&self) -> Option<Vec<RowResult>> {
        // A full head says nothing about the rest.
        if self.head.len() >= LOOK_AHEAD {
            return None;
        }
        let failure = |(number, part): (usize, &Part)| match part {
            Part::Failed { id, error } => {
                let number = number as u64;
                Some(RowResult { number, id: id.clone(), error: Some(error.clone()), ..Default::default() })
            }
            _ => None,
        };
        self.head.iter().enumerate().map(failure).collect()
    }

    /// Rows that this program made.
    pub(crate) fn made(parts: Vec<Part>) -> Self {
        Self { head: parts, rest: mpsc::channel(1).1 }
    }

    /// Whether there is nothing at all.
    pub(crate) fn are_none(&self) -> bool {
        self.head.is_empty()
    }

    /// No rows: of a job that is planned already.
    pub(crate) fn none() -> Self {
        Self { head: Vec::new(), rest: mpsc::channel(1).1 }
    }

    /// Recognises an input that has no name, by what it begins with.
    pub(crate) fn beginning(&self) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new();
        for part in &self.head {
            match part {
                Part::Piece(text) => hasher.update(text),
                // As it is sent: how it is printed changes with every field that messages get.
                Part::Question(row) => hasher.update(&row.encode_to_vec()),
                other => hasher.update(format!("{other:?}").as_bytes()),
            };
        }
        hasher.finalize()
    }

    /// The messages of a submission. Of the first `planned` rows, whose texts are stored, only hashes are sent.
    pub(super) fn into_requests(self, spec: JobSpec, planned: u64) -> impl Stream<Item = SubmitJobRequest> {
        let mut messages = Messages { planned, ..Default::default() };
        let parts = stream::iter(self.head).chain(ReceiverStream::new(self.rest));
        let parts = parts.filter_map(move |part| std::future::ready(messages.of(part)));
        stream::iter([Message::Spec(spec)]).chain(parts).map(|part| SubmitJobRequest { part: Some(part) })
    }
}

/// Turns parts into messages.
#[derive(Debug, Default)]
struct Messages {
    /// Rows before this one are planned.
    planned: u64,
    next_row: u64,
    /// Text of the next row, if that is planned.
    text: blake3::Hasher,
}

impl Messages {
    /// The message of a part, unless it goes into that of a later one.
    fn of(&mut self, part: Part) -> Option<Message> {
        let is_planned = self.next_row < self.planned;
        if let Part::Piece(text) = part {
            if is_planned {
                self.text.update(&text);
                return None;
            }
            return Some(Message::Piece(TextPiece { text }));
        }
        self.next_row += 1;
        let text = std::mem::take(&mut self.text);
        let hash = |bytes| if is_planned && bytes > 0 { text.finalize().to_hex().to_string() } else { String::new() };
        Some(Message::Row(match part {
            Part::Piece(_) => return None,
            Part::Document { id, bytes, metadata } => {
                Row { id, text_bytes: bytes, text_hash: hash(bytes), metadata, ..Default::default() }
            }
            Part::Stored { id, text_hash } => Row { id, text_hash, ..Default::default() },
            Part::Question(row) => *row,
            Part::Failed { id, error } => Row { id, error: Some(error), ..Default::default() },
        }))
    }
}

#[cfg(test)]
mod tests {
    use e2llm_api::{ErrorCode, row_error};

    use super::*;

    fn failed(id: &str) -> Part {
        Part::Failed { id: id.into(), error: row_error(ErrorCode::EmptyDocument, "empty") }
    }

    fn document(id: &str, text: &str) -> [Part; 2] {
        let document = Part::Document { id: id.into(), bytes: text.len() as u64, metadata: String::new() };
        [Part::Piece(text.into()), document]
    }

    async fn look_ahead(parts: Vec<Part>) -> Rows {
        let (sender, receiver) = mpsc::channel(parts.len() + 1);
        for part in parts {
            sender.send(part).await.unwrap();
        }
        drop(sender);
        Rows::look_ahead(receiver).await
    }

    async fn sent(parts: Vec<Part>, planned: u64) -> Vec<Message> {
        let rows = look_ahead(parts).await;
        assert!(rows.only_failures().is_none());
        rows.into_requests(JobSpec::default(), planned).map(|request| request.part.unwrap()).collect().await
    }

    #[test]
    fn questions_are_recognised_by_what_is_sent() {
        let row = Row { id: "q".to_owned(), question: "Why?".to_owned(), ..Row::default() };
        let made = Rows::made(vec![Part::Question(Box::new(row.clone()))]);
        assert_eq!(made.beginning(), blake3::hash(&row.encode_to_vec()));
    }

    #[tokio::test]
    async fn an_input_of_errors_alone_needs_no_services() {
        let failures = look_ahead(vec![failed("a"), failed("b")]).await.only_failures().unwrap();
        let rows: Vec<(u64, &str)> = failures.iter().map(|row| (row.number, row.id.as_str())).collect();
        assert_eq!(rows, [(0, "a"), (1, "b")]);
        assert_eq!(look_ahead(vec![]).await.only_failures().unwrap(), []);
    }

    #[tokio::test]
    async fn looking_ahead_loses_and_reorders_nothing() {
        let parts: Vec<Part> =
            [vec![failed("a")], document("b", "text").to_vec(), vec![failed("c")]].into_iter().flatten().collect();
        let row = |id: &str| Row { id: id.into(), ..Default::default() };
        let error = Some(row_error(ErrorCode::EmptyDocument, "empty"));
        let expected = [
            Message::Spec(JobSpec::default()),
            Message::Row(Row { error: error.clone(), ..row("a") }),
            Message::Piece(TextPiece { text: b"text".to_vec() }),
            Message::Row(Row { text_bytes: 4, ..row("b") }),
            Message::Row(Row { error, ..row("c") }),
        ];
        assert_eq!(sent(parts, 0).await, expected);
    }

    #[tokio::test]
    async fn of_planned_rows_the_hash_is_sent_and_of_others_the_text() {
        let mut parts = vec![Part::Piece(b"half a".to_vec()), failed("a")];
        parts.extend(document("b", "one"));
        parts.extend(document("c", "two"));
        let messages = sent(parts, 2).await;
        let row = |message: &Message| match message {
            Message::Row(row) => (row.id.clone(), row.text_hash.clone()),
            other => panic!("{other:?}"),
        };
        assert_eq!(row(&messages[1]), ("a".to_owned(), String::new()));
        assert_eq!(row(&messages[2]), ("b".to_owned(), blake3::hash(b"one").to_hex().to_string()));
        assert_eq!(messages[3], Message::Piece(TextPiece { text: b"two".to_vec() }));
        assert_eq!(row(&messages[4]), ("c".to_owned(), String::new()));
        assert_eq!(messages.len(), 5);
    }
}
