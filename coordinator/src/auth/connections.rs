//! The connections that there are, so that those of a denied member can be ended.

use std::sync::{Mutex, PoisonError};

use steading_core::{State, serial_subject, subject};
use steading_proto::tls::Peer;

/// Connections after which those that have ended are forgotten.
const SWEEP_EVERY: usize = 256;

/// Open connections, by who is at the other end.
#[derive(Debug, Default)]
pub(crate) struct Connections(Mutex<Vec<Peer>>);

impl Connections {
    /// Notes a connection. Bounded by the connections that are open.
    pub(crate) fn add(&self, peer: Peer) {
        let mut peers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if peers.len() % SWEEP_EVERY == SWEEP_EVERY - 1 {
            peers.retain(|peer| !peer.close.is_cancelled());
        }
        peers.push(peer);
    }

    /// Ends the connections of those whom nobody is to believe.
    pub(crate) fn cut_off_denied(&self, state: &State) {
        let mut peers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        peers.retain(|peer| {
            let denied = peer.certified.as_ref().is_some_and(|certified| {
                state.is_denied(&subject(certified.id.role(), certified.id.id()))
                    || state.is_denied(&serial_subject(&certified.serial))
            });
            if denied {
                tracing::info!(address = %peer.address, "a denied member was cut off");
                peer.close.cancel();
            }
            !peer.close.is_cancelled()
        });
    }
}
