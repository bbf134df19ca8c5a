//! `stead cancel`: asks for the end of a run.

use crate::args;
use crate::exit::{Ended, Failure};
use crate::follow;
use crate::out;
use crate::reach::{Reach, run_id};

/// Asks for the end of the run. Does not wait until its processes are gone: `watch` does.
///
/// # Errors
///
/// [`Failure`] where there is no such run, or the farm does not answer.
pub async fn run(args: args::Cancel) -> Result<Ended, Failure> {
    let id = run_id(&args.run)?;
    let reach = Reach::new(&args.coordinated).await?;
    let cancelled = async {
        // Names the run that is not there, where it is not.
        reach.run(id).await?;
        follow::cancel(&reach.coordinators, id, &args.reason).await
    };
    let cancelled = cancelled.await;
    let stopped = reach.stop().await;
    cancelled?;
    stopped?;
    out::line(format_args!("{id} is being cancelled"))?;
    Ok(Ended::Success)
}
