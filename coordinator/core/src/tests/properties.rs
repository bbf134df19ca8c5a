use std::collections::BTreeSet;

use proptest::collection::vec;
use proptest::prelude::*;
use steading_model::{
    AgentId, Conclusion, Epoch, FailureClass, Incarnation, JobId, Provisioning, Resources, RunId,
    Timestamp, Work,
};

use crate::placement::{PASSED_BY_MS, place};
use crate::testkit::{Stage, digest, job, outcome};
use crate::{
    Assignment, Concurrency, Effect, Job, Lease, NewAgent, NewJob, NewRun, Outcome, Proposal,
    Request, Resolution, State,
};

/// One step of a random story: what is done, how much time went by, and four choices
/// of whom it is done to. Few names, so that proposals collide: collisions are where
/// the bugs are.
pub(super) type Step = [u8; 6];

/// Kinds of steps, the common ones counted several times.
const KINDS: u8 = 35;

pub(super) fn step() -> impl Strategy<Value = Step> {
    (0u8..KINDS, any::<[u8; 5]>()).prop_map(|(kind, [a, b, c, d, e])| [kind, a, b, c, d, e])
}

/// Plays the steps. The stage checks after each what must always hold.
pub(super) fn play(stage: &mut Stage, steps: &[Step]) {
    for step in steps {
        let now = stage.state.now().plus_ms(elapsed_ms(step[1]));
        let proposal = proposal(&stage.state, *step);
        let _ = stage.apply(now, proposal);
    }
}

proptest! {
    #![proptest_config(some_cases())]

    #[test]
    fn whatever_comes_the_state_stays_sound(steps in vec(step(), 0..120)) {
        play(&mut Stage::default(), &steps);
    }

    #[test]
    fn a_lease_is_reported_once_and_an_end_is_final(steps in vec(step(), 0..120)) {
        let mut stage = Stage::default();
        let mut ended = BTreeSet::new();
        let mut offered = BTreeSet::new();
        for step in steps {
            let before: Vec<Job> = done(&stage.state).cloned().collect();
            let proposal = proposal(&stage.state, step);
            let retires = matches!(
                proposal,
                Proposal::RetireRuns { .. } | Proposal::RetryRun { .. }
            );
            let ends = match &proposal {
                Proposal::CompleteAttempt { lease, .. }
                | Proposal::ReleaseLease { lease, .. } => Some(*lease),
                _ => None,
            };
            let now = stage.state.now().plus_ms(elapsed_ms(step[1]));
            let outcome = stage.apply(now, proposal);
            if let (Ok(_), Some(lease)) = (&outcome, ends) {
                prop_assert!(ended.insert(lease), "{lease:?} ended twice");
            }
            for effect in outcome.iter().flatten() {
                if let Effect::Offer { lease, .. } = effect {
                    prop_assert!(offered.insert(lease.epoch), "{} was used twice", lease.epoch);
                }
            }
            for job in before {
                let kept = stage.state.job(job.id) == Some(&job);
                prop_assert!(kept || retires, "{} changed after its end", job.id);
            }
        }
    }

    #[test]
    fn once_faults_stop_every_run_ends_and_nothing_is_left(steps in vec(step(), 0..120)) {
        let mut stage = Stage::default();
        play(&mut stage, &steps);
        finish_everything(&mut stage);
        let state = &stage.state;
        prop_assert_eq!(state.open_runs().count(), 0);
        prop_assert_eq!(state.queue_len(), 0);
        prop_assert_eq!(state.leased().count(), 0);
        prop_assert!(state.outstanding().is_empty());
    }

    #[test]
    fn a_placement_is_accepted_whole_and_leaves_nothing_that_fits(
        steps in vec(step(), 0..80),
        max in 1usize..12,
    ) {
        let mut stage = Stage::default();
        play(&mut stage, &steps);
        let connected = everyone(&stage.state);
        let assignments = place(&stage.state, &connected, max);
        prop_assert!(assignments.len() <= max);
        let full = assignments.len() == max;
        let now = stage.state.now();
        let effects = stage.apply(now, Proposal::Assign { assignments }).unwrap();
        for effect in &effects {
            prop_assert!(!matches!(effect, Effect::NotAssigned { .. }), "{effect:?}");
        }
        if full {
            return Ok(());
        }
        // For one that waited long and fits nowhere, room may have been kept free.
        let waits_long = |job: &&Job| now.since_ms(job.queued) >= PASSED_BY_MS;
        if stage.state.queued().iter().any(waits_long) {
            return Ok(());
        }
        let queued: Vec<JobId> = stage.state.queued().iter().map(|job| job.id).collect();
        for job in queued {
            for &(agent, incarnation) in &connected {
                let assignments = vec![Assignment { job, agent, incarnation }];
                let effects = stage.apply(now, Proposal::Assign { assignments }).unwrap();
                let refused = matches!(effects[0], Effect::NotAssigned { .. });
                prop_assert!(refused, "{job} was left though {agent} has room");
            }
        }
    }
}

/// Few enough for every build; `PROPTEST_CASES` says another number.
pub(super) fn some_cases() -> ProptestConfig {
    let asked = std::env::var_os("PROPTEST_CASES").is_some();
    let cases = if asked { ProptestConfig::default().cases } else { 48 };
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

fn elapsed_ms(choice: u8) -> u64 {
    // Mostly moments; now and then a day, in which request ids expire.
    match choice {
        0..=199 => u64::from(choice),
        200..=250 => 20_000,
        251.. => 86_400_000,
    }
}

fn done(state: &State) -> impl Iterator<Item = &Job> {
    let runs: Vec<RunId> = state.runs_newest_first().map(|run| run.id).collect();
    runs.into_iter().flat_map(|run| state.ended_jobs_of(run))
}

fn everyone(state: &State) -> BTreeSet<(AgentId, Incarnation)> {
    state.agents().map(|agent| (agent.id, agent.incarnation)).collect()
}

/// What an honest farm does with what is left: seal, plan, place, succeed.
fn finish_everything(stage: &mut Stage) {
    let now = stage.state.now();
    // One agent of each kind that can run whatever there is.
    let leases = stage.state.leased().filter_map(Job::lease).collect();
    stage.apply(now, Proposal::ExpireLeases { leases }).unwrap();
    let agents = stage.state.agents().filter(|agent| !agent.removed);
    let names: Vec<String> = agents.map(|agent| agent.definition.name.clone()).collect();
    let names = names.into_iter().chain(["new".to_owned(), "newer".to_owned()]).take(2);
    for (name, provisioning) in names.zip([Provisioning::OnDemand, Provisioning::Spot]) {
        let labels = vec!["x".into(), "y".into()];
        let resources = Resources { cpu_milli: 999, memory_mib: 999 };
        let agent = new_agent(name.clone(), 9);
        let agent = NewAgent { labels, resources, provisioning, ..agent };
        stage.apply(now, Proposal::RegisterAgent { agent }).unwrap();
        stage.apply(now, Proposal::CordonAgent { name, cordoned: false }).unwrap();
    }
    for _ in 0..10_000 {
        let state = &stage.state;
        let unsealed = state.open_runs().find(|run| !run.sealed);
        let due = state.open_runs().find(|run| run.is_plan_due());
        let leased = state.leased().find_map(Job::lease);
        let proposal = if let Some(run) = unsealed {
            let (run, offset) = (run.id, run.counts.total);
            Proposal::AppendJobs { run, offset, jobs: vec![], sealed: true }
        } else if let Some(run) = due {
            let (revision, seen) = (run.revision, run.needed_ended);
            Proposal::ExtendRun { run: run.id, revision, seen, jobs: vec![], complete: true }
        } else if let Some(lease) = leased {
            Proposal::CompleteAttempt { lease, outcome: outcome("success", None) }
        } else if state.queue_len() > 0 {
            let assignments = place(state, &everyone(state), 3);
            assert!(!assignments.is_empty(), "the queue is stuck: {:?}", state.queued());
            Proposal::Assign { assignments }
        } else {
            return;
        };
        stage.apply(now, proposal).unwrap();
    }
    panic!("the farm is never done");
}

fn proposal(state: &State, [kind, _, a, b, c, d]: Step) -> Proposal {
    let run = run(state, a);
    let lease = lease(state, a, d);
    let scope = "p".parse().unwrap();
    let action = digest(["x", "y"][usize::from(b % 2)]);
    match kind {
        0 => Proposal::RegisterAgent { agent: new_agent(format!("a{}", a % 6), b % 3 + 1) },
        1 => {
            let agent = AgentId::from_counter(u64::from(a % 6));
            let current = state.agent(agent).map_or(1, |agent| agent.incarnation.counter());
            let incarnation = Incarnation::from_counter(current - u64::from(b % 4 == 0));
            Proposal::RetireAgent { agent, incarnation }
        }
        2 | 3 => Proposal::AdmitRun {
            run: new_run(a, b),
            jobs: jobs(c, d),
            sealed: b % 4 != 0,
            complete: c % 2 == 0,
        },
        4..=8 => Proposal::Assign { assignments: assignments(state, b, c) },
        9 => Proposal::AppendJobs {
            run,
            offset: state.run(run).map_or(0, |run| run.counts.total) + u32::from(d % 7 == 0),
            jobs: jobs(b, c),
            sealed: d % 2 == 0,
        },
        10 | 11 => {
            let row = state.run(run);
            Proposal::ExtendRun {
                run,
                revision: row.map_or(0, |run| run.revision) + u32::from(d % 7 == 0),
                seen: row.map_or(0, |run| run.needed_ended).saturating_sub(u32::from(d % 3)),
                jobs: jobs(b, c),
                complete: d % 4 == 0,
            }
        }
        12 => Proposal::CancelRun { run, request: request(b, c % 2), reason: "é".repeat(150) },
        13 | 14 => Proposal::CompleteAttempt { lease, outcome: an_outcome(b) },
        15 => Proposal::ReleaseLease { lease, class: class(b), started: c % 2 == 0 },
        16 => Proposal::ExpireLeases { leases: vec![lease] },
        17..=20 => Proposal::ClaimAction { scope, action, lease },
        21 => {
            let holder = state.claim(&scope, &action).map(|claim| claim.holder);
            let lease = holder.filter(|_| d % 4 != 0).unwrap_or(lease);
            let resolution = match c % 3 {
                0 => Resolution::Published,
                1 => Resolution::Failed { detail: digest("detail") },
                _ => Resolution::Abandoned,
            };
            Proposal::ResolveClaim { scope, action, lease, resolution }
        }
        31..=34 => scheduling_proposal(state, kind - 31, [a, b, c, d]),
        22 => Proposal::RetireRuns { runs: vec![run, RunId::from_counter(u64::from(b % 9))] },
        24 => {
            let (storage_id, endpoint) = (storage_id(b % 6), format!("unix:{}", c % 2));
            Proposal::AdmitReplica { storage_id, endpoint, level: 1 }
        }
        25 => Proposal::UpdateReplica {
            replica: u64::from(a % 6),
            storage_id: storage_id(b % 6),
            endpoint: format!("unix:{}", c % 2),
            level: 1,
        },
        26 => Proposal::RemoveReplica { replica: u64::from(a % 6), force: b % 2 == 0 },
        27..=30 => fleet_proposal(state, kind - 27, [a, b, c, d]),
        _ => Proposal::RecordArtifact {
            lease,
            name: format!("artifact-{}", b % 5),
            root: digest("root"),
            files: 1,
            bytes: 1,
        },
    }
}

fn scheduling_proposal(state: &State, kind: u8, [a, b, c, d]: [u8; 4]) -> Proposal {
    match kind {
        0 | 1 => {
            let ended: Vec<_> = state.runs_newest_first().filter(|run| run.has_ended()).collect();
            let run = ended.get(usize::from(a) % ended.len().max(1));
            let keys = ["a", "c", "d", "e"].into_iter().skip(usize::from(b % 5));
            Proposal::RetryRun {
                run: run.map_or(RunId::from_counter(1), |run| run.id),
                request: request(c, d % 2),
                revision: run.map_or(0, |run| run.revision) + u32::from(d % 8 == 0),
                again: keys.map(str::to_owned).collect(),
            }
        }
        2 => {
            let unplaceable = state.unplaceable(usize::from(b % 4));
            let jobs: Vec<JobId> = unplaceable.into_iter().flat_map(|(_, jobs)| jobs).collect();
            let any = JobId::from_counter(u64::from(a % 9));
            Proposal::GiveUp { jobs: [jobs, vec![any]].concat() }
        }
        _ => Proposal::RecordStale { lease: lease(state, a, d), outcome: an_outcome(b) },
    }
}

fn fleet_proposal(state: &State, kind: u8, [a, b, c, d]: [u8; 4]) -> Proposal {
    let name = format!("a{}", a % 6);
    match kind {
        0 => {
            let agent = AgentId::from_counter(u64::from(a % 6));
            let current = state.agent(agent).map_or(1, |agent| agent.incarnation.counter());
            Proposal::HandBack {
                agent,
                incarnation: Incarnation::from_counter(current - u64::from(b % 8 == 0)),
                leases: vec![lease(state, b, d), lease(state, c, d)],
                window_ms: (c % 2 == 0).then_some(15_000),
                preempted: d % 2 == 0,
            }
        }
        1 | 2 if b % 4 > 0 => Proposal::CordonAgent { name, cordoned: kind == 1 && c % 2 == 0 },
        3 if b % 8 == 0 => Proposal::RemoveAgent { name },
        _ => Proposal::DrainAgent {
            name,
            request: format!("drain-{}", b % 3).parse().unwrap(),
            deadline_ms: (c % 2 == 0).then_some(1_000),
        },
    }
}

/// Mostly a run that goes on, sometimes any.
fn run(state: &State, choice: u8) -> RunId {
    let open: Vec<RunId> = state.open_runs().map(|run| run.id).collect();
    let any = RunId::from_counter(u64::from(choice % 7));
    match choice % 8 {
        0 => any,
        _ => open.get(usize::from(choice) % open.len().max(1)).copied().unwrap_or(any),
    }
}

/// Mostly a live lease, sometimes one that never was or is no more.
fn lease(state: &State, choice: u8, stale: u8) -> Lease {
    let live: Vec<Lease> = state.leased().filter_map(Job::lease).collect();
    let work = Work { job: JobId::from_counter(u64::from(choice % 9)), attempt: 1 };
    let mut lease = match live.get(usize::from(choice) % live.len().max(1)) {
        Some(lease) => *lease,
        None => Lease { work, epoch: Epoch::from_counter(1) },
    };
    match stale % 16 {
        0 => lease.epoch = lease.epoch.next(),
        1 => lease.work.attempt += 1,
        2 => lease.work = work,
        _ => {}
    }
    lease
}

fn assignments(state: &State, b: u8, c: u8) -> Vec<Assignment> {
    if !b.is_multiple_of(4) {
        return place(state, &everyone(state), usize::from(c % 6));
    }
    (0u64..3)
        .map(|n| {
            let agent = AgentId::from_counter((u64::from(c) + n) % 6);
            let incarnation = state.agent(agent).map(|agent| agent.incarnation);
            Assignment {
                job: JobId::from_counter((u64::from(b / 4) + n) % 20),
                agent,
                incarnation: incarnation.unwrap_or_default(),
            }
        })
        .collect()
}

fn jobs(count: u8, seed: u8) -> Vec<NewJob> {
    const KINDS: &[&str] = &[
        "a(needed)",
        "b/0(fast,max=1)",
        "b/1(fast,max=1)",
        "b/2(fast,max=1)",
        "c(coe)",
        "d/0(fast)",
        "d/1(fast,on=x)",
        "d/2(fast,needed,failed)",
        "e(skipped,needed)",
        "f(on=y,cpu=400)",
        "g(cpu=500,mem=20,needed)",
        "h/0(max=2)",
        "h/1(max=2,needed)",
        "l(spot=never,prio=5)",
        "m(spot=only,on=x)",
        "n(spot=prefer,due=100,retry=1)",
        "i(group=g)",
        "j(group=g,cancels,retry=1)",
        "k(group=h,queues,needed)",
    ];
    // Now and then the same job over again, which is refused.
    let (first, stride) = (usize::from(seed), usize::from(seed % 4));
    let kinds = (0..usize::from(count % 5)).map(|n| KINDS[(first + n * stride) % KINDS.len()]);
    kinds.map(job).collect()
}

fn new_agent(name: String, slots: u8) -> NewAgent {
    let labels: &[&str] = [&["x"][..], &["x", "y"][..], &[][..]][usize::from(slots % 3)];
    NewAgent {
        name,
        pool: "pool".into(),
        provisioning: match slots % 2 {
            0 => Provisioning::Spot,
            _ => Provisioning::OnDemand,
        },
        labels: labels.iter().map(|label| (*label).to_owned()).collect(),
        slots: u32::from(slots),
        resources: Resources { cpu_milli: 1_000, memory_mib: 30 },
        cache_endpoint: String::new(),
        start: 0,
        properties: [("zone".to_owned(), "a".to_owned())].into(),
    }
}

fn new_run(a: u8, b: u8) -> NewRun {
    NewRun {
        request: request(a, b % 2),
        name: "ci".into(),
        file: "main.yml".into(),
        submission: digest("submission"),
        dialect: "2026-08".into(),
        priority: i32::from(a % 3) - 1,
        concurrency: (b / 16 < 6).then(|| Concurrency {
            group: ["g", "h", "i"][usize::from(b / 16) % 3].into(),
            cancel_in_progress: b / 32 == 1,
            queue_all: b / 32 == 2,
        }),
    }
}

fn request(id: u8, body: u8) -> Request {
    Request {
        project: "p".parse().unwrap(),
        principal: "me".parse().unwrap(),
        id: format!("r{}", id % 14).parse().unwrap(),
        body: digest(["one", "two"][usize::from(body)]),
    }
}

fn an_outcome(choice: u8) -> Outcome {
    let conclusion = match choice % 4 {
        0 | 1 => Conclusion::Success,
        2 => Conclusion::Failure,
        _ => Conclusion::Cancelled,
    };
    let class = (conclusion != Conclusion::Success).then(|| class(choice / 4));
    let message = "ü".repeat(usize::from(choice));
    Outcome { conclusion, class, message, ..outcome("success", None) }
}

fn storage_id(choice: u8) -> String {
    format!("{choice:032x}")
}

fn class(choice: u8) -> FailureClass {
    match choice % 5 {
        0 => FailureClass::AgentLost,
        1 => FailureClass::Preempted,
        2 => FailureClass::User,
        3 => FailureClass::Config,
        _ => FailureClass::Cancelled,
    }
}

#[test]
fn time_never_goes_back() {
    let mut state = State::default();
    state.apply(Timestamp::from_ms(9), Proposal::RetireRuns { runs: vec![] }).unwrap();
    state.apply(Timestamp::from_ms(3), Proposal::RetireRuns { runs: vec![] }).unwrap();
    assert_eq!(state.now(), Timestamp::from_ms(9));
}
