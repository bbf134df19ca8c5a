//! What the lines of a run say. Pure: jobs in, text out.

use std::fmt::Write as _;

use steading_model::Conclusion;
use steading_pipeline::job::{Annotation, JobResult, StepResult};
use steading_proto::v1;

use crate::summary::{mark, word};
use crate::text::{clean, count, duration};

/// Most files of a hint that are named.
const NAMED_MAX: usize = 20;

/// The end of a step: `build  step 2 Link … ok 1.2s (cached)`.
pub fn step_line(job: &str, step: &v1::StepProgress) -> String {
    let ran = step.started_ms > 0 && step.finished_ms >= step.started_ms;
    let took = if ran { duration(step.finished_ms - step.started_ms) } else { String::new() };
    let end = match step.conclusion().to_model() {
        Some(Conclusion::Success) => "ok",
        Some(Conclusion::Failure) => "failed",
        Some(Conclusion::Cancelled) => "cancelled",
        Some(Conclusion::Skipped) => "skipped",
        None => "ended",
    };
    let took = if end == "skipped" { "" } else { took.as_str() };
    let cached = if step.cached { "(cached)" } else { "" };
    let words = [end, took, cached].into_iter().filter(|word| !word.is_empty());
    let words: Vec<&str> = words.collect();
    let (number, name) = (step.index + 1, clean(&step.name));
    format!("{}  step {number} {name} … {}", clean(job), words.join(" "))
}

/// A step of a result as the progress of the running job would have told it.
pub fn as_progress(step: &StepResult) -> v1::StepProgress {
    let conclusion: Option<Conclusion> = match step.conclusion.as_str() {
        "success" => Some(Conclusion::Success),
        "failure" => Some(Conclusion::Failure),
        "cancelled" => Some(Conclusion::Cancelled),
        "skipped" => Some(Conclusion::Skipped),
        _ => None,
    };
    v1::StepProgress {
        index: step.index,
        name: step.name.clone(),
        status: v1::step_progress::Status::Done.into(),
        conclusion: conclusion.map_or(0, |end| v1::Conclusion::from(end).into()),
        cached: step.cached,
        started_ms: step.started_ms,
        finished_ms: step.finished_ms,
    }
}

/// The end of a job: `✓ build  1.5s, 3 steps (2 cached)`.
pub fn job_line(job: &v1::Job) -> String {
    let conclusion = job.conclusion().to_model();
    let mut line = format!("{} {}", mark(conclusion), clean(&job.name));
    match conclusion {
        Some(Conclusion::Success) | None => (),
        Some(Conclusion::Failure) if job.continue_on_error => line.push_str("  failure (allowed)"),
        Some(other) => {
            let _ = write!(line, "  {}", word(other));
        }
    }
    if job.started_ms > 0 && job.finished_ms >= job.started_ms {
        let _ = write!(line, "  {}", duration(job.finished_ms - job.started_ms));
        let _ = write!(line, ", {}", count(u64::from(job.steps_executed), "step"));
        if job.steps_cached > 0 {
            let _ = write!(line, " executed, {} cached", job.steps_cached);
        }
    }
    if conclusion != Some(Conclusion::Success) && !job.message.is_empty() {
        let _ = write!(line, ": {}", clean(&job.message));
    }
    line
}

/// The line of a job that runs: name, step, how long.
pub fn live_line(job: &v1::Job, elapsed_ms: u64, cancelling: bool) -> String {
    let running = job.steps.iter().rev().find(|step| {
        step.status() == v1::step_progress::Status::Running
            || step.status() == v1::step_progress::Status::Waiting
    });
    let mut line = clean(&job.name).into_owned();
    if let Some(step) = running {
        let _ = write!(line, "  step {} {}", step.index + 1, clean(&step.name));
        if step.status() == v1::step_progress::Status::Waiting {
            line.push_str(" (waits for the same step elsewhere)");
        }
    }
    if job.attempt > 1 {
        let _ = write!(line, "  attempt {}", job.attempt);
    }
    if cancelling {
        line.push_str("  is being cancelled");
    }
    let _ = write!(line, "  {}", duration(elapsed_ms));
    line
}

/// Why a step failed, its last lines, and where the whole log is. `tail` is what the
/// job printed, passed on as it is.
pub fn failed_step(step: &StepResult, tail: &str, cut: bool, logs_command: &str) -> String {
    let mut text = format!("  step {} {}: {}\n", step.index + 1, clean(&step.name), why(step));
    if cut {
        text.push_str("    …\n");
    }
    for line in tail.lines() {
        let _ = writeln!(text, "    {line}");
    }
    if !step.undeclared.is_empty() {
        text.push_str("  its output names workspace files that it does not declare as inputs:\n");
        for file in step.undeclared.iter().take(NAMED_MAX) {
            let _ = writeln!(text, "    {}", clean(file));
        }
        if let Some(more) = step.undeclared.len().checked_sub(NAMED_MAX + 1) {
            let _ = writeln!(text, "    and {} more", more + 1);
        }
        text.push_str("  hint: a cached step sees only its `cache.inputs`\n");
    }
    let _ = writeln!(text, "  whole log: {logs_command} --step {}", step.index + 1);
    text
}

/// The exit code or signal, and what the agent says of it.
fn why(step: &StepResult) -> String {
    let mut reasons = Vec::new();
    if let Some(signal) = step.signal {
        reasons.push(match nix::sys::signal::Signal::try_from(signal) {
            Ok(name) => format!("killed by signal {signal} ({name})"),
            Err(_) => format!("killed by signal {signal}"),
        });
    } else if let Some(code) = step.exit_code {
        reasons.push(format!("exit code {code}"));
    }
    // The agent's message may be the exit code again, in words.
    let known = reasons.first().is_some_and(|reason| step.message.contains(reason.as_str()));
    if known {
        reasons.clear();
    }
    if !step.message.is_empty() {
        reasons.push(clean(&step.message).into_owned());
    }
    if reasons.is_empty() { step.outcome.clone() } else { reasons.join(": ") }
}

/// An annotation as compilers print theirs: `build: warning: src/a.c:3:4: unused variable`.
pub fn annotation_line(job: &str, annotation: &Annotation) -> String {
    let mut line = format!("{}: {}: ", clean(job), clean(&annotation.level));
    if let Some(file) = &annotation.file {
        line.push_str(&clean(file));
        for number in [annotation.line, annotation.column].into_iter().flatten() {
            let _ = write!(line, ":{number}");
        }
        line.push_str(": ");
    }
    if let Some(title) = &annotation.title {
        let _ = write!(line, "{}: ", clean(title));
    }
    // Of several lines the later ones are set in, so that they cannot pass for ours.
    let message: Vec<_> = annotation.message.lines().map(clean).collect();
    line.push_str(&message.join("\n    "));
    line
}

/// Steps whose failure failed the job.
pub fn failed_steps(result: &JobResult) -> impl Iterator<Item = &StepResult> {
    result.steps.iter().filter(|step| step.conclusion == "failure")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_line_says_how_it_ended_and_whether_it_ran() {
        let table = [
            (v1::Conclusion::Success, false, 1_250, "b  step 2 Link … ok 1.2s"),
            (v1::Conclusion::Success, true, 3, "b  step 2 Link … ok 3ms (cached)"),
            (v1::Conclusion::Failure, false, 3, "b  step 2 Link … failed 3ms"),
            (v1::Conclusion::Skipped, false, 0, "b  step 2 Link … skipped"),
        ];
        for (conclusion, cached, took, want) in table {
            let step = v1::StepProgress {
                index: 1,
                name: "Link".to_owned(),
                conclusion: conclusion.into(),
                cached,
                started_ms: 1_000,
                finished_ms: 1_000 + took,
                ..Default::default()
            };
            assert_eq!(step_line("b", &step), want);
        }
    }

    #[test]
    fn a_job_line_says_how_it_ended_and_why() {
        let job = v1::Job {
            name: "test (\u{1b}[1m8)".to_owned(),
            conclusion: v1::Conclusion::Failure.into(),
            message: "step 1 failed".to_owned(),
            started_ms: 1,
            finished_ms: 61_001,
            steps_executed: 1,
            steps_cached: 2,
            ..Default::default()
        };
        let want = "✗ test ( [1m8)  failure  1m01s, 1 step executed, 2 cached: step 1 failed";
        assert_eq!(job_line(&job), want);
        let allowed = v1::Job { continue_on_error: true, ..job.clone() };
        assert!(job_line(&allowed).contains("failure (allowed)"));
        let skipped = v1::Job {
            name: "s".to_owned(),
            conclusion: v1::Conclusion::Skipped.into(),
            ..Default::default()
        };
        assert_eq!(job_line(&skipped), "- s  skipped");
    }

    #[test]
    fn a_live_line_names_the_step_that_runs() {
        let step = v1::StepProgress {
            index: 2,
            name: "Compile".to_owned(),
            status: v1::step_progress::Status::Running.into(),
            ..Default::default()
        };
        let mut job =
            v1::Job { name: "b".to_owned(), attempt: 1, steps: vec![step], ..Default::default() };
        assert_eq!(live_line(&job, 1_200, false), "b  step 3 Compile  1.2s");
        job.attempt = 2;
        job.steps.clear();
        assert_eq!(live_line(&job, 0, true), "b  attempt 2  is being cancelled  0ms");
    }

    #[test]
    fn a_failed_step_shows_its_exit_its_last_lines_and_the_command_for_all_of_them() {
        let step = StepResult {
            index: 1,
            name: "Test".to_owned(),
            exit_code: Some(2),
            undeclared: vec!["src/b.h".to_owned()],
            ..result()
        };
        assert_eq!(
            failed_step(&step, "x\ny\n", true, "stead logs run-1 b"),
            "  step 2 Test: exit code 2\n    …\n    x\n    y\n  \
             its output names workspace files that it does not declare as inputs:\n    \
             src/b.h\n  hint: a cached step sees only its `cache.inputs`\n  \
             whole log: stead logs run-1 b --step 2\n"
        );
        let killed =
            StepResult { signal: Some(9), message: "out of memory".to_owned(), ..result() };
        assert!(
            failed_step(&killed, "", false, "c")
                .starts_with("  step 1 : killed by signal 9 (SIGKILL): out of memory\n")
        );
    }

    #[test]
    fn an_annotation_reads_like_a_compilers() {
        let annotation = Annotation {
            level: "warning".to_owned(),
            message: "unused\nx".to_owned(),
            file: Some("a.c".to_owned()),
            line: Some(3),
            ..Default::default()
        };
        assert_eq!(annotation_line("b", &annotation), "b: warning: a.c:3: unused\n    x");
    }

    fn result() -> StepResult {
        StepResult {
            id: String::new(),
            name: String::new(),
            outcome: "failure".to_owned(),
            conclusion: "failure".to_owned(),
            index: 0,
            exit_code: None,
            signal: None,
            cacheable: false,
            cached: false,
            message: String::new(),
            failure_class: None,
            undeclared: Vec::new(),
            started_ms: 0,
            finished_ms: 0,
            action: String::new(),
        }
    }
}
