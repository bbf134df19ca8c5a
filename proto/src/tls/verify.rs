//! Whose certificates are believed.
//!
//! Every CA of the bundle is an anchor. A server believes only what one of them signed
//! itself: a CA that left the bundle is out at once, though another signed it long ago.
//! A client also follows a chain, so that it still finds the farm when all the replicas
//! that it knew were replaced; what it must not follow is told by `retired.pem`.

use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, RootCertStore,
    SignatureScheme,
};
use steading_model::Role;

use super::certificate::{Certified, SpkiHash, not_after};
use super::provider;

/// The anchors among these certificates: those that are not over yet, for the library
/// does not look at an anchor's dates.
pub(super) fn anchors(
    bundle: &[CertificateDer<'static>],
    now: UnixTime,
) -> Result<Arc<RootCertStore>, Error> {
    let mut roots = RootCertStore::empty();
    for certificate in bundle {
        let end = not_after(certificate).map_err(|_| bad_encoding())?;
        if end.as_ms() / 1000 > now.as_secs() {
            roots.add(certificate.clone())?;
        }
    }
    Ok(Arc::new(roots))
}

/// Believes a coordinator of the cluster.
#[derive(Debug)]
pub(super) struct Coordinators {
    inner: Arc<WebPkiServerVerifier>,
    cluster: String,
    retired: Vec<SpkiHash>,
}

impl Coordinators {
    pub(super) fn new(
        roots: Arc<RootCertStore>,
        cluster: &str,
        retired: Vec<SpkiHash>,
    ) -> Result<Self, Error> {
        let cluster = cluster.to_owned();
        Ok(Self { inner: server_verifier(roots)?, cluster, retired })
    }
}

/// Believes a coordinator whose CA has this key: all that a join token says.
#[derive(Debug)]
pub(super) struct Pinned {
    pub(super) pin: SpkiHash,
}

/// Of a client: the certificate is optional, and what a caller without one may do is
/// decided by method.
#[derive(Debug)]
pub(super) struct Members {
    inner: Arc<dyn ClientCertVerifier>,
    cluster: String,
}

impl Members {
    pub(super) fn new(roots: Arc<RootCertStore>, cluster: &str) -> Result<Self, Error> {
        let inner = WebPkiClientVerifier::builder_with_provider(roots, provider())
            .allow_unauthenticated()
            // Names of CAs are for choosing among several certificates; a member has one.
            .clear_root_hint_subjects()
            .build()
            .map_err(|error| Error::General(error.to_string()))?;
        Ok(Self { inner, cluster: cluster.to_owned() })
    }
}

fn server_verifier(roots: Arc<RootCertStore>) -> Result<Arc<WebPkiServerVerifier>, Error> {
    WebPkiServerVerifier::builder_with_provider(roots, provider())
        .build()
        .map_err(|error| Error::General(error.to_string()))
}

fn certified(certificate: &CertificateDer<'_>) -> Result<Certified, Error> {
    Certified::read(certificate).map_err(|_| bad_encoding())
}

const fn bad_encoding() -> Error {
    Error::InvalidCertificate(CertificateError::BadEncoding)
}

const fn refused() -> Error {
    Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure)
}

impl ServerCertVerifier for Coordinators {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        for certificate in intermediates {
            let key = SpkiHash::of(certificate).map_err(|_| bad_encoding())?;
            if self.retired.contains(&key) {
                return Err(Error::InvalidCertificate(CertificateError::Revoked));
            }
        }
        let verified = self.inner.verify_server_cert(
            end_entity,
            intermediates,
            server_name,
            ocsp_response,
            now,
        )?;
        let id = certified(end_entity)?.id;
        match id.role() == Role::Coordinator && id.cluster() == self.cluster {
            true => Ok(verified),
            false => Err(refused()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let is_pinned = |certificate: &&CertificateDer<'_>| {
            SpkiHash::of(certificate).is_ok_and(|key| key == self.pin)
        };
        let Some(ca) = intermediates.iter().find(is_pinned) else {
            return Err(Error::InvalidCertificate(CertificateError::UnknownIssuer));
        };
        let roots = anchors(&[ca.clone().into_owned()], now)?;
        let verified = server_verifier(roots)?.verify_server_cert(
            end_entity,
            intermediates,
            server_name,
            ocsp_response,
            now,
        )?;
        match certified(end_entity)?.id.role() {
            Role::Coordinator => Ok(verified),
            Role::Agent | Role::Client | Role::Admin => Err(refused()),
        }
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not spoken".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for Members {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.inner.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.inner.verify_client_cert(end_entity, &[], now)?;
        match certified(end_entity)?.id.cluster() == self.cluster {
            true => Ok(verified),
            false => Err(refused()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}
