//! `stead explain`: why jobs wait, or how they got where they are.

use steading_proto::v1;

use crate::args;
use crate::connect::{FIRST_ANSWER_MAX, failure};
use crate::exit::{Ended, Failure};
use crate::out;
use crate::reach::{Reach, run_id};
use crate::text::{clean, count, date};

/// Prints a line a job, and what became of its earlier attempts.
///
/// # Errors
///
/// [`Failure`] where there is no such run or job, or the farm does not answer.
pub async fn run(args: args::Explain) -> Result<Ended, Failure> {
    let id = run_id(&args.run)?;
    let reach = Reach::new(&args.coordinated).await?;
    let request =
        v1::ExplainJobRequest { run_id: id.counter(), job: args.job.clone().unwrap_or_default() };
    let explained = reach.coordinators.call(FIRST_ANSWER_MAX, |mut client| {
        let request = request.clone();
        async move { client.explain_job(request).await }
    });
    let explained = explained.await.map_err(|status| match status.code() {
        tonic::Code::NotFound => Failure::usage(format!(
            "{}\n  hint: `stead runs` lists the runs, `stead explain {id}` its jobs",
            status.message()
        )),
        _ => failure("explain the run", status),
    });
    let stopped = reach.stop().await;
    let jobs = explained?.jobs;
    stopped?;
    for job in &jobs {
        if args.json {
            out::line(format_args!("{}", json(job)))?;
        } else {
            out::line(format_args!("{}", lines(job)))?;
        }
    }
    Ok(Ended::Success)
}

fn lines(job: &v1::JobExplanation) -> String {
    let mut text = format!("{}  {}", clean(&job.name), clean(&job.state));
    for ended in &job.attempts {
        let class = class(ended);
        let agent = if ended.agent.is_empty() { "an agent that is gone" } else { &ended.agent };
        text += &format!("\n  attempt {} at {}: {class}", ended.attempt, clean(agent));
        if !ended.message.is_empty() {
            text += &format!(", {}", clean(&ended.message));
        }
    }
    if job.stale_results > 0 {
        let results = count(u64::from(job.stale_results), "result");
        let (attempt, at) = (job.stale_attempt, date(job.stale_ms));
        text += &format!(
            "\n  {results} refused, of an attempt that was over: the last of attempt {attempt}, \
             at {at} (UTC)"
        );
    }
    if !job.cancel_reason.is_empty() {
        text += &format!("\n  the run was cancelled: {}", clean(&job.cancel_reason));
    }
    text
}

fn class(ended: &v1::EndedAttempt) -> &'static str {
    ended.failure_class().to_model().map_or("given back", |class| class.as_str())
}

fn json(job: &v1::JobExplanation) -> serde_json::Value {
    let attempts = job.attempts.iter().map(|ended| {
        serde_json::json!({
            "attempt": ended.attempt,
            "agent": ended.agent,
            "failure_class": ended.failure_class().to_model().map(|class| class.as_str()),
            "message": ended.message,
            "started_ms": ended.started_ms,
            "ended_ms": ended.ended_ms,
        })
    });
    serde_json::json!({
        "job_id": job.job_id,
        "key": job.key,
        "name": job.name,
        "state": job.state,
        "hopeless": job.hopeless,
        "attempts": attempts.collect::<Vec<_>>(),
        "stale_results": job.stale_results,
        "stale_attempt": job.stale_attempt,
        "stale_ms": job.stale_ms,
        "cancel_reason": job.cancel_reason,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_is_told_with_its_earlier_attempts() {
        let job = v1::JobExplanation {
            job_id: 3,
            name: "test (a)".into(),
            state: "attempt 2 runs at b".into(),
            attempts: vec![v1::EndedAttempt {
                attempt: 1,
                failure_class: v1::FailureClass::Preempted.into(),
                message: "its agent gave it back".into(),
                ..Default::default()
            }],
            stale_results: 1,
            stale_attempt: 1,
            stale_ms: 951_782_400_000,
            ..Default::default()
        };
        assert_eq!(
            lines(&job),
            "test (a)  attempt 2 runs at b\n  \
             attempt 1 at an agent that is gone: preempted, its agent gave it back\n  \
             1 result refused, of an attempt that was over: the last of attempt 1, \
             at 2000-02-29 00:00:00 (UTC)"
        );
        assert_eq!(json(&job)["attempts"][0]["failure_class"], "preempted");
    }
}
