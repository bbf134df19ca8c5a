//! `stead retry`: lets a run that has ended go on.

use steading_proto::v1;

use crate::args;
use crate::connect::{FIRST_ANSWER_MAX, failure};
use crate::exit::{Ended, Failure};
use crate::out;
use crate::reach::{Reach, run_id};

/// Asks for it. Does not wait until the run has ended again: `watch` does.
///
/// # Errors
///
/// [`Failure`] where there is no such run, it goes on, nothing of it failed, or the farm
/// does not answer.
pub async fn run(args: args::Retry) -> Result<Ended, Failure> {
    let id = run_id(&args.run)?;
    let reach = Reach::new(&args.coordinated).await?;
    let retried = async {
        // Names the run that is not there, where it is not.
        reach.run(id).await?;
        let request_id = crate::id::request_id().map_err(anyhow::Error::from)?;
        let request = v1::RetryRunRequest { run_id: id.counter(), request_id };
        let retried = reach.coordinators.call(FIRST_ANSWER_MAX, |mut client| {
            let request = request.clone();
            async move { client.retry_run(request).await }
        });
        retried.await.map_err(|status| match status.code() {
            tonic::Code::FailedPrecondition => Failure::usage(status.message().to_owned()),
            _ => failure("retry the run", status),
        })
    };
    let retried = retried.await;
    let arguments = reach.arguments.clone();
    let stopped = reach.stop().await;
    retried?;
    stopped?;
    out::line(format_args!("{id} goes on; `stead watch {id}{arguments}` follows it"))?;
    Ok(Ended::Success)
}
