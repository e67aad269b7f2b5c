//! Faults injected into real processes, and what must hold all the same.
//!
//! A [`Fleet`] is an index, a coordinator, two encoders and two decoders as processes, each started again at its address
//! whenever it dies, as Kubernetes does. It lives over many runs. A [`Plan`] follows from a seed: which fault, whom it hits,
//! at which point, during which kind of job, with the documents in which order. [`run`] runs one job under one fault and
//! checks that
//!
//! - the fault was injected while work was unfinished;
//! - the job ends with one result for each row, in order, and with counts that say so;
//! - every result equals, byte for byte, that of an undisturbed run, and so does every soft prompt;
//! - no task was begun again but those the victim had begun, or those whose failed attempt is on record;
//! - no part remains of attempts that do not count.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod corpus;
mod disk;
mod expect;
mod fleet;
mod inject;
mod job;
mod member;
mod plan;
mod points;
mod proxy;
mod run;

pub use fleet::{Fleet, Site};
pub use plan::{Fault, Plan, Role, Stage};
pub use run::{Keep, Report, run};
