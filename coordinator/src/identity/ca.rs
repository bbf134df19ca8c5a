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

/// Most CAs above one: what a TLS library follows.
const ANCESTORS_MAX: usize = 5;
/// How long a CA's certificate lasts: ten years. The replicated list of CAs says which
/// of them are believed.
const AUTHORITY_LIFE: Duration = Duration::from_secs(3_652 * 86_400);
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
            let root = authority_params(cluster, storage_id)?.self_signed(&key)?;
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
        let params = authority_params(&self.cluster, storage_id)?;
        let authority = params.signed_by(&asked.request.public_key, &self.issuer)?;
        let mut chain = self.below(authority.der());
        chain.truncate(1 + ANCESTORS_MAX);
        Ok(chain)
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

fn authority_params(cluster: &str, storage_id: &str) -> anyhow::Result<CertificateParams> {
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
    let now = SystemTime::now();
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
