//! Which roles may call which method. What is not here nobody may call.

use steading_model::Role;

/// Who may call a method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Who {
    /// Also callers without a certificate.
    Anybody,
    Roles(&'static [Role]),
}

impl Who {
    pub(super) fn includes(self, role: Option<Role>) -> bool {
        match self {
            Self::Anybody => true,
            Self::Roles(roles) => role.is_some_and(|role| roles.contains(&role)),
        }
    }
}

/// Everybody with a certificate.
const MEMBERS: Who = Who::Roles(&[Role::Coordinator, Role::Agent, Role::Client, Role::Admin]);
/// Who submits runs and looks at them.
const CLIENTS: Who = Who::Roles(&[Role::Client, Role::Admin]);
/// Who looks at runs; replicas, for those who do so there.
const WATCHERS: Who = Who::Roles(&[Role::Client, Role::Admin, Role::Coordinator]);
/// Who operates the farm.
const ADMINS: Who = Who::Roles(&[Role::Admin]);
/// Who runs jobs; an admin on this machine may do so by hand.
const AGENTS: Who = Who::Roles(&[Role::Agent, Role::Admin]);
/// Replicas among themselves.
const REPLICAS: Who = Who::Roles(&[Role::Coordinator]);
/// A coordinator that joins, or somebody on its machine.
const JOINERS: Who = Who::Roles(&[Role::Coordinator, Role::Admin]);

/// By path, as gRPC has it.
const TABLE: &[(&str, Who)] = &[
    ("/steading.v1.Pipelines/Submit", CLIENTS),
    ("/steading.v1.Pipelines/GetRun", CLIENTS),
    ("/steading.v1.Pipelines/ListRuns", CLIENTS),
    ("/steading.v1.Pipelines/WatchRun", WATCHERS),
    ("/steading.v1.Pipelines/CancelRun", CLIENTS),
    ("/steading.v1.Pipelines/ExplainJob", CLIENTS),
    ("/steading.v1.Pipelines/RetryRun", CLIENTS),
    ("/steading.v1.Pipelines/ReadLog", CLIENTS),
    ("/steading.v1.Pipelines/ListArtifacts", CLIENTS),
    ("/steading.v1.Agents/Register", AGENTS),
    ("/steading.v1.Agents/Session", AGENTS),
    ("/steading.v1.Agents/CompleteAttempt", AGENTS),
    ("/steading.v1.Agents/ReleaseLease", AGENTS),
    ("/steading.v1.Agents/ClaimAction", AGENTS),
    ("/steading.v1.Agents/ResolveClaim", AGENTS),
    ("/steading.v1.Agents/RecordArtifact", AGENTS),
    ("/steading.v1.Agents/ListRunArtifacts", AGENTS),
    ("/steading.v1.Agents/AppendLog", AGENTS),
    ("/steading.v1.Agents/WatchLeader", AGENTS),
    ("/steading.v1.Agents/HandBack", AGENTS),
    // The one call without a certificate: its token is looked at instead.
    ("/steading.v1.Join/Join", Who::Anybody),
    ("/steading.v1.Join/Renew", MEMBERS),
    ("/steading.v1.Join/GetBundle", MEMBERS),
    ("/steading.v1.Identities/CreateToken", ADMINS),
    ("/steading.v1.Identities/ListTokens", ADMINS),
    ("/steading.v1.Identities/RevokeToken", ADMINS),
    ("/steading.v1.Identities/Deny", ADMINS),
    ("/steading.v1.Identities/Allow", ADMINS),
    ("/steading.v1.Identities/ListDenials", ADMINS),
    ("/steading.v1.Backups/Backup", ADMINS),
    ("/steading.v1.Fleet/ListAgents", CLIENTS),
    ("/steading.v1.Fleet/CordonAgent", ADMINS),
    ("/steading.v1.Fleet/DrainAgent", ADMINS),
    ("/steading.v1.Fleet/RemoveAgent", ADMINS),
    ("/steading.v1.Cluster/GetClusterStatus", CLIENTS),
    ("/steading.v1.Cluster/AdmitReplica", JOINERS),
    ("/steading.v1.Cluster/RemoveReplica", ADMINS),
    ("/steading.v1.Cluster/TransferLeadership", ADMINS),
    ("/steading.v1.Replication/Send", REPLICAS),
    ("/steading.v1.Replication/Snapshot", REPLICAS),
    ("/steading.v1.Replication/Ping", REPLICAS),
    ("/build.bazel.remote.execution.v2.Capabilities/GetCapabilities", MEMBERS),
    ("/build.bazel.remote.execution.v2.ContentAddressableStorage/FindMissingBlobs", MEMBERS),
    ("/build.bazel.remote.execution.v2.ContentAddressableStorage/BatchUpdateBlobs", MEMBERS),
    ("/build.bazel.remote.execution.v2.ContentAddressableStorage/BatchReadBlobs", MEMBERS),
    ("/build.bazel.remote.execution.v2.ContentAddressableStorage/GetTree", MEMBERS),
    ("/build.bazel.remote.execution.v2.ActionCache/GetActionResult", MEMBERS),
    // What an action made is said by who executed it.
    ("/build.bazel.remote.execution.v2.ActionCache/UpdateActionResult", AGENTS),
    ("/google.bytestream.ByteStream/Read", MEMBERS),
    ("/google.bytestream.ByteStream/Write", MEMBERS),
    ("/google.bytestream.ByteStream/QueryWriteStatus", MEMBERS),
    ("/grpc.health.v1.Health/Check", MEMBERS),
    ("/grpc.health.v1.Health/Watch", MEMBERS),
    ("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", CLIENTS),
];

/// Who may call the method at this path; none: nobody.
pub(super) fn who(path: &str) -> Option<Who> {
    TABLE.iter().find(|(known, _)| *known == path).map(|(_, who)| *who)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use prost::Message as _;
    use prost_types::FileDescriptorSet;

    use super::*;

    #[test]
    fn every_method_of_our_services_has_its_line() {
        let files = FileDescriptorSet::decode(steading_proto::FILE_DESCRIPTOR_SET).unwrap();
        let mut ours = BTreeSet::new();
        for file in &files.file {
            for service in &file.service {
                for method in &service.method {
                    let (package, service) = (file.package(), service.name());
                    ours.insert(format!("/{package}.{service}/{}", method.name()));
                }
            }
        }
        assert!(ours.len() > 20, "only {} methods were found", ours.len());
        for path in &ours {
            assert!(who(path).is_some(), "say in the table who may call `{path}`");
        }
        let gone = TABLE.iter().map(|(path, _)| *path);
        let gone: Vec<&str> =
            gone.filter(|path| path.starts_with("/steading.") && !ours.contains(*path)).collect();
        assert!(gone.is_empty(), "the table has methods that are no more: {gone:?}");
    }

    #[test]
    fn one_method_is_for_strangers() {
        let open = TABLE.iter().filter(|(_, who)| who.includes(None));
        let open: Vec<&str> = open.map(|(path, _)| *path).collect();
        assert_eq!(open, ["/steading.v1.Join/Join"]);
        assert_eq!(who("/steading.v1.Join/join"), None);
        let paths: BTreeSet<&str> = TABLE.iter().map(|(path, _)| *path).collect();
        assert_eq!(paths.len(), TABLE.len(), "a method stands there twice");
    }
}
