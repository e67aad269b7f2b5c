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
