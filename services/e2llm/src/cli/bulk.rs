//! The commands that do one thing to many documents.
//!
//! What to do (`…Work`) is apart from what becomes of the results, so that `e2llm jobs submit` takes the same.

use clap::Args;
use e2llm_api::DocId;

use super::{ContextArgs, GenerateArgs, JobArgs, JobOptions, OutputArgs, StoredArgs};
use crate::input::Columns;

/// What the inputs of a bulk command may be; the text stands in its `--help`.
pub(super) const INPUT_HELP: &str = "\
Inputs:
  DIR             every text and Markdown file below it, sorted; hidden files are skipped. A document's id is its
                  path below DIR with `:` for `/`, such as `notes:2024:may.md`
  FILE            one text; its id is the file's name
  FILE.jsonl      one document per line: {\"id\": \"…\", \"text\": \"…\"}
  'PATTERN'       every file it matches, such as 'notes/**/*.md'; ids are paths below the directory where it begins
  -               standard input: JSON Lines if it begins with `{`, otherwise one text with the id `stdin`
  sample:NAME     a small real corpus, fetched on first use

gzip and zstd (FILE.jsonl.gz, notes.txt.zst) are undone while reading.

In ids made from paths, `%XX` stands for a byte that an id cannot hold: `%`, `:`, `\\`, control characters, the
second of two dots, white space at either end of a name. Different paths below one DIR or PATTERN
always have different ids.";

/// `e2llm encode`
#[derive(Debug, Args)]
#[command(after_long_help = INPUT_HELP)]
pub(crate) struct EncodeArgs {
    #[command(flatten)]
    pub(crate) work: EncodeWork,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

/// What to encode.
#[derive(Debug, Args)]
pub(crate) struct EncodeWork {
    /// Directory, file, .jsonl, `-` or sample:NAME (see below)
    #[arg(required = true, value_name = "INPUT")]
    pub(crate) inputs: Vec<String>,
    #[command(flatten)]
    pub(crate) columns: Columns,
    #[command(flatten)]
    pub(crate) job: JobArgs,
}

/// `e2llm summarize`
#[derive(Debug, Args)]
#[command(after_long_help = INPUT_HELP)]
pub(crate) struct SummarizeArgs {
    #[command(flatten)]
    pub(crate) work: SummarizeWork,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

/// What to summarise, and how.
#[derive(Debug, Args)]
pub(crate) struct SummarizeWork {
    /// Directory, file, .jsonl, `-` or sample:NAME (see below)
    #[arg(
        required_unless_present_any = ["ids", "ids_from", "conditions"],
        conflicts_with_all = ["ids", "ids_from", "conditions"],
        value_name = "INPUT"
    )]
    pub(crate) inputs: Vec<String>,
    /// Documents that are already encoded
    #[arg(long = "id", value_name = "ID", num_args = 1.., conflicts_with_all = ["ids_from", "conditions"])]
    pub(crate) ids: Vec<DocId>,
    /// What to ask for, instead of the bundle's own instruction
    #[arg(long, value_name = "TEXT")]
    pub(crate) instruction: Option<String>,
    #[command(flatten)]
    pub(crate) stored: StoredArgs,
    #[command(flatten)]
    pub(crate) columns: Columns,
    #[command(flatten)]
    pub(crate) generate: GenerateArgs,
    #[command(flatten)]
    pub(crate) context: ContextArgs,
    #[command(flatten)]
    pub(crate) job: JobArgs,
}

/// `e2llm ask`
#[derive(Debug, Args)]
pub(crate) struct AskArgs {
    #[command(flatten)]
    pub(crate) work: AskWork,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

/// What to ask, and of which documents.
#[derive(Debug, Args)]
pub(crate) struct AskWork {
    /// The question
    #[arg(conflicts_with = "input")]
    pub(crate) question: Option<String>,
    /// The documents to ask, one or several at once
    #[arg(long = "id", value_name = "ID", num_args = 1.., conflicts_with_all = ["input", "each", "ids_from", "conditions"])]
    pub(crate) ids: Vec<String>,
    /// Many questions: a .jsonl of {"id": "…", "doc_ids": ["…"], "question": "…"}, Parquet, or `-`
    #[arg(long, value_name = "FILE", required_unless_present_any = ["ids", "each", "ids_from", "conditions"],
        conflicts_with_all = ["each", "ids_from", "conditions"])]
    pub(crate) input: Option<String>,
    /// Ask the question of each document of these inputs (as for `encode`), encoding first what is new
    #[arg(long, value_name = "INPUT", num_args = 1.., conflicts_with_all = ["ids_from", "conditions"])]
    pub(crate) each: Vec<String>,
    #[command(flatten)]
    pub(crate) stored: StoredArgs,
    #[command(flatten)]
    pub(crate) columns: Columns,
    #[command(flatten)]
    pub(crate) generate: GenerateArgs,
    #[command(flatten)]
    pub(crate) context: ContextArgs,
    #[command(flatten)]
    pub(crate) job: JobArgs,
}

impl AskWork {
    /// The ids and the question. `--id a b "question"` reads as three ids, so without a question of its own
    /// the last of several ids is the question.
    pub(crate) fn ids_and_question(&self) -> anyhow::Result<(Vec<DocId>, String)> {
        let mut ids = self.ids.clone();
        let question = match &self.question {
            Some(question) => question.clone(),
            None if ids.len() > 1 => ids.pop().unwrap_or_default(),
            None => anyhow::bail!("no question; write it after the ids: e2llm ask --id {} \"…?\"", ids.join(" ")),
        };
        check_question(&question)?;
        let ids = ids.into_iter().map(DocId::new).collect::<Result<Vec<_>, _>>()?;
        Ok((ids, question))
    }

    /// The question that goes to each of many documents, if that is what is asked for. `--each a b "question"` reads as
    /// three inputs, so without a question of its own the last of several inputs is the question.
    pub(crate) fn question_for_each(&mut self) -> anyhow::Result<Option<String>> {
        if self.each.is_empty() && !self.stored.is_given() {
            return Ok(None);
        }
        let question = match self.question.take() {
            Some(question) => question,
            None if self.each.len() > 1 => self.each.pop().unwrap_or_default(),
            None => anyhow::bail!("no question; write it first: e2llm ask \"…?\" --each INPUT"),
        };
        check_question(&question)?;
        Ok(Some(question))
    }

    /// Whether it is one question, which is no job.
    pub(crate) fn is_one_question(&self) -> bool {
        !self.ids.is_empty()
    }
}

fn check_question(question: &str) -> anyhow::Result<()> {
    if question.trim().is_empty() {
        anyhow::bail!("the question is empty; write one");
    }
    Ok(())
}

/// `e2llm sync`
///
/// New and changed documents are encoded first. Then the documents of the collection whose ids the inputs do not hold
/// are deleted. A row that cannot be read keeps its document, and nothing is deleted when a whole input, or the id of a
/// row, cannot be read.
#[derive(Debug, Args)]
#[command(after_long_help = INPUT_HELP)]
pub(crate) struct SyncArgs {
    /// All of the corpus: directories, files, .jsonl, `-` or sample:NAME (see below)
    #[arg(required = true, value_name = "INPUT")]
    pub(crate) inputs: Vec<String>,
    /// Delete only documents whose ids begin with this
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub(crate) prefix: String,
    /// Delete all documents if the inputs hold none; without this an empty corpus is taken for a mistake
    #[arg(long)]
    pub(crate) allow_empty: bool,
    /// Print what would be encoded and deleted, and change nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    pub(crate) columns: Columns,
    #[command(flatten)]
    pub(crate) options: JobOptions,
}
