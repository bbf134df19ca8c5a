//! `stead logs`: what the jobs of a run printed.

use std::collections::HashMap;
use std::io::Write as _;

use steading_model::limits::JOB_LOG_STREAM;
use steading_proto::v1;
use tokio::sync::mpsc;

use crate::args;
use crate::connect::failure;
use crate::exit::{Ended, Failure};
use crate::follow::feed::{INPUTS_MAX, LogOf, read_log};
use crate::reach::{Reach, jobs, run_id};
use crate::text::clean;

/// Prints the logs as they are: one job after the other, each step under its name
/// where more than one step is printed.
///
/// # Errors
///
/// [`Failure`] where there is no such run or job, or the farm does not answer.
pub async fn run(args: args::Logs) -> Result<Ended, Failure> {
    let id = run_id(&args.run)?;
    let reach = Reach::new(&args.coordinated).await?;
    let printed = async {
        let run = reach.run(id).await?;
        let wanted = jobs(&run, args.job.as_deref())?;
        let several = wanted.len() > 1;
        for job in wanted.into_iter().filter(|job| job.attempt > 0 || args.follow) {
            if several {
                say(&format!("=== {}\n", clean(&job.name)));
            }
            print_job(&reach, &run, job, &args).await?;
        }
        Ok::<_, Failure>(())
    };
    let printed = printed.await;
    let stopped = reach.stop().await;
    printed?;
    stopped?;
    Ok(Ended::Success)
}

async fn print_job(
    reach: &Reach,
    run: &v1::Run,
    job: &v1::Job,
    args: &args::Logs,
) -> Result<(), Failure> {
    let of = LogOf {
        run: run.run_id,
        job: job.job_id,
        attempt: args.attempt.unwrap_or(0),
        stream: args.step.map(|step| step - 1),
        follow: args.follow,
    };
    let mut names: HashMap<u32, String> =
        job.steps.iter().map(|step| (step.index, clean(&step.name).into_owned())).collect();
    names.extend(result_names(reach, job).await);
    let (to, mut chunks) = mpsc::channel::<v1::LogChunk>(INPUTS_MAX);
    let print = async {
        let mut current = None;
        while let Some(chunk) = chunks.recv().await {
            if !chunk.notice.is_empty() {
                eprintln!("{}: {}", clean(&job.name), clean(&chunk.notice));
                continue;
            }
            if args.step.is_none() && current != Some(chunk.stream) {
                current = Some(chunk.stream);
                say(&heading(chunk.stream, &names));
            }
            if !write(&chunk.data) {
                return;
            }
        }
    };
    let (read, ()) =
        tokio::join!(read_log(reach.coordinators.clone(), of, HashMap::new(), to), print);
    read.map_err(|status| failure("read the log", status))
}

async fn result_names(reach: &Reach, job: &v1::Job) -> HashMap<u32, String> {
    let result = async {
        let bytes = reach.blobs.get(&job.result_digest.parse().ok()?).await.ok()??;
        serde_json::from_slice::<steading_pipeline::job::JobResult>(&bytes).ok()
    };
    let steps = result.await.map(|result| result.steps).unwrap_or_default();
    steps.into_iter().map(|step| (step.index, clean(&step.name).into_owned())).collect()
}

fn heading(stream: u32, names: &HashMap<u32, String>) -> String {
    if stream == JOB_LOG_STREAM {
        return "--- job\n".to_owned();
    }
    let name = names.get(&stream).map_or("", String::as_str);
    format!("--- step {} {name}\n", stream + 1)
}

fn say(text: &str) {
    write(text.as_bytes());
}

/// `false` when nobody reads any more.
fn write(bytes: &[u8]) -> bool {
    let mut out = std::io::stdout().lock();
    out.write_all(bytes).and_then(|()| out.flush()).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_stream_has_a_heading() {
        let names = HashMap::from([(0, "Compile".to_owned())]);
        assert_eq!(heading(0, &names), "--- step 1 Compile\n");
        assert_eq!(heading(1, &names), "--- step 2 \n");
        assert_eq!(heading(JOB_LOG_STREAM, &names), "--- job\n");
    }
}
