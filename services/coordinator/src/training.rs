//! Training jobs: rounds of shares, committed one after the other.
//!
//! A job of kind `train` has one row per member of each round. The shares of a round are tasks like any others: leased,
//! tried again, adopted. When all are done, or a quorum is and the others are late, the round is committed:
//!
//! ```text
//! train/<job>/rounds/<%06d>/member-<m>-….safetensors  state of one side of a member after its steps, by the workers
//! train/<job>/rounds/<%06d>/<side>-….safetensors      parameters of the round, and the outer step's velocity
//! train/<job>/rounds/<%06d>/commit                    which of these count; create-only
//! ```
//!
//! A share is a function of what its task names (parameters of the round before, its own moments, numbers of samples), so
//! whoever does it again gets the same, and a lost member costs its steps of one round at most.

mod average;
mod commit;
mod of_job;
mod rounds;
mod schedule;

pub(crate) use commit::{RoundRecord, SUFFIX, round_folder};
pub(crate) use rounds::Training;
pub(crate) use schedule::plan;
