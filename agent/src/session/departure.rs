//! How an agent becomes empty: because its machine is taken away, or because somebody
//! wants it so.
//!
//! What was not started goes back in one call, and first: it can run elsewhere at once.
//! What runs may end by itself until the reserve before the end of the window begins;
//! then it is stopped (TERM, 3 s, KILL) and given back, each as soon as its processes are
//! gone. The session goes on meanwhile, so that no lease ends before.

use std::time::Duration;

use steading_proto::v1;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Agent, Identity};

/// What a window needs at its end, milliseconds: three seconds between TERM and KILL, and
/// the calls that give the leases back.
const RESERVE_MS: u64 = 5_000;

/// Longest that the coordinators are asked to take back what was not started,
/// milliseconds. After that those leases end by themselves.
const HAND_BACK_MS_MAX: u64 = 10_000;

/// What the agent knows of its own end.
#[derive(Debug, Default)]
pub(super) struct Departure {
    identity: watch::Sender<Option<Identity>>,
    /// What the coordinator wants; none: that the agent works.
    order: watch::Sender<Option<Order>>,
    leaving: CancellationToken,
}

/// Somebody wants the agent empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Order {
    /// None: what runs may take as long as it takes.
    by: Option<Instant>,
}

impl Departure {
    pub(super) fn registered(&self, identity: Identity) {
        self.identity.send_replace(Some(identity));
    }
}

impl Agent {
    /// Whether it takes no more offers.
    pub(super) fn is_leaving(&self) -> bool {
        self.departure.leaving.is_cancelled() || self.departure.order.borrow().is_some()
    }

    /// The coordinator wants the agent empty, or no longer does.
    pub(super) fn ordered(&self, empty: Option<v1::Empty>) {
        let wanted = empty.filter(|empty| empty.wanted);
        let order = wanted.map(|empty| Order {
            by: empty.left_ms.map(|left_ms| Instant::now() + Duration::from_millis(left_ms)),
        });
        self.departure.order.send_if_modified(|known| {
            let changed = *known != order;
            *known = order;
            changed
        });
    }

    /// Waits for a notice, or for an order, and makes the agent empty. After a notice it
    /// ends with `stop`.
    pub(super) async fn depart(&self, leave: &CancellationToken, stop: &CancellationToken) {
        let mut orders = self.departure.order.subscribe();
        loop {
            let order = *orders.borrow_and_update();
            let obey = async {
                if let Some(order) = order {
                    self.hand_back(None, false).await;
                    self.stop_by(order.by).await;
                }
                std::future::pending::<()>().await;
            };
            tokio::select! {
                () = leave.cancelled() => break,
                () = obey => (),
                changed = orders.changed() => if changed.is_err() { return },
            }
        }
        let window = Duration::from_millis(self.config.leave_window_ms);
        let until = Instant::now() + window;
        tracing::info!(?window, held = self.held.leases().len(), "the agent leaves");
        self.departure.leaving.cancel();
        let reserve = Duration::from_millis(RESERVE_MS).min(window / 2);
        let leave = async {
            tokio::join!(self.hand_back(Some(window), true), self.stop_by(Some(until - reserve)));
            self.held.emptied().await;
        };
        if tokio::time::timeout_at(until, leave).await.is_err() {
            tracing::warn!("the window is over, and not all leases are given back");
        }
        stop.cancel();
    }

    /// Gives back what has not begun, in one call.
    async fn hand_back(&self, window: Option<Duration>, preempted: bool) {
        let identity = *self.departure.identity.borrow();
        let Some(Identity { agent_id, incarnation }) = identity else {
            return;
        };
        let unstarted: Vec<_> =
            self.held.all().into_iter().filter(|held| held.take_back()).collect();
        if unstarted.is_empty() && window.is_none() {
            return;
        }
        let request = v1::HandBackRequest {
            agent_id,
            incarnation,
            unstarted: unstarted.iter().map(|held| held.lease).collect(),
            window_ms: window.map(|window| window.as_millis() as u64),
            preempted,
        };
        let wait = Duration::from_millis(HAND_BACK_MS_MAX);
        let call = self.agents.call_for(wait, |mut client| {
            let request = request.clone();
            async move { client.hand_back(request).await }
        });
        match tokio::time::timeout(wait, call).await {
            Ok(Ok(_)) => tracing::info!(leases = unstarted.len(), "gave back what was not started"),
            Ok(Err(status)) => tracing::warn!(%status, "what was not started is not taken back"),
            Err(_) => tracing::warn!("coordinators are away: leases are left to run out"),
        }
        for held in unstarted {
            // Its attempt ends without a word.
            held.refuse().await;
            self.held.remove(&held.lease);
        }
    }

    /// Stops, from then on, what has not ended by itself.
    async fn stop_by(&self, by: Option<Instant>) {
        let Some(by) = by else {
            return;
        };
        tokio::select! {
            () = tokio::time::sleep_until(by) => (),
            () = self.held.emptied() => return,
        }
        for held in self.held.all() {
            held.signals.stop.cancel();
        }
    }
}
