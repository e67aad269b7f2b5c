//! The coordinator service: plans jobs and hands their tasks to workers that pull.
//!
//! A job is rows; rows are cut into tasks of one [`Stage`](e2llm_api::v1::Stage); a worker leases a task, reports
//! one result per row, and the coordinator commits them. Everything that must survive is a create-only object, so
//! that starting the coordinator means listing them:
//!
//! ```text
//! jobs/<job>/spec                    what to do, written by the first submission
//! jobs/<job>/plan/<%06d>             rows as they arrived, and how they are cut into tasks; the last page says so
//! jobs/<job>/parts/<task>-<attempt>  results of one attempt
//! jobs/<job>/done/<stage>/<task>     names the part that counts, and the next stage's tasks for its rows
//! jobs/<job>/splits/<task>           this task was given up as a whole: its rows are tasks of their own
//! jobs/<job>/attempts/<task>-<%03d>  this attempt failed or was lost, so that a poison row cannot loop across restarts
//! jobs/<job>/control/<%06d>.<change> the job is cancelled, resumed, cancelled again …
//! jobs/<job>/acknowledged            whoever wanted the results has them, or does not want them any more
//! jobs/<job>/result                  counts of a finished job, so that it need not be loaded to be listed
//! ```
//!
//! Where to read: `submit` turns a stream of rows into plan pages; `job` is one job in memory, made from records
//! alone; `board` leases tasks of all jobs and judges what workers report; `engine` commits what the board decides;
//! `report` answers workers; `watch` streams results back in input order, reading parts as it goes; `retention`
//! deletes jobs that have expired; `training` commits rounds of training jobs; `service` is the gRPC face.
//!
//! Two coordinators on one store are wasteful, not wrong: whoever creates a `done` record first has the say, and
//! task ids follow from row numbers, so both cut alike.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod board;
mod engine;
mod error;
mod ids;
mod intake;
mod job;
mod journal;
mod load;
mod measure;
mod objects;
mod options;
mod page;
mod planning;
mod records;
mod report;
mod retention;
mod service;
mod submit;
mod task;
mod training;
mod watch;

pub use error::CoordinatorError;
pub use ids::JobId;
pub use options::{CoordinatorOptions, LoadJobs};
pub use service::CoordinatorService;
