//! A coordinator's CA: signs what others ask for, and never what they ask it to say.

use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, bail};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, CidrSubnet,
    DistinguishedName, DnType, ExtendedKeyUsagePurpose, GeneralSubtree, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, NameConstraints, PublicKeyData, SanType, SerialNumber,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer};
use steading_model::limits::CERTIFICATE_MS;
use steading_model::{Role, SpiffeId};
use steading_proto::tls::{IdentityFiles, SERVER_NAME, SpkiHash, to_pem};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer as _;

/// Most CAs above one: what a TLS library follows.
const ANCESTORS_MAX: usize = 5;
/// How long a CA's certificate lasts: ten years. The replicated list of CAs says which
/// of them are believed.
const AUTHORITY_LIFE: Duration = Duration::from_secs(3_652 * 86_400);
/// A CA's certificate is made anew when no more than this is left of it: two years, in
/// which its coordinator leads at some time.
const AUTHORITY_RENEWAL: Duration = Duration::from_secs(730 * 86_400);
/// How far clocks may be apart: certificates begin so much earlier.
const CLOCK_SKEW: Duration = Duration::from_secs(300);
/// Longest request for a certificate, bytes.
const REQUEST_BYTES_MAX: usize = 4 << 10;
/// The one domain in which a CA names servers, so that it is of no use elsewhere.
const DOMAIN: &str = "steading.internal";

/// A CA, with its private key.
#[derive(Debug)]
pub(crate) struct Ca {
    issuer: Issuer<'static, KeyPair>,
    cluster: String,
    /// Its certificate, then those of the CAs above it.
    chain: Vec<CertificateDer<'static>>,
}

/// A request for a certificate whose sender has shown that it has the key.
pub(crate) struct Asked {
    request: CertificateSigningRequestParams,
    /// Of the public key.
    pub(crate) key: SpkiHash,
}

impl Asked {
    /// Reads a request; of all that it says, only the key is kept.
    ///
    /// # Errors
    ///
    /// It is none, or its signature is not of its key.
    pub(crate) fn read(csr: &[u8]) -> anyhow::Result<Self> {
        if csr.len() > REQUEST_BYTES_MAX {
            bail!("it has {} bytes, at most {REQUEST_BYTES_MAX} are allowed", csr.len());
        }
        let der = CertificateSigningRequestDer::from(csr);
        let request = CertificateSigningRequestParams::from_der(&der)?;
        let key = SpkiHash::of_key(&request.public_key.subject_public_key_info());
        Ok(Self { request, key })
    }
}

impl Ca {
    /// The CA in this directory; where there is none, a new root is made.
    ///
    /// # Errors
    ///
    /// What is there cannot be used, or nothing can be written.
    pub(crate) fn open(dir: &Path, cluster: &str, storage_id: &str) -> anyhow::Result<Self> {
        if !IdentityFiles::exist(dir) {
            let key = KeyPair::from_pem(&Self::key(dir)?)?;
            let root = authority_params(cluster, storage_id, SystemTime::now())?;
            let root = root.self_signed(&key)?;
            Self::store(dir, &[root.der().to_vec()])?;
        }
        let files = IdentityFiles::read(dir)?;
        Self::from_pem(&files.key, &files.certificates, cluster)
    }

    /// A CA that the operator gives. The first certificate is its own.
    ///
    /// # Errors
    ///
    /// The files cannot be read, or key and certificate do not belong together.
    pub(crate) fn given(certificate: &Path, key: &Path, cluster: &str) -> anyhow::Result<Self> {
        let read = |path: &Path| {
            std::fs::read_to_string(path).with_context(|| format!("read `{}`", path.display()))
        };
        Self::from_pem(&read(key)?, &read(certificate)?, cluster)
    }

    /// The key of the CA in this directory, PEM; made where there is none.
    pub(crate) fn key(dir: &Path) -> anyhow::Result<String> {
        let made = KeyPair::generate()?;
        Ok(IdentityFiles::key_or(dir, || made.serialize_pem())?)
    }

    /// Keeps the certificates of the CA whose key is in this directory.
    pub(crate) fn store(dir: &Path, chain: &[Vec<u8>]) -> anyhow::Result<()> {
        Ok(IdentityFiles::replace(dir, &to_pem(chain), "", "")?)
    }

    fn from_pem(key: &str, certificates: &str, cluster: &str) -> anyhow::Result<Self> {
        let key = KeyPair::from_pem(key).context("read the CA's key")?;
        let chain: Vec<CertificateDer<'static>> =
            CertificateDer::pem_slice_iter(certificates.as_bytes())
                .collect::<Result<_, _>>()
                .context("read the CA's certificate")?;
        let Some(own) = chain.first() else {
            bail!("there is no certificate of the CA");
        };
        if SpkiHash::of(own)? != SpkiHash::of_key(&key.subject_public_key_info()) {
            bail!("the CA's certificate is not of its key");
        }
        let issuer = Issuer::from_ca_cert_der(own, key).context("read the CA's certificate")?;
        Ok(Self { issuer, cluster: cluster.to_owned(), chain })
    }

    /// Its certificate, and those above it, the nearest first.
    pub(crate) fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// A member's certificate, and those above it, DER.
    ///
    /// # Errors
    ///
    /// The id has characters that no name has.
    pub(crate) fn sign(&self, asked: &Asked, role: Role, id: &str) -> anyhow::Result<Vec<Vec<u8>>> {
        let params = self.member_params(role, id, SystemTime::now())?;
        let leaf = params.signed_by(&asked.request.public_key, &self.issuer)?;
        Ok(self.below(leaf.der()))
    }

    /// A CA's certificate, and those above it, DER.
    ///
    /// # Errors
    ///
    /// The key cannot be certified.
    pub(crate) fn sign_authority(
        &self,
        asked: &Asked,
        storage_id: &str,
    ) -> anyhow::Result<Vec<Vec<u8>>> {
        let params = authority_params(&self.cluster, storage_id, SystemTime::now())?;
        let authority = params.signed_by(&asked.request.public_key, &self.issuer)?;
        let mut chain = self.below(authority.der());
        chain.truncate(1 + ANCESTORS_MAX);
        Ok(chain)
    }

    /// A new certificate of the CA for its key, by itself, and those above it; none where
    /// the one it has lasts. Name and key stay, so that whatever the CA signed is believed
    /// by the new certificate as by the old one, and join tokens that name the key are good.
    /// The old certificate stays in the chain as long as a CA above it made it: the CA above
    /// may be what a token names.
    ///
    /// # Errors
    ///
    /// The certificate cannot be read.
    pub(crate) fn renewal(&self, now: SystemTime) -> anyhow::Result<Option<Vec<Vec<u8>>>> {
        let (_, old) = X509Certificate::from_der(&self.chain[0])?;
        if SystemTime::from(old.validity().not_after.to_datetime()) > now + AUTHORITY_RENEWAL {
            return Ok(None);
        }
        let mut params = authority_params(&self.cluster, "", now)?;
        params.distinguished_name = DistinguishedName::new();
        // Both as this file makes them.
        for name in old.subject().iter_organization() {
            params.distinguished_name.push(DnType::OrganizationName, name.as_str()?);
        }
        for name in old.subject().iter_common_name() {
            params.distinguished_name.push(DnType::CommonName, name.as_str()?);
        }
        let new = params.self_signed(self.issuer.key())?;
        let is_root = self.chain.len() == 1;
        let mut chain = if is_root { vec![new.der().to_vec()] } else { self.below(new.der()) };
        chain.truncate(1 + ANCESTORS_MAX);
        Ok(Some(chain))
    }

    fn below(&self, certificate: &CertificateDer<'_>) -> Vec<Vec<u8>> {
        let above = self.chain.iter().map(|above| above.to_vec());
        std::iter::once(certificate.to_vec()).chain(above).collect()
    }

    fn member_params(
        &self,
        role: Role,
        id: &str,
        now: SystemTime,
    ) -> anyhow::Result<CertificateParams> {
        let uri = SpiffeId::new(&self.cluster, role, id)?.to_string();
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, format!("steading {role}"));
        params.subject_alt_names = vec![SanType::URI(uri.as_str().try_into()?)];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        if role == Role::Coordinator {
            params.subject_alt_names.push(SanType::DnsName(SERVER_NAME.try_into()?));
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        params.serial_number = Some(serial()?);
        params.not_before = (now - CLOCK_SKEW).into();
        params.not_after = (now + Duration::from_millis(CERTIFICATE_MS)).into();
        Ok(params)
    }
}

fn authority_params(
    cluster: &str,
    storage_id: &str,
    now: SystemTime,
) -> anyhow::Result<CertificateParams> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, format!("steading {cluster}"));
    // Tells one CA from the other: two of one name would be tried for each other's.
    params.distinguished_name.push(DnType::CommonName, format!("CA {storage_id}"));
    let path = ANCESTORS_MAX as u8;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(path));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.name_constraints = Some(NameConstraints {
        permitted_subtrees: vec![GeneralSubtree::DnsName(DOMAIN.to_owned())],
        excluded_subtrees: vec![
            GeneralSubtree::IpAddress(CidrSubnet::V4([0; 4], [0; 4])),
            GeneralSubtree::IpAddress(CidrSubnet::V6([0; 16], [0; 16])),
        ],
    });
    params.serial_number = Some(serial()?);
    params.not_before = (now - CLOCK_SKEW).into();
    params.not_after = (now + AUTHORITY_LIFE).into();
    Ok(params)
}

/// Random, for one made of the key would be that of every renewal, too.
fn serial() -> anyhow::Result<SerialNumber> {
    let mut bytes = [0; 16];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| anyhow::anyhow!("no randomness"))?;
    // Positive, and of one length.
    bytes[0] = bytes[0] & 0x7f | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rustls::RootCertStore;
    use rustls::pki_types::UnixTime;
    use rustls::server::WebPkiClientVerifier;
    use steading_proto::tls::request_for;

    use super::*;

    const CLUSTER: &str = "c0ffee";
    const YEAR: Duration = Duration::from_secs(366 * 86_400);

    #[test]
    fn a_ca_that_is_about_to_be_over_goes_on_under_its_name_and_key() {
        let dir = tempfile::tempdir().unwrap();
        let now = SystemTime::now();
        let root = Ca::open(&dir.path().join("root"), CLUSTER, "one").unwrap();
        // A second one, below it, as a coordinator has it that joined.
        let second = dir.path().join("second");
        let key = KeyPair::from_pem(&Ca::key(&second).unwrap()).unwrap();
        let chain = root.sign_authority(&asked(&key), "two").unwrap();
        Ca::store(&second, &chain).unwrap();
        let second = Ca::open(&second, CLUSTER, "two").unwrap();

        for (ca, above) in [(&root, 0), (&second, 2)] {
            assert_eq!(ca.renewal(now).unwrap(), None);
            assert_eq!(ca.renewal(now + 7 * YEAR).unwrap(), None);
            let chain = ca.renewal(now + 9 * YEAR).unwrap().expect("it is due");
            assert_eq!(chain.len(), 1 + above, "what is above it is still named");
            let new = CertificateDer::from(chain[0].clone());
            assert_eq!(SpkiHash::of(&new).unwrap(), SpkiHash::of(&ca.chain[0]).unwrap());
            let (_, read) = X509Certificate::from_der(&chain[0]).unwrap();
            let end = SystemTime::from(read.validity().not_after.to_datetime());
            assert!(end > now + 18 * YEAR);
            // What the CA signed before is believed by it.
            let member = KeyPair::generate().unwrap();
            let leaf = ca.sign(&asked(&member), Role::Agent, "a").unwrap().remove(0);
            believes(&new, &leaf.into());
        }
        // And the second one by the renewed root.
        let renewed = root.renewal(now + 9 * YEAR).unwrap().expect("it is due").remove(0);
        let member = KeyPair::generate().unwrap();
        let mut chain = second.sign(&asked(&member), Role::Agent, "a").unwrap();
        let (leaf, above) = (chain.remove(0), chain.remove(0));
        believes_through(&renewed.into(), &[above.into()], &leaf.into());
    }

    fn asked(key: &KeyPair) -> Asked {
        Asked::read(&request_for(key).unwrap()).unwrap()
    }

    fn believes(anchor: &CertificateDer<'static>, leaf: &CertificateDer<'static>) {
        believes_through(anchor, &[], leaf);
    }

    fn believes_through(
        anchor: &CertificateDer<'static>,
        between: &[CertificateDer<'static>],
        leaf: &CertificateDer<'static>,
    ) {
        let mut roots = RootCertStore::empty();
        roots.add(anchor.clone()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
        verifier.verify_client_cert(leaf, between, UnixTime::now()).unwrap();
    }
}
