//! Blobs between a store and the origin.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read as _;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _};
use object_store::path::Path as ObjectPath;
use object_store::{ObjectStoreExt as _, WriteMultipart};
use steading_model::{Digest, DigestFunction};

use super::{Origin, OriginError, TRANSFERS_MAX, object_error};
use crate::blobs::off_thread;
use crate::hash::{Hasher, digest_of};
use crate::store::{Store, StoreError};

/// Blobs up to this many bytes travel in one piece, larger ones in parts of this size.
const PART_BYTES: usize = 8 << 20;

/// Parts of one blob on the way at once.
const PARTS_MAX: usize = 4;

/// Blobs that are being fetched; who wants one of them as well waits.
#[derive(Debug, Default)]
pub(super) struct Fetching(Mutex<HashMap<Key, Arc<tokio::sync::Mutex<()>>>>);

type Key = (DigestFunction, Digest);

impl Origin {
    /// Those of the digests that are not here, each once, in the order given.
    ///
    /// # Errors
    ///
    /// [`OriginError::Object`].
    pub async fn missing(
        &self,
        function: DigestFunction,
        digests: &[Digest],
    ) -> Result<Vec<Digest>, OriginError> {
        let mut seen = std::collections::HashSet::with_capacity(digests.len());
        let unknown: Vec<Digest> = digests
            .iter()
            .filter(|digest| !self.0.known.holds(function, digest) && seen.insert(**digest))
            .copied()
            .collect();
        let look = |digest: Digest| async move {
            let found = self.size(&self.blob_path(function, &digest)).await?;
            // Of another size: what a power cut left, or somebody's mistake.
            let young = found.filter(|(size, _)| *size == digest.size).map(|(_, young)| young);
            Ok::<_, OriginError>((digest, young))
        };
        let found: Vec<(Digest, Option<bool>)> = futures_util::stream::iter(unknown)
            .map(look)
            .buffered(TRANSFERS_MAX)
            .try_collect()
            .await?;
        if found.iter().any(|(_, young)| *young == Some(true)) {
            self.settle().await?;
        }
        let mut missing = Vec::new();
        for (digest, young) in found {
            match young {
                Some(_) => self.0.known.insert(function, &digest),
                None => missing.push(digest),
            }
        }
        Ok(missing)
    }

    /// What others have just put is on the disk when this returns.
    async fn settle(&self) -> Result<(), OriginError> {
        let Some(dir) = self.0.dir.clone() else { return Ok(()) };
        let at = dir.clone();
        let synced = off_thread(move || {
            let dir = File::open(dir)?;
            nix::unistd::syncfs(&dir).map_err(std::io::Error::from)
        });
        synced.await.map_err(|error| OriginError::Setting {
            place: at.display().to_string(),
            why: format!("it cannot be synced: {error}"),
        })
    }

    /// Puts blobs whose digests the caller has computed from these very bytes.
    ///
    /// # Errors
    ///
    /// [`OriginError::Object`]; some blobs may be there.
    pub(crate) async fn put(
        &self,
        function: DigestFunction,
        blobs: Vec<(Digest, Bytes)>,
    ) -> Result<(), OriginError> {
        let unknown = blobs.into_iter().filter(|(digest, _)| !self.0.known.holds(function, digest));
        futures_util::stream::iter(unknown)
            .map(|(digest, bytes)| async move {
                let _turn = self.0.transfers.acquire().await;
                let path = self.blob_path(function, &digest);
                if bytes.len() <= PART_BYTES {
                    self.write(&path, bytes).await?;
                } else {
                    let mut parts = self.parts(&path).await?;
                    for part in bytes.chunks(PART_BYTES) {
                        push(&mut parts, bytes.slice_ref(part), &path).await?;
                    }
                    finish(parts, &path).await?;
                    self.mounted().await?;
                }
                self.0.known.insert(function, &digest);
                Ok(())
            })
            .buffer_unordered(TRANSFERS_MAX)
            .try_collect()
            .await
    }

    /// Sends those of the store's blobs that are not here yet. Returns what the store
    /// does not have either.
    ///
    /// # Errors
    ///
    /// [`OriginError`]; some blobs may be there.
    pub(crate) async fn upload(
        &self,
        store: &Store,
        function: DigestFunction,
        digests: &[Digest],
    ) -> Result<Vec<Digest>, OriginError> {
        let missing = self.missing(function, digests).await?;
        let _pin = store.pin(function, &missing);
        let sent: Vec<Option<Digest>> = futures_util::stream::iter(missing)
            .map(|digest| async move {
                let sent = self.upload_one(store, function, &digest).await?;
                Ok::<_, OriginError>((!sent).then_some(digest))
            })
            .buffered(TRANSFERS_MAX)
            .try_collect()
            .await?;
        Ok(sent.into_iter().flatten().collect())
    }

    async fn upload_one(
        &self,
        store: &Store,
        function: DigestFunction,
        digest: &Digest,
    ) -> Result<bool, OriginError> {
        if digest.size <= PART_BYTES as u64 {
            let (at, digest) = (store.clone(), *digest);
            let Some(bytes) = off_thread(move || at.get(function, &digest)).await? else {
                return Ok(false);
            };
            self.put(function, vec![(digest, bytes)]).await?;
            return Ok(true);
        }
        let _turn = self.0.transfers.acquire().await;
        let (at, wanted) = (store.clone(), *digest);
        let Some(mut file) = off_thread(move || at.open_blob(function, &wanted)).await? else {
            return Ok(false);
        };
        let path = self.blob_path(function, digest);
        let mut parts = self.parts(&path).await?;
        let mut hasher = Hasher::new(function);
        loop {
            let read = off_thread(move || {
                let mut part = Vec::with_capacity(PART_BYTES);
                file.by_ref().take(PART_BYTES as u64).read_to_end(&mut part)?;
                hasher.update(&part);
                Ok::<_, std::io::Error>((file, hasher, part))
            });
            let part;
            (file, hasher, part) = read.await.map_err(|source| StoreError::Io {
                what: "read",
                path: store.dir().join(digest.to_string()),
                source,
            })?;
            if part.is_empty() {
                break;
            }
            push(&mut parts, part.into(), &path).await?;
        }
        if hasher.finish() != *digest {
            let aborted = parts.abort().await;
            aborted.map_err(|source| object_error("give up", &path, source))?;
            store.discard(function, digest);
            return Ok(false);
        }
        finish(parts, &path).await?;
        self.mounted().await?;
        self.0.known.insert(function, digest);
        Ok(true)
    }

    /// Brings blobs into the store, those that are here. Each is fetched once, however
    /// many want it.
    ///
    /// # Errors
    ///
    /// [`OriginError`].
    pub(crate) async fn fetch(
        &self,
        store: &Store,
        function: DigestFunction,
        digests: Vec<Digest>,
    ) -> Result<(), OriginError> {
        futures_util::stream::iter(digests)
            .map(|digest| async move {
                let alone = self.0.fetching.enter(function, &digest);
                let _alone = alone.lock.lock().await;
                let at = store.clone();
                if !off_thread(move || at.contains(function, &digest)).await {
                    let _turn = self.0.transfers.acquire().await;
                    self.fetch_one(store, function, &digest).await?;
                }
                Ok(())
            })
            .buffer_unordered(TRANSFERS_MAX)
            .try_collect()
            .await
    }

    async fn fetch_one(
        &self,
        store: &Store,
        function: DigestFunction,
        digest: &Digest,
    ) -> Result<(), OriginError> {
        let path = self.blob_path(function, digest);
        match self.size(&path).await? {
            Some((size, _)) if size == digest.size => (),
            Some(_) => return self.discard(function, digest, &path).await,
            None => {
                self.0.known.remove(function, digest);
                return Ok(());
            }
        }
        let (at, digest) = (store.clone(), *digest);
        if digest.size <= PART_BYTES as u64 {
            let bytes = self.range(&path, 0..digest.size).await?;
            let put = move || match digest_of(function, &bytes) == digest {
                true => at.put_hashed(function, [(digest, &bytes[..])]).map(|()| true),
                false => Ok(false),
            };
            if !off_thread(put).await? {
                return self.discard(function, &digest, &path).await;
            }
            self.0.known.insert(function, &digest);
            return Ok(());
        }
        let mut writer = off_thread(move || at.writer(function, Some(digest))).await?;
        for from in (0..digest.size).step_by(PART_BYTES) {
            let until = digest.size.min(from + PART_BYTES as u64);
            let part = self.range(&path, from..until).await?;
            writer = off_thread(move || writer.push(&part).map(|()| writer)).await?;
        }
        match off_thread(move || writer.commit()).await {
            Ok(_) => {
                self.0.known.insert(function, &digest);
                Ok(())
            }
            Err(StoreError::Mismatch { .. }) => self.discard(function, &digest, &path).await,
            Err(error) => Err(error.into()),
        }
    }

    async fn range(&self, path: &ObjectPath, range: Range<u64>) -> Result<Bytes, OriginError> {
        let read = self.0.objects.get_range(path, range).await;
        read.map_err(|source| object_error("read", path, source))
    }

    /// Removes an object that is not what its name says.
    async fn discard(
        &self,
        function: DigestFunction,
        digest: &Digest,
        path: &ObjectPath,
    ) -> Result<(), OriginError> {
        tracing::error!(%digest, origin = self.place(), "removed a corrupt blob of the origin");
        self.0.known.remove(function, digest);
        self.remove(path).await
    }

    async fn parts(&self, path: &ObjectPath) -> Result<WriteMultipart, OriginError> {
        let upload = self.0.objects.put_multipart(path).await;
        let upload = upload.map_err(|source| object_error("write", path, source))?;
        Ok(WriteMultipart::new_with_chunk_size(upload, PART_BYTES))
    }
}

async fn push(
    parts: &mut WriteMultipart,
    part: Bytes,
    path: &ObjectPath,
) -> Result<(), OriginError> {
    let room = parts.wait_for_capacity(PARTS_MAX).await;
    room.map_err(|source| object_error("write", path, source))?;
    parts.put(part);
    Ok(())
}

async fn finish(parts: WriteMultipart, path: &ObjectPath) -> Result<(), OriginError> {
    parts.finish().await.map(drop).map_err(|source| object_error("write", path, source))
}

impl Fetching {
    fn enter(&self, function: DigestFunction, digest: &Digest) -> Alone<'_> {
        let key = (function, *digest);
        let lock = Arc::clone(self.table().entry(key).or_default());
        Alone { fetching: self, key, lock }
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.table().is_empty()
    }

    fn table(&self) -> MutexGuard<'_, HashMap<Key, Arc<tokio::sync::Mutex<()>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Wants one blob. The last to go forgets it.
struct Alone<'a> {
    fetching: &'a Fetching,
    key: Key,
    lock: Arc<tokio::sync::Mutex<()>>,
}

impl Drop for Alone<'_> {
    fn drop(&mut self) {
        let mut table = self.fetching.table();
        // The table's own, and this one.
        if Arc::strong_count(&self.lock) <= 2 {
            table.remove(&self.key);
        }
    }
}
