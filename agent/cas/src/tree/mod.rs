//! Trees: REAPI `Directory` messages in the store, in their one canonical form.
//!
//! Entries are sorted by name; a mode is written only where it is not the usual one
//! (0644, or 0755 for executables and folders), so that equal trees have equal digests
//! whoever made them. Trees come from hostile places: every message is checked when it
//! is read, and nothing here follows a symbolic link.

mod capture;
mod edit;
mod materialize;
mod patterns;
mod wire;

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;

use steading_model::Digest;

use crate::store::StoreError;

pub use capture::{Capture, CaptureOptions, Modes, capture, capture_in, snapshot_dir};
pub(crate) use capture::{FileStamp, Wanted, read_link, store_wanted, unsupported};
pub use edit::{Selection, load, merge, save, select, subset, walk};
pub use materialize::{
    Materialize, MaterializeMode, Mtime, apply_layer, materialize, materialize_in, remove_matching,
};
pub use patterns::{PatternError, Patterns};
pub(crate) use wire::{Reader as TreeReader, blobs_below, wire_digest};
pub use wire::{decode_directory, encode_directory, tree_message};

/// Deepest nesting of folders. Paths this deep exceed what Linux takes long before.
pub const DEPTH_MAX: usize = 256;

/// Most entries of one tree. A few messages can name a tree of any size, by naming one
/// folder many times.
pub const ENTRIES_MAX: usize = 2_000_000;

/// Longest name of an entry, bytes: what Linux takes.
pub const NAME_BYTES_MAX: usize = 255;

/// Longest target of a symbolic link, bytes: what Linux takes.
pub const TARGET_BYTES_MAX: usize = 4095;

/// A regular file of a tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileEntry {
    pub digest: Digest,
    pub executable: bool,
    /// Permission bits, where they are not 0644, or 0755 if executable.
    pub mode: Option<u32>,
}

impl FileEntry {
    /// The entry of a file with these permission bits.
    pub fn with_mode(digest: Digest, mode: u32) -> Self {
        let mode = mode & 0o777;
        let executable = mode & 0o100 != 0;
        let usual = if executable { 0o755 } else { 0o644 };
        Self { digest, executable, mode: (mode != usual).then_some(mode) }
    }

    /// Permission bits.
    pub fn permissions(&self) -> u32 {
        self.mode.unwrap_or(if self.executable { 0o755 } else { 0o644 })
    }
}

/// What stands under a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    File(FileEntry),
    Symlink { target: String },
    Folder(Folder),
}

/// A folder with all that is below it, in memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Folder {
    pub entries: BTreeMap<String, Entry>,
    /// Permission bits, where they are not 0755.
    pub mode: Option<u32>,
}

/// A tree in the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TreeSummary {
    /// Of the root's `Directory`.
    pub root: Digest,
    /// Regular files and symbolic links.
    pub files: u32,
    /// Of the regular files.
    pub bytes: u64,
}

/// Why a tree could not be made, read or written.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Evicted, or never there: fetch it, or make it again.
    #[error("blob `{0}` is not in the store")]
    Missing(Digest),
    /// The sender's mistake.
    #[error("`{digest}` is not a canonical directory: {why}")]
    Malformed { digest: Digest, why: String },
    #[error("`{path}` is a {what}, which no tree can hold: remove or exclude it")]
    Unsupported { path: String, what: &'static str },
    #[error("the name `{path}` is not UTF-8, which no tree can hold: rename or exclude it")]
    NotUtf8 { path: String },
    #[error("the tree is nested deeper than {DEPTH_MAX} folders at `{path}`")]
    TooDeep { path: String },
    #[error("the tree has more than {ENTRIES_MAX} entries")]
    TooLarge,
    #[error("`{0}` is not a path within a tree")]
    Path(String),
    #[error("cannot {what} `{path}`")]
    Io {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

impl Folder {
    /// What stands at this path (`a/b/c`); none where nothing does.
    pub fn get(&self, path: &str) -> Option<&Entry> {
        let (folder, name) = match path.rsplit_once('/') {
            Some((parents, name)) => {
                let mut folder = self;
                for part in parents.split('/') {
                    match folder.entries.get(part)? {
                        Entry::Folder(inner) => folder = inner,
                        Entry::File(_) | Entry::Symlink { .. } => return None,
                    }
                }
                (folder, name)
            }
            None => (self, path),
        };
        folder.entries.get(name)
    }

    /// Puts an entry at this path; whatever stood there or in its way is replaced.
    ///
    /// # Errors
    ///
    /// [`TreeError::Path`] for a path that is empty, absolute, or has `.` or `..` in it.
    pub fn insert(&mut self, path: &str, entry: Entry) -> Result<(), TreeError> {
        if path.split('/').count() > DEPTH_MAX {
            return Err(TreeError::TooDeep { path: path.to_owned() });
        }
        let mut folder = self;
        let mut parts = path.split('/').peekable();
        while let Some(part) = parts.next() {
            if wire::check_name(part).is_err() {
                return Err(TreeError::Path(path.to_owned()));
            }
            if parts.peek().is_none() {
                folder.entries.insert(part.to_owned(), entry);
                return Ok(());
            }
            let slot = folder
                .entries
                .entry(part.to_owned())
                .or_insert_with(|| Entry::Folder(Self::default()));
            if !matches!(slot, Entry::Folder(_)) {
                *slot = Entry::Folder(Self::default());
            }
            let Entry::Folder(inner) = slot else { return Err(TreeError::Path(path.to_owned())) };
            folder = inner;
        }
        Err(TreeError::Path(path.to_owned()))
    }

    /// Puts what `layer` holds over this: folders join, everything else replaces.
    pub fn merge(&mut self, layer: Self) {
        if layer.mode.is_some() {
            self.mode = layer.mode;
        }
        for (name, entry) in layer.entries {
            match (self.entries.get_mut(&name), entry) {
                (Some(Entry::Folder(below)), Entry::Folder(above)) => below.merge(above),
                (_, entry) => {
                    self.entries.insert(name, entry);
                }
            }
        }
    }

    /// Visits everything below, folders before what is in them, in the order of names.
    pub fn visit(&self, visitor: &mut dyn FnMut(&str, &Entry)) {
        fn inner(folder: &Folder, path: &mut String, visitor: &mut dyn FnMut(&str, &Entry)) {
            let len = path.len();
            for (name, entry) in &folder.entries {
                if len > 0 {
                    path.push('/');
                }
                path.push_str(name);
                visitor(path, entry);
                if let Entry::Folder(below) = entry {
                    inner(below, path, visitor);
                }
                path.truncate(len);
            }
        }
        inner(self, &mut String::new(), visitor);
    }
}

fn io_error(
    what: &'static str,
    path: impl Into<PathBuf>,
    source: impl Into<io::Error>,
) -> TreeError {
    TreeError::Io { what, path: path.into(), source: source.into() }
}

#[cfg(test)]
mod tests;
