//! A member's key and certificates, in force and on disk.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::NoServerSessionStorage;
use rustls::{ClientConfig, ServerConfig};
use steading_model::Timestamp;

use super::certificate::{CertificateError, Certified, SpkiHash};
use super::files::{FilesError, IdentityFiles};
use super::verify::{Coordinators, Members, anchors};
use super::{ALPN, provider};

/// Why an identity directory gives no identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error(transparent)]
    Files(#[from] FilesError),
    #[error("the {what} cannot be read")]
    Pem {
        what: &'static str,
        #[source]
        source: rustls::pki_types::pem::Error,
    },
    #[error("the {0} hold none")]
    Empty(&'static str),
    #[error("the certificate is no member's")]
    Certificate(#[from] CertificateError),
    #[error("key, certificate and CAs do not make an identity")]
    Tls(#[from] rustls::Error),
}

/// A member of a cluster, as its directory says. What is in force is read anew for every
/// connection.
#[derive(Debug)]
pub struct Identity {
    dir: PathBuf,
    current: ArcSwap<Current>,
}

/// What is in force. Replaced as a whole.
#[derive(Debug)]
pub struct Current {
    /// Who this is.
    pub certified: Certified,
    pub(super) server: Arc<ServerConfig>,
    pub(super) client: Arc<ClientConfig>,
}

impl Identity {
    /// Reads a directory.
    ///
    /// # Errors
    ///
    /// [`IdentityError`]. A certificate that is over is no error here: nobody will
    /// believe it.
    pub fn load(dir: &Path) -> Result<Arc<Self>, IdentityError> {
        let current = ArcSwap::from_pointee(Current::new(&IdentityFiles::read(dir)?)?);
        Ok(Arc::new(Self { dir: dir.to_owned(), current }))
    }

    /// Reads the directory again. New connections use what is there now.
    ///
    /// # Errors
    ///
    /// [`IdentityError`], and what was in force stays so.
    pub fn reload(&self) -> Result<(), IdentityError> {
        let current = Current::new(&IdentityFiles::read(&self.dir)?)?;
        self.current.store(Arc::new(current));
        Ok(())
    }

    /// What is in force.
    pub fn current(&self) -> Arc<Current> {
        self.current.load_full()
    }

    /// Where it is kept.
    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

impl Current {
    pub(super) fn new(files: &IdentityFiles) -> Result<Self, IdentityError> {
        let chain = certificates("certificates", &files.certificates)?;
        let bundle = certificates("CA certificates", &files.bundle)?;
        let (Some(leaf), false) = (chain.first(), bundle.is_empty()) else {
            return Err(IdentityError::Empty("certificates"));
        };
        let certified = Certified::read(leaf)?;
        let retired = certificates("retired CA certificates", &files.retired)?;
        let retired = retired.iter().map(SpkiHash::of).collect::<Result<Vec<_>, _>>()?;
        let roots = anchors(&bundle, UnixTime::now())?;
        let key = PrivateKeyDer::from_pem_slice(files.key.as_bytes())
            .map_err(|source| IdentityError::Pem { what: "key", source })?;
        let cluster = certified.id.cluster();

        let mut server = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(Arc::new(Members::new(Arc::clone(&roots), cluster)?))
            .with_single_cert(chain.clone(), key.clone_key())?;
        server.alpn_protocols = vec![ALPN.to_vec()];
        // A resumed session would skip the check of the client's certificate.
        server.send_tls13_tickets = 0;
        server.session_storage = Arc::new(NoServerSessionStorage {});

        let mut client = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Coordinators::new(roots, cluster, retired)?))
            .with_client_auth_cert(chain, key)?;
        client.alpn_protocols = vec![ALPN.to_vec()];
        client.resumption = rustls::client::Resumption::disabled();
        Ok(Self { certified, server: Arc::new(server), client: Arc::new(client) })
    }

    /// Whether its time is over at `now`.
    pub fn is_over(&self, now: Timestamp) -> bool {
        self.certified.not_after <= now
    }
}

fn certificates(
    what: &'static str,
    pem: &str,
) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|source| IdentityError::Pem { what, source })
}

/// What the machine's clock says.
pub(super) fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_ms(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
