use std::fmt;

use serde::{Deserialize, Serialize};

/// What a caller may do. Each role may do all that the ones before it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Ask, summarise, look up, watch jobs.
    Read,
    /// Encode and delete documents; submit, cancel and delete jobs.
    Write,
    /// What services do among themselves: commit records, report, train.
    Worker,
    /// Collect garbage, expire jobs, and what this version does not know.
    Admin,
}

impl Role {
    /// As it is written in a tokens file.
    pub fn as_str(self) -> &'static str {
        match self {
            Role::Read => "read",
            Role::Write => "write",
            Role::Worker => "worker",
            Role::Admin => "admin",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The role that a call of an RPC needs, by its path `/package.Service/Method`; none for health, which probes ask without a token.
///
/// What is not listed needs [`Role::Admin`]: a new RPC is closed until somebody opens it.
pub fn required_role(path: &str) -> Option<Role> {
    if path.starts_with("/grpc.health.v1.Health/") {
        return None;
    }
    let Some(method) = path.strip_prefix("/e2llm.v1.") else {
        return Some(if path.starts_with("/grpc.reflection.") { Role::Read } else { Role::Admin });
    };
    Some(match method {
        "Decoder/Ask" | "Decoder/Summarize" | "Decoder/Score" => Role::Read,
        "Encoder/Embed" => Role::Read,
        "Index/Get" | "Index/BatchGet" | "Index/List" | "Index/Search" => Role::Read,
        "Coordinator/GetJob" | "Coordinator/ListJobs" | "Coordinator/WatchJob" => Role::Read,
        "Coordinator/JobsOf" | "Coordinator/GetBundle" => Role::Read,
        "Encoder/Encode" | "Index/Delete" => Role::Write,
        "Coordinator/SubmitJob" | "Coordinator/PutText" | "Coordinator/CancelJob" => Role::Write,
        "Coordinator/ResumeJob" | "Coordinator/AcknowledgeJob" | "Coordinator/DeleteJob" => Role::Write,
        "Index/Commit" | "Index/PutSummaries" | "Coordinator/ReportStatus" | "Encoder/TrainSession" => Role::Worker,
        _ => Role::Admin,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rpc_has_its_role_and_unknown_ones_are_for_admins() {
        assert_eq!(required_role("/grpc.health.v1.Health/Check"), None);
        assert_eq!(required_role("/e2llm.v1.Decoder/Ask"), Some(Role::Read));
        assert_eq!(required_role("/e2llm.v1.Index/Commit"), Some(Role::Worker));
        assert_eq!(required_role("/e2llm.v1.Index/New"), Some(Role::Admin));
        assert_eq!(required_role("/other.Service/Any"), Some(Role::Admin));
        assert_eq!(required_role("relative"), Some(Role::Admin));
        assert!(Role::Read < Role::Write && Role::Write < Role::Worker && Role::Worker < Role::Admin);
    }

    #[test]
    fn only_garbage_collection_and_expiry_are_left_to_admins() {
        let of_admins = |rpc: &&String| required_role(&format!("/e2llm.v1.{rpc}")) == Some(Role::Admin);
        let mut admins: Vec<&String> = e2llm_api::rpcs().iter().filter(of_admins).collect();
        admins.sort();
        assert_eq!(admins, ["Coordinator/ExpireJobs", "Coordinator/HeldTexts", "Index/CollectGarbage"]);
    }
}
