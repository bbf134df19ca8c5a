//! Placement with a long queue: the time of a pass, and what a queued job costs in memory.

use std::collections::{BTreeMap, BTreeSet};
use std::hint::black_box;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde_json::json;
use steading_core::{Effect, NewAgent, NewJob, NewRun, Proposal, Request, State, placement};
use steading_model::limits::ASSIGNMENTS_PER_PROPOSAL_MAX;
use steading_model::{AgentId, Digest, Incarnation, Provisioning, Resources, Spot, Timestamp};

use crate::report;

const AGENTS: usize = 1_000;
const SLOTS: u32 = 8;
/// Queued jobs of each measure.
const QUEUES: [usize; 3] = [1_000, 10_000, 100_000];
/// Jobs of one run, all admitted at once.
const JOBS_PER_RUN: usize = 250;
/// Passes of which the median is told.
const PASSES: usize = 21;

/// Prints the time of a pass over ever longer queues, and the memory of the longest.
pub(crate) fn measure() -> anyhow::Result<()> {
    for queued in QUEUES {
        let before = resident_bytes()?;
        let (mut state, agents) = farm(queued)?;
        let after = resident_bytes()?;
        let pass = median(|| placement::place(&state, &agents, ASSIGNMENTS_PER_PROPOSAL_MAX).len());
        let one = median(|| placement::place(&state, &agents, 1).len());
        let assignments = placement::place(&state, &agents, ASSIGNMENTS_PER_PROPOSAL_MAX);
        let assigned = assignments.len();
        anyhow::ensure!(assigned == ASSIGNMENTS_PER_PROPOSAL_MAX, "{assigned} were placed");
        let start = Instant::now();
        state.apply(Timestamp::default(), Proposal::Assign { assignments })?;
        let apply = start.elapsed();
        report::print(
            "placement",
            &json!({
                "agents": AGENTS,
                "queued": queued,
                "pass_ms": report::ms(pass),
                "pass_of_one_ms": report::ms(one),
                "us_per_assignment": report::ms(pass * 1_000) / assigned as f64,
                "apply_ms": report::ms(apply),
                "state_mib": report::rounded(after.saturating_sub(before) as f64 / (1 << 20) as f64),
                "budget_pass_ms": 5,
                "budget_coordinator_mib": 500,
            }),
        );
    }
    Ok(())
}

fn median(pass: impl Fn() -> usize) -> Duration {
    let mut samples: Vec<Duration> = (0..PASSES)
        .map(|_| {
            let start = Instant::now();
            black_box(pass());
            start.elapsed()
        })
        .collect();
    report::percentile(&mut samples, 0.5)
}

/// A state with as many queued jobs, of forty kinds, and agents of eight kinds.
fn farm(queued: usize) -> anyhow::Result<(State, BTreeSet<(AgentId, Incarnation)>)> {
    let mut state = State::default();
    let mut agents = BTreeSet::new();
    for number in 0..AGENTS {
        let effects =
            state.apply(Timestamp::default(), Proposal::RegisterAgent { agent: agent(number) })?;
        agents.extend(effects.iter().find_map(|effect| match effect {
            Effect::Registered { agent, incarnation } => Some((*agent, *incarnation)),
            _ => None,
        }));
    }
    for first in (0..queued).step_by(JOBS_PER_RUN) {
        let jobs = (first..queued.min(first + JOBS_PER_RUN)).map(job).collect();
        let proposal = Proposal::AdmitRun { run: run(first)?, jobs, sealed: true, complete: true };
        state.apply(Timestamp::from_ms(first as u64), proposal)?;
        // As a replica at a checkpoint.
        black_box(state.take_writes());
    }
    Ok((state, agents))
}

pub(crate) fn agent(number: usize) -> NewAgent {
    let system = ["linux", "windows"][number % 2];
    NewAgent {
        name: format!("agent-{number}"),
        pool: format!("pool-{}", number % 8),
        // Of both systems: every job finds an agent.
        provisioning: match number / 2 % 4 {
            0 => Provisioning::OnDemand,
            _ => Provisioning::Spot,
        },
        labels: vec!["self-hosted".into(), system.into(), "x64".into()],
        slots: SLOTS,
        resources: Resources { cpu_milli: 16_000, memory_mib: 64 << 10 },
        cache_endpoint: format!("https://agent-{number}:7000"),
        start: 0,
        properties: BTreeMap::new(),
    }
}

pub(crate) fn run(number: usize) -> anyhow::Result<NewRun> {
    Ok(NewRun {
        request: Request {
            project: "default".parse()?,
            principal: "local".parse()?,
            id: format!("request-{number}").parse()?,
            body: digest(number),
        },
        name: "ci".into(),
        file: ".github/workflows/ci.yml".into(),
        submission: digest(number),
        dialect: "2026-08".into(),
        priority: (number % 3) as i32,
        concurrency: None,
    })
}

pub(crate) fn job(number: usize) -> NewJob {
    let system = ["linux", "windows"][number % 2];
    NewJob {
        key: format!("test-{number}"),
        leg: 0,
        name: format!("test (shard {number})"),
        spec: digest(number),
        labels: vec!["self-hosted".into(), system.into()],
        resources: Resources { cpu_milli: 500 * (number % 10) as u32, memory_mib: 512 },
        needed: false,
        fail_fast: false,
        max_parallel: 0,
        continue_on_error: false,
        decided: None,
        priority: None,
        spot: [None, Some(Spot::Prefer), Some(Spot::Never), None][number / 2 % 4],
        deadline_ms: 0,
        user_retries: 0,
        concurrency: None,
    }
}

fn digest(number: usize) -> Digest {
    let mut hash = [0; 32];
    hash[..8].copy_from_slice(&(number as u64).to_be_bytes());
    Digest { hash, size: 100 }
}

/// What this process has in memory.
pub(crate) fn resident_bytes() -> anyhow::Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status").context("read /proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().trim_end_matches("kB").trim().parse::<u64>().ok());
    Ok(kib.context("no `VmRSS` in /proc/self/status")? << 10)
}
