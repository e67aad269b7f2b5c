//! One module per command.

pub(crate) mod ask;
pub(crate) mod bulk;
pub(crate) mod docs;
pub(crate) mod doctor;
mod dry_run;
pub(crate) mod encode;
pub(crate) mod gc;
pub(crate) mod jobs;
pub(crate) mod models;
pub(crate) mod reshard;
mod source;
mod stored;
mod submit;
pub(crate) mod summarize;
pub(crate) mod sync;
pub(crate) mod tokens;
