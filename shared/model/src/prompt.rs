//! The words around soft tokens: what training taught the decoder to expect, and what serving says.

/// Objective "reconstruct" of the understanding task (METHOD: arXiv 2409.06679 §3.3).
pub const REPEAT: &str = "Repeat the text above.";
/// Objective "continue": write what follows the text.
pub const CONTINUE: &str = "Continue the text above.";
/// Default instruction of a summary.
pub const SUMMARIZE: &str = "Summarize the text above in a few sentences.";

/// What follows the document in the user's turn: a blank line and the instruction.
pub fn after_document(instruction: &str) -> String {
    format!("\n\n{instruction}")
}

/// The instruction of a question.
pub fn question(question: &str) -> String {
    format!("Answer the question using the text above.\n\nQuestion: {question}")
}
