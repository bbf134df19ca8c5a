//! `stead run`: a pipeline on this machine.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use steading_cas::source::{self, Source};
use steading_model::RunId;
use steading_proto::v1;

use crate::args;
use crate::artifacts;
use crate::connect::{FIRST_ANSWER_MAX, failure};
use crate::coordinators::Coordinators;
use crate::exit::{Ended, Failure};
use crate::follow::{self, Options, Over, quoted};
use crate::local::{self, AgentOptions, Farm};
use crate::screen::{Screen, Stream};
use crate::signals::Signals;
use crate::submission::{self, Event, Prepared};
use crate::text::clean;
use crate::watch::conclude;

/// How long the farm is given after a second signal. What it has started dies with it.
const ABANDON_MAX: Duration = Duration::from_secs(1);

/// What `runs-on` may ask for on any host: GitHub's names for its own, and those that
/// every agent here has.
const USUAL_LABELS: [&str; 8] = [
    "ubuntu-latest",
    "ubuntu-24.04",
    "ubuntu-22.04",
    "ubuntu-20.04",
    "ubuntu-slim",
    "self-hosted",
    "host",
    std::env::consts::OS,
];

/// Runs the pipeline with a whole farm inside this process.
///
/// # Errors
///
/// [`Failure`] for a bad pipeline, a state that is in use, or a fault of the farm.
pub async fn run(args: args::Run) -> Result<Ended, Failure> {
    let started = Instant::now();
    let event = Event { name: args.event.clone(), payload: args.event_payload.clone() };
    let prepared = submission::prepare(&args.submission, &event)?;
    let mut signals = Signals::catch().map_err(anyhow::Error::from)?;
    let data_dir =
        args.data_dir.clone().unwrap_or_else(|| prepared.found.source.join(local::STATE));
    let mut farm = Farm::start(&data_dir).await?;
    let outcome = on_farm(&mut farm, &args, prepared, &data_dir, &mut signals, started).await;
    if let Ok((_, true)) = outcome {
        // Asked twice. Every process under a supervisor dies when its pipe closes,
        // which the end of this one sees to.
        let _ = tokio::time::timeout(ABANDON_MAX, farm.stop()).await;
        return Ok(Ended::Interrupted);
    }
    let stopped = farm.stop().await;
    let (ended, _) = outcome?;
    stopped.context("the run is over, but the farm did not stop well")?;
    Ok(ended)
}

/// The run from its submission to its end, and whether it was abandoned.
async fn on_farm(
    farm: &mut Farm,
    args: &args::Run,
    prepared: Prepared,
    data_dir: &Path,
    signals: &mut Signals,
    started: Instant,
) -> Result<(Ended, bool), Failure> {
    let coordinators = Coordinators::here(farm.channel());
    end_earlier_runs(&coordinators, &args.submission.project).await?;
    let labels = labels(&args.labels);
    let slots = args.slots.unwrap_or_else(cores);
    farm.start_agent(AgentOptions { slots, labels: labels.clone() })?;
    farm.listen();

    let tree = tokio::select! {
        tree = snapshot(farm, &prepared.found.source, data_dir) => tree?,
        () = signals.next() => return Ok((Ended::Interrupted, false)),
    };
    let source = prepared.found.source.clone();
    let request = prepared.with_source(&tree);
    let id = submission::submit(&coordinators, &request, FIRST_ANSWER_MAX).await?;

    let json = args.submission.json;
    let mut screen = Screen::new(if json { Stream::Stderr } else { Stream::Stdout });
    screen.line(heading(id, &request, &source));
    let options = Options {
        verbose: args.submission.verbose,
        cancel_on_signal: true,
        logs_command: logs_command(id, args.data_dir.as_deref(), data_dir),
        only_labels: Some(labels.iter().map(|label| label.to_lowercase()).collect()),
    };
    let blobs = farm.blobs();
    let over = tokio::select! {
        over = follow::follow(
            coordinators.clone(), blobs.clone(), id, options, &mut screen, signals,
        ) => over?,
        error = farm.agent_ended() => return Err(Failure::Farm(error)),
    };
    finish(&over, args, &screen, started)?;
    if let (Some(dir), false) = (&args.artifacts, over.abandoned) {
        for line in artifacts::fetch(&coordinators, &blobs, id, None, dir).await? {
            screen.line(line);
        }
    }
    Ok((over.ended(), over.abandoned))
}

fn finish(over: &Over, args: &args::Run, screen: &Screen, started: Instant) -> Result<(), Failure> {
    if over.abandoned {
        screen.line("left at once; the next run here ends what this one left");
        return Ok(());
    }
    conclude(screen, over, args.submission.json, started)
}

/// Cancels what an earlier process left unfinished when it was killed: nobody waits
/// for it any more, and it would compete with the run that somebody waits for.
async fn end_earlier_runs(coordinators: &Coordinators, project: &str) -> Result<(), Failure> {
    let request = v1::ListRunsRequest {
        project: project.to_owned(),
        page_size: EARLIER_RUNS,
        page_token: String::new(),
    };
    let runs = coordinators.pipelines().list_runs(request).await;
    let runs = runs.map_err(|status| failure("list earlier runs", status))?.into_inner().runs;
    for run in runs {
        if run.conclusion() == v1::Conclusion::Unspecified && !run.cancelling {
            let id = RunId::from_counter(run.run_id);
            follow::cancel(coordinators, id, "its `stead run` was killed").await?;
        }
    }
    Ok(())
}

/// How many earlier runs are looked at. One process makes one run, so the one before
/// is all that can be unfinished, but for those that `--project` hid.
const EARLIER_RUNS: u32 = 10;

async fn snapshot(farm: &Farm, source: &Path, data_dir: &Path) -> Result<Source, Failure> {
    let (store, dir, memo) = (farm.store(), source.to_owned(), data_dir.join("source-memo"));
    let taken = tokio::task::spawn_blocking(move || source::snapshot(&store, &dir, &memo)).await;
    Ok(taken
        .map_err(anyhow::Error::from)?
        .with_context(|| format!("cannot take the source `{}`", source.display()))?)
}

fn heading(id: RunId, request: &v1::SubmitRequest, source: &Path) -> String {
    let name = request.r#ref.strip_prefix("refs/heads/").unwrap_or(&request.r#ref);
    let sha = request.sha.get(..8).unwrap_or(&request.sha);
    let at = if sha.is_empty() { String::new() } else { format!(" at {}@{sha}", clean(name)) };
    let dirty = if request.dirty && !sha.is_empty() { " with changes" } else { "" };
    format!("{id}: {} on {}{at}{dirty}", clean(&request.file), source.display())
}

/// The command that shows a log afterwards, from where this one was given.
fn logs_command(id: RunId, given: Option<&Path>, data_dir: &Path) -> String {
    let here = std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/"));
    let found = here.ancestors().map(|folder| folder.join(local::STATE)).find(|dir| dir.is_dir());
    if given.is_none() && found.is_some_and(|found| found == data_dir) {
        return format!("stead logs {id}");
    }
    let shown = data_dir.strip_prefix(&here).unwrap_or(data_dir);
    format!("stead logs --data-dir {} {id}", quoted(&shown.to_string_lossy()))
}

/// The labels of this host, in the order of their first mention.
pub fn labels(more: &[String]) -> Vec<String> {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "x64",
        "aarch64" => "arm64",
        other => other,
    };
    let usual = USUAL_LABELS.into_iter().chain([architecture]).map(str::to_owned);
    let mut known = BTreeSet::new();
    usual
        .chain(more.iter().cloned())
        .filter(|label| !label.is_empty() && known.insert(label.to_lowercase()))
        .collect()
}

/// Jobs that this host can run at once.
pub fn cores() -> u32 {
    std::thread::available_parallelism()
        .map_or(1, |cores| u32::try_from(cores.get()).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_host_has_the_usual_labels_and_those_that_are_given() {
        let labels = labels(&["gpu".to_owned(), "Self-Hosted".to_owned(), String::new()]);
        assert!(labels.contains(&"ubuntu-latest".to_owned()));
        assert!(labels.contains(&"linux".to_owned()));
        assert_eq!(labels.last().map(String::as_str), Some("gpu"));
        assert!(labels.len() <= steading_model::limits::LABELS_MAX);
    }

    #[test]
    fn the_heading_names_the_run_the_pipeline_and_the_tree() {
        let mut request = v1::SubmitRequest {
            file: "ci.yml".to_owned(),
            r#ref: "refs/heads/main".to_owned(),
            sha: "0123456789abcdef".to_owned(),
            dirty: true,
            ..Default::default()
        };
        let id = RunId::from_counter(3);
        let source = Path::new("/src");
        assert_eq!(
            heading(id, &request, source),
            "run-3: ci.yml on /src at main@01234567 with changes"
        );
        request.sha.clear();
        assert_eq!(heading(id, &request, source), "run-3: ci.yml on /src");
    }
}
