//! The whole farm in virtual time, seed by seed; see `steading_protocol_tests::sim`.

use std::collections::BTreeMap;
use std::num::NonZero;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::available_parallelism;

use steading_protocol_tests::sim::{
    Focus, Mutation, Options, Report, Tally, Violation, minimise, run, with_mutation,
};

/// Seeds and steps of an ordinary test run; `STEADING_SIM_SEEDS`, `STEADING_SIM_STEPS`
/// and `STEADING_SIM_FIRST` ask for others.
const SEEDS: u64 = 300;
const STEPS: u64 = 2_500;

/// Steps of all seeds that are enough for everything to have happened that is counted, …
const STEPS_FOR_EVERYTHING: u64 = 10_000_000;

/// … and what an ordinary run may have missed: a tally that is empty has shown nothing, but
/// its worlds are short, and some of what is counted needs long ones.
const RARE_MAX: usize = 4;

/// Steps in which a bug has to show.
const BUG_STEPS: u64 = 6_000;

/// Seeds in which it has to, each on its own.
const BUG_SEEDS: usize = 3;

/// Worlds that are played to cut the faults of a failing one down.
const MINIMISE_TRIES: usize = 60;

/// Failing seeds after which no more are looked for.
const FAILURES_MAX: usize = 20;

#[test]
fn no_seed_breaks_a_promise() {
    let (seeds, steps) = (asked("STEADING_SIM_SEEDS", SEEDS), asked("STEADING_SIM_STEPS", STEPS));
    let first = asked("STEADING_SIM_FIRST", 0);
    let begun = std::time::Instant::now();
    let mut tally = Tally::default();
    let (mut played, mut virtual_ms, mut failed) = (0, 0, Vec::new());
    for (seed, outcome) in play(first..first + seeds, |seed| run(&Options::new(seed, steps))) {
        match outcome {
            Ok(report) => {
                tally.add(&report.tally);
                played += report.steps;
                virtual_ms += report.virtual_ms;
            }
            Err(found) => {
                println!("seed {seed} fails at step {}: {}", found.steps, found.what);
                failed.push(found);
            }
        }
    }
    let took = begun.elapsed();
    println!("{seeds} seeds, {played} steps, {virtual_ms} virtual ms in {took:?}\n{tally}");
    if let Some(found) = failed.into_iter().next() {
        let options = Options::new(found.seed, steps);
        let replay = format!(
            "STEADING_SIM_FIRST={} STEADING_SIM_SEEDS=1 STEADING_SIM_STEPS={steps} \
             cargo test -p steading-protocol-tests --test simulation no_seed -- --nocapture",
            found.seed
        );
        panic!("{}replay it: {replay}", minimise(&options, found, MINIMISE_TRIES));
    }
    let missing = tally.missing();
    println!("never happened: {missing:?}");
    let rare = if seeds * steps >= STEPS_FOR_EVERYTHING { 0 } else { RARE_MAX };
    let enough = seeds >= SEEDS && steps >= STEPS;
    assert!(!enough || missing.len() <= rare, "never happened: {missing:?}");
}

#[test]
fn a_seed_replays_exactly() {
    for seed in 0..5 {
        let options = Options::new(seed, STEPS);
        let (first, second) = (run(&options), run(&options));
        match (first, second) {
            (Ok(first), Ok(second)) => assert_eq!(first, second, "seed {seed}"),
            (Err(first), Err(second)) => assert_eq!(first.hash, second.hash, "seed {seed}"),
            (first, second) => panic!("seed {seed}: once {first:?}, then {second:?}"),
        }
    }
}

#[test]
fn an_acknowledgement_before_fdatasync_is_found() {
    check_found(Mutation::AcknowledgeBeforeSync, 60);
}

#[test]
fn a_skipped_epoch_check_is_found() {
    check_found(Mutation::SkipEpochCheck, 80);
}

#[test]
fn a_rejection_that_is_applied_partially_is_found() {
    check_found(Mutation::ApplyRejectionPartially, 10);
}

#[test]
fn an_epoch_that_is_used_again_is_found() {
    check_found(Mutation::ReuseId, 10);
}

#[test]
fn a_stale_leader_that_renews_is_found() {
    check_found(Mutation::StaleLeaderRenews, 30);
}

#[test]
fn a_run_that_is_planned_twice_is_found() {
    check_found(Mutation::PlanTwice, 80);
}

/// The bug breaks a promise in several of so many seeds, and without it the same seeds
/// keep all of them.
fn check_found(mutation: Mutation, seeds: u64) {
    let (mut found, mut played) = (Vec::new(), 0);
    for seed in 0..seeds {
        played += 1;
        let options = options_for(mutation, seed);
        let Err(violation) = with_mutation(Some(mutation), || run(&options)) else { continue };
        println!("{mutation:?}: seed {seed}, step {}: {}", violation.steps, violation.what);
        if let Err(violation) = run(&options) {
            panic!("seed {seed} fails without the bug: {violation}");
        }
        if std::env::var_os("STEADING_SIM_TELL").is_some() {
            let least = || minimise(&options, violation, MINIMISE_TRIES);
            println!("{}", with_mutation(Some(mutation), least));
        }
        found.push(seed);
        if found.len() == BUG_SEEDS {
            break;
        }
    }
    println!("{mutation:?}: found in {} of {played} seeds: {found:?}", found.len());
    assert_eq!(found.len(), BUG_SEEDS, "{mutation:?} is found in {found:?} only");
}

/// Late answers of paused leaders, and late reports, are rare among all other faults.
fn options_for(mutation: Mutation, seed: u64) -> Options {
    let options = Options::new(seed, BUG_STEPS);
    match mutation {
        Mutation::StaleLeaderRenews => Options {
            focus: Some(Focus::PausedLeaders),
            replicas: Some(3),
            ..Options::new(seed, 2 * BUG_STEPS)
        },
        Mutation::SkipEpochCheck => Options { focus: Some(Focus::LateAgents), ..options },
        _ => options,
    }
}

type Outcome = Result<Report, Box<Violation>>;

/// Plays the seeds, as many at once as there are processors, each in one thread. In the
/// order of the seeds; not all of them, if many fail.
fn play(
    seeds: std::ops::Range<u64>,
    one: impl Fn(u64) -> Outcome + Sync,
) -> BTreeMap<u64, Outcome> {
    let next = AtomicU64::new(seeds.start);
    let outcomes = Mutex::new(BTreeMap::new());
    let failures = AtomicU64::new(0);
    let work = || {
        while failures.load(Ordering::Relaxed) < FAILURES_MAX as u64 {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                break;
            }
            let outcome = one(seed);
            failures.fetch_add(u64::from(outcome.is_err()), Ordering::Relaxed);
            outcomes.lock().expect("nobody panics with it").insert(seed, outcome);
        }
    };
    let threads = asked("STEADING_SIM_THREADS", 0) as usize;
    let threads = match threads {
        0 => available_parallelism().map_or(1, NonZero::get),
        threads => threads,
    };
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(work);
        }
    });
    outcomes.into_inner().expect("nobody panics with it")
}

fn asked(variable: &str, otherwise: u64) -> u64 {
    std::env::var(variable).map_or(otherwise, |value| value.parse().expect("a number"))
}
