//! `stead runs`: the runs of a farm, the newest first.

use steading_model::RunId;
use steading_proto::v1;

use crate::args;
use crate::connect::{FIRST_ANSWER_MAX, failure};
use crate::exit::{Ended, Failure};
use crate::out;
use crate::reach::Reach;
use crate::summary::word;
use crate::text::{clean, date, duration, table};

/// Lists the runs.
///
/// # Errors
///
/// [`Failure`] where the farm cannot be reached, or does not answer.
pub async fn run(args: args::Runs) -> Result<Ended, Failure> {
    let reach = Reach::new(&args.coordinated).await?;
    let listed = list(&reach, &args).await;
    let stopped = reach.stop().await;
    let runs = listed?;
    stopped?;
    if args.json {
        for run in &runs {
            out::line(as_json(run))?;
        }
    } else if runs.is_empty() {
        out::line("no runs yet")?;
    } else {
        out::print(as_table(&runs))?;
    }
    Ok(Ended::Success)
}

async fn list(reach: &Reach, args: &args::Runs) -> Result<Vec<v1::Run>, Failure> {
    let limit = usize::try_from(args.limit).unwrap_or(usize::MAX);
    let mut runs = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = v1::ListRunsRequest {
            project: args.project.clone(),
            page_size: args.limit,
            page_token,
        };
        let page = reach.coordinators.call(FIRST_ANSWER_MAX, |mut client| {
            let request = request.clone();
            async move { client.list_runs(request).await }
        });
        let page = page.await.map_err(|status| failure("list the runs", status))?;
        runs.extend(page.runs);
        if runs.len() >= limit || page.next_page_token.is_empty() {
            runs.truncate(limit);
            return Ok(runs);
        }
        page_token = page.next_page_token;
    }
}

fn state(run: &v1::Run) -> &'static str {
    match run.conclusion().to_model() {
        Some(conclusion) => word(conclusion),
        None if run.cancelling => "cancelling",
        None => "running",
    }
}

fn as_table(runs: &[v1::Run]) -> String {
    let head = ["RUN", "STATE", "PIPELINE", "EVENT", "REF", "CREATED (UTC)", "TOOK"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for run in runs {
        let took = if run.finished_ms >= run.created_ms && run.finished_ms > 0 {
            duration(run.finished_ms - run.created_ms)
        } else {
            "-".to_owned()
        };
        rows.push(vec![
            RunId::from_counter(run.run_id).to_string(),
            state(run).to_owned(),
            clean(&run.name).into_owned(),
            clean(&run.event_name).into_owned(),
            clean(run.r#ref.strip_prefix("refs/heads/").unwrap_or(&run.r#ref)).into_owned(),
            date(run.created_ms),
            took,
        ]);
    }
    table(&rows)
}

fn as_json(run: &v1::Run) -> String {
    serde_json::json!({
        "run": RunId::from_counter(run.run_id).to_string(),
        "state": state(run),
        "name": run.name,
        "file": run.file,
        "event": run.event_name,
        "ref": run.r#ref,
        "sha": run.sha,
        "created_ms": run.created_ms,
        "finished_ms": run.finished_ms,
    })
    .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_a_table_for_people_and_objects_for_programs() {
        let run = v1::Run {
            run_id: 7,
            name: "ci".to_owned(),
            event_name: "push".to_owned(),
            r#ref: "refs/heads/main".to_owned(),
            conclusion: v1::Conclusion::Failure.into(),
            created_ms: 951_782_400_000,
            finished_ms: 951_782_401_500,
            ..Default::default()
        };
        let running = v1::Run { run_id: 8, created_ms: 951_782_400_000, ..Default::default() };
        assert_eq!(
            as_table(&[running, run.clone()]),
            "RUN    STATE    PIPELINE  EVENT  REF   CREATED (UTC)        TOOK\n\
             run-8  running                         2000-02-29 00:00:00  -\n\
             run-7  failure  ci        push   main  2000-02-29 00:00:00  1.5s\n"
        );
        let json: serde_json::Value = serde_json::from_str(&as_json(&run)).unwrap();
        assert_eq!(json["run"], "run-7");
        assert_eq!(json["state"], "failure");
    }
}
