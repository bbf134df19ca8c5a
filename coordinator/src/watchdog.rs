//! Whether the replica still answers. A disk may hang without an error: then the replica's
//! thread waits in a write, and the others elect another leader, but this process would go
//! on to serve as what it was, and keep its clients waiting. So it ends, for all who are
//! connected to go elsewhere. One that is alone waits: nobody would be better off.

use std::time::Duration;

use tokio::time::{Interval, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::replica::{GroupStatus, ProposeError, Replica};

/// How often the replica is asked.
const PERIOD: Duration = Duration::from_secs(1);

/// Periods without an answer after which that is said, …
const SLOW_PERIODS: u32 = 3;

/// … and after which the coordinator ends. Counted, so that a process that was stopped for
/// as long does not end when it goes on.
const SILENT_PERIODS_MAX: u32 = 10;

/// The replica does not answer, so that nobody need wait for its end either.
#[derive(Debug, thiserror::Error)]
#[error(
    "the replica has not answered for {0:?}, so its disk hangs: this coordinator ends, and others \
     go on; look after the disk and start it again"
)]
pub(crate) struct Hangs(Duration);

/// Asks until `stop`.
///
/// # Errors
///
/// [`Hangs`], where there are others.
pub(crate) async fn run(replica: Replica, stop: CancellationToken) -> anyhow::Result<()> {
    let mut periods = interval(PERIOD);
    periods.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let watched = stop.run_until_cancelled(watch(&replica, &mut periods)).await;
    watched.unwrap_or(Ok(()))
}

async fn watch(replica: &Replica, periods: &mut Interval) -> anyhow::Result<()> {
    let mut silent = 0;
    loop {
        match ask(replica, periods).await {
            Some(Ok(_)) => silent = 0,
            // Its own end is told by others.
            Some(Err(ProposeError::Stopped)) => std::future::pending().await,
            // Its queue is full: as silent as no answer.
            Some(Err(_)) | None => silent += 1,
        }
        if silent == SLOW_PERIODS {
            tracing::warn!(silent, "the replica has not answered for seconds: its disk is slow");
        }
        if silent >= SILENT_PERIODS_MAX && !replica.membership().is_single(replica.id()) {
            return Err(Hangs(PERIOD * silent).into());
        }
    }
}

/// What the replica answers before the period is over.
async fn ask(
    replica: &Replica,
    periods: &mut Interval,
) -> Option<Result<GroupStatus, ProposeError>> {
    let asked = replica.status();
    tokio::pin!(asked);
    let answer = tokio::select! {
        biased;
        answer = &mut asked => Some(answer),
        _ = periods.tick() => None,
    };
    if answer.is_some() {
        periods.tick().await;
    }
    answer
}
