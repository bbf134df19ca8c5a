//! Where blobs are, for whoever does not care: here, at a server, or both.

use std::io;
use std::path::Path;

use bytes::Bytes;
use steading_model::Digest;
use steading_proto::ConvertError;

use crate::hash::digest_of;
use crate::origin::OriginError;
use crate::remote::{FUNCTION, RemoteBlobs};
use crate::store::{Pin, Store, StoreError};
use crate::tree::{self, DEPTH_MAX, Entry, Folder, TreeError, TreeSummary};

/// Why blobs could not be had or kept.
#[derive(Debug, thiserror::Error)]
pub enum BlobsError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Origin(#[from] OriginError),
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// Gone everywhere: whatever made them has to make them again.
    #[error("{} blobs are nowhere to be had, the first is `{}`", .0.len(), .0[0])]
    Missing(Vec<Digest>),
    #[error("the bytes that came are not those of `{0}`")]
    Corrupt(Digest),
    #[error("the cache server says: {} ({})", .0.message(), .0.code())]
    Remote(#[source] Box<tonic::Status>),
    #[error("the cache server's answer makes no sense: {0}")]
    Answer(&'static str),
    #[error("the cache server's answer makes no sense")]
    Convert(#[from] ConvertError),
    #[error("cannot read a blob")]
    Read(#[source] io::Error),
    /// The caller's mistake.
    #[error("there is no local store to bring blobs into")]
    NoStore,
}

impl From<tonic::Status> for BlobsError {
    fn from(status: tonic::Status) -> Self {
        Self::Remote(Box::new(status))
    }
}

impl BlobsError {
    /// Whether trying again may help: the connection broke, or the server is busy.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Remote(status) => status_is_transient(status),
            Self::Corrupt(_) => true,
            _ => false,
        }
    }
}

/// Whether the same request may go well a little later.
pub(crate) fn status_is_transient(status: &tonic::Status) -> bool {
    use tonic::Code;
    matches!(
        status.code(),
        Code::Unavailable
            | Code::Unknown
            | Code::Aborted
            | Code::DeadlineExceeded
            | Code::ResourceExhausted
            | Code::Cancelled
            // The server found its copy corrupt, and has dropped it.
            | Code::DataLoss
    )
}

/// Up to this many bytes are hashed where they are and share a sync with what others put:
/// hashing them takes less than to change the thread.
const GROUPED_BYTES_MAX: usize = 64 << 10;

/// A source and sink of blobs. Clones share it. Digests are BLAKE3.
#[derive(Clone, Debug)]
pub enum Blobs {
    /// One store, which is also the durable one: the coordinator's own.
    Local(Store),
    /// A server, and nothing kept here.
    Remote(RemoteBlobs),
    /// A server, and a store of what was needed from it.
    Tiered { local: Store, remote: RemoteBlobs },
}

/// A tree whose blobs are all in the local store.
#[derive(Debug)]
pub struct FetchedTree {
    pub summary: TreeSummary,
    /// Keeps them there.
    pub pin: Pin,
}

impl Blobs {
    /// The local store, if there is one.
    pub fn local(&self) -> Option<&Store> {
        match self {
            Self::Local(store) | Self::Tiered { local: store, .. } => Some(store),
            Self::Remote(_) => None,
        }
    }

    fn remote(&self) -> Option<&RemoteBlobs> {
        match self {
            Self::Local(_) => None,
            Self::Remote(remote) | Self::Tiered { remote, .. } => Some(remote),
        }
    }

    /// A blob in memory, verified; none where nobody has it.
    ///
    /// # Errors
    ///
    /// [`BlobsError::Store`] and [`BlobsError::Remote`].
    pub async fn get(&self, digest: &Digest) -> Result<Option<Bytes>, BlobsError> {
        let digest = *digest;
        if let Some(store) = self.local().cloned() {
            let held = blocking(move || Ok(store.get(FUNCTION, &digest)?)).await?;
            if held.is_some() {
                return Ok(held);
            }
        }
        let Some(remote) = self.remote() else { return Ok(None) };
        let bytes = remote.get(&digest).await?;
        if let (Some(store), Some(bytes)) = (self.local().cloned(), bytes.clone()) {
            blocking(move || Ok(store.put_hashed(FUNCTION, [(digest, &bytes[..])])?)).await?;
        }
        Ok(bytes)
    }

    /// Puts a blob where it is durable.
    ///
    /// # Errors
    ///
    /// As [`Blobs::get`].
    pub async fn put(&self, bytes: Bytes) -> Result<Digest, BlobsError> {
        Ok(self.put_many(vec![bytes]).await?[0])
    }

    /// Puts blobs where they are durable. The digests come in order.
    ///
    /// # Errors
    ///
    /// As [`Blobs::get`].
    pub async fn put_many(&self, blobs: Vec<Bytes>) -> Result<Vec<Digest>, BlobsError> {
        let local = self.local().cloned();
        let bytes: usize = blobs.iter().map(Bytes::len).sum();
        if let (Self::Local(store), true) = (self, bytes <= GROUPED_BYTES_MAX) {
            let hashed: Vec<(Digest, Bytes)> =
                blobs.into_iter().map(|bytes| (digest_of(FUNCTION, &bytes), bytes)).collect();
            let digests = hashed.iter().map(|(digest, _)| *digest).collect();
            store.put_grouped(FUNCTION, hashed).await?;
            return Ok(digests);
        }
        let (digests, blobs) = blocking(move || {
            let hashed: Vec<(Digest, Bytes)> =
                blobs.into_iter().map(|bytes| (digest_of(FUNCTION, &bytes), bytes)).collect();
            if let Some(store) = local {
                let blobs = hashed.iter().map(|(digest, bytes)| (*digest, &bytes[..]));
                store.put_hashed(FUNCTION, blobs)?;
            }
            let digests: Vec<Digest> = hashed.iter().map(|(digest, _)| *digest).collect();
            Ok((digests, hashed))
        })
        .await?;
        if let Some(remote) = self.remote() {
            remote.put(blobs).await?;
        }
        Ok(digests)
    }

    /// Puts a file where it is durable. Needs a local store.
    ///
    /// # Errors
    ///
    /// [`BlobsError::NoStore`], else as [`Blobs::get`].
    pub async fn put_file(&self, path: &Path) -> Result<Digest, BlobsError> {
        let store = self.local().cloned().ok_or(BlobsError::NoStore)?;
        let path = path.to_owned();
        let digest = blocking(move || Ok(store.put_file(FUNCTION, &path)?)).await?;
        self.upload(&[digest]).await?;
        Ok(digest)
    }

    /// Those of the digests that are not where they would be durable.
    ///
    /// # Errors
    ///
    /// As [`Blobs::get`].
    pub async fn missing(&self, digests: &[Digest]) -> Result<Vec<Digest>, BlobsError> {
        if let Some(remote) = self.remote() {
            return remote.missing(digests).await;
        }
        let Some(store) = self.local().cloned() else { return Ok(digests.to_vec()) };
        let digests = digests.to_vec();
        blocking(move || Ok(store.missing(FUNCTION, &digests))).await
    }

    /// Brings blobs into the local store, and keeps them there while the guard lives.
    ///
    /// # Errors
    ///
    /// [`BlobsError::Missing`] names those that nobody has.
    pub async fn ensure_local(&self, digests: &[Digest]) -> Result<Pin, BlobsError> {
        let store = self.local().ok_or(BlobsError::NoStore)?;
        let pin = store.pin(FUNCTION, digests);
        self.bring(store, digests).await?;
        Ok(pin)
    }

    async fn bring(&self, store: &Store, digests: &[Digest]) -> Result<(), BlobsError> {
        if let Some(remote) = self.remote() {
            return remote.fetch(store, digests).await;
        }
        let (at, digests) = (store.clone(), digests.to_vec());
        let missing = blocking(move || Ok(at.missing(FUNCTION, &digests))).await?;
        if missing.is_empty() { Ok(()) } else { Err(BlobsError::Missing(missing)) }
    }

    /// Sends blobs of the local store to where they are durable, those that are not there.
    ///
    /// # Errors
    ///
    /// [`BlobsError::Missing`] for what the local store lacks too.
    pub async fn upload(&self, digests: &[Digest]) -> Result<(), BlobsError> {
        match self {
            Self::Tiered { local, remote } => remote.upload(local, digests).await,
            Self::Local(_) | Self::Remote(_) => {
                let missing = self.missing(digests).await?;
                if missing.is_empty() { Ok(()) } else { Err(BlobsError::Missing(missing)) }
            }
        }
    }

    /// Sends a tree of the local store, its messages and its files, likewise.
    ///
    /// # Errors
    ///
    /// As [`Blobs::upload`].
    pub async fn upload_tree(&self, root: &Digest) -> Result<(), BlobsError> {
        let (store, root) = (self.local().cloned().ok_or(BlobsError::NoStore)?, *root);
        let blobs = blocking(move || Ok(tree::blobs_below(&store, FUNCTION, &root)?)).await?;
        self.upload(&blobs).await
    }

    /// Brings a tree, its messages and its files, into the local store.
    ///
    /// # Errors
    ///
    /// As [`Blobs::ensure_local`].
    pub async fn fetch_tree(&self, root: &Digest) -> Result<FetchedTree, BlobsError> {
        let store = self.local().ok_or(BlobsError::NoStore)?;
        let (mut pins, mut level) = (Vec::new(), vec![*root]);
        let mut seen = std::collections::HashSet::from([*root]);
        // One question per level of folders; files come in one go at the end.
        for depth in 0.. {
            if level.is_empty() {
                break;
            }
            if depth > DEPTH_MAX {
                return Err(TreeError::TooDeep { path: root.to_string() }.into());
            }
            pins.push(self.ensure_local(&level).await?);
            let at = store.clone();
            let below = blocking(move || folders_below(&at, &level)).await?;
            level = below.into_iter().filter(|digest| seen.insert(*digest)).collect();
        }
        let (at, root) = (store.clone(), *root);
        let (folder, files) = blocking(move || {
            let folder = tree::load(&at, &root)?;
            let files = files_of(&folder);
            Ok((folder, files))
        })
        .await?;
        let mut all: Vec<Digest> = seen.into_iter().collect();
        all.extend(&files);
        let pin = store.pin(FUNCTION, &all);
        self.bring(store, &files).await?;
        drop(pins);
        Ok(FetchedTree { summary: summary_of(root, &folder), pin })
    }
}

/// A tree whose blobs are all in this store already, kept there; none where one is not,
/// or where the tree is none. Blocks.
pub fn held_tree(store: &Store, root: &Digest) -> Option<FetchedTree> {
    let first = store.pin(FUNCTION, &[*root]);
    let folder = tree::load(store, root).ok()?;
    let files = files_of(&folder);
    let mut all = tree::blobs_below(store, FUNCTION, root).ok()?;
    all.extend(&files);
    let pin = store.pin(FUNCTION, &all);
    drop(first);
    // Looked at once they are pinned.
    let held = store.missing(FUNCTION, &all).is_empty();
    held.then(|| FetchedTree { summary: summary_of(*root, &folder), pin })
}

/// Names the folders right below these.
fn folders_below(store: &Store, level: &[Digest]) -> Result<Vec<Digest>, BlobsError> {
    let mut below = Vec::new();
    for digest in level {
        let bytes = store.get(FUNCTION, digest)?.ok_or(BlobsError::Missing(vec![*digest]))?;
        for node in tree::decode_directory(digest, &bytes)?.directories {
            let inner = tree::wire_digest(node.digest.as_ref())
                .map_err(|why| TreeError::Malformed { digest: *digest, why })?;
            below.push(inner);
        }
    }
    Ok(below)
}

fn files_of(folder: &Folder) -> Vec<Digest> {
    let mut files = std::collections::BTreeSet::new();
    folder.visit(&mut |_, entry| {
        if let Entry::File(file) = entry {
            files.insert(file.digest);
        }
    });
    files.into_iter().collect()
}

fn summary_of(root: Digest, folder: &Folder) -> TreeSummary {
    let mut summary = TreeSummary { root, files: 0, bytes: 0 };
    folder.visit(&mut |_, entry| match entry {
        Entry::File(file) => {
            summary.files += 1;
            summary.bytes += file.digest.size;
        }
        Entry::Symlink { .. } => summary.files += 1,
        Entry::Folder(_) => (),
    });
    summary
}

/// [`off_thread`], for what ends as most things here do.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, BlobsError> + Send + 'static,
) -> Result<T, BlobsError> {
    off_thread(work).await
}

/// Runs what waits for the disk or hashes much, off the threads that serve the network.
pub(crate) async fn off_thread<R: Send + 'static>(work: impl FnOnce() -> R + Send + 'static) -> R {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // Only when the runtime is going down, and this future with it.
            Err(_) => std::future::pending().await,
        },
    }
}
