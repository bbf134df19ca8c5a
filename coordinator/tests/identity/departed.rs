//! Who speaks for others, and until when.

use std::sync::Arc;

use steading_proto::tls::{Identity, IdentityFiles, request_for};
use steading_proto::v1;
use steading_proto::v1::cluster_client::ClusterClient;
use steading_proto::v1::identities_client::IdentitiesClient;
use steading_proto::v1::join_client::JoinClient;
use tonic::{Code, Request, Status};

use super::support::Farm;

#[tokio::test]
async fn nobody_but_a_coordinator_speaks_for_others() {
    let farm = Farm::start().await;
    for role in [v1::Role::Agent, v1::Role::Client] {
        let member = farm.member(role, "x").await;
        for name in ["admin/local", "admin/root", "coordinator/x", ""] {
            let refused = tokens_on_behalf(&farm, &member, name).await.unwrap_err();
            assert_eq!(refused.code(), Code::PermissionDenied, "as `{name}`: {refused}");
        }
    }
    farm.stop().await;
}

#[tokio::test]
async fn a_coordinator_speaks_for_others_while_it_is_a_member_and_is_not_renewed_after() {
    let farm = Farm::start_group().await;
    let token = farm.token_for(v1::Role::Coordinator).await;
    let (dir, storage_id) = (farm.member_dir("second"), "2".repeat(32));
    let endpoints = [farm.endpoint.clone()];
    let joined = steading_coordinator::join_cluster(&dir, &storage_id, &endpoints, &token);
    let second = joined.await.unwrap();
    let refused = tokens_on_behalf(&farm, &second, "admin/local").await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "before it is admitted: {refused}");

    let admit = || {
        let request = v1::AdmitReplicaRequest {
            storage_id: storage_id.clone(),
            endpoint: "https://127.0.0.1:1".into(),
            feature_level: 1,
            ..Default::default()
        };
        let mut client = ClusterClient::new(farm.channel(&second));
        async move { client.admit_replica(request).await.map(|answer| answer.into_inner()) }
    };
    let origin = steading_cas::Origin::directory(&farm.member_dir("origin")).unwrap();
    origin.leave_sign(&storage_id).await.unwrap();
    let replica_id = admit().await.unwrap().replica_id;
    tokens_on_behalf(&farm, &second, "admin/local").await.unwrap();
    let refused = tokens_on_behalf(&farm, &second, "client/ada").await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "a client asks, not the coordinator");
    for name in ["", "admin", "root/x", "admin/..", "admin/a/b"] {
        let refused = tokens_on_behalf(&farm, &second, name).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "as `{name}`");
    }
    renew(&farm, &second).await.unwrap();

    let request = v1::RemoveReplicaRequest { replica_id, force: true };
    ClusterClient::new(farm.here()).remove_replica(request).await.unwrap();
    let refused = tokens_on_behalf(&farm, &second, "admin/local").await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    let refused = renew(&farm, &second).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    // It is told why.
    let refused = admit().await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    farm.stop().await;
}

/// What only an admin may ask, as `name`.
async fn tokens_on_behalf(farm: &Farm, who: &Arc<Identity>, name: &str) -> Result<(), Status> {
    let mut request = Request::new(v1::ListTokensRequest {});
    request.metadata_mut().insert("steading-on-behalf-of", name.parse().unwrap());
    IdentitiesClient::new(farm.channel(who)).list_tokens(request).await.map(|_| ())
}

async fn renew(farm: &Farm, who: &Arc<Identity>) -> Result<(), Status> {
    let key = IdentityFiles::read(who.dir()).unwrap().key;
    let csr = request_for(&rcgen::KeyPair::from_pem(&key).unwrap()).unwrap();
    JoinClient::new(farm.channel(who)).renew(v1::RenewRequest { csr: csr.into() }).await.map(|_| ())
}
