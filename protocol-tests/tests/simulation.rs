//! The whole farm in virtual time, seed by seed; see `steading_protocol_tests::sim`.

use steading_protocol_tests::sim::{Mutation, Options, Tally, minimise, run, with_mutation};

/// Seeds and steps of an ordinary test run; `STEADING_SIM_SEEDS`, `STEADING_SIM_STEPS`
/// and `STEADING_SIM_FIRST` ask for others.
const SEEDS: u64 = 120;
const STEPS: u64 = 3_000;

/// Steps in which a bug has to show.
const BUG_STEPS: u64 = 8_000;

/// Worlds that are played to cut the faults of a failing one down.
const MINIMISE_TRIES: usize = 60;

#[test]
fn no_seed_breaks_a_promise() {
    let (seeds, steps) = (asked("STEADING_SIM_SEEDS", SEEDS), asked("STEADING_SIM_STEPS", STEPS));
    let first = asked("STEADING_SIM_FIRST", 0);
    let mut tally = Tally::default();
    let (mut played, mut virtual_ms) = (0, 0);
    let begun = std::time::Instant::now();
    for seed in first..first + seeds {
        let options = Options::new(seed, steps);
        match run(&options) {
            Ok(report) => {
                tally.add(&report.tally);
                played += report.steps;
                virtual_ms += report.virtual_ms;
            }
            Err(found) => {
                println!("seed {seed} fails at step {}: {}", found.steps, found.what);
                panic!("{}", minimise(&options, found, MINIMISE_TRIES));
            }
        }
    }
    let took = begun.elapsed();
    println!("{seeds} seeds, {played} steps, {virtual_ms} virtual ms in {took:?}: {tally:?}");
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
    check_found(Mutation::SkipEpochCheck, 200);
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
    check_found(Mutation::StaleLeaderRenews, 60);
}

#[test]
fn a_run_that_is_planned_twice_is_found() {
    check_found(Mutation::PlanTwice, 60);
}

/// The bug breaks a promise within so many seeds.
fn check_found(mutation: Mutation, seeds: u64) {
    let found = with_mutation(Some(mutation), || {
        (0..seeds).find_map(|seed| run(&options_for(mutation, seed)).err())
    });
    let Some(found) = found else { panic!("{mutation:?} is not found in {seeds} seeds") };
    println!("{mutation:?}: seed {}, step {}: {}", found.seed, found.steps, found.what);
    if std::env::var_os("STEADING_SIM_TELL").is_some() {
        let options = options_for(mutation, found.seed);
        println!("{}", with_mutation(Some(mutation), || minimise(&options, found, MINIMISE_TRIES)));
    }
}

/// A paused leader's late answers are rare among all other faults.
fn options_for(mutation: Mutation, seed: u64) -> Options {
    let paused_leaders = mutation == Mutation::StaleLeaderRenews;
    Options { paused_leaders, ..Options::new(seed, BUG_STEPS) }
}

fn asked(variable: &str, otherwise: u64) -> u64 {
    std::env::var(variable).map_or(otherwise, |value| value.parse().expect("a number"))
}
