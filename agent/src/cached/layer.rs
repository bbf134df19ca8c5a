//! What a command made of its workspace, told from what it was given.

use std::collections::BTreeSet;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;

use steading_cas::Store;
use steading_cas::tree::{self, CaptureOptions, Entry, Folder, Modes, Patterns};

use super::{CachedError, io_error};

/// Extended attribute of a folder that hides what the lower layer has under its name:
/// the first where root mounts, the second in a user namespace.
const OPAQUE: [&str; 2] = ["trusted.overlay.opaque", "user.overlay.opaque"];

/// Seconds from the epoch to 2000-01-01: how inputs are dated.
pub(super) const INPUT_TIME_S: i64 = 946_684_800;

/// The outputs, and what else changed.
#[derive(Debug, Default)]
pub(super) struct Made {
    pub outputs: Folder,
    /// Patterns that chose nothing, as written.
    pub unmatched: Vec<String>,
    /// Paths that were written or removed, sorted.
    pub changed: BTreeSet<String>,
}

/// From the upper layer of an overlay over `inputs`. Takes the marks of what was
/// removed off the layer.
pub(super) fn of_upper(
    store: &Store,
    upper: &Path,
    inputs: &Folder,
    patterns: &Patterns,
) -> Result<Made, CachedError> {
    let mut below = inputs.clone();
    let mut changed = BTreeSet::new();
    let mut walk = Upper { below: &mut below, changed: &mut changed, patterns };
    walk.folder(upper, &mut String::new()).map_err(io_error("read", upper))?;
    let above = capture(store, upper, patterns)?;
    let kept = tree::select(&below, patterns);
    let mut outputs = kept.folder;
    outputs.merge(above.folder);
    let mut unmatched = kept.unmatched;
    unmatched.retain(|pattern| above.unmatched.contains(pattern));
    Ok(Made { outputs, unmatched, changed })
}

/// From a folder that was a copy of `inputs`.
pub(super) fn of_folder(
    store: &Store,
    folder: &Path,
    inputs: &Folder,
    patterns: &Patterns,
) -> Result<Made, CachedError> {
    let mut changed = BTreeSet::new();
    let mut found = BTreeSet::new();
    let mut path = String::new();
    compare(folder, &mut path, inputs, &mut found, &mut changed)
        .map_err(io_error("read", folder))?;
    inputs.visit(&mut |path, entry| {
        if !matches!(entry, Entry::Folder(_)) && !found.contains(path) {
            changed.insert(path.to_owned());
        }
    });
    let captured = capture(store, folder, patterns)?;
    Ok(Made { outputs: captured.folder, unmatched: captured.unmatched, changed })
}

fn capture(store: &Store, dir: &Path, patterns: &Patterns) -> Result<tree::Capture, CachedError> {
    let options = CaptureOptions { patterns, modes: Modes::All, memo: None };
    Ok(tree::capture(store, dir, &options)?)
}

struct Upper<'a> {
    below: &'a mut Folder,
    changed: &'a mut BTreeSet<String>,
    patterns: &'a Patterns,
}

impl Upper<'_> {
    fn folder(&mut self, dir: &Path, path: &mut String) -> io::Result<()> {
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            let length = path.len();
            if length > 0 {
                path.push('/');
            }
            path.push_str(&entry.file_name().to_string_lossy());
            self.entry(&entry.path(), &entry.metadata()?, path)?;
            path.truncate(length);
        }
        Ok(())
    }

    fn entry(&mut self, file: &Path, about: &Metadata, path: &mut String) -> io::Result<()> {
        if about.is_dir() {
            if self.below.get(path).is_some() && is_opaque(file) {
                remove(self.below, path);
            }
            return self.folder(file, path);
        }
        self.changed.insert(path.clone());
        let kind = about.file_type();
        if kind.is_char_device() && about.rdev() == 0 {
            remove(self.below, path);
            fs::remove_file(file)?;
        } else if !kind.is_file() && !kind.is_symlink() && !self.patterns.matches(path) {
            // A socket that nobody asks for.
            fs::remove_file(file)?;
        }
        Ok(())
    }
}

fn is_opaque(dir: &Path) -> bool {
    let mut value = [0u8; 8];
    OPAQUE.iter().any(|name| {
        rustix::fs::lgetxattr(dir, *name, &mut value[..])
            .is_ok_and(|length| length == 1 && value[0] == b'y')
    })
}

fn remove(folder: &mut Folder, path: &str) {
    match path.split_once('/') {
        None => {
            folder.entries.remove(path);
        }
        Some((first, rest)) => {
            if let Some(Entry::Folder(inner)) = folder.entries.get_mut(first) {
                remove(inner, rest);
            }
        }
    }
}

fn compare(
    dir: &Path,
    path: &mut String,
    inputs: &Folder,
    found: &mut BTreeSet<String>,
    changed: &mut BTreeSet<String>,
) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let about = entry.metadata()?;
        let length = path.len();
        if length > 0 {
            path.push('/');
        }
        path.push_str(&entry.file_name().to_string_lossy());
        if about.is_dir() {
            compare(&entry.path(), path, inputs, found, changed)?;
        } else {
            let same = match inputs.get(path) {
                Some(Entry::File(_)) => about.is_file() && about.mtime() == INPUT_TIME_S,
                Some(Entry::Symlink { target }) => fs::read_link(entry.path())
                    .is_ok_and(|now| now.to_str() == Some(target.as_str())),
                Some(Entry::Folder(_)) | None => false,
            };
            if !same {
                changed.insert(path.clone());
            }
            found.insert(path.clone());
        }
        path.truncate(length);
    }
    Ok(())
}
