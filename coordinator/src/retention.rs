//! Forgets runs beyond the bound, and removes their logs.

use std::sync::Arc;

use steading_cas::Front;
use steading_core::Proposal;
use steading_model::RunId;
use steading_model::limits::RUNS_PER_RETIREMENT_MAX;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::kept_logs;
use crate::logs::Logs;
use crate::replica::{ProposeError, Replica, Standing};

/// Runs until `stop`; looks whenever a run has ended. The last `keep` ended runs stay.
pub(crate) async fn run(
    replica: Replica,
    logs: Arc<Logs>,
    front: Front,
    run_finished: Arc<Notify>,
    keep: usize,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let standing = replica.standing();
    let mut swept = None;
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = run_finished.notified() => (),
        }
        // Logs of runs that were retired while the process was killed, or another one led.
        let Standing { term, leads, .. } = *standing.borrow();
        if leads && swept.replace(term) != Some(term) {
            remove_logs(&replica, &logs, None).await;
        }
        retire(&replica, &logs, &front, keep).await;
    }
}

async fn retire(replica: &Replica, logs: &Arc<Logs>, front: &Front, keep: usize) {
    loop {
        let runs = replica.view().runs_to_retire(keep, RUNS_PER_RETIREMENT_MAX);
        if runs.is_empty() {
            return;
        }
        match replica.propose(Proposal::RetireRuns { runs: runs.clone() }).await {
            Ok(_) => {
                remove_logs(replica, logs, Some(runs.clone())).await;
                for run in runs {
                    if let Err(error) = kept_logs::remove(front, replica.cluster_id(), run).await {
                        tracing::warn!(%error, %run, "what was kept of a retired run's logs stays");
                    }
                }
            }
            // The next run that ends tries again.
            Err(ProposeError::NotLeader | ProposeError::Stopped | ProposeError::Busy) => return,
            Err(error) => {
                tracing::warn!(%error, "runs were not retired");
                return;
            }
        }
    }
}

/// Removes the logs of those runs (of all: none said) that the state does not know.
async fn remove_logs(replica: &Replica, logs: &Arc<Logs>, runs: Option<Vec<RunId>>) {
    let (state, logs) = (replica.view(), Arc::clone(logs));
    let removed = tokio::task::spawn_blocking(move || {
        let runs = match runs {
            Some(runs) => runs,
            None => logs.runs()?,
        };
        for run in runs.into_iter().filter(|run| state.run(*run).is_none()) {
            logs.remove_run(run)?;
        }
        Ok::<_, std::io::Error>(())
    });
    match removed.await {
        Ok(Ok(())) => (),
        Ok(Err(error)) => tracing::warn!(%error, "logs of retired runs were not removed"),
        Err(error) => tracing::warn!(%error, "logs of retired runs were not removed"),
    }
}
