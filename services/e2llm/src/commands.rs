//! One module per command.

pub(crate) mod ask;
mod bulk;
pub(crate) mod docs;
pub(crate) mod doctor;
pub(crate) mod encode;
pub(crate) mod gc;
pub(crate) mod jobs;
pub(crate) mod models;
mod stored;
pub(crate) mod summarize;
