use e2llm_api::v1::{JobKind, Row, RowError};
use e2llm_api::{DocId, ErrorCode, row_error};
use e2llm_store::{Store, StoreError, TextHasher, TextWriter};

use crate::CoordinatorError;

/// Turns pieces and rows of a submission into checked rows whose texts are in the store.
#[derive(Debug)]
pub(crate) struct Intake {
    store: Store,
    kind: JobKind,
    /// One question stands for all rows, so that rows are documents.
    has_question: bool,
    text: Text,
}

/// The text of the row to come.
#[derive(Debug)]
enum Text {
    /// No piece came.
    None,
    Writing(Box<TextWriter>),
    /// The store has it, if it is the same as before.
    Hashing(Box<TextHasher>),
    /// A piece was refused; the rest is skipped.
    Refused(RowError),
}

impl Intake {
    pub(crate) fn new(store: Store, kind: JobKind, has_question: bool) -> Self {
        Self { store, kind, has_question, text: Text::None }
    }

    /// Whether rows are documents, not questions.
    pub(crate) fn takes_documents(&self) -> bool {
        self.kind != JobKind::Ask || self.has_question
    }

    /// Takes a piece of the text of the row that follows. The text of a row that `is_planned` is named, not stored.
    ///
    /// # Errors
    /// Only what is no fault of the text, such as a full disk.
    pub(crate) fn piece(&mut self, bytes: &[u8], is_planned: bool) -> Result<(), CoordinatorError> {
        if matches!(self.text, Text::None) {
            self.text = match is_planned {
                true => Text::Hashing(Box::default()),
                false => Text::Writing(Box::new(self.store.text_writer()?)),
            };
        }
        let taken = match &mut self.text {
            Text::Writing(writer) => writer.write(bytes),
            Text::Hashing(hasher) => hasher.write(bytes),
            Text::None | Text::Refused(_) => Ok(()),
        };
        if let Err(error) = taken {
            self.text = Text::Refused(fault_of_text(error)?);
        }
        Ok(())
    }

    /// Finishes row `number`: its text gets a name; what is wrong with it becomes its error.
    pub(crate) async fn row(&mut self, number: u64, given: Row) -> Result<Row, CoordinatorError> {
        let text = std::mem::replace(&mut self.text, Text::None);
        let mut row = Row { number, ..given };
        if row.error.is_none() {
            row.error = self.check(&row).err();
        }
        if row.error.is_none() && self.takes_documents() {
            self.name_text(&mut row, text).await?;
        }
        Ok(row)
    }

    async fn name_text(&self, row: &mut Row, text: Text) -> Result<(), CoordinatorError> {
        let named = match text {
            Text::None if row.text_hash.is_empty() && self.kind == JobKind::Encode => Ok(None),
            Text::None => return Ok(()),
            Text::Refused(error) => {
                row.error = Some(error);
                return Ok(());
            }
            Text::Writing(writer) if writer.bytes() == 0 => Ok(None),
            Text::Writing(writer) => writer.finish().await.map(Some),
            Text::Hashing(hasher) => hasher.finish().map(|text| Some(text).filter(|text| text.bytes > 0)),
        };
        match named {
            Ok(Some(text)) => (row.text_hash, row.text_bytes) = (text.hash, text.bytes),
            Ok(None) => row.error = Some(row_error(ErrorCode::EmptyDocument, "the document has no text; leave it out")),
            Err(error) => row.error = Some(fault_of_text(error)?),
        }
        Ok(())
    }

    fn check(&self, row: &Row) -> Result<(), RowError> {
        let doc_id =
            |id: &str| DocId::new(id).map(drop).map_err(|error| row_error(ErrorCode::InvalidId, error.to_string()));
        if self.takes_documents() {
            return doc_id(&row.id);
        }
        let invalid = |message: &str| Err(row_error(ErrorCode::InvalidArgument, message));
        if let Some(Err(problem)) = row.context.as_ref().map(|context| context.checked_reading(row.doc_ids.len())) {
            return invalid(&problem);
        }
        if row.question.trim().is_empty() && row.instruction.trim().is_empty() {
            return invalid("the question is empty; write one, or an instruction");
        }
        if row.doc_ids.is_empty() {
            return invalid("the question names no document; give at least one id in doc_ids");
        }
        row.doc_ids.iter().try_for_each(|id| doc_id(id))
    }
}

/// The row's error, if the text is at fault and not the store.
fn fault_of_text(error: StoreError) -> Result<RowError, CoordinatorError> {
    match error.code() {
        code @ (ErrorCode::NotUtf8 | ErrorCode::TooLarge) => Ok(row_error(code, error.to_string())),
        _ => Err(error.into()),
    }
}
