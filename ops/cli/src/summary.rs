//! How a run ended, in one object and in one table.

use serde::Serialize;
use steading_model::{Conclusion, RunId};
use steading_proto::v1;

use crate::text::{clean, count, duration, table};

/// The one JSON object that `--json` prints. Its shape is stable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Summary {
    pub run: String,
    /// success, failure or cancelled.
    pub result: &'static str,
    /// From the command's start, milliseconds.
    pub wall_ms: u64,
    pub jobs: Jobs,
    pub steps: Steps,
    pub cacheable: Cacheable,
}

/// Jobs by how they ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Jobs {
    pub total: u64,
    pub succeeded: u64,
    pub failed: u64,
    pub cancelled: u64,
    pub skipped: u64,
}

/// Steps over all jobs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Steps {
    /// Every step that ran.
    pub executed: u64,
    /// Steps whose result came from the cache.
    pub cached: u64,
    pub skipped: u64,
}

/// Steps that declare a cache.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Cacheable {
    pub hit: u64,
    pub executed: u64,
}

impl Summary {
    /// Adds up the jobs of a run that has ended.
    pub fn new<'a>(run: &v1::Run, jobs: impl Iterator<Item = &'a v1::Job>, wall_ms: u64) -> Self {
        let mut summary = Self {
            run: RunId::from_counter(run.run_id).to_string(),
            result: run.conclusion().to_model().map_or("unknown", word),
            wall_ms,
            jobs: Jobs::default(),
            steps: Steps::default(),
            cacheable: Cacheable::default(),
        };
        for job in jobs {
            summary.jobs.total += 1;
            match job.conclusion().to_model() {
                Some(Conclusion::Success) => summary.jobs.succeeded += 1,
                Some(Conclusion::Failure) => summary.jobs.failed += 1,
                Some(Conclusion::Skipped) => summary.jobs.skipped += 1,
                Some(Conclusion::Cancelled) | None => summary.jobs.cancelled += 1,
            }
            summary.steps.executed += u64::from(job.steps_executed);
            summary.steps.cached += u64::from(job.steps_cached);
            summary.steps.skipped += u64::from(job.steps_skipped);
            summary.cacheable.hit += u64::from(job.steps_cached);
            summary.cacheable.executed += u64::from(job.cacheable_executed);
        }
        summary
    }

    /// The object, on one line.
    pub fn json(&self) -> String {
        serde_json::to_string(self).expect("numbers and plain strings are always JSON")
    }

    /// The last lines that a person reads.
    pub fn text(&self) -> String {
        let Jobs { total, succeeded, failed, cancelled, skipped } = self.jobs;
        let mut ends = vec![format!("{succeeded} succeeded")];
        for (number, word) in [(failed, "failed"), (cancelled, "cancelled"), (skipped, "skipped")] {
            if number > 0 {
                ends.push(format!("{number} {word}"));
            }
        }
        let Steps { executed, cached, skipped } = self.steps;
        let mut steps = vec![format!("{executed} executed"), format!("{cached} cached")];
        if skipped > 0 {
            steps.push(format!("{skipped} skipped"));
        }
        let (run, result) = (&self.run, self.result);
        let jobs = count(total, "job");
        let ends = ends.join(", ");
        let steps = steps.join(", ");
        let wall = duration(self.wall_ms);
        format!("{run}: {result} in {wall}; {jobs}: {ends}; steps: {steps}\n")
    }
}

/// One line per job: how it ended, how long it took, what its steps did.
pub fn job_table<'a>(jobs: impl Iterator<Item = &'a v1::Job>) -> String {
    let rows: Vec<Vec<String>> = jobs
        .map(|job| {
            let conclusion = job.conclusion().to_model();
            let mut steps = vec![format!("{} executed", job.steps_executed)];
            if job.steps_cached > 0 {
                steps.push(format!("{} cached", job.steps_cached));
            }
            if job.steps_skipped > 0 {
                steps.push(format!("{} skipped", job.steps_skipped));
            }
            let ran = job.started_ms > 0 && job.finished_ms >= job.started_ms;
            let took = if ran { duration(job.finished_ms - job.started_ms) } else { "-".into() };
            let steps = if ran { steps.join(", ") } else { String::new() };
            let allowed = conclusion == Some(Conclusion::Failure) && job.continue_on_error;
            let word = conclusion.map_or("unfinished", word);
            let word = if allowed { format!("{word} (allowed)") } else { word.to_owned() };
            let name = clean(&job.name).into_owned();
            vec![mark(conclusion).to_owned(), name, word, took, steps]
        })
        .collect();
    table(&rows)
}

/// One character for a conclusion.
pub fn mark(conclusion: Option<Conclusion>) -> &'static str {
    match conclusion {
        Some(Conclusion::Success) => "✓",
        Some(Conclusion::Failure) => "✗",
        Some(Conclusion::Cancelled) => "■",
        Some(Conclusion::Skipped) => "-",
        None => "?",
    }
}

/// The word for a conclusion, as the pipeline language spells it.
pub fn word(conclusion: Conclusion) -> &'static str {
    match conclusion {
        Conclusion::Success => "success",
        Conclusion::Failure => "failure",
        Conclusion::Cancelled => "cancelled",
        Conclusion::Skipped => "skipped",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_json_object_has_the_promised_shape() {
        let want = r#"{"run":"run-3","result":"failure","wall_ms":1234,"jobs":{"total":4,"succeeded":1,"failed":1,"cancelled":1,"skipped":1},"steps":{"executed":3,"cached":2,"skipped":4},"cacheable":{"hit":2,"executed":1}}"#;
        assert_eq!(summary().json(), want);
    }

    #[test]
    fn the_text_leaves_out_what_did_not_happen() {
        assert_eq!(
            summary().text(),
            "run-3: failure in 1.2s; 4 jobs: 1 succeeded, 1 failed, 1 cancelled, 1 skipped; \
             steps: 3 executed, 2 cached, 4 skipped\n"
        );
        let run = v1::Run { run_id: 1, conclusion: 1, ..Default::default() };
        let one = job("a", v1::Conclusion::Success, (1, 0, 0, 0));
        let text = Summary::new(&run, std::iter::once(&one), 40).text();
        assert_eq!(
            text,
            "run-1: success in 40ms; 1 job: 1 succeeded; steps: 1 executed, 0 cached\n"
        );
    }

    #[test]
    fn the_table_has_one_line_per_job() {
        let jobs = jobs();
        assert_eq!(
            job_table(jobs.iter()),
            "✓  build  success    1.5s  2 executed, 2 cached\n\
             ✗  te st  failure    1.5s  1 executed, 4 skipped\n\
             ■  c      cancelled  1.5s  0 executed\n\
             -  d      skipped    -\n"
        );
    }

    fn summary() -> Summary {
        let run =
            v1::Run { run_id: 3, conclusion: v1::Conclusion::Failure.into(), ..Default::default() };
        Summary::new(&run, jobs().iter(), 1234)
    }

    fn jobs() -> Vec<v1::Job> {
        let mut jobs = vec![
            job("build", v1::Conclusion::Success, (2, 2, 0, 1)),
            job("te\nst", v1::Conclusion::Failure, (1, 0, 4, 0)),
            job("c", v1::Conclusion::Cancelled, (0, 0, 0, 0)),
            job("d", v1::Conclusion::Skipped, (0, 0, 0, 0)),
        ];
        jobs[3].started_ms = 0;
        jobs
    }

    fn job(
        name: &str,
        conclusion: v1::Conclusion,
        (executed, cached, skipped, cacheable): (u32, u32, u32, u32),
    ) -> v1::Job {
        v1::Job {
            name: name.to_owned(),
            conclusion: conclusion.into(),
            started_ms: 1_000,
            finished_ms: 2_500,
            steps_executed: executed,
            steps_cached: cached,
            steps_skipped: skipped,
            cacheable_executed: cacheable,
            ..Default::default()
        }
    }
}
