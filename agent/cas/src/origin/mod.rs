//! The origin: where blobs and results of actions outlive the coordinator that took them.
//! A directory that all coordinators see, or a bucket.
//!
//! `cas/FUNCTION/AB/HASH-SIZE` are blobs, `ac/FUNCTION/SCOPE/HASH-SIZE` results of
//! actions, `clusters/ID` says which groups keep theirs here, `joining/NAME` that somebody
//! who is about to join a group sees this very place. Others put what they name.
//!
//! What is put is durable when the call returns. Objects appear whole, by rename or by
//! what the bucket promises, and blobs are what their names say, so that it does not
//! matter who puts one, how often or at the same time. Nobody is believed: what is read
//! is hashed, and an object that is not what its name says goes away.

mod blobs;
mod known;

use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use object_store::path::Path as ObjectPath;
use object_store::{ObjectStore, ObjectStoreExt as _, PutPayload};
use steading_model::{Digest, DigestFunction};
use tokio::sync::Semaphore;

use crate::store::StoreError;
use known::Known;

/// Objects sent, fetched or asked for at once; the rest waits.
const TRANSFERS_MAX: usize = 32;

/// Largest object that is read whole, bytes: an entry of the action cache, which is a
/// result and what says whose it is, or an index.
const ENTRY_BYTES_MAX: u64 = 4 << 20;

/// Longest scope that stands in a path as it is, bytes.
const PLAIN_SCOPE_BYTES_MAX: usize = 100;

/// An object of a directory that is younger than this may have its name, but not on
/// the disk yet: whoever put it is about to sync it.
const YOUNG: Duration = Duration::from_secs(10);

/// Of a directory that is made here. What lies in it are sources, logs and artifacts: for
/// the group that may operate the farm at most.
const DIR_MODE: u32 = 0o750;

/// Why the origin did not do it.
#[derive(Debug, thiserror::Error)]
pub enum OriginError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the origin cannot {what} `{path}`")]
    Object {
        what: &'static str,
        path: String,
        #[source]
        source: Box<object_store::Error>,
    },
    #[error("the origin `{place}` cannot be used: {why}")]
    Setting { place: String, why: String },
    /// Another directory under the same path, or one that is not mounted.
    #[error(
        "the origin `{place}` does not know cluster `{cluster}`: all coordinators must see the \
         same directory or bucket, and it has to be mounted before they start"
    )]
    NotShared { place: String, cluster: String },
    /// It was the group's, and what stands there now is not.
    #[error("the origin `{place}` is not there any more: is it still mounted?")]
    NotMounted { place: String },
}

/// The origin. Clones share it.
#[derive(Clone, Debug)]
pub struct Origin(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    objects: Arc<dyn ObjectStore>,
    /// Before every path.
    prefix: ObjectPath,
    /// Where it is, for messages.
    place: String,
    /// Of a directory.
    dir: Option<PathBuf>,
    /// What a directory must hold as long as it is the group's: without it, another one
    /// shows under the same path, in which nothing is found and nothing must be put.
    mark: OnceLock<ObjectPath>,
    known: Known,
    transfers: Semaphore,
    fetching: blobs::Fetching,
}

impl Origin {
    /// A directory that every coordinator sees. Made where it is missing, closed to other
    /// users; who may look into one that is there is its owner's business.
    ///
    /// # Errors
    ///
    /// [`OriginError::Setting`] where it cannot be used.
    pub fn directory(dir: &Path) -> Result<Self, OriginError> {
        let place = dir.display().to_string();
        let unusable = |why: String| OriginError::Setting { place: dir.display().to_string(), why };
        let made = std::fs::DirBuilder::new().recursive(true).mode(DIR_MODE).create(dir);
        made.map_err(|error| unusable(format!("it cannot be made: {error}")))?;
        let objects = object_store::local::LocalFileSystem::new_with_prefix(dir)
            .map_err(|error| unusable(error.to_string()))?
            .with_fsync(true);
        Ok(Self::new(Arc::new(objects), ObjectPath::default(), place, Some(dir.to_owned())))
    }

    /// A bucket, `gs://NAME` or `s3://NAME`. Who we are there comes from the environment,
    /// as the cloud's own tools have it.
    ///
    /// # Errors
    ///
    /// [`OriginError::Setting`] where it cannot be used, or where this program was built
    /// without buckets.
    pub fn bucket(url: &str, prefix: &str) -> Result<Self, OriginError> {
        let place = url.to_owned();
        #[cfg(feature = "buckets")]
        {
            let unusable = |why: String| OriginError::Setting { place: url.to_owned(), why };
            let parsed = url.parse().map_err(|error| unusable(format!("{error}")))?;
            let (objects, path) = object_store::parse_url_opts(&parsed, std::env::vars())
                .map_err(|error| unusable(error.to_string()))?;
            let prefix =
                ObjectPath::from_iter(path.parts().chain(ObjectPath::from(prefix).parts()));
            Ok(Self::new(Arc::from(objects), prefix, place, None))
        }
        #[cfg(not(feature = "buckets"))]
        {
            let _ = prefix;
            let why = "this program was built without buckets: name a directory, or build it \
                       with the feature `buckets`";
            Err(OriginError::Setting { place, why: why.to_owned() })
        }
    }

    /// Any store of objects, for tests.
    #[cfg(test)]
    pub(crate) fn over(objects: Arc<dyn ObjectStore>, prefix: &str) -> Self {
        Self::new(objects, ObjectPath::from(prefix), "test".to_owned(), None)
    }

    fn new(
        objects: Arc<dyn ObjectStore>,
        prefix: ObjectPath,
        place: String,
        dir: Option<PathBuf>,
    ) -> Self {
        let transfers = Semaphore::new(TRANSFERS_MAX);
        let (known, fetching) = (Known::default(), blobs::Fetching::default());
        let mark = OnceLock::new();
        Self(Arc::new(Inner { objects, prefix, place, dir, mark, known, transfers, fetching }))
    }

    /// Where it is, for messages.
    pub fn place(&self) -> &str {
        &self.0.place
    }

    /// Says that this group keeps its blobs here.
    ///
    /// # Errors
    ///
    /// [`OriginError::Object`].
    pub async fn adopt(&self, cluster: &str) -> Result<(), OriginError> {
        let text = Bytes::from(format!("{cluster}\n"));
        let path = self.path(["clusters", cluster]);
        self.write(&path, text).await?;
        self.expect(path);
        Ok(())
    }

    /// Whether this group said so before.
    ///
    /// # Errors
    ///
    /// [`OriginError::Object`] where nobody can tell.
    pub async fn is_adopted(&self, cluster: &str) -> Result<bool, OriginError> {
        let path = self.path(["clusters", cluster]);
        let is_adopted = self.size(&path).await?.is_some();
        if is_adopted {
            self.expect(path);
        }
        Ok(is_adopted)
    }

    /// From now on the group's mark has to be there.
    fn expect(&self, mark: ObjectPath) {
        if self.0.dir.is_some() {
            // The first one stays: a group that goes on from another keeps both.
            let _ = self.0.mark.set(mark);
        }
    }

    /// Whether the directory is still the group's. Looked at after every write and behind
    /// everything that is not found, so that what was answered is true of the right one.
    async fn mounted(&self) -> Result<(), OriginError> {
        let Some(mark) = self.0.mark.get() else { return Ok(()) };
        match self.0.objects.head(mark).await {
            Ok(_) => Ok(()),
            Err(object_store::Error::NotFound { .. }) => {
                Err(OriginError::NotMounted { place: self.0.place.clone() })
            }
            Err(source) => Err(object_error("look for", mark, source)),
        }
    }

    /// Leaves a sign for the others that the coordinator of this name sees the same place as
    /// they do: whoever finds it by [`Origin::is_seen_by`] knows that.
    ///
    /// # Errors
    ///
    /// [`OriginError::Object`].
    pub async fn leave_sign(&self, name: &str) -> Result<(), OriginError> {
        self.write(&self.path(["joining", name]), Bytes::from(format!("{name}\n"))).await
    }

    /// Removes the sign.
    ///
    /// # Errors
    ///
    /// [`OriginError::Object`].
    pub async fn remove_sign(&self, name: &str) -> Result<(), OriginError> {
        self.remove(&self.path(["joining", name])).await
    }

    /// Whether the coordinator of this name left its sign here.
    ///
    /// # Errors
    ///
    /// [`OriginError::Object`] where nobody can tell.
    pub async fn is_seen_by(&self, name: &str) -> Result<bool, OriginError> {
        Ok(self.size(&self.path(["joining", name])).await?.is_some())
    }

    /// Puts an object of another kind than blobs and results under its name.
    ///
    /// # Errors
    ///
    /// [`OriginError::Object`].
    pub async fn put_object(&self, name: [&str; 3], bytes: Bytes) -> Result<(), OriginError> {
        self.write(&self.path(name), bytes).await
    }

    /// Reads it; none where there is none, or it is larger than any of ours.
    ///
    /// # Errors
    ///
    /// [`OriginError::Object`].
    pub async fn object(&self, name: [&str; 3]) -> Result<Option<Bytes>, OriginError> {
        self.read(&self.path(name)).await
    }

    /// Removes all objects whose names begin so.
    ///
    /// # Errors
    ///
    /// [`OriginError::Object`]; some may be gone.
    pub async fn remove_objects(&self, folder: [&str; 2]) -> Result<(), OriginError> {
        let prefix = self.path(folder);
        let mut found = self.0.objects.list(Some(&prefix));
        while let Some(object) = found.next().await {
            let object = object.map_err(|source| object_error("list", &prefix, source))?;
            self.remove(&object.location).await?;
        }
        if let Some(dir) = &self.0.dir {
            // An empty folder harms nobody.
            let _ = std::fs::remove_dir(dir.join(folder[0]).join(folder[1]));
        }
        Ok(())
    }

    /// The bytes of an action cache entry, unread; none where there is none.
    pub(crate) async fn entry(
        &self,
        scope: &str,
        function: DigestFunction,
        action: &Digest,
    ) -> Result<Option<Bytes>, OriginError> {
        self.read(&self.entry_path(scope, function, action)).await
    }

    pub(crate) async fn put_entry(
        &self,
        scope: &str,
        function: DigestFunction,
        action: &Digest,
        bytes: Bytes,
    ) -> Result<(), OriginError> {
        self.write(&self.entry_path(scope, function, action), bytes).await
    }

    pub(crate) async fn remove_entry(
        &self,
        scope: &str,
        function: DigestFunction,
        action: &Digest,
    ) -> Result<(), OriginError> {
        self.remove(&self.entry_path(scope, function, action)).await
    }

    fn entry_path(&self, scope: &str, function: DigestFunction, action: &Digest) -> ObjectPath {
        let name = format!("{}-{}", action.hash_hex(), action.size);
        self.path(["ac", function.as_str(), &scope_part(scope), &name])
    }

    fn blob_path(&self, function: DigestFunction, digest: &Digest) -> ObjectPath {
        let hex = digest.hash_hex();
        let name = format!("{hex}-{}", digest.size);
        self.path(["cas", function.as_str(), &hex[..2], &name])
    }

    fn path<const N: usize>(&self, parts: [&str; N]) -> ObjectPath {
        parts.into_iter().fold(self.0.prefix.clone(), |path, part| path.join(part))
    }

    /// A small object.
    async fn read(&self, path: &ObjectPath) -> Result<Option<Bytes>, OriginError> {
        let found = match self.0.objects.get(path).await {
            Ok(found) if found.meta.size <= ENTRY_BYTES_MAX => found,
            Ok(_) => return Ok(None),
            Err(object_store::Error::NotFound { .. }) => {
                return self.mounted().await.map(|()| None);
            }
            Err(source) => return Err(object_error("read", path, source)),
        };
        found.bytes().await.map(Some).map_err(|source| object_error("read", path, source))
    }

    async fn write(&self, path: &ObjectPath, bytes: Bytes) -> Result<(), OriginError> {
        let put = self.0.objects.put(path, PutPayload::from_bytes(bytes)).await;
        put.map_err(|source| object_error("write", path, source))?;
        self.mounted().await
    }

    async fn remove(&self, path: &ObjectPath) -> Result<(), OriginError> {
        match self.0.objects.delete(path).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(source) => Err(object_error("remove", path, source)),
        }
    }

    /// The object's size in bytes, and whether it is so young that it may not be on the
    /// disk yet; none where there is none.
    async fn size(&self, path: &ObjectPath) -> Result<Option<(u64, bool)>, OriginError> {
        match self.0.objects.head(path).await {
            Ok(meta) => {
                let age = meta.last_modified;
                let age = std::time::SystemTime::from(age).elapsed().unwrap_or_default();
                Ok(Some((meta.size, self.0.dir.is_some() && age < YOUNG)))
            }
            Err(object_store::Error::NotFound { .. }) => self.mounted().await.map(|()| None),
            Err(source) => Err(object_error("look for", path, source)),
        }
    }
}

/// A scope as a part of a path. Other names than the usual ones are hashed; the entry
/// itself says whose it is.
fn scope_part(scope: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    match !scope.is_empty() && scope.len() <= PLAIN_SCOPE_BYTES_MAX && scope.bytes().all(plain) {
        true => scope.to_owned(),
        false => format!("_{}", blake3::hash(scope.as_bytes()).to_hex()),
    }
}

fn object_error(what: &'static str, path: &ObjectPath, source: object_store::Error) -> OriginError {
    OriginError::Object { what, path: path.to_string(), source: Box::new(source) }
}

#[cfg(test)]
mod tests;
