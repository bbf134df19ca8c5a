//! Who may do what, over the wire, with real certificates.

#![allow(clippy::unwrap_used, reason = "a story that fails should fail loudly")]

mod departed;
#[path = "../memory/mod.rs"]
mod memory;
mod methods;
mod support;

use std::sync::Arc;

use steading_model::{DigestFunction, Role};
use steading_proto::reapi::action_cache_client::ActionCacheClient;
use steading_proto::tls::{self, Identity, IdentityFiles, JoinToken, SpkiHash};
use steading_proto::v1::agent_message::Message as FromAgent;
use steading_proto::v1::agents_client::AgentsClient;
use steading_proto::v1::join_client::JoinClient;
use steading_proto::v1::pipelines_client::PipelinesClient;
use steading_proto::{reapi, reapi_digest, reapi_digest_function, v1};
use tonic::{Code, Status};

use support::{Farm, role, soon};

#[tokio::test]
async fn a_token_lets_one_key_in_and_answers_it_again() {
    let farm = Farm::start().await;
    let token = farm.token_for(v1::Role::Agent).await;
    let first = farm.join(&token, "a", "a").await.unwrap();
    assert_eq!(role(&first), (Role::Agent, "a".to_owned()));
    // The same key, after an answer that was lost.
    let again = farm.join(&token, "a", "a").await.unwrap();
    assert_eq!(again.current().certified.key, first.current().certified.key);
    // Another key, or another name.
    refused(farm.join(&token, "b", "b").await, "as often as it may be");
    refused(farm.join(&token, "b", "a").await, "another name");
    // The farm remembers who came.
    let tokens = farm.admin().list_tokens(v1::ListTokensRequest {}).await.unwrap().into_inner();
    assert_eq!((tokens.tokens[0].uses_left, &tokens.tokens[0].joined[..]), (0, &["a".into()][..]));
    farm.stop().await;
}

#[tokio::test]
async fn a_token_that_is_wrong_or_revoked_lets_nobody_in() {
    let farm = Farm::start().await;
    let token = farm.token_for(v1::Role::Client).await;
    let wrong = JoinToken { secret: "0".repeat(48), ..token.clone() };
    refused(farm.join(&wrong, "a", "a").await, "token is not known");
    let unknown = JoinToken { id: "0".into(), ..token.clone() };
    refused(farm.join(&unknown, "a", "a").await, "token is not known");
    // Who listens there is not the farm that the token is of.
    let elsewhere = JoinToken { pin: SpkiHash([7; 32]), ..token.clone() };
    refused(farm.join(&elsewhere, "a", "a").await, "no coordinator of this farm");
    farm.admin().revoke_token(v1::RevokeTokenRequest { id: token.id.clone() }).await.unwrap();
    refused(farm.join(&token, "a", "a").await, "token is not known");
    farm.stop().await;
}

#[tokio::test]
async fn who_guesses_tokens_is_soon_not_heard() {
    let farm = Farm::start().await;
    let token = farm.token_for(v1::Role::Client).await;
    let wrong = JoinToken { secret: "0".into(), ..token.clone() };
    loop {
        let error = farm.join(&wrong, "a", "a").await.unwrap_err().to_string();
        if error.contains("try again later") {
            break;
        }
        assert!(error.contains("token is not known"), "{error}");
    }
    refused(farm.join(&token, "a", "a").await, "try again later");
    farm.stop().await;
}

#[tokio::test]
async fn names_in_a_request_count_for_nothing_and_nobody_takes_anothers() {
    let farm = Farm::start().await;
    let token = farm.token_for(v1::Role::Agent).await;
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::default();
    let admin = "spiffe://c/admin/root".try_into().unwrap();
    params.subject_alt_names = vec![rcgen::SanType::URI(admin)];
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let request = v1::JoinRequest {
        token_id: token.id.clone(),
        secret: token.secret.clone(),
        csr: params.serialize_request(&key).unwrap().der().to_vec().into(),
        name: "a".into(),
        authority_csr: Default::default(),
    };
    let stranger = tls::pinned_channel(&farm.endpoint, token.pin).unwrap();
    let answer = JoinClient::new(stranger).join(request).await.unwrap().into_inner();
    let leaf = answer.certificates[0].to_vec().into();
    let certified = tls::Certified::read(&leaf).unwrap();
    assert_eq!((certified.id.role(), certified.id.id()), (Role::Agent, "a"));
    // The name is taken; a token that is bound to it may give it to another key.
    let token = farm.token_for(v1::Role::Agent).await;
    refused(farm.join(&token, "a", "thief").await, "name belongs to another key");
    let first = farm.join(&token, "b", "b").await.unwrap();
    let bound = v1::CreateTokenRequest {
        role: v1::Role::Agent.into(),
        name: "b".into(),
        ..Default::default()
    };
    let bound = farm.token(bound).await;
    let successor = farm.join(&bound, "", "successor").await.unwrap();
    // From then on the first key is nobody's, though its certificate is good for a while.
    let refused = register(&farm, &first, "b", "default").await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    register(&farm, &successor, "b", "default").await.unwrap();
    farm.stop().await;
}

#[tokio::test]
async fn a_renewed_certificate_is_used_without_a_restart() {
    let farm = Farm::start().await;
    let agent = farm.member(v1::Role::Agent, "a").await;
    let first = agent.current().certified.clone();
    soon("the renewal", tls::renew(&agent, std::slice::from_ref(&farm.endpoint))).await.unwrap();
    let second = agent.current().certified.clone();
    assert_eq!((first.key, &first.id), (second.key, &second.id));
    assert_ne!(first.serial, second.serial);
    register(&farm, &agent, "a", "default").await.unwrap();
    // Only the key of the certificate that is shown is certified anew.
    let other = farm.member(v1::Role::Agent, "b").await;
    let key = IdentityFiles::read(other.dir()).unwrap().key;
    let csr = tls::request_for(&rcgen::KeyPair::from_pem(&key).unwrap()).unwrap();
    let mut client = JoinClient::new(farm.channel(&agent));
    let refused = client.renew(v1::RenewRequest { csr: csr.into() }).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    farm.stop().await;
}

#[tokio::test]
async fn an_agent_speaks_for_itself_only() {
    let farm = Farm::start().await;
    let (one, other) =
        (farm.member(v1::Role::Agent, "one").await, farm.member(v1::Role::Agent, "other").await);
    let id = register(&farm, &one, "one", "default").await.unwrap().agent_id;
    let refused = register(&farm, &other, "one", "default").await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    for name in ["one", "other", ""] {
        let refused = hello(&farm, &other, id, name).await.unwrap_err();
        let codes = [Code::PermissionDenied, Code::FailedPrecondition];
        assert!(codes.contains(&refused.code()), "as `{name}`: {refused}");
    }
    hello(&farm, &one, id, "").await.unwrap();
    farm.stop().await;
}

#[tokio::test]
async fn an_agent_says_nothing_of_anothers_lease() {
    let farm = Farm::start().await;
    let (one, other) =
        (farm.member(v1::Role::Agent, "one").await, farm.member(v1::Role::Agent, "other").await);
    let id = register(&farm, &one, "one", "default").await.unwrap().agent_id;
    let client = farm.member(v1::Role::Client, "ada").await;
    let store = farm.coordinator.store();
    let source = store.put(DigestFunction::Blake3, b"").unwrap();
    let submit = v1::SubmitRequest {
        request_id: "r".into(),
        file: "ci.yml".into(),
        pipeline:
            b"on: push\njobs:\n  a:\n    runs-on: self-hosted\n    steps:\n      - run: 'true'\n"
                .to_vec()
                .into(),
        source_digest: source.to_string(),
        event_name: "push".into(),
        ..Default::default()
    };
    let run = PipelinesClient::new(farm.channel(&client)).submit(submit).await.unwrap();
    let lease = offered(&farm, &one, id).await;
    for denied in methods::about(lease) {
        let refused = denied(farm.channel(&other)).await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    }
    let request = v1::GetRunRequest { run_id: run.into_inner().run_id };
    let run = PipelinesClient::new(farm.channel(&client)).get_run(request).await.unwrap();
    let run = run.into_inner();
    assert_eq!(run.principal, "ada");
    // What actions gave it says where it works, and nowhere else.
    let says = async |who: &Arc<Identity>, scope: &str| {
        let request = reapi::UpdateActionResultRequest {
            instance_name: scope.to_owned(),
            action_digest: Some(reapi::Digest { hash: "a".repeat(64), size_bytes: 1 }),
            action_result: Some(reapi::ActionResult::default()),
            ..Default::default()
        };
        let mut client = ActionCacheClient::new(farm.channel(who));
        client.update_action_result(request).await.map(|_| ())
    };
    says(&one, &run.project).await.unwrap();
    for (who, scope) in [(&one, "another"), (&one, ""), (&other, &run.project)] {
        let refused = says(who, scope).await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    }
    farm.stop().await;
}

#[tokio::test]
async fn an_agent_registers_in_the_pool_of_its_token() {
    let farm = Farm::start().await;
    let request = v1::CreateTokenRequest {
        role: v1::Role::Agent.into(),
        pool: "spot".into(),
        ..Default::default()
    };
    let token = farm.token(request).await;
    let agent = farm.join(&token, "a", "a").await.unwrap();
    let refused = register(&farm, &agent, "a", "default").await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    register(&farm, &agent, "a", "spot").await.unwrap();
    farm.stop().await;
}

#[tokio::test]
async fn every_call_needs_a_member_of_the_right_role() {
    let farm = Farm::start().await;
    let cluster = farm.coordinator.secure().await.unwrap().current();
    let cluster = cluster.certified.id.cluster().to_owned();
    let id = |role: &str| format!("spiffe://{cluster}/{role}/x");
    let stranger = farm.token_for(v1::Role::Client).await.pin;
    let stranger = tls::pinned_channel(&farm.endpoint, stranger).unwrap();
    let roles = ["coordinator", "agent", "client", "admin"];
    let members = roles.map(|role| (role, farm.channel(&farm.forged(&id(role), (-1, 24)))));
    let unbelieved = [
        ("another CA", farm.foreign(&id("admin"))),
        ("expired", farm.forged(&id("admin"), (-48, -24))),
        ("another cluster", farm.forged("spiffe://beef/admin/x", (-1, 24))),
    ];
    let denied = farm.forged(&format!("spiffe://{cluster}/admin/denied"), (-1, 24));
    deny(&farm, &denied.current().certified.id.to_string()).await;
    let serial = farm.forged(&id("admin"), (-1, 24));
    deny(&farm, &format!("serial:{}", serial.current().certified.serial)).await;
    methods::check_that_all_are_there();
    for (path, allowed) in methods::all() {
        let code = methods::call(&stranger, path).await.code();
        let want = if allowed == "stranger" { Code::Ok } else { Code::Unauthenticated };
        assert_eq!(code == Code::Unauthenticated, want == Code::Unauthenticated, "{path}");
        for (role, channel) in &members {
            let may = allowed == "stranger" || allowed.split(' ').any(|one| one == *role);
            let code = methods::call(channel, path).await.code();
            assert_eq!(code != Code::PermissionDenied, may, "{role} on {path}: {code:?}");
        }
        for (what, identity) in &unbelieved {
            let code = methods::call(&farm.channel(identity), path).await.code();
            let turned_away = [Code::Unavailable, Code::Unknown, Code::Internal, Code::Cancelled];
            assert!(turned_away.contains(&code), "{what} on {path}: {code:?}");
        }
        for identity in [&denied, &serial] {
            let code = methods::call(&farm.channel(identity), path).await.code();
            // Cut off, or told.
            let codes = [Code::PermissionDenied, Code::Unavailable, Code::Unknown, Code::Cancelled];
            assert!(codes.contains(&code), "denied on {path}: {code:?}");
        }
    }
    let unknown = methods::call(&members[3].1, "/steading.v1.Pipelines/Else").await;
    assert_eq!(unknown.code(), Code::Unimplemented);
    farm.stop().await;
}

#[tokio::test]
async fn a_denied_agents_session_ends_and_it_comes_back_when_it_is_allowed() {
    let farm = Farm::start().await;
    let agent = farm.member(v1::Role::Agent, "a").await;
    let id = register(&farm, &agent, "a", "default").await.unwrap().agent_id;
    let mut session = hello(&farm, &agent, id, "a").await.unwrap();
    let name = agent.current().certified.id.to_string();
    deny(&farm, &name).await;
    soon("the end of the session", async { while let Ok(Some(_)) = session.1.message().await {} })
        .await;
    let refused = register(&farm, &agent, "a", "default").await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    let denials = farm.admin().list_denials(v1::ListDenialsRequest {}).await.unwrap().into_inner();
    assert_eq!(denials.denials[0].subject, name);
    farm.admin().allow(v1::AllowRequest { subject: name }).await.unwrap();
    register(&farm, &agent, "a", "default").await.unwrap();
    farm.stop().await;
}

#[tokio::test]
async fn a_coordinator_joins_with_a_ca_of_its_own_and_is_believed_through_it() {
    let farm = Farm::start().await;
    let token = farm.token_for(v1::Role::Coordinator).await;
    let (dir, storage_id) = (farm.member_dir("second"), "2".repeat(32));
    let endpoints = [farm.endpoint.clone()];
    let join = || steading_coordinator::join_cluster(&dir, &storage_id, &endpoints, &token);
    let joined = join().await.unwrap();
    assert_eq!(role(&joined), (Role::Coordinator, storage_id.clone()));
    // Again, as after a crash: the same key, and the same CA.
    let again = join().await.unwrap();
    assert_eq!(again.current().certified.key, joined.current().certified.key);
    // Two CAs are known to everybody now.
    let agent = farm.member(v1::Role::Agent, "a").await;
    let mut client = JoinClient::new(farm.channel(&agent));
    let bundle = client.get_bundle(v1::GetBundleRequest {}).await.unwrap().into_inner();
    assert_eq!(bundle.anchors.len(), 2);
    // What is for agents makes no coordinator, and the other way round.
    let token = farm.token_for(v1::Role::Agent).await;
    let (dir, storage_id) = (farm.member_dir("third"), "3".repeat(32));
    let third = steading_coordinator::join_cluster(&dir, &storage_id, &endpoints, &token);
    assert!(third.await.unwrap_err().to_string().contains("--role coordinator"));
    let token = farm.token_for(v1::Role::Coordinator).await;
    refused(farm.join(&token, "b", "b").await, "is for a coordinator");
    farm.stop().await;
}

fn refused(joined: Result<Arc<Identity>, tls::EnrollError>, want: &str) {
    let error = joined.map(|identity| role(&identity)).unwrap_err().to_string();
    assert!(error.contains(want), "`{error}` does not say `{want}`");
}

async fn deny(farm: &Farm, subject: &str) {
    let request = v1::DenyRequest { subject: subject.to_owned(), reason: "left".into() };
    farm.admin().deny(request).await.unwrap();
}

async fn register(
    farm: &Farm,
    identity: &Arc<Identity>,
    name: &str,
    pool: &str,
) -> Result<v1::RegisterResponse, Status> {
    let request = v1::RegisterRequest {
        name: name.into(),
        pool: pool.into(),
        slots: 1,
        cpu_milli: 1_000,
        memory_mib: 1_000,
        labels: vec!["self-hosted".into()],
        ..Default::default()
    };
    let response = AgentsClient::new(farm.channel(identity)).register(request).await;
    response.map(tonic::Response::into_inner)
}

type Session =
    (tokio::sync::mpsc::Sender<v1::AgentMessage>, tonic::Streaming<v1::CoordinatorMessage>);

/// Opens a session, up to its `Welcome`.
async fn hello(
    farm: &Farm,
    identity: &Arc<Identity>,
    agent_id: u64,
    name: &str,
) -> Result<Session, Status> {
    let (sender, receiver) = tokio::sync::mpsc::channel(4);
    let hello = v1::Hello { agent_id, incarnation: 1, running: Vec::new(), name: name.into() };
    let hello = v1::AgentMessage { message: Some(FromAgent::Hello(hello)) };
    sender.send(hello).await.unwrap();
    let outbound = tokio_stream::wrappers::ReceiverStream::new(receiver);
    let mut client = AgentsClient::new(farm.channel(identity));
    let mut inbound = client.session(outbound).await?.into_inner();
    soon("a welcome", inbound.message()).await?;
    Ok((sender, inbound))
}

/// The first lease that the agent is offered.
async fn offered(farm: &Farm, identity: &Arc<Identity>, agent_id: u64) -> v1::Lease {
    let (_sender, mut inbound) = hello(farm, identity, agent_id, "").await.unwrap();
    loop {
        let message =
            soon("an offer", inbound.message()).await.unwrap().expect("the session goes on");
        if let Some(v1::coordinator_message::Message::Offer(offer)) = message.message {
            return offer.lease.unwrap();
        }
    }
}

#[tokio::test]
async fn a_result_is_stored_under_the_name_of_who_wrote_it() {
    let farm = Farm::start().await;
    let admin = farm.member(v1::Role::Admin, "a").await;
    let action = steading_cas::hash::digest_of(DigestFunction::Blake3, b"action");
    let request = reapi::UpdateActionResultRequest {
        instance_name: "project".into(),
        action_digest: Some(reapi_digest(&action)),
        action_result: Some(reapi::ActionResult { exit_code: 0, ..Default::default() }),
        digest_function: reapi_digest_function(DigestFunction::Blake3),
        ..Default::default()
    };
    ActionCacheClient::new(farm.channel(&admin)).update_action_result(request).await.unwrap();
    let actions = farm.coordinator.actions();
    let entry = actions.get("project", DigestFunction::Blake3, &action).unwrap().unwrap();
    assert_eq!(entry.writer, "admin/a");
    farm.stop().await;
}
