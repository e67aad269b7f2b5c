//! The words around soft tokens: what training taught the decoder to expect, and what serving says.

/// Objective "reconstruct" of the understanding task (METHOD: arXiv 2409.06679 §3.3).
pub const REPEAT: &str = "Repeat the text above.";
/// Objective "continue": write what follows the text.
pub const CONTINUE: &str = "Continue the text above.";
/// Default instruction of a summary.
pub const SUMMARIZE: &str = "Summarize the text above in a few sentences.";

/// Wordings of an instruction in training, so that the decoder learns the task and not a string (ARC-Encoder). The first is
/// the one that serving and evaluation use, and that training uses most.
pub const REPEAT_WORDINGS: [&str; 4] =
    [REPEAT, "Write the text above again, word for word.", "Copy the text above.", "What does the text above say?"];
/// See [`REPEAT_WORDINGS`].
pub const CONTINUE_WORDINGS: [&str; 4] =
    [CONTINUE, "Write what comes next.", "Go on from where the text above ends.", "How does the text above go on?"];
/// See [`REPEAT_WORDINGS`].
pub const SUMMARIZE_WORDINGS: [&str; 4] = [
    SUMMARIZE,
    "Write a short summary of the text above.",
    "What is the text above about?",
    "Write an abstract of the text above.",
];

/// Stands between two documents, between soft tokens and raw text, and where raw text has a gap.
pub const BETWEEN: &str = "\n\n";

/// What stands between raw text and the raw text that follows it in its document: the shortest blank that says as much as what
/// `text`, blanks and all, ends with.
pub fn gap_after(text: &str) -> &'static str {
    let blank = &text[text.trim_end().len()..];
    match blank.matches('\n').count() {
        0 if blank.is_empty() => "",
        0 => " ",
        1 => "\n",
        _ => BETWEEN,
    }
}

/// What follows the document in the user's turn: a blank line and the instruction.
pub fn after_document(instruction: &str) -> String {
    format!("\n\n{instruction}")
}

/// The instruction of a question.
pub fn question(question: &str) -> String {
    format!("Answer the question using the text above.\n\nQuestion: {question}")
}

/// Wordings of a question's instruction in training; the first is [`question`].
pub fn question_wordings(asked: &str) -> [String; 3] {
    [question(asked), format!("Question: {asked}"), asked.to_owned()]
}
