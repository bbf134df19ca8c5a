//! Listing what is on disk, and making room.

use std::collections::HashSet;
use std::ffi::CStr;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::Instant;

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag};
use nix::sys::stat::Mode;
use nix::unistd::UnlinkatFlags;
use steading_model::{Digest, DigestFunction};

use super::index::{Key, Meta};
use super::{EVICT_PAUSE, EVICT_TO_PERCENT, Shared, blob_path};

/// Lists the blobs, folder by folder, without a look at the files: their names say
/// all that the index needs.
pub(super) fn run(shared: &Shared) {
    for function in [DigestFunction::Blake3, DigestFunction::Sha256] {
        for prefix in 0..=255_u8 {
            if shared.stop.load(Ordering::Relaxed) {
                return;
            }
            scan_folder(shared, function, prefix);
        }
    }
    shared.index().complete = true;
    evict(shared);
}

fn scan_folder(shared: &Shared, function: DigestFunction, prefix: u8) {
    let path = format!("{}/{prefix:02x}", function.as_str());
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let mut folder = match Dir::openat(&shared.blobs, path.as_str(), flags, Mode::empty()) {
        Ok(folder) => folder,
        Err(Errno::ENOENT) => return,
        Err(error) => {
            tracing::warn!(path = %shared.path(&path).display(), %error, "cannot list blobs");
            return;
        }
    };
    let mut found = Vec::new();
    for entry in folder.iter().flatten() {
        found.extend(parse_name(entry.file_name()));
    }
    // Held while the index learns of it, so that nothing found is evicted meanwhile.
    let _places = shared.places.read().unwrap_or_else(PoisonError::into_inner);
    let mut index = shared.index();
    for (digest, twin) in found {
        index.found(Key::new(function, &digest), digest.size, twin);
    }
}

/// `HASH-SIZE` or `HASH-SIZE.x`.
fn parse_name(name: &CStr) -> Option<(Digest, bool)> {
    let name = name.to_str().ok()?;
    let (name, twin) = match name.strip_suffix(".x") {
        Some(name) => (name, true),
        None => (name, false),
    };
    let (hash, size) = name.split_once('-')?;
    Some((Digest::from_hex(hash, size.parse().ok()?).ok()?, twin))
}

/// As [`evict`], also within the pause behind one that found nothing to remove.
pub(super) fn evict_now(shared: &Shared) {
    *shared.evicting.lock().unwrap_or_else(PoisonError::into_inner) = None;
    evict(shared);
}

/// Removes least recently used blobs until there is room again.
pub(super) fn evict(shared: &Shared) {
    // Whoever is evicting makes room for this caller too.
    let Ok(mut futile_until) = shared.evicting.try_lock() else { return };
    let bytes_max = shared.bytes_max();
    let paused = futile_until.is_some_and(|until| Instant::now() < until);
    // A pin that ends is known at once; what others name is costly to find out.
    if paused && shared.bound.get().is_some() {
        return;
    }
    let mut candidates = {
        let index = shared.index();
        if !index.complete || index.bytes() <= bytes_max {
            return;
        }
        index.unpinned()
    };
    // After the candidates: what is named later was pinned or used since, and stays so.
    if let Some(bound) = shared.bound.get() {
        let Some(named) = (bound.named)() else {
            // Nor could the next put: to ask may read much, and fail late.
            *futile_until = Some(Instant::now() + EVICT_PAUSE);
            return;
        };
        let named: HashSet<Key> =
            named.iter().map(|(function, digest)| Key::new(*function, digest)).collect();
        candidates.retain(|(key, _)| !named.contains(key));
    }
    let keep = bytes_max / 100 * EVICT_TO_PERCENT;
    let mut ordered: Vec<(u64, Key, Meta)> = candidates
        .into_iter()
        // The empty blob takes nothing and is always there.
        .filter(|(_, meta)| meta.size > 0)
        .map(|(key, meta)| (last_use(shared, &key, &meta), key, meta))
        .collect();
    ordered.sort_unstable_by_key(|(used, key, _)| (*used, *key));
    for (_, key, meta) in ordered {
        if shared.index().bytes() <= keep {
            break;
        }
        remove_unless_used(shared, &key, &meta);
    }
    let bytes = shared.index().bytes();
    if bytes > bytes_max && !paused {
        *futile_until = Some(Instant::now() + EVICT_PAUSE);
        tracing::warn!(
            bytes,
            bytes_max,
            "the store is larger than it may be: what is left is pinned or in use"
        );
    }
}

/// When the blob was last used: as known, or as the file's access time says.
fn last_use(shared: &Shared, key: &Key, meta: &Meta) -> u64 {
    if meta.used > 0 {
        return meta.used;
    }
    let path = blob_path(key.function, &Digest { hash: key.hash, size: meta.size });
    match nix::sys::stat::fstatat(&shared.blobs, path.as_str(), AtFlags::AT_SYMLINK_NOFOLLOW) {
        Ok(stat) => u64::try_from(stat.st_atime).unwrap_or(0) * 1_000_000,
        Err(_) => 0,
    }
}

fn remove_unless_used(shared: &Shared, key: &Key, seen: &Meta) {
    let _places = shared.places.write().unwrap_or_else(PoisonError::into_inner);
    {
        let mut index = shared.index();
        let unused = index.get(key).is_some_and(|meta| meta.used == seen.used);
        if !unused || index.is_pinned(key) {
            return;
        }
        index.remove(key);
    }
    unlink(shared, key.function, &Digest { hash: key.hash, size: seen.size });
}

/// Removes a blob's files. The caller has taken it out of the index.
pub(super) fn unlink(shared: &Shared, function: DigestFunction, digest: &Digest) {
    let path = blob_path(function, digest);
    for path in [format!("{path}.x"), path] {
        match nix::unistd::unlinkat(&shared.blobs, path.as_str(), UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => (),
            Err(error) => {
                tracing::warn!(path = %shared.path(&path).display(), %error, "cannot remove a blob");
            }
        }
    }
}
