//! Becoming a member, and staying one.

use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{CertificateParams, KeyPair};
use rustls::CertificateError;
use tokio::time::Instant;
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::certificate::SpkiHash;
use super::connect::{ChannelError, channel, pinned_channel};
use super::files::{FilesError, IdentityFiles};
use super::identity::{Current, Identity, IdentityError, now};
use super::token::JoinToken;
use crate::leader::leader_of;
use crate::v1;
use crate::v1::join_client::JoinClient;

/// How long a join or a renewal tries to find a coordinator that can answer.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two tries.
const PAUSE: Duration = Duration::from_millis(500);
/// How often the CAs are asked for, and whether the certificate is due is looked at.
const CHECK: Duration = Duration::from_secs(600);
/// How long to wait after a check that failed.
const CHECK_AGAIN: Duration = Duration::from_secs(60);
/// Characters of a line of PEM.
const PEM_LINE: usize = 64;

/// Why somebody is no member.
#[derive(Debug, thiserror::Error)]
pub enum EnrollError {
    #[error(transparent)]
    Channel(#[from] ChannelError),
    #[error(transparent)]
    Files(#[from] FilesError),
    #[error("a key or a request cannot be made")]
    Key(#[from] rcgen::Error),
    #[error("no coordinator is named")]
    NoEndpoint,
    /// What a coordinator said, or why none was reached.
    #[error("{}", .0.message())]
    Refused(Status),
    #[error("the coordinator's answer gives no identity")]
    Answer(#[source] IdentityError),
}

/// Who joined.
#[derive(Debug)]
pub struct Joined {
    pub identity: Arc<Identity>,
    /// Of a coordinator: its CA's certificate, and those above it, DER.
    pub authority: Vec<Vec<u8>>,
}

/// Joins with a token: makes a key in `dir`, or takes the one that an earlier try left
/// there, and stores what the coordinator answers. `endpoints`: `https://HOST:PORT`.
/// `name`: empty where the token is bound to one. `authority_csr`: of a coordinator's
/// CA key, else empty.
///
/// # Errors
///
/// [`EnrollError`].
pub async fn join(
    endpoints: &[String],
    token: &JoinToken,
    name: &str,
    dir: &Path,
    authority_csr: Vec<u8>,
) -> Result<Joined, EnrollError> {
    let made = KeyPair::generate()?;
    let key = IdentityFiles::key_or(dir, || made.serialize_pem())?;
    let request = v1::JoinRequest {
        token_id: token.id.clone(),
        secret: token.secret.clone(),
        csr: request_for(&KeyPair::from_pem(&key)?)?.into(),
        name: name.to_owned(),
        authority_csr: authority_csr.into(),
    };
    let answer = ask(endpoints, As::Joiner(token.pin), |mut client| {
        let request = request.clone();
        async move { client.join(request).await }
    });
    let answer = answer.await?;
    let authority = answer.authority.iter().map(|der| der.to_vec()).collect();
    store(dir, key, answer)?;
    let identity = Identity::load(dir).map_err(EnrollError::Answer)?;
    Ok(Joined { identity, authority })
}

/// A request for a certificate of this key, DER. It names nobody: the coordinator decides.
///
/// # Errors
///
/// [`EnrollError::Key`].
pub fn request_for(key: &KeyPair) -> Result<Vec<u8>, EnrollError> {
    Ok(CertificateParams::default().serialize_request(key)?.der().to_vec())
}

/// Gets a new certificate, and takes it into use.
///
/// # Errors
///
/// [`EnrollError`]; what was in force stays so.
pub async fn renew(identity: &Arc<Identity>, endpoints: &[String]) -> Result<(), EnrollError> {
    let key = IdentityFiles::read(identity.dir())?.key;
    let request = v1::RenewRequest { csr: request_for(&KeyPair::from_pem(&key)?)?.into() };
    let answer = ask(endpoints, As::Member(Arc::clone(identity)), |mut client| {
        let request = request.clone();
        async move { client.renew(request).await }
    });
    store(identity.dir(), key, answer.await?)?;
    identity.reload().map_err(EnrollError::Answer)
}

/// Whether the certificate is due for renewal.
pub fn is_due(identity: &Identity) -> bool {
    identity.current().certified.renewal_due() <= now()
}

/// Whether its time is over: only a token helps then.
pub fn is_over(identity: &Identity) -> bool {
    identity.current().is_over(now())
}

/// Keeps the identity: renews it when it is due, and asks for the CAs in between. Runs
/// until it is dropped.
pub async fn keep(identity: Arc<Identity>, endpoints: Vec<String>) {
    loop {
        let kept = match is_due(&identity) {
            true => renew(&identity, &endpoints).await,
            false => refresh(&identity, &endpoints).await,
        };
        let pause = match kept {
            Ok(()) => CHECK,
            Err(error) => {
                let until = identity.current().certified.not_after;
                tracing::warn!(%error, %until, "the certificate was not renewed");
                CHECK_AGAIN
            }
        };
        tokio::time::sleep(pause).await;
    }
}

/// Asks which CAs to believe.
async fn refresh(identity: &Arc<Identity>, endpoints: &[String]) -> Result<(), EnrollError> {
    let bundle = ask(endpoints, As::Member(Arc::clone(identity)), |mut client| async move {
        client.get_bundle(v1::GetBundleRequest {}).await
    });
    let bundle = bundle.await?;
    let files = IdentityFiles::read(identity.dir())?;
    let (anchors, retired) = (to_pem(&bundle.anchors), to_pem(&bundle.retired));
    if files.bundle == anchors && files.retired == retired {
        return Ok(());
    }
    let new = IdentityFiles { bundle: anchors, retired, ..files };
    Current::new(&new).map_err(EnrollError::Answer)?;
    IdentityFiles::replace_bundle(identity.dir(), &new.bundle, &new.retired)?;
    identity.reload().map_err(EnrollError::Answer)
}

/// Stores an answer, if it makes an identity of the key.
fn store(dir: &Path, key: String, answer: v1::Credentials) -> Result<(), EnrollError> {
    let bundle = answer.bundle.unwrap_or_default();
    let files = IdentityFiles {
        key,
        certificates: to_pem(&answer.certificates),
        bundle: to_pem(&bundle.anchors),
        retired: to_pem(&bundle.retired),
    };
    Current::new(&files).map_err(EnrollError::Answer)?;
    Ok(IdentityFiles::replace(dir, &files.certificates, &files.bundle, &files.retired)?)
}

/// Who asks.
enum As {
    /// Somebody with a token, who knows the farm by the hash of a key.
    Joiner(SpkiHash),
    Member(Arc<Identity>),
}

impl As {
    fn dial(&self, endpoint: &str) -> Result<Channel, ChannelError> {
        match self {
            Self::Joiner(pin) => pinned_channel(endpoint, *pin),
            Self::Member(identity) => channel(endpoint, Arc::clone(identity)),
        }
    }
}

/// Asks one coordinator after another, and whom they say leads, until one answers.
async fn ask<T, F: Future<Output = Result<tonic::Response<T>, Status>>>(
    endpoints: &[String],
    who: As,
    call: impl Fn(JoinClient<Channel>) -> F,
) -> Result<T, EnrollError> {
    let began = Instant::now();
    let mut next = 0;
    let mut hint: Option<String> = None;
    loop {
        let endpoint = match hint.take() {
            Some(endpoint) => endpoint,
            None if endpoints.is_empty() => return Err(EnrollError::NoEndpoint),
            None => {
                next = (next + 1) % endpoints.len();
                endpoints[next].clone()
            }
        };
        let status = match call(JoinClient::new(who.dial(&endpoint)?)).await {
            Ok(answer) => return Ok(answer.into_inner()),
            Err(status) => status,
        };
        // A failed handshake is no answer either, but trying again changes nothing.
        let transient = matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded);
        if !transient || is_stranger(&status) || began.elapsed() > PATIENCE {
            return Err(EnrollError::Refused(explain(status)));
        }
        hint = secure_leader(&status);
        if hint.is_none() {
            tokio::time::sleep(PAUSE).await;
        }
    }
}

fn secure_leader(status: &Status) -> Option<String> {
    let leader = leader_of(status)?;
    leader.starts_with("https://").then(|| leader.to_owned())
}

/// Whether a connection failed because the other end has no certificate that leads to a CA
/// which is known here: it is another farm's, or the farm was made anew.
pub fn is_stranger(error: &(dyn std::error::Error + 'static)) -> bool {
    disbelief(error).is_some_and(|why| !is_about_time(why))
}

/// Why the certificate of the other end was not believed, if that is what failed.
fn disbelief<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a CertificateError> {
    let mut cause = error.source();
    while let Some(error) = cause {
        let io = error.downcast_ref::<std::io::Error>();
        let inner = io.and_then(std::io::Error::get_ref);
        if let Some(rustls::Error::InvalidCertificate(why)) =
            inner.and_then(|inner| inner.downcast_ref())
        {
            return Some(why);
        }
        cause = error.source();
    }
    None
}

const fn is_about_time(why: &CertificateError) -> bool {
    use CertificateError::{Expired, ExpiredContext, NotValidYet, NotValidYetContext};
    matches!(why, Expired | ExpiredContext { .. } | NotValidYet | NotValidYetContext { .. })
}

pub(super) fn explain(status: Status) -> Status {
    match disbelief(&status) {
        Some(why) if is_about_time(why) => Status::unavailable(format!(
            "the coordinator's certificate is not good at this machine's time ({why}): compare \
             the clocks of the two"
        )),
        Some(_) => Status::unauthenticated(
            "whoever listens there is no coordinator of this farm: its certificate does not lead \
             to the CA that is known",
        ),
        None => status,
    }
}

/// DER certificates as PEM.
pub fn to_pem(certificates: &[impl AsRef<[u8]>]) -> String {
    let mut text = String::new();
    for certificate in certificates {
        text += "-----BEGIN CERTIFICATE-----\n";
        let encoded = STANDARD.encode(certificate.as_ref());
        let mut rest = encoded.as_str();
        while !rest.is_empty() {
            let (line, after) = rest.split_at(rest.len().min(PEM_LINE));
            text += line;
            text.push('\n');
            rest = after;
        }
        text += "-----END CERTIFICATE-----\n";
    }
    text
}
