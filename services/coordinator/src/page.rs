use std::time::Duration;

use e2llm_api::v1::{JobKind, Row, Stage};
use tokio::time::Instant;

use crate::CoordinatorOptions;
use crate::ids::TaskId;
use crate::records::{PlanPage, TaskCut};

/// How long a planned row may wait for its page to fill.
pub(crate) const LINGER: Duration = Duration::from_millis(100);
/// Rows after which a page is full.
const PAGE_ROWS: usize = 1024;

/// Gathers rows into plan pages and cuts them into tasks.
///
/// A page closes when a task is full and the last page was a while ago, or when its first row has waited long
/// enough: work starts early when rows come slowly, and objects stay few when they come fast.
#[derive(Debug)]
pub(crate) struct PageBuilder {
    kind: JobKind,
    rows: Vec<Row>,
    tasks: Vec<TaskCut>,
    encode: Cut,
    decode: Cut,
    first_row_at: Option<Instant>,
    last_page_at: Option<Instant>,
}

impl PageBuilder {
    pub(crate) fn new(kind: JobKind, options: &CoordinatorOptions) -> Self {
        Self {
            kind,
            rows: Vec::new(),
            tasks: Vec::new(),
            encode: Cut::new(Stage::Encode, options.encode_rows, options.encode_bytes),
            decode: Cut::new(Stage::Decode, options.decode_rows, u64::MAX),
            first_row_at: None,
            last_page_at: None,
        }
    }

    pub(crate) fn add(&mut self, row: Row) {
        self.first_row_at.get_or_insert_with(Instant::now);
        if row.error.is_none() {
            let cut = match first_stage(self.kind, &row) {
                Stage::Encode => &mut self.encode,
                _ => &mut self.decode,
            };
            cut.rows.push(row.number);
            cut.bytes += row.text_bytes;
            if cut.is_full() {
                self.tasks.extend(cut.take());
            }
        }
        self.rows.push(row);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    pub(crate) fn is_due(&self) -> bool {
        let elapsed = |at: Option<Instant>| at.is_none_or(|at| at.elapsed() >= LINGER);
        let has_waited = !self.is_empty() && elapsed(self.first_row_at);
        let has_task = !self.tasks.is_empty() && elapsed(self.last_page_at);
        has_waited || has_task || self.rows.len() >= PAGE_ROWS
    }

    /// Closes the page.
    pub(crate) fn take(&mut self, last: bool) -> PlanPage {
        self.tasks.extend(self.encode.take());
        self.tasks.extend(self.decode.take());
        self.first_row_at = None;
        self.last_page_at = Some(Instant::now());
        let (rows, tasks) = (std::mem::take(&mut self.rows), std::mem::take(&mut self.tasks));
        PlanPage { rows, tasks, last, ..PlanPage::default() }
    }
}

/// The task that is being filled.
#[derive(Debug)]
struct Cut {
    stage: Stage,
    rows: Vec<u64>,
    bytes: u64,
    max_rows: usize,
    max_bytes: u64,
}

impl Cut {
    fn new(stage: Stage, max_rows: usize, max_bytes: u64) -> Self {
        Self { stage, rows: Vec::new(), bytes: 0, max_rows: max_rows.max(1), max_bytes }
    }

    fn is_full(&self) -> bool {
        self.rows.len() >= self.max_rows || self.bytes >= self.max_bytes
    }

    fn take(&mut self) -> Option<TaskCut> {
        self.bytes = 0;
        let rows = std::mem::take(&mut self.rows);
        rows.first().copied().map(|first| TaskCut::new(TaskId::new(self.stage, first), rows))
    }
}

/// Where a row begins: a document without a text is encoded already.
pub(crate) fn first_stage(kind: JobKind, row: &Row) -> Stage {
    match kind {
        JobKind::Encode => Stage::Encode,
        // Rows of a question file have no text; those of one question for every document may.
        JobKind::Summarize | JobKind::Ask if !row.text_hash.is_empty() => Stage::Encode,
        _ => Stage::Decode,
    }
}

/// Cuts rows that are ready for decoding.
pub(crate) fn decode_tasks(rows: &[u64], options: &CoordinatorOptions) -> Vec<TaskCut> {
    let cut = |rows: &[u64]| TaskCut::new(TaskId::new(Stage::Decode, rows[0]), rows.to_vec());
    rows.chunks(options.decode_rows.max(1)).map(cut).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(number: u64, text_bytes: u64) -> Row {
        let text_hash = if text_bytes > 0 { "hash".to_owned() } else { String::new() };
        Row { number, text_bytes, text_hash, ..Default::default() }
    }

    fn cuts(kind: JobKind, rows: impl IntoIterator<Item = Row>) -> Vec<(String, Vec<u64>)> {
        let options = CoordinatorOptions { encode_rows: 3, encode_bytes: 100, ..Default::default() };
        let mut builder = PageBuilder::new(kind, &options);
        rows.into_iter().for_each(|row| builder.add(row));
        builder.take(true).tasks.into_iter().map(|cut| (cut.task_id, cut.rows)).collect()
    }

    #[test]
    fn a_task_is_full_at_its_rows_or_its_bytes_whichever_comes_first() {
        let sizes = [10, 10, 10, 99, 1, 5000, 1];
        let rows = (0..).zip(sizes).map(|(number, bytes)| row(number, bytes));
        let expected = [
            ("encode-00000000".to_owned(), vec![0, 1, 2]),
            ("encode-00000003".to_owned(), vec![3, 4]),
            ("encode-00000005".to_owned(), vec![5]),
            ("encode-00000006".to_owned(), vec![6]),
        ];
        assert_eq!(cuts(JobKind::Encode, rows), expected);
    }

    #[test]
    fn documents_that_are_encoded_already_go_straight_to_decoding() {
        let expected = [("encode-00000000".to_owned(), vec![0, 2]), ("decode-00000001".to_owned(), vec![1])];
        assert_eq!(cuts(JobKind::Summarize, [row(0, 5), row(1, 0), row(2, 5)]), expected);
    }

    #[test]
    fn rows_with_an_error_are_in_no_task() {
        let failed = Row { error: Some(Default::default()), ..row(0, 5) };
        assert_eq!(cuts(JobKind::Encode, [failed]), []);
    }

    #[tokio::test]
    async fn the_first_full_task_goes_out_at_once_and_the_next_ones_share_a_page() {
        let options = CoordinatorOptions { encode_rows: 1, ..Default::default() };
        let mut builder = PageBuilder::new(JobKind::Encode, &options);
        builder.add(row(0, 5));
        assert!(builder.is_due());
        builder.take(false);
        builder.add(row(1, 5));
        assert!(!builder.is_due());
        tokio::time::sleep(LINGER).await;
        assert!(builder.is_due());
    }
}
