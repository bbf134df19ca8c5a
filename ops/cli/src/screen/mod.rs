//! Where a run shows itself: live lines on a terminal, plain lines elsewhere.

mod lines;
pub mod render;

use std::collections::BTreeMap;
use std::io::{IsTerminal as _, Write as _};
use std::time::Instant;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use steading_proto::v1;

pub use lines::{Lines, tail};

/// Most jobs that have a live line; a terminal has few more rows. The others are counted.
const LIVE_LINES_MAX: usize = 16;

/// Which stream people read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    Stdout,
    /// With `--json`, stdout is for the program that asked.
    Stderr,
}

/// What people see of a run.
#[derive(Debug)]
pub struct Screen {
    stream: Stream,
    live: Option<Live>,
}

#[derive(Debug)]
struct Live {
    bars: MultiProgress,
    jobs: BTreeMap<u64, Bar>,
    /// How many jobs have no line of their own.
    rest: ProgressBar,
}

#[derive(Debug)]
struct Bar {
    bar: ProgressBar,
    job: v1::Job,
    since: Instant,
}

impl Screen {
    /// Live where the stream is a terminal that can do it.
    pub fn new(stream: Stream) -> Self {
        let terminal = match stream {
            Stream::Stdout => std::io::stdout().is_terminal(),
            Stream::Stderr => std::io::stderr().is_terminal(),
        };
        let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
        Self { stream, live: (terminal && !dumb).then(|| Live::new(stream)) }
    }

    /// Plain lines whatever the stream is.
    pub fn plain(stream: Stream) -> Self {
        Self { stream, live: None }
    }

    /// Jobs have live lines, so that the steps of those that succeed need none.
    pub fn is_live(&self) -> bool {
        self.live.is_some()
    }

    /// Prints lines above what is live.
    pub fn print(&self, text: impl AsRef<[u8]>) {
        let text = text.as_ref();
        if text.is_empty() {
            return;
        }
        let write = || {
            // A reader that went away, as `head` does, ends no run.
            let _ = match self.stream {
                Stream::Stdout => {
                    let mut out = std::io::stdout().lock();
                    out.write_all(text).and_then(|()| out.flush())
                }
                Stream::Stderr => std::io::stderr().write_all(text),
            };
        };
        match &self.live {
            Some(live) => live.bars.suspend(write),
            None => write(),
        }
    }

    /// Prints one line above what is live.
    pub fn line(&self, line: impl AsRef<str>) {
        self.print(format!("{}\n", line.as_ref()));
    }

    /// A job runs, or moved on.
    pub fn job_runs(&mut self, job: &v1::Job) {
        if let Some(live) = &mut self.live {
            live.job_runs(job);
        }
    }

    /// A job runs no more.
    pub fn job_rests(&mut self, job: u64) {
        if let Some(live) = &mut self.live
            && let Some(bar) = live.jobs.remove(&job)
        {
            bar.bar.finish_and_clear();
            live.bars.remove(&bar.bar);
        }
    }

    /// Moves the clocks of the live lines on.
    pub fn tick(&mut self, waiting: usize, running: usize, cancelling: bool) {
        if let Some(live) = &mut self.live {
            live.tick(waiting, running, cancelling);
        }
    }

    /// Takes the live lines away.
    pub fn clear(&mut self) {
        if let Some(live) = &self.live {
            // A terminal that went away has nothing to clear.
            let _ = live.bars.clear();
        }
        self.live = None;
    }
}

impl Live {
    fn new(stream: Stream) -> Self {
        let bars = MultiProgress::with_draw_target(match stream {
            Stream::Stdout => ProgressDrawTarget::stdout(),
            Stream::Stderr => ProgressDrawTarget::stderr(),
        });
        let rest = bars.add(ProgressBar::new_spinner().with_style(plain_style()));
        Self { bars, jobs: BTreeMap::new(), rest }
    }

    fn job_runs(&mut self, job: &v1::Job) {
        if let Some(known) = self.jobs.get_mut(&job.job_id) {
            if known.job.attempt != job.attempt {
                known.since = Instant::now();
            }
            known.job = job.clone();
        } else if self.jobs.len() < LIVE_LINES_MAX {
            let bar = ProgressBar::new_spinner().with_style(spinner_style());
            let bar = self.bars.insert_before(&self.rest, bar);
            let bar = Bar { bar, job: job.clone(), since: Instant::now() };
            self.jobs.insert(job.job_id, bar);
        }
    }

    fn tick(&mut self, waiting: usize, running: usize, cancelling: bool) {
        for Bar { bar, job, since } in self.jobs.values() {
            let elapsed = u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX);
            bar.set_message(render::live_line(job, elapsed, cancelling));
            bar.tick();
        }
        let unseen = running.saturating_sub(self.jobs.len());
        self.rest.set_message(rest_line(unseen, waiting));
        self.rest.tick();
    }
}

fn rest_line(unseen: usize, waiting: usize) -> String {
    match (unseen, waiting) {
        (0, 0) => String::new(),
        (0, waiting) => format!("  {waiting} waiting"),
        (unseen, 0) => format!("  {unseen} more running"),
        (unseen, waiting) => format!("  {unseen} more running, {waiting} waiting"),
    }
}

fn spinner_style() -> ProgressStyle {
    ProgressStyle::with_template("{spinner} {wide_msg}")
        .expect("the template is a constant that a test draws")
}

fn plain_style() -> ProgressStyle {
    ProgressStyle::with_template("{wide_msg}")
        .expect("the template is a constant that a test draws")
}

#[cfg(test)]
mod tests {
    use indicatif::InMemoryTerm;

    use super::*;

    #[test]
    fn a_terminal_has_one_line_per_running_job() {
        let (mut screen, term) = in_memory();
        for id in 1..=2 {
            screen.job_runs(&job(id));
        }
        screen.tick(3, 2, false);
        let lines = contents(&term);
        assert!(lines[0].contains("job 1"), "{lines:?}");
        assert!(lines[1].contains("job 2"), "{lines:?}");
        assert_eq!(lines[2], "  3 waiting");
        screen.job_rests(1);
        screen.tick(0, 1, true);
        let lines = contents(&term);
        assert!(lines[0].contains("job 2  is being cancelled"), "{lines:?}");
        assert!(!lines.iter().any(|line| line.contains("job 1")), "{lines:?}");
    }

    #[test]
    fn jobs_beyond_the_terminals_rows_are_counted() {
        let (mut screen, term) = in_memory();
        for id in 1..=20 {
            screen.job_runs(&job(id));
        }
        screen.tick(5, 20, false);
        let lines = contents(&term);
        assert_eq!(lines.len(), LIVE_LINES_MAX + 1);
        assert_eq!(lines[LIVE_LINES_MAX], "  4 more running, 5 waiting");
    }

    fn in_memory() -> (Screen, InMemoryTerm) {
        let term = InMemoryTerm::new(40, 80);
        let live = Live::new(Stream::Stderr);
        live.bars.set_draw_target(ProgressDrawTarget::term_like(Box::new(term.clone())));
        (Screen { stream: Stream::Stderr, live: Some(live) }, term)
    }

    fn contents(term: &InMemoryTerm) -> Vec<String> {
        term.contents().lines().map(str::to_owned).collect()
    }

    fn job(id: u64) -> v1::Job {
        v1::Job { job_id: id, name: format!("job {id}"), attempt: 1, ..Default::default() }
    }
}
