//! Three replicas in this process, each with its own directory on the same disk; their
//! messages are carried from one to the other in memory.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use raft::eraftpb::{
    ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2, Message, MessageType,
};
use serde_json::json;
use steading_coordinator::replica::{
    Joined, Options, ProposeError, Replica, ReplicaThread, Shipped, Started,
};
use steading_core::{Effect, Proposal, placement};
use steading_model::limits::ASSIGNMENTS_PER_PROPOSAL_MAX;
use steading_model::{AgentId, Incarnation};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::disk::Disk;
use crate::placement::{agent, job, resident_bytes, run};
use crate::report;

/// Replicas of the group.
const REPLICAS: usize = 3;
/// Clients that submit at once.
const SUBMITTERS: usize = 1_000;
/// Runs of each of them, one after the other.
const RUNS: usize = 2;
/// Jobs of a run.
const JOBS: usize = 50;
/// Agents, with room for everything: what is measured is the assigning.
const AGENTS: usize = 1_000;
const SLOTS: u32 = 128;
/// How often leadership is handed over, and lost.
const TURNS: usize = 20;

/// Prints submissions and assignments per second, and how long the group is without a
/// leader after one hands over, and after one is cut off.
pub(crate) fn measure(scratch: &Path, disk: &Disk) -> anyhow::Result<()> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let group = runtime.block_on(Group::form(&scratch.join("group")))?;
    runtime.block_on(async {
        let leader = group.leader().await?;
        throughput(&leader, disk).await?;
        changes_of_leader(&group).await
    })?;
    group.stop(&runtime)
}

async fn throughput(leader: &Replica, disk: &Disk) -> anyhow::Result<()> {
    let agents = register(leader).await?;
    let before = resident_bytes()?;
    let start = Instant::now();
    let mut submitters = JoinSet::new();
    for number in 0..SUBMITTERS {
        submitters.spawn(submit(leader.clone(), number));
    }
    let mut latencies = Vec::new();
    while let Some(ended) = submitters.join_next().await {
        latencies.extend(ended??);
    }
    let submitting = start.elapsed();
    // The state's maps are shared by nobody: each replica has its own.
    let resident = resident_bytes()?.saturating_sub(before);

    let start = Instant::now();
    let mut assigned = 0;
    loop {
        let state = leader.view();
        let assignments = placement::place(&state, &agents, ASSIGNMENTS_PER_PROPOSAL_MAX);
        drop(state);
        if assignments.is_empty() {
            break;
        }
        let effects = leader.propose(Proposal::Assign { assignments }).await?;
        assigned += effects.iter().filter(|it| matches!(it, Effect::Offer { .. })).count();
    }
    let assigning = start.elapsed();
    let jobs = SUBMITTERS * RUNS * JOBS;
    anyhow::ensure!(assigned == jobs, "{assigned} of {jobs} jobs were assigned");
    report::print(
        "three_replicas",
        &json!({
            "submitters": SUBMITTERS,
            "jobs": jobs,
            "runs_per_s": report::rounded((SUBMITTERS * RUNS) as f64 / submitting.as_secs_f64()),
            "jobs_submitted_per_s": report::rounded(jobs as f64 / submitting.as_secs_f64()),
            "submit_p50_ms": report::ms(report::percentile(&mut latencies, 0.5)),
            "submit_p99_ms": report::ms(report::percentile(&mut latencies, 0.99)),
            "assignments_per_s": report::rounded(assigned as f64 / assigning.as_secs_f64()),
            "fdatasync_ms": report::ms(disk.overwrite_p50),
            "mib_per_replica_with_all_queued":
                report::rounded(resident as f64 / REPLICAS as f64 / (1 << 20) as f64),
            "budget_mib": 500,
            "budget_assignments_per_s": 10_000,
        }),
    );
    Ok(())
}

async fn register(leader: &Replica) -> anyhow::Result<BTreeSet<(AgentId, Incarnation)>> {
    let mut agents = BTreeSet::new();
    for number in 0..AGENTS {
        let mut definition = agent(number);
        definition.slots = SLOTS;
        definition.resources.cpu_milli *= SLOTS;
        definition.resources.memory_mib *= SLOTS;
        let effects = leader.propose(Proposal::RegisterAgent { agent: definition }).await?;
        agents.extend(effects.iter().find_map(|effect| match effect {
            Effect::Registered { agent, incarnation } => Some((*agent, *incarnation)),
            _ => None,
        }));
    }
    Ok(agents)
}

async fn submit(leader: Replica, number: usize) -> anyhow::Result<Vec<Duration>> {
    let mut latencies = Vec::new();
    for turn in 0..RUNS {
        let first = (number * RUNS + turn) * JOBS;
        let jobs = (first..first + JOBS).map(job).collect();
        let proposal = Proposal::AdmitRun { run: run(first)?, jobs, sealed: true, complete: true };
        let start = Instant::now();
        while let Err(error) = leader.propose(proposal.clone()).await {
            // The bound of what may be under way: a client would try again, too.
            anyhow::ensure!(error == ProposeError::Busy, error);
            tokio::task::yield_now().await;
        }
        latencies.push(start.elapsed());
    }
    Ok(latencies)
}

async fn changes_of_leader(group: &Group) -> anyhow::Result<()> {
    let mut handed_over = Vec::new();
    let mut cut_off = Vec::new();
    for _ in 0..TURNS {
        let leader = group.leader().await?;
        let start = Instant::now();
        leader.transfer(None).await?;
        group.propose().await?;
        handed_over.push(start.elapsed());

        let leader = group.leader().await?;
        group.cut(Some(leader.id()));
        let start = Instant::now();
        group.propose().await?;
        cut_off.push(start.elapsed());
        group.cut(None);
        group.settle().await?;
    }
    report::print(
        "change_of_leader",
        &json!({
            "turns": TURNS,
            "transfer_p50_ms": report::ms(report::percentile(&mut handed_over, 0.5)),
            "transfer_max_ms": report::ms(report::percentile(&mut handed_over, 1.0)),
            "cut_off_p50_ms": report::ms(report::percentile(&mut cut_off, 0.5)),
            "cut_off_max_ms": report::ms(report::percentile(&mut cut_off, 1.0)),
            "budget_transfer_ms": 100,
            "budget_cut_off_ms": 1_000,
        }),
    );
    Ok(())
}

/// What carries messages.
#[derive(Default)]
struct Wire {
    members: BTreeMap<u64, Replica>,
    /// Hears nobody, and is not heard.
    cut: Option<u64>,
}

struct Group {
    wire: Arc<Mutex<Wire>>,
    threads: Vec<ReplicaThread>,
}

impl Group {
    async fn form(dir: &Path) -> anyhow::Result<Self> {
        let mut group = Self { wire: Arc::default(), threads: Vec::new() };
        let first = group.start(&dir.join("1"), None)?;
        first.read_barrier().await?;
        for id in [2, 3] {
            let joined = Joined {
                cluster_id: first.cluster_id().to_owned(),
                replica_id: id,
                storage_id: format!("{id:032x}"),
            };
            group.start(&dir.join(id.to_string()), Some(joined))?;
            first.change_membership(change(&[id], ConfChangeType::AddLearnerNode)).await?;
        }
        first.change_membership(change(&[2, 3], ConfChangeType::AddNode)).await?;
        group.settle().await?;
        Ok(group)
    }

    fn start(&mut self, dir: &Path, join: Option<Joined>) -> anyhow::Result<Replica> {
        let Started { replica, thread, mut notices, outbound } =
            Replica::start(Options { join, ..Options::server(dir.to_owned()) })?;
        lock(&self.wire).members.insert(replica.id(), replica.clone());
        self.threads.push(thread);
        let (from, wire) = (replica.clone(), Arc::clone(&self.wire));
        // It ends with the replica.
        std::thread::Builder::new().name("wire".into()).spawn(move || {
            carry(&from, outbound, &wire);
        })?;
        std::thread::Builder::new()
            .name("notices".into())
            .spawn(move || while notices.blocking_recv().is_some() {})?;
        Ok(replica)
    }

    fn members(&self) -> Vec<Replica> {
        lock(&self.wire).members.values().cloned().collect()
    }

    fn cut(&self, member: Option<u64>) {
        lock(&self.wire).cut = member;
    }

    /// The one that leads and is not cut off.
    async fn leader(&self) -> anyhow::Result<Replica> {
        loop {
            let cut = lock(&self.wire).cut;
            let leading = self
                .members()
                .into_iter()
                .find(|member| Some(member.id()) != cut && member.standing().borrow().leads);
            match leading {
                Some(leader) => return Ok(leader),
                None => tokio::time::sleep(Duration::from_millis(1)).await,
            }
        }
    }

    /// Makes one small proposal durable, whoever leads.
    async fn propose(&self) -> anyhow::Result<()> {
        loop {
            let leader = self.leader().await?;
            match leader.propose(Proposal::RegisterAgent { agent: agent(0) }).await {
                Ok(_) => return Ok(()),
                Err(ProposeError::Rejected(why)) => return Err(why.into()),
                Err(_) => tokio::time::sleep(Duration::from_millis(1)).await,
            }
        }
    }

    /// Waits until everybody has everything.
    async fn settle(&self) -> anyhow::Result<()> {
        loop {
            let status = self.leader().await?.status().await?;
            let level = status.progress.values().all(|member| member.matched == status.commit);
            if level && status.membership.voters.len() == REPLICAS && !status.membership.is_joint()
            {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    fn stop(self, runtime: &tokio::runtime::Runtime) -> anyhow::Result<()> {
        let _guard = runtime.enter();
        for member in self.members() {
            member.stop();
        }
        lock(&self.wire).members.clear();
        self.threads.into_iter().try_for_each(|thread| thread.join().context("stop a replica"))
    }
}

fn carry(from: &Replica, mut outbound: mpsc::Receiver<Vec<Message>>, wire: &Mutex<Wire>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
    let Ok(runtime) = runtime else { return };
    while let Some(messages) = outbound.blocking_recv() {
        for message in messages {
            let to = message.to;
            let member = {
                let wire = lock(wire);
                let cut = wire.cut == Some(to) || wire.cut == Some(from.id());
                wire.members.get(&to).filter(|_| !cut).cloned()
            };
            if message.get_msg_type() == MessageType::MsgSnapshot {
                let index = message.get_snapshot().get_metadata().index;
                let shipped = match member {
                    None => Shipped::Lost,
                    Some(member) => match runtime.block_on(ship(from, &member, message)) {
                        Ok(()) => Shipped::Taken,
                        Err(_) => Shipped::Refused,
                    },
                };
                runtime.block_on(from.report_snapshot(to, index, shipped));
            } else if member.is_none_or(|member| member.step(message).is_err()) {
                from.report_unreachable(to);
            }
        }
    }
}

async fn ship(from: &Replica, to: &Replica, message: Message) -> anyhow::Result<()> {
    let mut file = from.open_snapshot(message.get_snapshot().get_metadata().index)?;
    let mut incoming = to.incoming_snapshot()?;
    std::io::copy(&mut file, &mut incoming)?;
    Ok(to.install_snapshot(incoming, message).await?)
}

fn change(ids: &[u64], kind: ConfChangeType) -> ConfChangeV2 {
    let mut all = ConfChangeV2::default();
    all.set_transition(ConfChangeTransition::Auto);
    for id in ids {
        let mut one = ConfChangeSingle::default();
        one.set_change_type(kind);
        one.node_id = *id;
        all.mut_changes().push(one);
    }
    all
}

fn lock(wire: &Mutex<Wire>) -> std::sync::MutexGuard<'_, Wire> {
    wire.lock().unwrap_or_else(PoisonError::into_inner)
}
