//! What a certificate says of its owner.

use std::fmt;
use std::str::FromStr;

use rustls::pki_types::CertificateDer;
use sha2::{Digest as _, Sha256};
use steading_model::{ParseSpiffeError, SpiffeId, Timestamp};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer as _;

/// Longest serial number, bytes, as RFC 5280 has it.
const SERIAL_BYTES_MAX: usize = 20;

/// Why a certificate names no member of a cluster.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    #[error("it is no X.509 certificate")]
    Form,
    #[error("it has {0} URIs among its names, want exactly one")]
    Uris(usize),
    #[error("its URI `{uri}` names no member of a cluster")]
    Spiffe {
        uri: String,
        #[source]
        source: ParseSpiffeError,
    },
}

/// The owner of a certificate, and for how long it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certified {
    pub id: SpiffeId,
    /// The hash of its public key.
    pub key: SpkiHash,
    /// In lower-case hexadecimal digits. Unique for its issuer.
    pub serial: String,
    pub not_before: Timestamp,
    pub not_after: Timestamp,
}

impl Certified {
    /// Reads a certificate. Says nothing about who signed it.
    ///
    /// # Errors
    ///
    /// [`CertificateError`] where it does not name exactly one member by a URI.
    pub fn read(certificate: &CertificateDer<'_>) -> Result<Self, CertificateError> {
        let parsed = parse(certificate)?;
        let names = parsed.subject_alternative_name().map_err(|_| CertificateError::Form)?;
        let names = names.map(|names| names.value.general_names.as_slice()).unwrap_or_default();
        let uris: Vec<&str> = names
            .iter()
            .filter_map(|name| match name {
                GeneralName::URI(uri) => Some(*uri),
                _ => None,
            })
            .collect();
        let [uri] = uris[..] else {
            return Err(CertificateError::Uris(uris.len()));
        };
        let id = uri
            .parse()
            .map_err(|source| CertificateError::Spiffe { uri: uri.to_owned(), source })?;
        let serial = parsed.raw_serial();
        if serial.len() > SERIAL_BYTES_MAX + 1 {
            return Err(CertificateError::Form);
        }
        let validity = parsed.validity();
        Ok(Self {
            id,
            key: SpkiHash::of_key(parsed.public_key().raw),
            serial: hex(serial),
            not_before: time(validity.not_before.timestamp()),
            not_after: time(validity.not_after.timestamp()),
        })
    }

    /// When it should be renewed: at two thirds of its life.
    pub const fn renewal_due(&self) -> Timestamp {
        let life = self.not_after.since_ms(self.not_before);
        self.not_before.plus_ms(life / 3 * 2)
    }
}

/// The hash of a certificate's public key (its SubjectPublicKeyInfo): what stays the same
/// when a CA's certificate is made anew for its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpkiHash(pub [u8; 32]);

impl SpkiHash {
    /// # Errors
    ///
    /// [`CertificateError::Form`].
    pub fn of(certificate: &CertificateDer<'_>) -> Result<Self, CertificateError> {
        Ok(Self::of_key(parse(certificate)?.public_key().raw))
    }

    /// Of a SubjectPublicKeyInfo in DER.
    pub fn of_key(spki: &[u8]) -> Self {
        Self(Sha256::digest(spki).into())
    }
}

impl fmt::Display for SpkiHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl FromStr for SpkiHash {
    type Err = CertificateError;

    fn from_str(text: &str) -> Result<Self, CertificateError> {
        let mut bytes = [0; 32];
        if text.len() != 64 || !text.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(CertificateError::Form);
        }
        for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            let digits = std::str::from_utf8(digits).map_err(|_| CertificateError::Form)?;
            *byte = u8::from_str_radix(digits, 16).map_err(|_| CertificateError::Form)?;
        }
        Ok(Self(bytes))
    }
}

/// When a CA's certificate ends.
pub(super) fn not_after(certificate: &CertificateDer<'_>) -> Result<Timestamp, CertificateError> {
    Ok(time(parse(certificate)?.validity().not_after.timestamp()))
}

fn parse<'a>(certificate: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, CertificateError> {
    match X509Certificate::from_der(certificate.as_ref()) {
        Ok(([], parsed)) => Ok(parsed),
        Ok(_) | Err(_) => Err(CertificateError::Form),
    }
}

/// Times before 1970 are taken for 1970.
fn time(seconds: i64) -> Timestamp {
    Timestamp::from_ms(u64::try_from(seconds).unwrap_or(0).saturating_mul(1000))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
