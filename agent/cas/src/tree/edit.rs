//! Trees in memory: loading, changing, choosing parts, saving.

use std::collections::HashMap;

use steading_model::{Digest, DigestFunction};
use steading_proto::reapi;

use super::wire::{Reader, file_entry, unix_mode, wire_digest};
use super::{DEPTH_MAX, Entry, Folder, Patterns, TreeError, TreeSummary, encode_directory};
use crate::hash::digest_of;
use crate::store::Store;

/// What patterns chose of a tree.
#[derive(Clone, Debug)]
pub struct Selection {
    pub folder: Folder,
    /// Choosing patterns that no path matched, as written.
    pub unmatched: Vec<String>,
}

/// Loads a whole tree.
///
/// # Errors
///
/// [`TreeError::Missing`] where a folder's message is not in the store, and
/// [`TreeError::Malformed`], [`TreeError::TooDeep`] or [`TreeError::TooLarge`] for what
/// nobody honest made.
pub fn load(store: &Store, root: &Digest) -> Result<Folder, TreeError> {
    let mut reader = Reader::new(store, DigestFunction::Blake3);
    load_folder(&mut reader, root, 0)
}

fn load_folder(
    reader: &mut Reader<'_>,
    digest: &Digest,
    depth: usize,
) -> Result<Folder, TreeError> {
    if depth > DEPTH_MAX {
        return Err(TreeError::TooDeep { path: digest.to_string() });
    }
    let message: reapi::Directory = reader.read(digest)?;
    let malformed = |why| TreeError::Malformed { digest: *digest, why };
    let mode = unix_mode(message.node_properties.as_ref()).filter(|&mode| mode != 0o755);
    let mut folder = Folder { mode, ..Folder::default() };
    for node in message.files {
        let entry = Entry::File(file_entry(&node).map_err(malformed)?);
        folder.entries.insert(node.name, entry);
    }
    for node in message.symlinks {
        folder.entries.insert(node.name, Entry::Symlink { target: node.target });
    }
    for node in message.directories {
        let below = wire_digest(node.digest.as_ref()).map_err(malformed)?;
        let below = load_folder(reader, &below, depth + 1)?;
        folder.entries.insert(node.name, Entry::Folder(below));
    }
    Ok(folder)
}

/// Puts all messages of a tree into the store. The files' blobs are not looked at.
///
/// # Errors
///
/// [`TreeError::Store`] where the disk fails.
pub fn save(store: &Store, folder: &Folder) -> Result<TreeSummary, TreeError> {
    let mut messages = HashMap::new();
    let mut summary = TreeSummary { root: Digest { hash: [0; 32], size: 0 }, files: 0, bytes: 0 };
    summary.root = encode(folder, &mut messages, &mut summary, 0)?;
    let blobs = messages.iter().map(|(digest, bytes): (&Digest, &Vec<u8>)| (*digest, &bytes[..]));
    store.put_hashed(DigestFunction::Blake3, blobs)?;
    Ok(summary)
}

fn encode(
    folder: &Folder,
    messages: &mut HashMap<Digest, Vec<u8>>,
    summary: &mut TreeSummary,
    depth: usize,
) -> Result<Digest, TreeError> {
    if depth > DEPTH_MAX {
        return Err(TreeError::TooDeep { path: String::new() });
    }
    for entry in folder.entries.values() {
        match entry {
            Entry::File(file) => {
                summary.files += 1;
                summary.bytes += file.digest.size;
            }
            Entry::Symlink { .. } => summary.files += 1,
            Entry::Folder(_) => (),
        }
    }
    let message =
        encode_directory(folder, &mut |_, below| encode(below, messages, summary, depth + 1))?;
    let digest = digest_of(DigestFunction::Blake3, &message);
    messages.insert(digest, message);
    Ok(digest)
}

/// Puts what `layer` holds over `base`: folders join, everything else replaces.
///
/// # Errors
///
/// As [`load`] and [`save`].
pub fn merge(store: &Store, base: &Digest, layer: &Digest) -> Result<TreeSummary, TreeError> {
    let mut folder = load(store, base)?;
    folder.merge(load(store, layer)?);
    save(store, &folder)
}

/// What the patterns choose. Folders are kept where something in them is chosen, and
/// empty ones where they are chosen themselves.
pub fn select(folder: &Folder, patterns: &Patterns) -> Selection {
    let mut used = vec![false; patterns.len()];
    let chosen = select_below(folder, patterns, &mut String::new(), &mut used);
    Selection { folder: chosen.unwrap_or_default(), unmatched: patterns.unmarked(&used) }
}

fn select_below(
    folder: &Folder,
    patterns: &Patterns,
    path: &mut String,
    used: &mut [bool],
) -> Option<Folder> {
    let mut chosen = Folder { mode: folder.mode, ..Folder::default() };
    let len = path.len();
    for (name, entry) in &folder.entries {
        if len > 0 {
            path.push('/');
        }
        path.push_str(name);
        patterns.mark(path, used);
        let matched = patterns.matches(path);
        let kept = match entry {
            Entry::Folder(below) => {
                let below = select_below(below, patterns, path, used);
                match (below, matched) {
                    (Some(below), _) => Some(Entry::Folder(below)),
                    (None, true) => Some(Entry::Folder(Folder::default())),
                    (None, false) => None,
                }
            }
            Entry::File(_) | Entry::Symlink { .. } => matched.then(|| entry.clone()),
        };
        if let Some(kept) = kept {
            chosen.entries.insert(name.clone(), kept);
        }
        path.truncate(len);
    }
    (!chosen.entries.is_empty()).then_some(chosen)
}

/// [`select`] of a tree in the store, saved; with it the patterns that chose nothing.
///
/// # Errors
///
/// As [`load`] and [`save`].
pub fn subset(
    store: &Store,
    root: &Digest,
    patterns: &Patterns,
) -> Result<(TreeSummary, Vec<String>), TreeError> {
    let selection = select(&load(store, root)?, patterns);
    Ok((save(store, &selection.folder)?, selection.unmatched))
}

/// Visits everything in a tree, folders before what is in them, in the order of names.
///
/// # Errors
///
/// As [`load`].
pub fn walk(
    store: &Store,
    root: &Digest,
    visitor: &mut dyn FnMut(&str, &Entry),
) -> Result<(), TreeError> {
    load(store, root)?.visit(visitor);
    Ok(())
}
