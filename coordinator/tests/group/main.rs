//! Several coordinators as one group.

#![allow(clippy::unwrap_used, reason = "a story that fails should fail loudly")]

#[path = "../agent/mod.rs"]
mod agent;
mod support;
mod watching;

use steading_proto::v1;
use steading_proto::v1::cluster_member::Role;
use steading_proto::v1::replication_client::ReplicationClient;
use support::{Member, Place, leader, soon, until};
use tonic::Code;

/// Elections that one leader's end may cause where nobody stands still.
const ELECTIONS_MAX: u64 = 3;

#[tokio::test(flavor = "multi_thread")]
async fn a_group_of_one_becomes_three_and_outlives_its_leader() {
    let place = Place::new();
    let a = place.found("a").await;
    let first = a.submit("first").await;
    let b = place.join("b", &a).await;
    let status = until("a learner", async || {
        let status = a.status().await.ok()?;
        let roles = status.members.iter().map(|member| member.role());
        roles.eq([Role::Voter, Role::Learner]).then_some(status)
    })
    .await;
    assert_eq!(status.members[1].endpoint, place.endpoint("b"));
    let c = place.join("c", &a).await;
    a.voters("three voters", &[1, 2, 3]).await;
    let second = a.submit("second").await;

    a.kill().await;
    let rest = [b, c];
    let leads = leader(&rest).await;
    for run in [first, second] {
        assert!(rest[leads].has_run(run).await, "run {run} was lost");
    }
    let third = rest[leads].submit("third").await;
    assert!(third > second);

    let a = place.restart("a").await;
    rest[leads].voters("the one that was away", &[1, 2, 3]).await;
    stop([vec![a], rest.into()]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn leadership_is_handed_over_on_request_and_at_the_end() {
    let place = Place::new();
    let [a, b, c] = place.three().await;
    let run = a.submit("one").await;
    let request = v1::TransferLeadershipRequest { replica_id: 2 };
    // Refused where it was not heard of for a moment.
    let moved = until("the hand-over", async || {
        Some(a.cluster().transfer_leadership(request).await.ok()?.into_inner())
    });
    assert_eq!(moved.await.replica_id, 2);
    let status = b.voters("the new leader", &[1, 2, 3]).await;
    assert!(status.members[1].leader);

    let term = status.term;
    b.stop().await;
    let rest = [a, c];
    let leads = leader(&rest).await;
    assert!(rest[leads].has_run(run).await);
    // One candidate, asked to stand. Only on a machine that stood still may others have stood.
    let status = until("its status", async || rest[leads].status().await.ok()).await;
    let terms = status.term - term;
    assert!((1..=ELECTIONS_MAX).contains(&terms), "{terms} elections");
    stop([rest.into()]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_is_replaced_by_another_under_load() {
    let place = Place::new();
    let [a, b, c] = place.three().await;
    let remove = |force| v1::RemoveReplicaRequest { replica_id: 3, force };
    let refused = a.cluster().remove_replica(remove(false)).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");

    let d = place.join("d", &a).await;
    let mut runs = Vec::new();
    let removed = async {
        until("a learner that is up to date", async || {
            a.cluster().remove_replica(remove(false)).await.ok()
        })
        .await;
        a.voters("the replacement", &[1, 2, 4]).await
    };
    let load = async {
        for number in 0.. {
            runs.push(a.submit(&format!("load-{number}")).await);
        }
    };
    tokio::select! {
        status = removed => assert!(status.members[2].removed),
        () = load => (),
    }
    for run in runs {
        assert!(a.has_run(run).await, "run {run} was lost");
    }

    c.kill().await;
    let back = place.restart("c").await;
    let why = back.ends().await;
    assert!(why.contains("removed from the group"), "{why}");
    stop([vec![a, b, d]]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_is_removed_hands_over_first() {
    let place = Place::new();
    let [a, b, c] = place.three().await;
    let d = place.join("d", &a).await;
    let request = v1::RemoveReplicaRequest { replica_id: 1, force: false };
    let asked = until("the removal", async || match a.cluster().remove_replica(request).await {
        Err(status) if status.code() == Code::FailedPrecondition => None,
        other => Some(other),
    });
    // The answer is the group's, or where to ask for it.
    if let Err(status) = asked.await {
        assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    }
    let rest = [b, c, d];
    let leads = leader(&rest).await;
    rest[leads].voters("the others", &[2, 3, 4]).await;
    rest[leads].submit("after").await;
    a.kill().await;
    stop([rest.into()]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_disk_is_somebody_new_and_its_old_id_stays_out() {
    let place = Place::new();
    let [a, b, c] = place.three().await;
    let run = a.submit("one").await;
    c.kill().await;
    until("the directory", async || {
        steading_coordinator::replica::DirLock::take(&place.data("c").join("replica")).ok()
    })
    .await;
    std::fs::remove_dir_all(place.data("c")).unwrap();
    let c = place.join("c", &a).await;
    let request = v1::RemoveReplicaRequest { replica_id: 3, force: false };
    until("the replacement", async || a.cluster().remove_replica(request).await.ok()).await;
    let status = a.voters("the new disk in the place of the old", &[1, 2, 4]).await;
    assert_eq!(status.members[2].endpoint, status.members[3].endpoint);

    b.kill().await;
    let rest = [a, c];
    let leads = leader(&rest).await;
    assert!(rest[leads].has_run(run).await);
    rest[leads].submit("two").await;
    stop([rest.into()]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_sees_another_origin_under_the_same_name_is_not_let_in() {
    let place = Place::new();
    let a = place.found("a").await;
    let status = a.voters("itself", &[1]).await;
    // A copy of the group's, or one that was mounted late.
    let other = place.data("other-origin");
    std::fs::create_dir_all(other.join("clusters")).unwrap();
    std::fs::write(other.join("clusters").join(&status.cluster_id), "").unwrap();
    let refused = place.start_at("b", std::slice::from_ref(&a.endpoint), &other).await;
    let why = format!("{:#}", refused.map(drop).unwrap_err());
    assert!(why.contains("is another place than the group's"), "{why}");
    assert_eq!(a.status().await.unwrap().members.len(), 1);

    // The same directory joins once the right one is there.
    let b = place.join("b", &a).await;
    until("a learner", async || (a.status().await.ok()?.members.len() == 2).then_some(())).await;
    stop([vec![a, b]]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_is_not_heard() {
    let place = Place::new();
    let a = place.found("a").await;
    a.submit("one").await;
    let status = a.voters("itself", &[1]).await;
    let sender = v1::Sender {
        cluster_id: status.cluster_id.clone(),
        from: 9,
        from_storage_id: "9".repeat(32),
        to: 1,
        to_storage_id: status.members[0].storage_id.clone(),
        from_endpoint: place.endpoint("nobody"),
    };
    let cases = [
        (v1::Sender { cluster_id: "other".into(), ..sender.clone() }, "another group"),
        (v1::Sender { to: 2, ..sender.clone() }, "another replica"),
        (v1::Sender { to_storage_id: "8".repeat(32), ..sender.clone() }, "another replica"),
        (v1::Sender { from: 1, ..sender.clone() }, "this replica's id"),
    ];
    for (sender, want) in cases {
        let mut client = ReplicationClient::new(a.channel());
        let ping = v1::PingRequest { sender: Some(sender.clone()) };
        let refused = client.ping(ping).await.unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition);
        assert!(refused.message().contains(want), "{refused:?}");
        let batch = v1::ReplicationBatch { sender: Some(sender), messages: Vec::new() };
        let refused = client.send(tokio_stream::iter([batch])).await.unwrap_err();
        assert!(refused.message().contains(want), "{refused:?}");
    }
    let batch = v1::ReplicationBatch { sender: None, messages: Vec::new() };
    let refused = ReplicationClient::new(a.channel()).send(tokio_stream::iter([batch])).await;
    assert_eq!(refused.unwrap_err().code(), Code::InvalidArgument);
    stop([vec![a]]).await;
}

async fn stop<const N: usize>(groups: [Vec<Member>; N]) {
    for member in groups.into_iter().flatten() {
        soon("the end", member.stop()).await;
    }
}
