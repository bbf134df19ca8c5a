//! What a coordinator serves: its own store and, behind it, the origin that it shares
//! with the others. Without one the store is the origin.
//!
//! With an origin the store is a copy, bounded, and may lose anything; what is
//! acknowledged is in the origin.

mod entries;

use std::collections::HashSet;
use std::fs::File;
use std::path::PathBuf;

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _};
use steading_model::{Digest, DigestFunction};
use steading_proto::reapi;
use tokio::runtime::Handle;

use crate::actions::{self, ActionCache, ActionCacheError, ActionEntry, Found};
use crate::blobs::{BlobsError, off_thread};
use crate::origin::{Origin, OriginError};
use crate::store::{Pin, Store, StoreError};
use crate::tree::{self, DEPTH_MAX, TreeError};
use entries::Entries;

/// Blobs of a store that are sent to the origin in one go.
const PUBLISH_MAX: usize = 1_000;

/// Results of actions that are sent there at once.
const ENTRIES_MAX: usize = 8;

/// A store in front of the origin. Clones share it.
#[derive(Clone, Debug)]
pub struct Front {
    store: Store,
    /// Used where there is no shared origin.
    actions: ActionCache,
    shared: Option<Shared>,
}

#[derive(Clone, Debug)]
struct Shared {
    origin: Origin,
    entries: std::sync::Arc<Entries>,
}

impl Front {
    /// This store, which is the origin itself unless there is a shared one.
    pub fn new(store: Store, actions: ActionCache, origin: Option<Origin>) -> Self {
        let shared = origin.map(|origin| Shared { origin, entries: std::sync::Arc::default() });
        Self { store, actions, shared }
    }

    /// The store: with a shared origin, a copy of some of it.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The shared origin, if there is one.
    pub fn origin(&self) -> Option<&Origin> {
        self.shared.as_ref().map(|shared| &shared.origin)
    }

    /// Those of the digests that are not durable.
    ///
    /// # Errors
    ///
    /// [`OriginError`].
    pub async fn missing(
        &self,
        function: DigestFunction,
        digests: Vec<Digest>,
    ) -> Result<Vec<Digest>, OriginError> {
        match self.origin() {
            Some(origin) => origin.missing(function, &digests).await,
            None => {
                let store = self.store.clone();
                Ok(off_thread(move || store.missing(function, &digests)).await)
            }
        }
    }

    /// Brings into the store what the origin has of these, and keeps it there while the
    /// guard lives.
    ///
    /// # Errors
    ///
    /// [`OriginError`].
    pub async fn bring(
        &self,
        function: DigestFunction,
        digests: &[Digest],
    ) -> Result<Option<Pin>, OriginError> {
        let Some(origin) = self.origin() else { return Ok(None) };
        let pin = self.store.pin(function, digests);
        let (store, wanted) = (self.store.clone(), digests.to_vec());
        let missing = off_thread(move || store.missing(function, &wanted)).await;
        origin.fetch(&self.store, function, missing).await?;
        Ok(Some(pin))
    }

    /// Brings the folders of a tree likewise, without the files in them.
    ///
    /// # Errors
    ///
    /// [`OriginError`].
    pub async fn bring_folders(
        &self,
        function: DigestFunction,
        root: &Digest,
    ) -> Result<Vec<Pin>, OriginError> {
        let (mut pins, mut level) = (Vec::new(), vec![*root]);
        let mut seen = HashSet::from([*root]);
        for _ in 0..=DEPTH_MAX {
            let Some(pin) = self.bring(function, &level).await? else { break };
            pins.push(pin);
            let store = self.store.clone();
            let below = off_thread(move || folders_below(&store, function, &level)).await?;
            level = below.into_iter().filter(|digest| seen.insert(*digest)).collect();
            if level.is_empty() {
                break;
            }
        }
        Ok(pins)
    }

    /// Puts blobs whose digests the caller has computed from these very bytes. Durable
    /// when this returns.
    ///
    /// # Errors
    ///
    /// [`OriginError`].
    pub(crate) async fn put_hashed(
        &self,
        function: DigestFunction,
        blobs: Vec<(Digest, Bytes)>,
    ) -> Result<(), OriginError> {
        let (store, local) = (self.store.clone(), blobs.clone());
        let put = off_thread(move || {
            store.put_hashed(function, local.iter().map(|(digest, bytes)| (*digest, &bytes[..])))
        });
        match self.origin() {
            None => Ok(put.await?),
            Some(origin) => {
                let (local, shared) = tokio::join!(put, origin.put(function, blobs));
                local?;
                shared
            }
        }
    }

    /// Sends blobs of the store to the origin, as far as it lacks them. Returns those
    /// that are nowhere.
    ///
    /// # Errors
    ///
    /// [`OriginError`].
    pub async fn publish(
        &self,
        function: DigestFunction,
        digests: Vec<Digest>,
    ) -> Result<Vec<Digest>, OriginError> {
        match self.origin() {
            Some(origin) => origin.upload(&self.store, function, &digests).await,
            None => self.missing(function, digests).await,
        }
    }

    /// Sends all that the store has, results of actions as well: for a store that was the
    /// origin so far. Returns how many blobs and results there are.
    ///
    /// # Errors
    ///
    /// [`ActionCacheError`].
    pub async fn publish_all(&self) -> Result<(usize, usize), ActionCacheError> {
        let store = self.store.clone();
        let all = off_thread(move || store.list()).await;
        for function in [DigestFunction::Blake3, DigestFunction::Sha256] {
            let ours = all.iter().filter(|(of, _)| *of == function);
            let digests: Vec<Digest> = ours.map(|(_, digest)| *digest).collect();
            for some in digests.chunks(PUBLISH_MAX) {
                // What was evicted meanwhile is nowhere, and was nobody's.
                self.publish(function, some.to_vec()).await?;
            }
        }
        let actions = self.actions.clone();
        let files = off_thread(move || actions.files()).await;
        let sent = futures_util::stream::iter(files)
            .map(|file| self.publish_entry(file))
            .buffer_unordered(ENTRIES_MAX);
        let sent: Vec<bool> = sent.try_collect().await?;
        Ok((all.len(), sent.into_iter().filter(|sent| *sent).count()))
    }

    /// Sends what one file of the store's own action cache holds. False: it is no use.
    async fn publish_entry(&self, file: PathBuf) -> Result<bool, ActionCacheError> {
        let actions = self.actions.clone();
        let Some(found) = off_thread(move || actions.read_file(&file)).await else {
            return Ok(false);
        };
        let Found { scope, function, action, entry } = found;
        match self.put_action(&scope, function, &action, entry).await {
            Ok(()) => Ok(true),
            // A blob that it names was evicted: the action is executed again.
            Err(ActionCacheError::Incomplete(_) | ActionCacheError::Malformed(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Sends a tree likewise, its messages and its files.
    ///
    /// # Errors
    ///
    /// [`BlobsError::Tree`] where it is none, else as [`Front::publish`].
    pub async fn publish_tree(
        &self,
        function: DigestFunction,
        root: &Digest,
    ) -> Result<Vec<Digest>, BlobsError> {
        let _pins = self.bring_folders(function, root).await?;
        let (store, root) = (self.store.clone(), *root);
        match off_thread(move || tree::blobs_below(&store, function, &root)).await {
            Ok(blobs) => Ok(self.publish(function, blobs).await?),
            Err(TreeError::Missing(digest)) => Ok(vec![digest]),
            Err(error) => Err(error.into()),
        }
    }

    /// The result of an action, if it is known and every blob that it names is durable.
    ///
    /// # Errors
    ///
    /// [`ActionCacheError`].
    pub async fn action(
        &self,
        scope: &str,
        function: DigestFunction,
        action: &Digest,
    ) -> Result<Option<ActionEntry>, ActionCacheError> {
        let Some(Shared { origin, entries }) = &self.shared else {
            let (actions, scope, action) = (self.actions.clone(), scope.to_owned(), *action);
            return off_thread(move || actions.get(&scope, function, &action)).await;
        };
        let entry = match entries.get(scope, function, action) {
            Some(entry) => entry,
            None => {
                let Some(bytes) = origin.entry(scope, function, action).await? else {
                    return Ok(None);
                };
                match actions::decode(&bytes, scope, function, action) {
                    Ok(entry) => entry,
                    Err(error) => {
                        tracing::warn!(%action, %error, "removed a corrupt action cache entry");
                        origin.remove_entry(scope, function, action).await?;
                        return Ok(None);
                    }
                }
            }
        };
        match self.check(function, &entry.result).await {
            Ok(()) => {
                entries.insert(scope, function, action, &entry);
                Ok(Some(entry))
            }
            // The action is executed again.
            Err(ActionCacheError::Incomplete(_) | ActionCacheError::Malformed(_)) => {
                entries.remove(scope, function, action);
                origin.remove_entry(scope, function, action).await?;
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Remembers the result of an action. Durable when this returns.
    ///
    /// # Errors
    ///
    /// [`ActionCacheError::Incomplete`] where a blob that it names is nowhere.
    pub async fn put_action(
        &self,
        scope: &str,
        function: DigestFunction,
        action: &Digest,
        entry: ActionEntry,
    ) -> Result<(), ActionCacheError> {
        let Some(Shared { origin, entries }) = &self.shared else {
            let (actions, scope, action) = (self.actions.clone(), scope.to_owned(), *action);
            return off_thread(move || actions.update(&scope, function, &action, &entry)).await;
        };
        actions::check_size(&entry.result)?;
        self.check(function, &entry.result).await?;
        let bytes = actions::encode(&entry, scope, function, action);
        origin.put_entry(scope, function, action, bytes.into()).await?;
        entries.insert(scope, function, action, &entry);
        Ok(())
    }

    /// Whether everything that a result names is in the origin. What only this store has
    /// is sent there.
    async fn check(
        &self,
        function: DigestFunction,
        result: &reapi::ActionResult,
    ) -> Result<(), ActionCacheError> {
        let mut pins = Vec::new();
        for directory in &result.output_directories {
            if let Ok(tree) = tree::wire_digest(directory.tree_digest.as_ref()) {
                pins.extend(self.bring(function, &[tree]).await?);
            }
            if let Ok(root) = tree::wire_digest(directory.root_directory_digest.as_ref()) {
                pins.extend(self.bring_folders(function, &root).await?);
            }
        }
        let (store, result) = (self.store.clone(), result.clone());
        let named = off_thread(move || actions::named_blobs(&store, function, &result)).await?;
        let nowhere = self.publish(function, named).await?;
        if nowhere.is_empty() { Ok(()) } else { Err(ActionCacheError::Incomplete(nowhere)) }
    }

    /// As [`Store::get`], from the origin where the store has it not. Blocks: only on a
    /// thread for what blocks.
    ///
    /// # Errors
    ///
    /// [`OriginError`].
    pub fn get_blocking(
        &self,
        function: DigestFunction,
        digest: &Digest,
    ) -> Result<Option<Bytes>, OriginError> {
        let held = self.store.get(function, digest)?;
        if held.is_some() || self.shared.is_none() {
            return Ok(held);
        }
        let _pin = Handle::current().block_on(self.bring(function, &[*digest]))?;
        Ok(self.store.get(function, digest)?)
    }

    /// Puts blobs, all behind one sync where they are put together. Blocks likewise.
    ///
    /// # Errors
    ///
    /// [`OriginError`].
    pub fn put_many_blocking<'a>(
        &self,
        function: DigestFunction,
        blobs: impl IntoIterator<Item = &'a [u8]>,
    ) -> Result<Vec<Digest>, OriginError> {
        if self.shared.is_none() {
            return Ok(self.store.put_many(function, blobs)?);
        }
        let hashed: Vec<(Digest, Bytes)> = blobs
            .into_iter()
            .map(|bytes| (crate::hash::digest_of(function, bytes), Bytes::copy_from_slice(bytes)))
            .collect();
        let digests = hashed.iter().map(|(digest, _)| *digest).collect();
        Handle::current().block_on(self.put_hashed(function, hashed))?;
        Ok(digests)
    }

    /// As [`Front::publish`]. Blocks likewise.
    ///
    /// # Errors
    ///
    /// [`OriginError`].
    pub fn publish_blocking(
        &self,
        function: DigestFunction,
        digests: &[Digest],
    ) -> Result<Vec<Digest>, OriginError> {
        match self.origin() {
            Some(_) => Handle::current().block_on(self.publish(function, digests.to_vec())),
            None => Ok(self.store.missing(function, digests)),
        }
    }

    /// As [`Front::publish_tree`], and where the store is the origin the tree stays while
    /// the guard lives. Blocks likewise.
    ///
    /// # Errors
    ///
    /// [`BlobsError`].
    pub fn publish_tree_blocking(
        &self,
        function: DigestFunction,
        root: &Digest,
    ) -> Result<(Vec<Digest>, Option<Pin>), BlobsError> {
        if self.shared.is_some() {
            let nowhere = Handle::current().block_on(self.publish_tree(function, root))?;
            return Ok((nowhere, None));
        }
        match tree::blobs_below(&self.store, function, root) {
            Ok(blobs) => {
                // Before the look: what is evicted until then is missing, and told.
                let pin = self.store.pin(function, &blobs);
                Ok((self.store.missing(function, &blobs), Some(pin)))
            }
            Err(TreeError::Missing(digest)) => Ok((vec![digest], None)),
            Err(error) => Err(error.into()),
        }
    }

    /// Every blob of a tree that the store holds, its messages among them; the root alone
    /// where it names nothing more, because a folder of it is gone, or it is no tree that
    /// anybody could lay out. Blocks.
    ///
    /// # Errors
    ///
    /// [`TreeError::Store`] where the disk fails: what the tree names is not known then,
    /// which must not be taken for nothing.
    pub fn tree_blobs(
        &self,
        function: DigestFunction,
        root: &Digest,
    ) -> Result<Vec<Digest>, TreeError> {
        match tree::blobs_below(&self.store, function, root) {
            // These stay so whoever asks, and however often: to wait for a better answer
            // would let one broken tree stop all evictions.
            Err(
                TreeError::Missing(_)
                | TreeError::Malformed { .. }
                | TreeError::TooDeep { .. }
                | TreeError::TooLarge,
            ) => Ok(vec![*root]),
            listed => listed,
        }
    }

    /// As [`Store::open_blob`], from the origin where the store has it not. Blocks likewise.
    ///
    /// # Errors
    ///
    /// [`OriginError`].
    pub fn open_blocking(
        &self,
        function: DigestFunction,
        digest: &Digest,
    ) -> Result<Option<File>, OriginError> {
        let held = self.store.open_blob(function, digest)?;
        if held.is_some() || self.shared.is_none() {
            return Ok(held);
        }
        let _pin = Handle::current().block_on(self.bring(function, &[*digest]))?;
        Ok(self.store.open_blob(function, digest)?)
    }
}

/// The folders right below these, as far as those are here and are folders.
fn folders_below(
    store: &Store,
    function: DigestFunction,
    level: &[Digest],
) -> Result<Vec<Digest>, StoreError> {
    let mut below = Vec::new();
    for digest in level {
        let Some(bytes) = store.get(function, digest)? else { continue };
        // What is none is found out by whoever reads the tree.
        let Ok(folder) = tree::decode_directory(digest, &bytes) else { continue };
        let inner = folder.directories.iter();
        below.extend(inner.filter_map(|node| tree::wire_digest(node.digest.as_ref()).ok()));
    }
    Ok(below)
}
