//! How a replica that does not lead says who does.
//!
//! The hint is one piece of metadata on an UNAVAILABLE status. It is a hint: whoever
//! follows it may be sent on, and who has none tries the other endpoints that it knows.

use tonic::{Code, Status};

/// Metadata key of the leader's endpoint, as the replica advertises it.
pub const LEADER: &str = "steading-leader";

/// Metadata key by which a replica that does not lead is known, also where it knows no leader.
const NOT_LEADER: &str = "steading-not-leader";

/// What a replica answers that does not lead. `leader`: where the one that it follows
/// listens, if it knows one.
pub fn not_leader(leader: Option<&str>) -> Status {
    let message = match leader {
        Some(endpoint) => format!("this replica is not the leader, `{endpoint}` is; try there"),
        None => "no replica leads at the moment; try again".to_owned(),
    };
    let mut status = Status::unavailable(message);
    status.metadata_mut().insert(NOT_LEADER, tonic::metadata::MetadataValue::from_static("1"));
    if let Some(value) = leader.and_then(|endpoint| endpoint.parse().ok()) {
        status.metadata_mut().insert(LEADER, value);
    }
    status
}

/// Whether a replica answered that does not lead.
pub fn is_not_leader(status: &Status) -> bool {
    status.code() == Code::Unavailable && status.metadata().contains_key(NOT_LEADER)
}

/// The endpoint that a [`not_leader`] answer names.
pub fn leader_of(status: &Status) -> Option<&str> {
    match status.code() {
        Code::Unavailable => status.metadata().get(LEADER)?.to_str().ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_the_leader_where_one_is_known() {
        let refused = not_leader(Some("https://10.0.0.7:7000"));
        assert_eq!(leader_of(&refused), Some("https://10.0.0.7:7000"));
        assert_eq!(refused.code(), Code::Unavailable);
        assert_eq!(leader_of(&not_leader(None)), None);
        assert!(is_not_leader(&not_leader(None)) && !is_not_leader(&Status::unavailable("busy")));
        // What cannot be metadata is still in the message, for people.
        let odd = not_leader(Some("https://\n"));
        assert_eq!(leader_of(&odd), None);
    }

    #[test]
    fn only_an_unavailable_replica_names_a_leader() {
        let mut other = Status::internal("broken");
        other.metadata_mut().insert(LEADER, "https://10.0.0.7:7000".parse().unwrap());
        assert_eq!(leader_of(&other), None);
    }
}
