//! `stead watch`: follows a run to its end, from whatever point it is at.

use std::time::Instant;

use crate::args;
use crate::exit::{Ended, Failure};
use crate::follow::{self, Options, Over};
use crate::out;
use crate::reach::{Reach, run_id};
use crate::screen::{Screen, Stream};
use crate::signals::Signals;
use crate::summary::{Summary, job_table};
use crate::text::{clean, count};

/// Follows the run. INT and TERM end the watching, not the run.
///
/// # Errors
///
/// [`Failure`] where there is no such run, or the farm stays away.
pub async fn run(args: args::Watch) -> Result<Ended, Failure> {
    let started = Instant::now();
    let id = run_id(&args.run)?;
    let mut signals = Signals::catch().map_err(anyhow::Error::from)?;
    let reach = Reach::new(&args.coordinated).await?;
    let mut screen = Screen::new(if args.json { Stream::Stderr } else { Stream::Stdout });
    let watched = async {
        let run = reach.run(id).await?;
        let jobs = count(run.jobs.len() as u64, "job");
        screen.line(format!("{id}: {}, {jobs} so far", clean(&run.name)));
        let options = Options {
            verbose: args.verbose,
            cancel_on_signal: false,
            logs_command: format!("stead logs{} {id}", reach.arguments),
            only_labels: None,
        };
        let (coordinators, blobs) = (reach.coordinators.clone(), reach.blobs.clone());
        follow::follow(coordinators, blobs, id, options, &mut screen, &mut signals).await
    };
    let watched = watched.await;
    let stopped = reach.stop().await;
    let over = watched?;
    stopped?;
    if !over.interrupted {
        conclude(&screen, &over, args.json, started)?;
    }
    Ok(over.ended())
}

/// Prints how the run ended.
///
/// # Errors
///
/// [`Failure::Farm`] where the summary that a program waits for cannot be written.
pub fn conclude(screen: &Screen, over: &Over, json: bool, started: Instant) -> Result<(), Failure> {
    let wall_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    let summary = Summary::new(over.view.run(), over.view.jobs(), wall_ms);
    if over.view.jobs().count() > 1 {
        screen.line("");
        screen.print(job_table(over.view.jobs()));
    }
    screen.print(summary.text());
    if json {
        out::line(summary.json())?;
    }
    Ok(())
}
