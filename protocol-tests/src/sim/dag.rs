//! Pipelines without text: a small graph of jobs that a number stands for, and the
//! planner's stand-in, which answers for it as the real one does.

use std::collections::BTreeSet;

use steading_coordinator::replica::sim_fs::Dice;
use steading_core::{Concurrency, Job, NewJob, NewRun, Outcome, Request, Run, State};
use steading_model::{
    Conclusion, Digest, FailureClass, Principal, ProjectName, RequestId, Resources, StepCounts,
};

/// Concurrency groups that there are.
const GROUPS: u64 = 3;

/// Most keys of a pipeline.
const KEYS_MAX: u64 = 5;

/// One key under `jobs:`.
#[derive(Clone, Debug)]
struct Key {
    name: String,
    needs: Vec<usize>,
    legs: u32,
    labels: Vec<String>,
    fail_fast: bool,
    max_parallel: u32,
    /// Runs whatever became of what it needs.
    always: bool,
    continue_on_error: bool,
    concurrency: Option<Concurrency>,
}

/// What a plan comes to.
#[derive(Debug)]
pub(crate) struct Planned {
    pub(crate) jobs: Vec<NewJob>,
    pub(crate) complete: bool,
}

/// The pipeline that `submission` names.
fn keys(submission: &Digest) -> Vec<Key> {
    let mut dice = Dice::new(submission.size);
    let count = 1 + dice.below(KEYS_MAX);
    (0..count)
        .map(|number| {
            let legs = [1, 1, 1, 2, 4][dice.below(5) as usize];
            let needs = (0..number as usize).filter(|_| dice.chance(2, 5)).collect();
            Key {
                name: format!("k{number}"),
                needs,
                legs,
                labels: if dice.chance(1, 6) { vec!["large".to_owned()] } else { Vec::new() },
                fail_fast: legs > 1 && dice.chance(1, 2),
                max_parallel: if legs > 1 && dice.chance(1, 3) { 2 } else { 0 },
                always: dice.chance(1, 5),
                continue_on_error: dice.chance(1, 10),
                concurrency: some_group(&mut dice, 10),
            }
        })
        .collect()
}

/// The plan of a submission before it is a run.
pub(crate) fn first_plan(submission: &Digest) -> Planned {
    plan(submission, &BTreeSet::new(), &|_| None, false)
}

/// The plan of a run on what has ended.
pub(crate) fn plan_run(state: &State, run: &Run) -> Planned {
    let created: BTreeSet<&str> =
        state.jobs_of(run.id).map(|job| job.definition.key.as_str()).collect();
    let ended = |key: &str| {
        let mut legs = state.jobs_of(run.id).filter(|job| job.definition.key == key).peekable();
        legs.peek()?;
        let outcomes: Option<Vec<&Outcome>> = legs.map(Job::outcome).collect();
        Some(outcomes?.iter().all(|outcome| outcome.conclusion == Conclusion::Success))
    };
    plan(&run.definition.submission, &created, &ended, run.cancel.is_some())
}

/// `ended`: whether all legs of the key succeeded, if all have ended.
fn plan(
    submission: &Digest,
    created: &BTreeSet<&str>,
    ended: &dyn Fn(&str) -> Option<bool>,
    cancelled: bool,
) -> Planned {
    let keys = keys(submission);
    let mut jobs = Vec::new();
    let mut complete = true;
    for (number, key) in keys.iter().enumerate() {
        if created.contains(key.name.as_str()) {
            continue;
        }
        let needs: Option<Vec<bool>> = key.needs.iter().map(|it| ended(&keys[*it].name)).collect();
        let Some(needs) = needs else {
            complete = false;
            continue;
        };
        let runs = key.always || (!cancelled && needs.iter().all(|succeeded| *succeeded));
        let needed = keys.iter().any(|other| other.needs.contains(&number));
        let decided = (!runs).then(|| Outcome {
            conclusion: if cancelled { Conclusion::Cancelled } else { Conclusion::Skipped },
            class: cancelled.then_some(FailureClass::Cancelled),
            result: None,
            counts: StepCounts::default(),
            message: String::new(),
        });
        jobs.extend((0..key.legs).map(|leg| new_job(key, leg, needed, decided.clone())));
    }
    Planned { jobs, complete }
}

fn new_job(key: &Key, leg: u32, needed: bool, decided: Option<Outcome>) -> NewJob {
    // What never runs needs none.
    let spec_bytes = if decided.is_some() { 0 } else { 1 + u64::from(leg) };
    NewJob {
        key: key.name.clone(),
        leg,
        name: String::new(),
        spec: Digest { hash: [0; 32], size: spec_bytes },
        labels: key.labels.clone(),
        resources: Resources { cpu_milli: 100, memory_mib: 10 },
        needed,
        fail_fast: key.fail_fast,
        max_parallel: key.max_parallel,
        continue_on_error: key.continue_on_error,
        decided,
        priority: None,
        spot: None,
        deadline_ms: 0,
        user_retries: 0,
        concurrency: key.concurrency.clone(),
    }
}

/// In one of so many cases, a group. Jobs and runs share them, so that waits close cycles.
fn some_group(dice: &mut Dice, one_of: u64) -> Option<Concurrency> {
    dice.chance(1, one_of).then(|| Concurrency {
        group: format!("g{}", dice.below(GROUPS)),
        cancel_in_progress: dice.chance(1, 3),
        queue_all: dice.chance(1, 3),
    })
}

/// Which of a run's keys are planned again when it is retried.
pub(crate) fn keys_to_plan_again(state: &State, run: &Run) -> Vec<String> {
    let keys = keys(&run.definition.submission);
    let name = |number: &usize| keys[*number].name.as_str();
    let needs = keys.iter().map(|key| (key.name.as_str(), key.needs.iter().map(name).collect()));
    steading_coordinator::keys_to_plan_again(&needs.collect::<Vec<_>>(), state, run)
}

/// A run of the pipeline `number`, asked for under `id`.
pub(crate) fn new_run(number: u64, id: &str, priority: i32) -> NewRun {
    let submission = Digest { hash: [1; 32], size: number };
    NewRun {
        request: request(id, submission),
        name: String::new(),
        file: String::new(),
        submission,
        dialect: String::new(),
        priority,
        concurrency: some_group(&mut Dice::new(number ^ 1), 4),
    }
}

/// A request under `id`.
pub(crate) fn request(id: &str, body: Digest) -> Request {
    Request { project: project(), principal: principal(), id: request_id(id), body }
}

pub(crate) fn project() -> ProjectName {
    "p".parse().expect("a letter is a name")
}

fn principal() -> Principal {
    "u".parse().expect("a letter is a name")
}

fn request_id(id: &str) -> RequestId {
    id.parse().expect("letters and digits are a name")
}
