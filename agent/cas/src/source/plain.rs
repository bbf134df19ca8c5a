//! A source outside git.

use std::path::Path;

use ignore::WalkBuilder;

use super::{Listed, Listing, SourceError};

/// Lists what no ignore file ignores, empty folders too.
pub(super) fn list(dir: &Path) -> Result<Listing, SourceError> {
    let mut listing = Listing::new();
    let walk = WalkBuilder::new(dir)
        .hidden(false)
        .parents(false)
        .git_global(false)
        .git_exclude(false)
        .ignore(false)
        .git_ignore(true)
        .require_git(false)
        .follow_links(false)
        .filter_entry(|entry| entry.file_name() != ".git")
        .build();
    for entry in walk {
        let entry = entry.map_err(SourceError::Walk)?;
        let Ok(path) = entry.path().strip_prefix(dir) else { continue };
        if path.as_os_str().is_empty() {
            continue;
        }
        let Some(text) = path.to_str() else {
            return Err(SourceError::NotUtf8 { path: path.to_string_lossy().into_owned() });
        };
        let folder = entry.file_type().is_some_and(|kind| kind.is_dir());
        let listed = if folder { Listed::Folder } else { Listed::Entry { executable: None } };
        listing.insert(text.to_owned(), listed);
    }
    Ok(listing)
}
