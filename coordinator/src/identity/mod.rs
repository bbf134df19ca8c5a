//! Identities: the coordinator's own, and those that it gives to others.
//!
//! Every coordinator has a CA of its own (`ca/` in its data directory, mode 0700). The
//! founder's is a root; who joins makes a key and has it certified by the coordinator
//! that answers. The certificates are rows of the replicated state, each an anchor for
//! everybody, so that the loss of a replica loses nothing; the keys never leave their
//! machine. The coordinator's own certificate (`identity/`) is signed by its own CA.

mod ca;
mod join;
mod limiter;
mod service;

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use arc_swap::ArcSwap;
use rcgen::KeyPair;
use rustls::pki_types::CertificateDer;
use steading_core::{Authority, Proposal, State};
use steading_model::Role;
use steading_proto::tls::{
    self, Identity, IdentityFiles, JoinToken, SpkiHash, request_for, to_pem,
};
use steading_proto::v1;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::auth::Connections;
use crate::config::GivenCa;
use crate::replica::{Replica, node_file};
use ca::{Asked, Ca};

pub(crate) use join::JoinService;
pub(crate) use service::IdentitiesService;

/// Folder of the CA in the data directory.
pub(crate) const CA_DIR: &str = "ca";
/// Folder of the coordinator's own key and certificate.
pub(crate) const IDENTITY_DIR: &str = "identity";

/// How often denied members are cut off, and a change of the CAs is taken over.
const PERIOD: Duration = Duration::from_secs(2);

/// The coordinator's CA and certificate, once it is to be reached over mTLS. Clones share.
#[derive(Clone, Debug, Default)]
pub(crate) struct Secured(Arc<OnceLock<Credentials>>);

/// Who the coordinator is.
#[derive(Debug)]
pub(crate) struct Credentials {
    ca: ArcSwap<Ca>,
    /// Where the CA is kept; none where the operator gave it, who renews it as well.
    ca_dir: Option<PathBuf>,
    storage_id: String,
    pub(crate) identity: Arc<Identity>,
}

/// Which replica a data directory is.
#[derive(Debug, serde::Deserialize)]
struct Node {
    cluster_id: String,
    storage_id: String,
}

impl Secured {
    /// The credentials, if the coordinator has any.
    pub(crate) fn get(&self) -> Option<&Credentials> {
        self.0.get()
    }

    /// Opens the credentials in the data directory, making what is missing. Blocks.
    ///
    /// # Errors
    ///
    /// What is there cannot be used, or nothing can be written.
    pub(crate) fn open(&self, data_dir: &Path, given: Option<&GivenCa>) -> anyhow::Result<()> {
        if self.0.get().is_none() {
            let opened = Credentials::open(data_dir, given).context("open the identity")?;
            // Whoever was first made the same of the same files.
            let _ = self.0.set(opened);
        }
        Ok(())
    }
}

impl Credentials {
    fn open(data_dir: &Path, given: Option<&GivenCa>) -> anyhow::Result<Self> {
        let path = node_file(data_dir);
        let text = std::fs::read(&path).with_context(|| format!("read `{}`", path.display()))?;
        let node: Node = serde_json::from_slice(&text)?;
        let ca = match given {
            Some(given) => Ca::given(&given.certificate, &given.key, &node.cluster_id)?,
            None => Ca::open(&data_dir.join(CA_DIR), &node.cluster_id, &node.storage_id)?,
        };
        let dir = data_dir.join(IDENTITY_DIR);
        issue(&ca, &dir, &node.cluster_id, &node.storage_id)?;
        let identity = Identity::load(&dir)?;
        let ca_dir = given.is_none().then(|| data_dir.join(CA_DIR));
        Ok(Self { ca: ArcSwap::from_pointee(ca), ca_dir, storage_id: node.storage_id, identity })
    }

    /// Keeps the certificate fresh, the CAs those of the state, and denied members out,
    /// until `stop`.
    ///
    /// # Errors
    ///
    /// None: what fails is tried again.
    pub(crate) async fn keep(
        secured: Secured,
        replica: Replica,
        connections: Arc<Connections>,
        stop: CancellationToken,
    ) -> anyhow::Result<()> {
        let mut ticks = tokio::time::interval(PERIOD);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let mut told = None;
        while stop.run_until_cancelled(ticks.tick()).await.is_some() {
            let state = replica.view();
            connections.cut_off_denied(&state);
            let Some(credentials) = secured.get() else { continue };
            let known = state.authority(&credentials.storage_id);
            if known.is_none_or(|known| known.certificate != *credentials.ca.load().chain()[0]) {
                credentials.announce(&replica).await;
            }
            if known.is_none() {
                // A new root, or a state that is still to come: whoever joined believes
                // those whom it was told of, or it would hear of no state.
                continue;
            }
            // The leader alone can tell the others of it.
            if replica.standing().borrow().leads
                && let Err(error) = credentials.renew_authority(SystemTime::now())
            {
                tracing::error!(%error, "the coordinator's CA was not renewed");
            }
            let bundle = credentials.bundle(&state);
            if told.as_ref() != Some(&bundle) {
                match credentials.believe(&bundle) {
                    Ok(()) => told = Some(bundle),
                    Err(error) => tracing::error!(%error, "the CAs cannot be taken over"),
                }
            }
            if let Err(error) = credentials.renew_own() {
                tracing::error!(%error, "the coordinator's certificate was not renewed");
            }
        }
        Ok(())
    }

    /// Makes the CA known. Only the leader can, and a CA that was certified by another
    /// coordinator is known already.
    async fn announce(&self, replica: &Replica) {
        let ca = self.ca.load_full();
        let chain: Vec<Vec<u8>> = ca.chain().iter().map(|one| one.to_vec()).collect();
        if let Err(error) = replica.propose(add_authority(&self.storage_id, chain)).await {
            tracing::debug!(%error, "the CA is not known yet");
        }
    }

    /// The CAs to believe, this coordinator's own among them.
    pub(crate) fn bundle(&self, state: &State) -> v1::Bundle {
        let (mut anchors, mut retired) = (Vec::new(), Vec::new());
        for authority in state.authorities() {
            let list = match state.is_anchor(authority, state.now()) {
                true => &mut anchors,
                false => &mut retired,
            };
            if !list.contains(&authority.certificate) {
                list.push(authority.certificate.clone());
            }
        }
        if state.authority(&self.storage_id).is_none() {
            anchors.push(self.ca.load().chain()[0].to_vec());
        }
        // One CA for several coordinators, of which one left.
        retired.retain(|certificate| !anchors.contains(certificate));
        let bytes = |list: Vec<Vec<u8>>| list.into_iter().map(Into::into).collect();
        v1::Bundle { anchors: bytes(anchors), retired: bytes(retired) }
    }

    fn believe(&self, bundle: &v1::Bundle) -> anyhow::Result<()> {
        let (anchors, retired) = (to_pem(&bundle.anchors), to_pem(&bundle.retired));
        if anchors.is_empty() {
            // Retired and forgotten: nobody is believed any more, which no file can say.
            return Ok(());
        }
        IdentityFiles::replace_bundle(self.identity.dir(), &anchors, &retired)?;
        Ok(self.identity.reload()?)
    }

    fn renew_own(&self) -> anyhow::Result<()> {
        if tls::is_due(&self.identity) {
            let cluster = self.identity.current().certified.id.cluster().to_owned();
            issue(&self.ca.load(), self.identity.dir(), &cluster, &self.storage_id)?;
            self.identity.reload()?;
        }
        Ok(())
    }

    /// Makes the CA's certificate anew where it will soon be over. It is stored first, and
    /// announced by whoever finds that the state has another one: a crash in between
    /// changes nothing, for both are of one name and key.
    fn renew_authority(&self, now: SystemTime) -> anyhow::Result<()> {
        let Some(dir) = &self.ca_dir else { return Ok(()) };
        let Some(chain) = self.ca.load().renewal(now)? else { return Ok(()) };
        Ca::store(dir, &chain)?;
        let cluster = self.identity.current().certified.id.cluster().to_owned();
        self.ca.store(Arc::new(Ca::open(dir, &cluster, &self.storage_id)?));
        tracing::info!("the coordinator's CA was renewed");
        issue(&self.ca.load(), self.identity.dir(), &cluster, &self.storage_id)?;
        Ok(self.identity.reload()?)
    }

    /// The key of the nearest CA that is above all that are believed: by it a joiner
    /// knows the farm, whichever replica answers.
    fn pin(&self, state: &State) -> anyhow::Result<SpkiHash> {
        let keys = |chain: &mut dyn Iterator<Item = &[u8]>| -> anyhow::Result<Vec<SpkiHash>> {
            chain.map(|der| Ok(SpkiHash::of(&CertificateDer::from(der))?)).collect()
        };
        let ca = self.ca.load_full();
        let own = keys(&mut ca.chain().iter().map(AsRef::as_ref))?;
        let anchors = state.authorities().filter(|one| state.is_anchor(one, state.now()));
        let others = anchors
            .map(|one: &Authority| {
                let above = one.ancestors.iter().map(Vec::as_slice);
                keys(&mut std::iter::once(one.certificate.as_slice()).chain(above))
            })
            .collect::<anyhow::Result<Vec<_>>>()?;
        let common = own.iter().find(|key| others.iter().all(|chain| chain.contains(key)));
        Ok(*common.unwrap_or(&own[0]))
    }
}

/// Signs the coordinator's own certificate where it is missing, due, another CA's, or of
/// a cluster that is no more.
fn issue(ca: &Ca, dir: &Path, cluster: &str, storage_id: &str) -> anyhow::Result<()> {
    let made = KeyPair::generate()?;
    let key = IdentityFiles::key_or(dir, || made.serialize_pem())?;
    let own = to_pem(&ca.chain()[..1]);
    let files = IdentityFiles::exist(dir).then(|| IdentityFiles::read(dir)).transpose()?;
    if let Some(files) = &files
        && files.certificates.contains(&own)
        && Identity::load(dir).is_ok_and(|identity| {
            let id = identity.current().certified.id.clone();
            !tls::is_due(&identity) && id.cluster() == cluster && id.id() == storage_id
        })
    {
        return Ok(());
    }
    let asked = Asked::read(&request_for(&KeyPair::from_pem(&key)?)?)?;
    let chain = ca.sign(&asked, Role::Coordinator, storage_id)?;
    let files = files.unwrap_or_default();
    let bundle = if files.bundle.is_empty() { own } else { files.bundle };
    Ok(IdentityFiles::replace(dir, &to_pem(&chain), &bundle, &files.retired)?)
}

fn add_authority(storage_id: &str, chain: Vec<Vec<u8>>) -> Proposal {
    let mut chain = chain.into_iter();
    Proposal::AddAuthority {
        storage_id: storage_id.to_owned(),
        certificate: chain.next().unwrap_or_default(),
        ancestors: chain.collect(),
    }
}

/// Gets credentials for a coordinator that joins: makes its keys in the data directory,
/// redeems a token of the role coordinator, and keeps certificate and CA certificate
/// there. The cluster's name is in the identity. May be repeated with the same token.
///
/// # Errors
///
/// The token is refused, no coordinator can be reached, or nothing can be written.
pub async fn join_cluster(
    data_dir: &Path,
    storage_id: &str,
    endpoints: &[String],
    token: &JoinToken,
) -> anyhow::Result<Arc<Identity>> {
    let ca_dir: PathBuf = data_dir.join(CA_DIR);
    let key = KeyPair::from_pem(&Ca::key(&ca_dir)?)?;
    let dir = data_dir.join(IDENTITY_DIR);
    let joined = tls::join(endpoints, token, storage_id, &dir, request_for(&key)?).await?;
    let id = joined.identity.current().certified.id.clone();
    if id.role() != Role::Coordinator || joined.authority.is_empty() {
        anyhow::bail!("the token makes no coordinator: `stead token create --role coordinator`");
    }
    Ca::store(&ca_dir, &joined.authority)?;
    Ok(joined.identity)
}
