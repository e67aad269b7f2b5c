//! The e2llm command line: bulk summaries, questions by document id, and the services.
fn main() {}
