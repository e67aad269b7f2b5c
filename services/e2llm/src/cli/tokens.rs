//! `e2llm tokens …`

use std::num::NonZeroU32;

use clap::Subcommand;
use e2llm_api::Collection;
use e2llm_runtime::auth::Role;

/// `e2llm tokens …`
#[derive(Debug, Subcommand)]
pub(crate) enum TokensCommand {
    /// Make a token: its secret for the caller, and the entry for the servers' file of --tokens. The secret is shown this once
    New {
        /// Who will have it; appears in logs
        #[arg(long, value_name = "NAME")]
        name: String,
        /// What it may do
        #[arg(long, value_enum, value_name = "ROLE")]
        role: RoleArg,
        /// The collections it may use; several may be given [default: all]
        #[arg(long = "only", value_name = "COLLECTION")]
        collections: Vec<Collection>,
        /// Calls per minute [default: no limit]
        #[arg(long, value_name = "N")]
        requests_per_minute: Option<NonZeroU32>,
    },
}

/// What a token may do; each role may do all that the ones before it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum RoleArg {
    /// Ask, summarise, look up, watch jobs
    Read,
    /// Encode and delete documents; submit, cancel and delete jobs
    Write,
    /// What services do among themselves
    Worker,
    /// Collect garbage and expire jobs
    Admin,
}

impl From<RoleArg> for Role {
    fn from(role: RoleArg) -> Self {
        match role {
            RoleArg::Read => Self::Read,
            RoleArg::Write => Self::Write,
            RoleArg::Worker => Self::Worker,
            RoleArg::Admin => Self::Admin,
        }
    }
}
