//! mTLS: who is at the other end, and certificates that change while a process runs.
//!
//! An [`Identity`] is a directory with a key, a certificate and the cluster's CA
//! certificates. [`channel`] dials coordinators as that identity, [`accept`] takes
//! connections as it; both read it anew for every connection, so that
//! [`Identity::reload`] is all that a renewal needs. A connection ends with the
//! certificate of its other end ([`Connection`]).
//!
//! TLS 1.3 only, and no session is resumed: a resumed one would skip the check of the
//! client's certificate.

mod accept;
mod certificate;
mod connect;
mod connection;
mod crowd;
mod enroll;
mod files;
mod identity;
mod token;
mod verify;

pub use accept::accept;
pub use certificate::{CertificateError, Certified, SpkiHash};
pub use connect::{ChannelError, authority, channel, dial_stream, pinned_channel};
pub use connection::{Connection, Peer};
pub use crowd::block;
pub use enroll::{
    EnrollError, Joined, is_due, is_over, is_stranger, join, keep, renew, request_for, to_pem,
};
pub use files::{FilesError, IdentityFiles};
pub use identity::{Current, Identity, IdentityError};
pub use token::{JoinToken, ParseTokenError};

/// The name in every coordinator's certificate. Constant, so that addresses can change.
pub const SERVER_NAME: &str = "coordinator.steading.internal";

/// HTTP/2, which is all that gRPC speaks.
const ALPN: &[u8] = b"h2";

/// Makes aws-lc-rs the process' crypto provider. First in `main`; a second call changes
/// nothing.
pub fn install_crypto_provider() {
    // An error says that there is one already, and this is the only one that is linked.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
}

fn provider() -> std::sync::Arc<rustls::crypto::CryptoProvider> {
    std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

#[cfg(test)]
mod tests;
