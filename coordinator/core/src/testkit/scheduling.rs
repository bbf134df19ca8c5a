//! The lines about groups, waits and retries.

use std::collections::BTreeSet;

use steading_model::{JobId, RunId, Spot};

use super::{Options, Stage, id, name};
use crate::explain::Explainer;
use crate::{Concurrency, Proposal};

pub(super) fn proposal(
    stage: &Stage,
    verb: &str,
    words: &[&str],
    options: &Options<'_>,
) -> Proposal {
    match verb {
        // `retry run-1 Q1 KEY…`
        "retry" => {
            let run: RunId = id(words[0]);
            let current = stage.state.run(run).map_or(0, |run| u64::from(run.revision));
            Proposal::RetryRun {
                run,
                request: super::request(words[1], options),
                revision: options.number("r", current) as u32,
                again: options.plain[2..].iter().map(|key| (*key).to_owned()).collect(),
            }
        }
        "give-up" => Proposal::GiveUp { jobs: words.iter().map(|word| id(word)).collect() },
        "late" => Proposal::RecordStale {
            lease: stage.lease(words[0]),
            outcome: super::outcome(words[1], words.get(2).copied()),
        },
        other => panic!("no verb `{other}`"),
    }
}

pub(super) fn show(stage: &Stage, words: &[&str]) -> String {
    let state = &stage.state;
    match words[0] {
        "group" => match state.group(&(name("p"), words[1].into())) {
            Some(group) => {
                let members = std::iter::once(&group.holder).chain(&group.pending);
                members.map(ToString::to_string).collect::<Vec<_>>().join(" ")
            }
            None => "free".into(),
        },
        // Why a run is being cancelled, or a job ended as it did.
        "why" if words[1].starts_with("run-") => {
            let cancel = state.run(id(words[1])).and_then(|run| run.cancel.as_ref());
            cancel.map_or_else(String::new, |cancel| cancel.reason.clone())
        }
        "why" => {
            let outcome = state.job(id(words[1])).and_then(|job| job.outcome());
            outcome.map_or_else(String::new, |outcome| outcome.message.clone())
        }
        // `wait job-1 AGENT… declined AGENT…`: those are connected, of whom some declined.
        "wait" => {
            let said = words[2..].iter().position(|word| *word == "declined");
            let (here, declined) = words[2..].split_at(said.unwrap_or(words.len() - 2));
            let connected: BTreeSet<_> = here
                .iter()
                .filter_map(|word| state.agent(id(word)))
                .map(|agent| (agent.id, agent.incarnation))
                .collect();
            let job = state.job(id(words[1]));
            let declined = declined.iter().skip(1).map(|word| (id(word), "no disk".to_owned()));
            let declined = declined.collect();
            let mut explainer = Explainer::new(state, &connected).declined(&declined);
            let wait = job.and_then(|job| explainer.explain(job));
            wait.map_or_else(|| "it does not wait".into(), |wait| wait.to_string())
        }
        "denied" => if state.is_denied(words[1]) { "yes" } else { "no" }.into(),
        "attempts" => {
            let attempts = state.earlier_attempts(id::<JobId>(words[1])).map(|(number, row)| {
                let class = row.class.map_or("none", |class| class.as_str());
                format!("#{number} {class}")
            });
            attempts.collect::<Vec<_>>().join(", ")
        }
        "stale" => match state.stale_results(id(words[1])) {
            Some(stale) => format!("{} #{} {}", stale.count, stale.attempt, stale.conclusion),
            None => "none".into(),
        },
        other => panic!("nothing to show of `{other}`"),
    }
}

pub(super) fn spot(word: &str) -> Spot {
    let all = [Spot::Prefer, Spot::Only, Spot::Never];
    let found = all.into_iter().find(|spot| spot.as_str() == word);
    found.unwrap_or_else(|| panic!("no spot policy `{word}`"))
}

pub(super) fn concurrency(options: &Options<'_>) -> Option<Concurrency> {
    options.named.get("group").map(|group| Concurrency {
        group: (*group).to_owned(),
        cancel_in_progress: options.flag("cancels"),
        queue_all: options.flag("queues"),
    })
}
