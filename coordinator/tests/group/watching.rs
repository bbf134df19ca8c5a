//! Who watches a run at a replica that follows sees what the leader is told.

use steading_proto::v1;
use steading_proto::v1::pipelines_client::PipelinesClient;
use tonic::Streaming;

use crate::agent::Agent;
use crate::support::{Member, Place, soon, until};

#[tokio::test(flavor = "multi_thread")]
async fn one_watch_at_a_follower_shows_every_step_whoever_leads() {
    let place = Place::new();
    let [a, b, c] = place.three().await;
    let run_id = a.submit("one").await;
    let mut early = watch(&b, run_id).await;
    assert_eq!(seen(&mut early, |job| job.status() == v1::job::Status::Queued).await.attempt, 0);
    // The leader alone knows who is connected.
    let mut agent = Agent::register(a.channel(), "agent").await;
    seen(&mut early, |job| job.waiting.ends_with("are not connected: agent")).await;

    connect(&mut agent, &a, &[]).await;
    let offer = agent.offer().await;
    let lease = agent.accept(&offer).await;
    agent.progress(lease, 1).await;
    assert_eq!(seen(&mut early, |job| job.steps.len() == 1).await.attempt, 1);
    // Who comes later sees all of it.
    let mut late = watch(&b, run_id).await;
    seen(&mut late, |job| job.steps.len() == 1).await;
    agent.progress(lease, 2).await;
    seen(&mut late, |job| job.steps.len() == 2).await;
    drop(late);

    transfer(&a, 3).await;
    connect(&mut agent, &c, &[lease]).await;
    agent.progress(lease, 3).await;
    seen(&mut early, |job| job.steps.len() == 3).await;

    // The one that is watched at leads, and then follows again.
    transfer(&c, 2).await;
    connect(&mut agent, &b, &[lease]).await;
    agent.progress(lease, 4).await;
    seen(&mut early, |job| job.steps.len() == 4).await;
    transfer(&b, 1).await;
    connect(&mut agent, &a, &[lease]).await;
    agent.progress(lease, 5).await;
    seen(&mut early, |job| job.steps.len() == 5).await;

    agent.complete(lease, String::new()).await.unwrap();
    let done = seen(&mut early, |job| job.status() == v1::job::Status::Done).await;
    assert_eq!((done.conclusion(), done.attempt), (v1::Conclusion::Success, 1));
    while soon("the end of the watch", early.message()).await.unwrap().is_some() {}
    crate::stop([vec![a, b, c]]).await;
}

/// A leader that was elected just now has not heard of everybody yet.
async fn transfer(leader: &Member, to: u64) {
    let request = v1::TransferLeadershipRequest { replica_id: to };
    until("a transfer", async || leader.cluster().transfer_leadership(request).await.ok()).await;
}

async fn watch(member: &Member, run_id: u64) -> Streaming<v1::WatchRunEvent> {
    let request = v1::WatchRunRequest { run_id, token: 0 };
    PipelinesClient::new(member.channel()).watch_run(request).await.unwrap().into_inner()
}

/// Reads until the run's one job is so.
async fn seen(
    events: &mut Streaming<v1::WatchRunEvent>,
    wanted: impl Fn(&v1::Job) -> bool,
) -> v1::Job {
    soon("what is wanted of the job", async {
        loop {
            let event = events.message().await.unwrap().expect("the watch goes on");
            if let Some(job) = event.jobs.into_iter().find(|job| wanted(job)) {
                return job;
            }
        }
    })
    .await
}

/// Opens a session with this leader, which may not lead yet.
async fn connect(agent: &mut Agent, leader: &Member, running: &[v1::Lease]) {
    let channel = leader.channel();
    let welcome =
        until("a welcome", async || agent.try_connect(channel.clone(), running).await.ok()).await;
    assert!(running.iter().all(|lease| welcome.leases.contains(lease)), "{welcome:?}");
}
