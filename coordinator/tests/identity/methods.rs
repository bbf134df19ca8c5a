//! Every method that is served, and who may call it: said here once more, so that a
//! change of the coordinator's table is a change of two files.

use bytes::Bytes;
use prost::Message as _;
use prost_types::FileDescriptorSet;
use steading_proto::v1;
use steading_proto::v1::agents_client::AgentsClient;
use tonic::codec::{BufferSettings, Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic::{Request, Status};

const MEMBERS: &str = "coordinator agent client admin";

/// Paths, and the roles that may.
pub(crate) fn all() -> Vec<(&'static str, &'static str)> {
    let ours = [
        ("Pipelines", "client admin", &["Submit", "GetRun", "ListRuns", "CancelRun"][..]),
        ("Pipelines", "coordinator client admin", &["WatchRun"]),
        ("Pipelines", "client admin", &["ReadLog", "ListArtifacts", "ExplainJob", "RetryRun"]),
        ("Agents", "agent admin", &["Register", "Session", "CompleteAttempt", "ReleaseLease"]),
        ("Agents", "agent admin", &["ClaimAction", "ResolveClaim", "RecordArtifact"]),
        ("Agents", "agent admin", &["ListRunArtifacts", "AppendLog", "WatchLeader", "HandBack"]),
        ("Join", "stranger", &["Join"]),
        ("Join", MEMBERS, &["Renew", "GetBundle"]),
        ("Identities", "admin", &["CreateToken", "ListTokens", "RevokeToken"]),
        ("Identities", "admin", &["Deny", "Allow", "ListDenials"]),
        ("Replication", "coordinator", &["Send", "Snapshot", "Ping"]),
        ("Backups", "admin", &["Backup"]),
        ("Fleet", "client admin", &["ListAgents"]),
        ("Fleet", "admin", &["CordonAgent", "DrainAgent", "RemoveAgent"]),
        ("Cluster", "admin", &["RemoveReplica", "TransferLeadership"]),
        ("Cluster", "coordinator admin", &["AdmitReplica"]),
        ("Cluster", "client admin", &["GetClusterStatus"]),
    ];
    let ours = ours.into_iter().flat_map(|(service, roles, methods)| {
        methods.iter().map(move |method| (format!("/steading.v1.{service}/{method}"), roles))
    });
    let others = [
        ("/build.bazel.remote.execution.v2.Capabilities/GetCapabilities", MEMBERS),
        ("/build.bazel.remote.execution.v2.ContentAddressableStorage/FindMissingBlobs", MEMBERS),
        ("/build.bazel.remote.execution.v2.ContentAddressableStorage/BatchUpdateBlobs", MEMBERS),
        ("/build.bazel.remote.execution.v2.ContentAddressableStorage/BatchReadBlobs", MEMBERS),
        ("/build.bazel.remote.execution.v2.ContentAddressableStorage/GetTree", MEMBERS),
        ("/build.bazel.remote.execution.v2.ActionCache/GetActionResult", MEMBERS),
        ("/build.bazel.remote.execution.v2.ActionCache/UpdateActionResult", "agent admin"),
        ("/google.bytestream.ByteStream/Read", MEMBERS),
        ("/google.bytestream.ByteStream/Write", MEMBERS),
        ("/google.bytestream.ByteStream/QueryWriteStatus", MEMBERS),
        ("/grpc.health.v1.Health/Check", MEMBERS),
        ("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", "client admin"),
    ];
    let others = others.into_iter().map(|(path, roles)| (path.to_owned(), roles));
    // For as long as the test runs.
    ours.chain(others).map(|(path, roles)| (&*path.leak(), roles)).collect()
}

/// A method that is served, and is not called here, would be one that nobody looked at.
pub(crate) fn check_that_all_are_there() {
    let files = FileDescriptorSet::decode(steading_proto::FILE_DESCRIPTOR_SET).unwrap();
    let called: Vec<&str> = all().into_iter().map(|(path, _)| path).collect();
    for file in &files.file {
        for service in &file.service {
            for method in &service.method {
                let (package, service) = (file.package(), service.name());
                let path = format!("/{package}.{service}/{}", method.name());
                assert!(called.contains(&path.as_str()), "`{path}` is not called");
            }
        }
    }
}

/// Calls the method with bytes that are no message: how far it gets.
pub(crate) async fn call(channel: &Channel, path: &'static str) -> Status {
    let mut client = tonic::client::Grpc::new(channel.clone());
    if let Err(error) = client.ready().await {
        return Status::unavailable(error.to_string());
    }
    let request = Request::new(Bytes::from_static(b"\xff\xff\xff"));
    let path = PathAndQuery::from_static(path);
    let call = client.unary(request, path, Raw);
    match super::soon("an answer", call).await {
        Ok(_) => Status::ok(""),
        Err(status) => status,
    }
}

type Call = Box<dyn Fn(Channel) -> Answer>;
type Answer = std::pin::Pin<Box<dyn Future<Output = Result<(), Status>>>>;

/// Everything that an agent may say of a lease.
pub(crate) fn about(lease: v1::Lease) -> Vec<Call> {
    let lease = Some(lease);
    macro_rules! calls {
        ($($method:ident($request:expr)),* $(,)?) => {
            vec![$(Box::new(move |channel| {
                let request = $request;
                Box::pin(async move {
                    AgentsClient::new(channel).$method(request).await.map(|_| ())
                }) as Answer
            }) as Call),*]
        };
    }
    let digest = || format!("{}/1", "0".repeat(64));
    calls![
        complete_attempt(v1::CompleteAttemptRequest {
            lease,
            conclusion: v1::Conclusion::Success.into(),
            ..Default::default()
        }),
        release_lease(v1::ReleaseLeaseRequest { lease, ..Default::default() }),
        claim_action(v1::ClaimActionRequest { lease, action_digest: digest() }),
        resolve_claim(v1::ResolveClaimRequest { lease, action_digest: digest(), resolution: None }),
        record_artifact(v1::RecordArtifactRequest { lease, artifact: None }),
        list_run_artifacts(v1::ListRunArtifactsRequest { lease }),
    ]
}

/// Bytes as they are.
#[derive(Clone, Copy, Debug, Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        bytes::BufMut::put(buffer, item);
        Ok(())
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::default()
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        let length = bytes::Buf::remaining(buffer);
        Ok(Some(bytes::Buf::copy_to_bytes(buffer, length)))
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::default()
    }
}
