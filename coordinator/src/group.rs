//! Keeps the group as its rows want it: the leader adds who was admitted, makes voters
//! of those that are up to date, and takes out who was removed. Everybody else tells the
//! leader where it listens.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use steading_core::{Proposal, Rejection, State};
use steading_proto::v1;
use steading_proto::v1::cluster_client::ClusterClient;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};

use crate::peers::policy::{Change, Group, Member, due};
use crate::peers::{Me, Peers};
use crate::replica::{Bar, GroupStatus, ProposeError, Replica};
use raft::eraftpb::{ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2};

/// How often the leader looks after the group where nothing wakes it. Not every proposal
/// does: hardly any is about the group.
const PERIOD: Duration = Duration::from_millis(100);

/// How long a leader has to answer a member that says where it is.
const ANNOUNCE_MAX: Duration = Duration::from_secs(2);

/// How long a leader that stops waits for its successor. An election would take longer.
const HAND_OVER_MAX: Duration = Duration::from_millis(1_000);

/// How long one of the others has to take over. One whose disk is full does not answer.
const OFFER_MAX: Duration = Duration::from_millis(300);

/// Before the lead is offered again that everybody has declined.
const DECLINED_PAUSE: Duration = Duration::from_secs(8);

/// Pause after one that did not.
const ANNOUNCE_PAUSE: Duration = Duration::from_millis(200);

/// Looks after the group for as long as this replica leads it.
///
/// # Errors
///
/// None: it ends with the replica.
pub(crate) async fn run(
    peers: Arc<Peers>,
    replica: Replica,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let mut standing = replica.standing();
    let mut members = replica.membership_changes();
    let mut ticks = interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // By whom this leader's offers were declined, and when last.
    let mut offers = Offers::default();
    let keep = async {
        loop {
            replica.bar(Bar::Clock, peers.clocks_off().contains(&peers.me().id));
            let leads = standing.borrow_and_update().leads;
            members.borrow_and_update();
            if !leads {
                offers = Offers::default();
            }
            if leads && let Err(error) = keep_up(&peers, &replica, &mut offers).await {
                tracing::debug!(%error, "the group stays as it is for now");
            }
            tokio::select! {
                _ = ticks.tick() => (),
                changed = standing.changed() => if changed.is_err() { return },
                changed = members.changed(), if leads => if changed.is_err() { return },
            }
        }
    };
    stop.run_until_cancelled(keep).await;
    stop.cancelled().await;
    Ok(())
}

/// Proposes the next change, if one is due.
async fn keep_up(
    peers: &Peers,
    replica: &Replica,
    offers: &mut Offers,
) -> Result<(), ProposeError> {
    let me = peers.me();
    let state = replica.view();
    let known = state.replica(me.id);
    if known.is_none_or(|row| row.endpoint != me.endpoint || row.level != me.feature_level) {
        match replica.propose(update(me)).await {
            // It was removed, and leads until another does.
            Ok(_) | Err(ProposeError::Rejected(Rejection::ReplicaRemoved)) => (),
            Err(error) => return Err(error),
        }
    }
    let group = seen(peers, replica, &offers.declined).await?;
    match due(&group) {
        None => Ok(()),
        // All have declined: nothing is proposed while an offer is open.
        Some(Change::Transfer(to)) if offers.declined.contains_key(&to) && offers.is_fresh() => {
            Ok(())
        }
        Some(Change::Transfer(to)) => {
            tracing::info!(to, "leadership.transfer");
            let moved = replica.transfer(Some(to)).await;
            if moved == Err(ProposeError::Busy) {
                *offers.declined.entry(to).or_insert(0) += 1;
                offers.last = Some(Instant::now());
            }
            moved
        }
        Some(change) => {
            tracing::info!(?change, "members.change");
            replica.change_membership(to_raft(&change)).await
        }
    }
}

/// Lets another replica lead, if this one does and there is one that could.
pub(crate) async fn hand_over(peers: &Peers, replica: &Replica) {
    if !replica.standing().borrow().leads {
        return;
    }
    let hand_over = async {
        let mut declined = Declined::new();
        loop {
            let to = seen(peers, replica, &declined).await.ok()?.successor()?;
            match timeout(OFFER_MAX, replica.transfer(Some(to))).await {
                Ok(moved) => return moved.ok(),
                Err(_) if declined.insert(to, 1).is_some() => return None,
                Err(_) => (),
            }
        }
    };
    match timeout(HAND_OVER_MAX, hand_over).await {
        Ok(Some(())) => tracing::info!("leadership.handed_over"),
        Ok(None) => tracing::debug!("nobody else can lead"),
        Err(_) => tracing::warn!("stopping as the leader: no other took over in time"),
    }
}

/// How often members have declined the lead, by id.
pub(crate) type Declined = BTreeMap<u64, u32>;

/// What came of this leader's offers of the lead.
#[derive(Debug, Default)]
struct Offers {
    declined: Declined,
    last: Option<Instant>,
}

impl Offers {
    fn is_fresh(&self) -> bool {
        self.last.is_some_and(|last| last.elapsed() < DECLINED_PAUSE)
    }
}

/// What this leader knows of the group.
pub(crate) async fn seen(
    peers: &Peers,
    replica: &Replica,
    declined: &Declined,
) -> Result<Group, ProposeError> {
    let status = replica.status().await?;
    let mut group = as_seen(peers.me().id, status, &replica.view(), &peers.clocks_off());
    for (id, times) in declined {
        group.members.entry(*id).or_default().declined = *times;
    }
    Ok(group)
}

/// What the leader knows of the group by Raft's status and the rows.
pub(crate) fn as_seen(
    leader: u64,
    status: GroupStatus,
    state: &State,
    clocks_off: &BTreeSet<u64>,
) -> Group {
    let ids: BTreeSet<u64> =
        status.membership.all().chain(state.replicas().map(|row| row.id)).collect();
    let member = |id: u64| {
        let row = state.replica(id);
        let progress = status.progress.get(&id);
        Member {
            known: row.is_some(),
            removed: row.is_some_and(|row| row.removed),
            forced: row.is_some_and(|row| row.forced),
            matched: progress.map_or(0, |progress| progress.matched),
            active: progress.is_some_and(|progress| progress.active),
            clock_is_off: clocks_off.contains(&id),
            declined: 0,
        }
    };
    let members = ids.into_iter().map(|id| (id, member(id))).collect();
    let GroupStatus { commit, membership, .. } = status;
    Group { leader, commit, membership, members }
}

/// Tells the leader where this replica listens, until it knows. Its answer is also how
/// a replica that was away hears that it was removed.
///
/// # Errors
///
/// The replica was removed, or its directory is another's: it must not go on.
pub(crate) async fn announce(
    peers: Arc<Peers>,
    replica: Replica,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let announced = stop.run_until_cancelled(announce_until_known(&peers, &replica)).await;
    if let Some(Err(refused)) = announced {
        bail!("{}", refused.message());
    }
    stop.cancelled().await;
    Ok(())
}

async fn announce_until_known(peers: &Peers, replica: &Replica) -> Result<(), Status> {
    let me = peers.me();
    loop {
        // A leader tells itself.
        if replica.standing().borrow().leads {
            return Ok(());
        }
        for endpoint in places(me, replica) {
            match timeout(ANNOUNCE_MAX, admit(me, &endpoint)).await {
                Ok(Ok(_)) => return Ok(()),
                Ok(Err(status)) if status.code() == Code::FailedPrecondition => return Err(status),
                Ok(Err(status)) => {
                    tracing::debug!(endpoint, why = status.message(), "not announced")
                }
                Err(_) => tracing::debug!(endpoint, "not announced in time"),
            }
        }
        tokio::time::sleep(ANNOUNCE_PAUSE).await;
    }
}

/// Where the leader may be: first where this replica takes it to be.
fn places(me: &Me, replica: &Replica) -> Vec<String> {
    let state = replica.view();
    let leader = replica.standing().borrow().leader;
    let others = state.replicas().filter(|row| row.id != me.id && !row.removed);
    let mut rows: Vec<_> = others.collect();
    rows.sort_by_key(|row| Some(row.id) != leader);
    rows.into_iter().map(|row| row.endpoint.clone()).collect()
}

async fn admit(me: &Me, endpoint: &str) -> Result<v1::AdmitReplicaResponse, Status> {
    let channel = me.dialler.channel(endpoint);
    let channel = channel.map_err(|error| Status::invalid_argument(error.to_string()))?;
    let request = v1::AdmitReplicaRequest {
        storage_id: me.storage_id.clone(),
        endpoint: me.endpoint.clone(),
        feature_level: me.feature_level,
        cluster_id: me.cluster_id.clone(),
        own_origin: me.own_origin,
    };
    ClusterClient::new(channel).admit_replica(request).await.map(tonic::Response::into_inner)
}

/// What this replica says of itself.
pub(crate) fn update(me: &Me) -> Proposal {
    Proposal::UpdateReplica {
        replica: me.id,
        storage_id: me.storage_id.clone(),
        endpoint: me.endpoint.clone(),
        level: me.feature_level,
    }
}

/// The change as Raft has it. Learners change one at a time, voters in a joint
/// configuration that stays until a change of its own ends it.
pub(crate) fn to_raft(change: &Change) -> ConfChangeV2 {
    let one = |kind, id| {
        let mut one = ConfChangeSingle::default();
        one.set_change_type(kind);
        one.node_id = id;
        one
    };
    let mut all = ConfChangeV2::default();
    match change {
        Change::AddLearner(id) => all.changes.push(one(ConfChangeType::AddLearnerNode, *id)),
        Change::RemoveLearner(id) => all.changes.push(one(ConfChangeType::RemoveNode, *id)),
        Change::Voters { add, remove } => {
            all.set_transition(ConfChangeTransition::Explicit);
            let add = add.iter().map(|id| one(ConfChangeType::AddNode, *id));
            let remove = remove.iter().map(|id| one(ConfChangeType::RemoveNode, *id));
            all.changes.extend(add.chain(remove));
        }
        // The empty change ends it. A transfer is none.
        Change::LeaveJoint | Change::Transfer(_) => (),
    }
    all
}
