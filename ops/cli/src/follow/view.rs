//! What is known of a run, and what a person has been told of it.

use std::collections::BTreeMap;

use steading_proto::v1;

/// A run as the watch stream tells it.
#[derive(Debug, Default)]
pub struct View {
    run: v1::Run,
    jobs: BTreeMap<u64, Known>,
}

#[derive(Debug, Default)]
struct Known {
    job: v1::Job,
    /// Attempt whose start has been told.
    started: u32,
    /// When the first step of an attempt began, milliseconds since the epoch.
    began: Option<(u32, u64)>,
    /// Steps of that attempt whose end has been told: those with a lower position.
    steps_told: u32,
    /// The job's end has been told.
    done: bool,
}

/// What an event adds to what has been told.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// An attempt runs.
    Started { job: u64 },
    /// A step ended.
    Step { job: u64, step: v1::StepProgress },
    /// Something about a running job that only a live line shows.
    Moved { job: u64 },
    /// The attempt is over and another one waits for an agent.
    Again { job: u64 },
    /// It waits for what may never come.
    Waits { job: u64 },
    /// The job ended.
    Done { job: u64 },
}

impl View {
    /// Takes an event in, and answers what is new in it.
    pub fn apply(&mut self, event: v1::WatchRunEvent) -> Vec<Change> {
        if let Some(run) = event.run {
            self.run = run;
        }
        let mut changes = Vec::new();
        for job in event.jobs {
            let id = job.job_id;
            self.jobs.entry(id).or_default().apply(id, job, &mut changes);
        }
        changes
    }

    /// The run, without its jobs.
    pub fn run(&self) -> &v1::Run {
        &self.run
    }

    pub fn job(&self, id: u64) -> Option<&v1::Job> {
        self.jobs.get(&id).map(|known| &known.job)
    }

    /// In the order of their ids.
    pub fn jobs(&self) -> impl Iterator<Item = &v1::Job> {
        self.jobs.values().map(|known| &known.job)
    }

    /// Jobs that wait, jobs that run.
    pub fn waiting_and_running(&self) -> (usize, usize) {
        let unfinished = self.jobs().filter(|job| {
            matches!(job.status(), v1::job::Status::Queued | v1::job::Status::Running)
        });
        let running = self.jobs().filter(|job| job.status() == v1::job::Status::Running);
        let running = running.filter(|job| is_under_way(job)).count();
        (unfinished.count() - running, running)
    }

    /// Position of the first step of the job whose end has not been told.
    pub fn steps_told(&self, id: u64) -> u32 {
        self.jobs.get(&id).map_or(0, |known| known.steps_told)
    }

    /// The run has a conclusion, and so has every job.
    pub fn is_over(&self) -> bool {
        self.run.conclusion() != v1::Conclusion::Unspecified
    }
}

/// A job that has an agent, but no step under way, still waits.
fn is_under_way(job: &v1::Job) -> bool {
    match job.status() {
        v1::job::Status::Running => !job.steps.is_empty(),
        v1::job::Status::Done => true,
        v1::job::Status::Queued | v1::job::Status::Unspecified => false,
    }
}

impl Known {
    fn apply(&mut self, id: u64, mut job: v1::Job, changes: &mut Vec<Change>) {
        if let Some(first) = job.steps.first().filter(|first| first.started_ms > 0) {
            self.began = Some((job.attempt, first.started_ms));
        }
        // What it waited at its agent is none of the time that it took.
        if let Some((attempt, began_ms)) = self.began
            && attempt == job.attempt
        {
            job.started_ms = began_ms;
        }
        let status = job.status();
        if self.done {
            self.job = job;
            return;
        }
        if status == v1::job::Status::Queued && self.started > 0 && self.job.status() != status {
            changes.push(Change::Again { job: id });
        }
        if job.attempt > self.started && is_under_way(&job) {
            self.started = job.attempt;
            self.steps_told = 0;
            changes.push(Change::Started { job: id });
        }
        for step in &job.steps {
            let ended = step.status() == v1::step_progress::Status::Done;
            if ended && step.index == self.steps_told && job.attempt == self.started {
                self.steps_told += 1;
                changes.push(Change::Step { job: id, step: step.clone() });
            }
        }
        if !job.waiting.is_empty() && job.waiting != self.job.waiting {
            changes.push(Change::Waits { job: id });
        }
        match status {
            v1::job::Status::Done => {
                self.done = true;
                changes.push(Change::Done { job: id });
            }
            v1::job::Status::Running if self.started == job.attempt => {
                changes.push(Change::Moved { job: id });
            }
            // Its agent has it, and something else to do first.
            v1::job::Status::Running => (),
            v1::job::Status::Queued | v1::job::Status::Unspecified => (),
        }
        self.job = job;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use v1::job::Status;

    #[test]
    fn a_job_starts_takes_its_steps_and_ends_once() {
        check(&[
            (Status::Queued, 0, &[], ""),
            (Status::Running, 1, &[], ""),
            (Status::Running, 1, &[false], "started moved"),
            (Status::Running, 1, &[true, false], "step0 moved"),
            (Status::Running, 1, &[true, true, true], "step1 step2 moved"),
            (Status::Done, 1, &[true, true, true], "done"),
            (Status::Done, 1, &[true, true, true], ""),
        ]);
    }

    #[test]
    fn a_job_that_ended_between_two_events_is_told_whole() {
        check(&[(Status::Done, 1, &[true], "started step0 done")]);
    }

    #[test]
    fn a_skipped_job_never_started() {
        check(&[(Status::Done, 0, &[], "done")]);
    }

    #[test]
    fn a_lost_attempt_is_followed_by_another_from_its_first_step() {
        check(&[
            (Status::Running, 1, &[true], "started step0 moved"),
            (Status::Queued, 1, &[], "again"),
            (Status::Running, 2, &[], ""),
            (Status::Running, 2, &[true], "started step0 moved"),
        ]);
        check(&[
            (Status::Running, 1, &[true], "started step0 moved"),
            (Status::Running, 2, &[true], "started step0 moved"),
        ]);
    }

    fn check(events: &[(Status, u32, &[bool], &str)]) {
        let mut view = View::default();
        for (at, (status, attempt, steps, want)) in events.iter().enumerate() {
            let steps = steps.iter().zip(0..).map(|(done, index)| v1::StepProgress {
                index,
                status: if *done {
                    v1::step_progress::Status::Done.into()
                } else {
                    v1::step_progress::Status::Running.into()
                },
                ..Default::default()
            });
            let job = v1::Job {
                job_id: 7,
                status: (*status).into(),
                attempt: *attempt,
                steps: steps.collect(),
                ..Default::default()
            };
            let event = v1::WatchRunEvent { jobs: vec![job], ..Default::default() };
            let got: Vec<String> = view.apply(event).iter().map(word).collect();
            assert_eq!(got.join(" "), *want, "event {at}");
        }
    }

    fn word(change: &Change) -> String {
        match change {
            Change::Started { .. } => "started".to_owned(),
            Change::Step { step, .. } => format!("step{}", step.index),
            Change::Moved { .. } => "moved".to_owned(),
            Change::Again { .. } => "again".to_owned(),
            Change::Waits { .. } => "waits".to_owned(),
            Change::Done { .. } => "done".to_owned(),
        }
    }
}
