//! The replica with its threads, on a real disk.

mod group;
mod power;
mod rot;

use std::path::Path;
use std::sync::Arc;

use steading_core::{Effect, NewAgent, Proposal};
use steading_model::AgentId;

use super::sim_fs::SimFs;
use super::testkit::{Layout, MemStore, StepReplica};
use super::{
    Cadence, Notice, Options, ProposeError, Replica, ReplicaError, ReplicaThread, StartError,
    Started,
};

#[tokio::test]
async fn what_was_acknowledged_is_there_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let (replica, thread, _notices) = start(dir.path());
    let one = register(&replica, "one").await;
    let two = register(&replica, "two").await;
    assert_ne!(one, two);
    stop(&replica, thread).await;

    let (replica, thread, _notices) = start(dir.path());
    replica.read_barrier().await.unwrap();
    let state = replica.view();
    assert_eq!(state.agent_by_name("one").map(|agent| agent.id), Some(one));
    assert_eq!(state.agent_by_name("two").map(|agent| agent.id), Some(two));
    state.check_invariants().unwrap();
    stop(&replica, thread).await;
}

#[tokio::test]
async fn an_answer_comes_after_the_view_that_holds_it() {
    let dir = tempfile::tempdir().unwrap();
    let (replica, thread, mut notices) = start(dir.path());
    let changes = replica.changes();
    let agent = register(&replica, "one").await;
    assert!(replica.view().agent(agent).is_some());
    assert_eq!(*changes.borrow(), replica.view().version());
    // A new leader begins with what is outstanding, then hears of effects.
    assert_eq!(notices.recv().await, Some(Notice::Resync));
    assert!(matches!(notices.recv().await, Some(Notice::Effects(_))));
    stop(&replica, thread).await;
    assert_eq!(replica.propose(agent_named("late")).await, Err(ProposeError::Stopped));
    assert_eq!(notices.recv().await, None, "the notices end with the replica");
}

#[tokio::test]
async fn a_consumer_that_falls_behind_is_told_so_and_stops_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let (replica, thread, mut notices) = start(dir.path());
    for number in 0..2 * super::NOTICES_MAX {
        register(&replica, &format!("agent-{number}")).await;
    }
    let mut resyncs = 0;
    let mut effects = 0;
    while effects + resyncs < super::NOTICES_MAX {
        match notices.recv().await.unwrap() {
            Notice::Effects(_) => effects += 1,
            Notice::Resync => resyncs += 1,
        }
    }
    assert_eq!(notices.recv().await, Some(Notice::Resync), "what was dropped is made up for");
    assert_eq!(resyncs, 1, "the first was that of the new leader");
    stop(&replica, thread).await;
}

#[tokio::test]
async fn a_directory_belongs_to_one_process() {
    let dir = tempfile::tempdir().unwrap();
    let (replica, thread, _notices) = start(dir.path());
    let second = Replica::start(options(dir.path()));
    assert!(matches!(second.unwrap_err(), StartError::Identity(_)));
    stop(&replica, thread).await;
    let (replica, thread, _notices) = start(dir.path());
    stop(&replica, thread).await;
}

#[tokio::test]
async fn image_snapshots_and_segments_follow_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let (replica, thread, _notices) = start(dir.path());
    for number in 0..400 {
        register(&replica, &format!("agent-{number}")).await;
    }
    let chain = replica.view().chain();
    stop(&replica, thread).await;
    assert!(count(&dir.path().join("snapshots")) > 0, "snapshots were taken");
    let segments = count(&dir.path().join("wal"));
    assert!(segments < 30, "{segments} segments are left, so the log is not cut");

    let (replica, thread, _notices) = start(dir.path());
    replica.read_barrier().await.unwrap();
    assert_eq!(replica.view().chain(), chain);
    stop(&replica, thread).await;
}

#[test]
fn a_replica_that_differs_from_the_leader_stops() {
    let mut replica = on_a_simulated_disk();
    let state = replica.state().clone();
    // What the leader says of the entry that its first one was.
    let right = Proposal::CompareChain { index: 2, chain: state.chain() };
    replica.propose(&[vec![right]]).unwrap()[0].as_ref().unwrap();
    let wrong = Proposal::CompareChain { index: 2, chain: [1; 32] };
    let error = replica.propose(&[vec![wrong]]).unwrap_err();
    assert!(matches!(error, ReplicaError::Diverged { index: 2 }), "{error}");
}

#[test]
fn a_kind_of_a_later_level_stops_a_replica_instead_of_being_skipped() {
    let mut replica = on_a_simulated_disk();
    let error = replica.propose(&[vec![Proposal::Probe { note: "new".into() }]]).unwrap_err();
    assert!(matches!(error, ReplicaError::Entry { index: 3, .. }), "{error}");
}

#[tokio::test]
async fn an_older_version_does_not_go_on_from_a_later_level() {
    let dir = tempfile::tempdir().unwrap();
    let next = Options { feature_level: 2, ..options(dir.path()) };
    let Started { replica, thread, .. } = Replica::start(next).unwrap();
    let probe = || Proposal::Probe { note: "new".into() };
    let refused = replica.propose(probe()).await;
    assert!(matches!(refused, Err(ProposeError::Rejected(_))), "{refused:?}");
    let me = Proposal::UpdateReplica {
        replica: replica.id(),
        storage_id: replica.storage_id().to_owned(),
        endpoint: "https://a:1".into(),
        level: 2,
    };
    replica.propose(me).await.unwrap();
    let mut changes = replica.changes();
    changes.wait_for(|_| replica.view().feature_level() == 2).await.unwrap();
    replica.propose(probe()).await.unwrap();
    stop(&replica, thread).await;

    let why = match Replica::start(options(dir.path())) {
        // Only the log knows.
        Ok(Started { thread, .. }) => {
            tokio::task::spawn_blocking(|| thread.join()).await.unwrap().unwrap_err().to_string()
        }
        Err(error) => error.to_string(),
    };
    assert!(why.contains("the group is at feature level 2"), "{why}");
}

/// The version that was tried and taken back may have hashed other bytes: what its chain
/// holds says nothing, until the chain begins anew.
#[tokio::test]
async fn a_version_that_was_taken_back_is_not_held_against_the_replica() {
    let dir = tempfile::tempdir().unwrap();
    let wrong = |at: u64| Proposal::CompareChain { index: at, chain: [1; 32] };
    let announced = |replica: &Replica, level| Proposal::UpdateReplica {
        replica: replica.id(),
        storage_id: replica.storage_id().to_owned(),
        endpoint: "https://a:1".into(),
        level,
    };
    let (replica, thread, _notices) = start(dir.path());
    replica.propose(announced(&replica, 1)).await.unwrap();
    stop(&replica, thread).await;

    // It ends before it could say that it is a later one. What it applied is in its image.
    let now = options(dir.path());
    let cadence = Cadence { checkpoint_entries: 1, ..now.cadence };
    let Started { replica, thread, .. } =
        Replica::start(Options { feature_level: 2, cadence, ..now }).unwrap();
    register(&replica, "one").await;
    register(&replica, "two").await;
    stop(&replica, thread).await;

    let (replica, thread, _notices) = start(dir.path());
    register(&replica, "three").await;
    let at = replica.status().await.unwrap().applied;
    replica.propose(wrong(at)).await.unwrap();
    replica.propose(announced(&replica, 2)).await.unwrap();
    replica.propose(announced(&replica, 1)).await.unwrap();
    let at = replica.status().await.unwrap().applied;
    let refused = replica.propose(wrong(at)).await;
    assert!(matches!(refused, Err(ProposeError::Stopped | ProposeError::Unknown)), "{refused:?}");
    let ended = tokio::task::spawn_blocking(|| thread.join()).await.unwrap();
    assert!(matches!(ended, Err(ReplicaError::Diverged { .. })), "{ended:?}");
}

fn on_a_simulated_disk() -> StepReplica {
    let cadence = Cadence { checkpoint_entries: 50, checkpoint_ms: 1000, snapshot_bytes: 8 << 10 };
    let layout = Layout {
        vfs: Arc::new(SimFs::new()),
        dir: "/replica".into(),
        segment_bytes: 4 << 10,
        frame_bytes: 1 << 10,
        cadence,
    };
    StepReplica::open(&layout, Box::new(MemStore::default())).unwrap()
}

async fn register(replica: &Replica, name: &str) -> AgentId {
    let effects = replica.propose(agent_named(name)).await.unwrap();
    let registered = effects.iter().find_map(|effect| match effect {
        Effect::Registered { agent, .. } => Some(*agent),
        _ => None,
    });
    registered.expect("a registration answers with the agent")
}

fn agent_named(name: &str) -> Proposal {
    Proposal::RegisterAgent {
        agent: NewAgent {
            name: name.into(),
            pool: "pool".into(),
            provisioning: steading_model::Provisioning::OnDemand,
            labels: vec!["linux".into()],
            slots: 1,
            resources: steading_model::Resources { cpu_milli: 1000, memory_mib: 1024 },
            cache_endpoint: String::new(),
            start: 0,
            properties: std::collections::BTreeMap::new(),
        },
    }
}

fn options(dir: &Path) -> Options {
    let mut options = Options::embedded(dir.to_owned());
    options.segment_bytes = 4 << 10;
    options.cadence.checkpoint_entries = 50;
    options.cadence.snapshot_bytes = 8 << 10;
    options
}

fn start(dir: &Path) -> (Replica, ReplicaThread, tokio::sync::mpsc::Receiver<Notice>) {
    let Started { replica, thread, notices, .. } = Replica::start(options(dir)).unwrap();
    (replica, thread, notices)
}

async fn stop(replica: &Replica, thread: ReplicaThread) {
    replica.stop();
    tokio::task::spawn_blocking(move || thread.join()).await.unwrap().unwrap();
}

fn count(dir: &Path) -> usize {
    std::fs::read_dir(dir).unwrap().count()
}
