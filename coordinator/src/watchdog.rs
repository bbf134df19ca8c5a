//! Whether the replica goes on. A disk may hang without an error: then the replica's thread
//! waits in a write, and the others elect another leader, but this process would go on to
//! serve as what it was, and keep its clients waiting. So it ends, for all who are connected
//! to go elsewhere; but only where others do go on: if the disks of all hang for a while, as
//! for a snapshot of their machines, nobody would be better off.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::peers::Peers;
use crate::replica::Replica;

/// How often is looked.
const PERIOD: Duration = Duration::from_secs(1);

/// Periods in which nothing was done after which that is said, …
const SLOW_PERIODS: u32 = 3;

/// … and after which the coordinator ends. Counted, so that a process that was stopped for
/// as long does not end when it goes on.
const SILENT_PERIODS_MAX: u32 = 10;

/// The replica stands still, so that nobody need wait for its end either.
#[derive(Debug, thiserror::Error)]
#[error(
    "the replica has stood still for {0:?}, so its disk hangs: this coordinator ends, and others \
     go on; look after the disk and start it again"
)]
pub(crate) struct Hangs(Duration);

/// Looks until `stop`.
///
/// # Errors
///
/// [`Hangs`], where others go on.
pub(crate) async fn run(
    peers: Arc<Peers>,
    replica: Replica,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let mut periods = interval(PERIOD);
    periods.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut seen, mut silent) = (0, 0);
    while stop.run_until_cancelled(periods.tick()).await.is_some() {
        let rounds = replica.rounds();
        // A start takes as long as it takes: the whole log may have to be applied.
        // Nor has one that is alone anything to do for others.
        let stands = rounds == seen && rounds > 0;
        let alone = replica.membership().is_alone(replica.id());
        silent = if stands && !alone { silent + 1 } else { 0 };
        seen = rounds;
        if silent == SLOW_PERIODS {
            tracing::warn!(silent, "the replica has stood still for seconds: its disk is slow");
        }
        if silent >= SILENT_PERIODS_MAX && peers.others_go_on() {
            return Err(Hangs(PERIOD * silent).into());
        }
    }
    Ok(())
}
