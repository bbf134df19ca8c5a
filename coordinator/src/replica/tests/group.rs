//! Several replicas, their messages carried from one to the other in memory.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use raft::eraftpb::{
    ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2, Message, MessageType,
};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::{options, register};
use crate::replica::{Joined, ProposeError, Replica, ReplicaThread, Shipped, Started};

/// Longest wait for anything, and between two looks.
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK_PERIOD: Duration = Duration::from_millis(10);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_replicas_go_on_when_the_leader_is_lost_and_take_it_back() {
    let root = tempfile::tempdir().unwrap();
    let (mut group, first) = Group::found(root.path());
    let one = register(&first, "one").await;
    group.become_three(root.path()).await;
    register(&first, "two").await;
    group.knows(3, "two").await;
    let follower = group.replica(2);
    assert_eq!(follower.read_barrier().await, Err(ProposeError::NotLeader));
    register(&first, "seen").await;
    follower.read_barrier_anywhere().await.unwrap();
    assert!(follower.view().agent_by_name("seen").is_some(), "it was acknowledged before");
    let leave = change(&[1], ConfChangeType::RemoveNode);
    let refused = first.change_membership(leave).await;
    assert!(matches!(refused, Err(ProposeError::Membership(_))), "{refused:?}");

    group.stop(1).await;
    let leader = group.leader_of(&[2, 3]).await;
    let heir = group.replica(leader);
    assert_eq!(heir.view().agent_by_name("one").map(|agent| agent.id), Some(one));
    register(&heir, "three").await;

    group.start(1, &root.path().join("1"), None);
    group.knows(1, "three").await;
    let now = group.replica(1);
    assert_eq!(now.propose(super::agent_named("late")).await, Err(ProposeError::NotLeader));
    group.hand_over_to(1).await;
    register(&now, "four").await;
    group.knows(2, "four").await;
    assert_eq!(group.replica(2).view().chain(), now.view().chain());
    group.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_one_of_a_group_leads_also_after_a_restart() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("1");
    let (mut group, first) = Group::found(root.path());
    register(&first, "one").await;
    group.become_three(root.path()).await;
    // In the image it is one of three.
    group.stop(1).await;
    group.start(1, &dir, None);
    group.hand_over_to(1).await;
    let first = group.replica(1);
    first.change_membership(change(&[2, 3], ConfChangeType::RemoveNode)).await.unwrap();
    first.change_membership(ConfChangeV2::default()).await.unwrap();
    let mut members = first.membership_changes();
    members.wait_for(|now| now.voters == [1] && !now.is_joint()).await.unwrap();
    group.stop(1).await;
    group.start(1, &dir, None);
    let alone = group.replica(1);
    let mut standing = alone.standing();
    let leads = tokio::time::timeout(PATIENCE, standing.wait_for(|now| now.leads)).await;
    leads.expect("it leads").unwrap();
    register(&alone, "two").await;
    group.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_fell_behind_takes_the_snapshot_also_after_a_restart() {
    let root = tempfile::tempdir().unwrap();
    let (mut group, first) = Group::found(root.path());
    register(&first, "one").await;
    let dir = root.path().join("2");
    let joined = group.joined(2);
    group.start(2, &dir, Some(joined.clone()));
    first.change_membership(add_learner(2)).await.unwrap();
    group.knows(2, "one").await;
    group.stop(2).await;

    for number in 0..300 {
        register(&first, &format!("agent-{number}")).await;
    }
    group.start(2, &dir, Some(joined.clone()));
    group.knows(2, "agent-299").await;
    register(&first, "last").await;
    group.knows(2, "last").await;
    group.stop(2).await;

    group.start(2, &dir, Some(joined));
    group.knows(2, "last").await;
    assert_eq!(group.replica(2).view().chain(), first.view().chain());
    // Its disk does not become another replica.
    group.stop(2).await;
    let other = options_of(&dir, Some(group.joined(3)));
    assert!(Replica::start(other).is_err());
    group.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_that_is_cut_off_comes_again_and_leaves_nothing_behind() {
    let root = tempfile::tempdir().unwrap();
    let (mut group, first) = Group::found(root.path());
    for number in 0..300 {
        register(&first, &format!("agent-{number}")).await;
    }
    group.cuts.store(2, Ordering::Relaxed);
    let dir = root.path().join("2");
    group.start(2, &dir, Some(group.joined(2)));
    first.change_membership(add_learner(2)).await.unwrap();
    group.knows(2, "agent-299").await;
    assert_eq!(group.cuts.load(Ordering::Relaxed), 0, "it was cut off twice");
    register(&first, "last").await;
    group.knows(2, "last").await;
    assert_eq!(group.replica(2).view().chain(), first.view().chain());
    let left = || {
        let left = std::fs::read_dir(dir.join("snapshots")).unwrap();
        left.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect::<Vec<_>>()
    };
    // What was received counts a moment after it is applied.
    let mut looks = tokio::time::interval(LOOK_PERIOD);
    let settled = async {
        while left().iter().any(|name| !name.ends_with(".snap")) {
            looks.tick().await;
        }
    };
    let settled = tokio::time::timeout(PATIENCE, settled).await;
    assert!(settled.is_ok() && left().len() <= 2, "{:?}", left());
    group.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_that_rotted_is_made_anew_for_who_needs_it() {
    let root = tempfile::tempdir().unwrap();
    let (mut group, first) = Group::found(root.path());
    for number in 0..300 {
        register(&first, &format!("agent-{number}")).await;
    }
    for id in [3, 2] {
        first.change_membership(add_learner(id)).await.unwrap();
    }
    group.start(2, &root.path().join("2"), Some(group.joined(2)));
    group.knows(2, "agent-299").await;
    // From now on nothing happens for which another would be made.
    for snapshot in std::fs::read_dir(root.path().join("1/snapshots")).unwrap() {
        let path = snapshot.unwrap().path();
        let mut bytes = std::fs::read(&path).unwrap();
        let at = bytes.len() / 2;
        bytes[at] ^= 1;
        std::fs::write(&path, bytes).unwrap();
    }
    group.start(3, &root.path().join("3"), Some(group.joined(3)));
    group.knows(3, "agent-299").await;
    assert_eq!(group.replica(3).view().chain(), first.view().chain());
    group.stop_all().await;
}

/// Replicas by id, and who carries their messages.
#[derive(Default)]
struct Group {
    /// So many snapshots are still to be cut off on their way.
    cuts: Arc<AtomicUsize>,
    members: Arc<Mutex<BTreeMap<u64, Replica>>>,
    threads: BTreeMap<u64, ReplicaThread>,
    carriers: JoinSet<()>,
}

impl Group {
    /// One that is alone, and knows of nobody.
    fn found(root: &Path) -> (Self, Replica) {
        let mut group = Self::default();
        group.start(1, &root.join("1"), None);
        let first = group.replica(1);
        (group, first)
    }

    /// Two more join the first one, which has registered the agent `one`.
    async fn become_three(&mut self, root: &Path) {
        let first = self.replica(1);
        for id in [2, 3] {
            let joined = self.joined(id);
            self.start(id, &root.join(id.to_string()), Some(joined));
            first.change_membership(add_learner(id)).await.unwrap();
            self.knows(id, "one").await;
        }
        // Both at once: never two voters.
        first.change_membership(make_voters(&[2, 3])).await.unwrap();
        first.change_membership(ConfChangeV2::default()).await.unwrap();
        for id in [1, 2, 3] {
            let mut members = self.replica(id).membership_changes();
            members.wait_for(|now| now.voters == [1, 2, 3] && !now.is_joint()).await.unwrap();
        }
    }

    fn start(&mut self, id: u64, dir: &Path, joined: Option<Joined>) {
        let Started { replica, thread, notices: _, outbound } =
            Replica::start(options_of(dir, joined)).unwrap();
        assert_eq!(replica.id(), id);
        self.members.lock().unwrap().insert(id, replica.clone());
        self.threads.insert(id, thread);
        let (members, cuts) = (Arc::clone(&self.members), Arc::clone(&self.cuts));
        self.carriers.spawn(carry(replica, outbound, members, cuts));
    }

    fn joined(&self, replica_id: u64) -> Joined {
        let first = self.replica(1);
        let cluster_id = first.cluster_id().to_owned();
        Joined { cluster_id, replica_id, storage_id: format!("{replica_id:032x}") }
    }

    fn replica(&self, id: u64) -> Replica {
        self.members.lock().unwrap()[&id].clone()
    }

    async fn knows(&self, id: u64, agent: &str) {
        let replica = self.replica(id);
        let mut changes = replica.changes();
        changes.wait_for(|_| replica.view().agent_by_name(agent).is_some()).await.unwrap();
    }

    /// The one of `ids` that all of them follow.
    async fn leader_of(&self, ids: &[u64]) -> u64 {
        let mut standing = self.replica(ids[0]).standing();
        loop {
            let led = |now: &super::super::Standing| now.leader.is_some_and(|id| ids.contains(&id));
            let leader = standing.wait_for(led).await.unwrap().leader.unwrap();
            let mut its = self.replica(leader).standing();
            let decided = its.wait_for(|now| now.leads || now.leader != Some(leader));
            if decided.await.unwrap().leads {
                return leader;
            }
            standing.changed().await.unwrap();
        }
    }

    /// Has this one of three lead. It does not take the lead where the machine stands still for
    /// a moment, and is offered it again.
    async fn hand_over_to(&self, id: u64) {
        let hand_over = async {
            loop {
                let leader = self.leader_of(&[1, 2, 3]).await;
                if leader == id {
                    return;
                }
                let _ = self.replica(leader).transfer(Some(id)).await;
            }
        };
        tokio::time::timeout(PATIENCE, hand_over).await.expect("it takes the lead");
    }

    async fn stop(&mut self, id: u64) {
        let replica = self.members.lock().unwrap().remove(&id).unwrap();
        super::stop(&replica, self.threads.remove(&id).unwrap()).await;
    }

    async fn stop_all(&mut self) {
        let ids: Vec<u64> = self.threads.keys().copied().collect();
        for id in ids {
            self.stop(id).await;
        }
        while let Some(ended) = self.carriers.join_next().await {
            ended.unwrap();
        }
    }
}

async fn carry(
    from: Replica,
    mut outbound: mpsc::Receiver<Vec<Message>>,
    members: Arc<Mutex<BTreeMap<u64, Replica>>>,
    cuts: Arc<AtomicUsize>,
) {
    while let Some(messages) = outbound.recv().await {
        for message in messages {
            let to = message.to;
            let member = members.lock().unwrap().get(&to).cloned();
            if message.get_msg_type() == MessageType::MsgSnapshot {
                let index = message.get_snapshot().get_metadata().index;
                let shipped = match member {
                    Some(member) => ship(&from, &member, message, &cuts).await,
                    None => Shipped::Lost,
                };
                from.report_snapshot(to, index, shipped).await;
            } else if member.is_none_or(|member| member.step(message).is_err()) {
                from.report_unreachable(to);
            }
        }
    }
}

async fn ship(from: &Replica, to: &Replica, message: Message, cuts: &AtomicUsize) -> Shipped {
    let index = message.get_snapshot().get_metadata().index;
    let (Ok(mut file), Ok(mut incoming)) = (from.open_snapshot(index), to.incoming_snapshot())
    else {
        return Shipped::Lost;
    };
    let less = |left: usize| left.checked_sub(1);
    if cuts.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).is_ok() {
        let half = file.metadata().unwrap().len() / 2;
        std::io::copy(&mut file.take(half), &mut incoming).unwrap();
        return Shipped::Lost;
    }
    std::io::copy(&mut file, &mut incoming).unwrap();
    match to.install_snapshot(incoming, message).await {
        Ok(()) => Shipped::Taken,
        Err(_) => Shipped::Refused,
    }
}

fn options_of(dir: &Path, joined: Option<Joined>) -> super::Options {
    super::Options { join: joined, ..options(dir) }
}

fn add_learner(id: u64) -> ConfChangeV2 {
    change(&[id], ConfChangeType::AddLearnerNode)
}

fn make_voters(ids: &[u64]) -> ConfChangeV2 {
    change(ids, ConfChangeType::AddNode)
}

fn change(ids: &[u64], kind: ConfChangeType) -> ConfChangeV2 {
    let mut all = ConfChangeV2::default();
    // Of one change it is a simple one, of several a joint one that is ended by the empty one.
    all.set_transition(match ids {
        [_] => ConfChangeTransition::Auto,
        _ => ConfChangeTransition::Explicit,
    });
    for id in ids {
        let mut one = ConfChangeSingle::default();
        one.set_change_type(kind);
        one.node_id = *id;
        all.mut_changes().push(one);
    }
    all
}
