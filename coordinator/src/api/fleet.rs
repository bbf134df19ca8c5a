//! What agents and operators are told of the fleet.

use steading_core::{Agent, State};
use steading_model::Timestamp;
use steading_proto::v1;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Answers;
use crate::leadership::Leadership;
use crate::replica::Replica;

/// Changes of leadership that wait for one who listens; who takes none is cut off.
const LEADERSHIPS_MAX: usize = 4;

/// Who leads, now and whenever it changes.
pub(super) fn watch_leader(
    replica: Replica,
    mut leadership: Leadership,
    tasks: &TaskTracker,
    stop: CancellationToken,
) -> Answers<v1::Leadership> {
    let (sender, receiver) = mpsc::channel(LEADERSHIPS_MAX);
    tasks.spawn(async move {
        loop {
            let standing = leadership.standing();
            let said = v1::Leadership {
                term: standing.term,
                here: standing.leads,
                // One that is about to lead says so when it does.
                leader: leadership.leader().filter(|_| !standing.leads).unwrap_or_default(),
                endpoints: endpoints(&replica.view()),
            };
            if sender.try_send(Ok(said)).is_err() {
                return;
            }
            tokio::select! {
                _ = leadership.changed() => (),
                () = stop.cancelled() => return,
                () = sender.closed() => return,
            }
        }
    });
    Box::pin(ReceiverStream::new(receiver))
}

/// Where all replicas listen.
pub(super) fn endpoints(state: &State) -> Vec<String> {
    let members = state.replicas().filter(|replica| !replica.removed);
    members.map(|replica| replica.endpoint.clone()).filter(|place| !place.is_empty()).collect()
}

/// What the agent is told where it is to be empty.
pub(super) fn empty(agent: &Agent, now: Timestamp) -> Option<v1::Empty> {
    if agent.removed {
        return Some(v1::Empty { wanted: true, left_ms: Some(0) });
    }
    let drain = agent.drain.as_ref()?;
    let left_ms = drain.deadline.map(|deadline| deadline.since_ms(now));
    Some(v1::Empty { wanted: true, left_ms })
}
