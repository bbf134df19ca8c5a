//! `hashFiles(PATTERN…)`.

use std::fs::File;
use std::io;
use std::path::Path;

use sha2::{Digest as _, Sha256};
use steading_cas::tree::Patterns;
use steading_cas::{Dir, Kind};

/// Most files that one call hashes.
const FILES_MAX: usize = 100_000;

/// Deepest folder that is searched.
const DEPTH_MAX: usize = 128;

/// The digest of the digests of all matching files of the workspace, in the order of a
/// depth-first walk by name; empty when nothing matches. Symbolic links are not followed.
///
/// # Errors
///
/// A sentence for the person who wrote the expression.
pub(super) fn hash_files(workspace: &Path, patterns: &[String]) -> Result<String, String> {
    let mut lines: Vec<String> = Vec::new();
    for line in patterns.iter().flat_map(|pattern| pattern.lines()) {
        let line = line.trim();
        let (exclude, path) = line.strip_prefix('!').map_or(("", line), |path| ("!", path));
        // Absolute paths are welcome where they lead into the workspace.
        let inside = match Path::new(path).strip_prefix(workspace) {
            Ok(relative) => relative.to_str().unwrap_or_default(),
            Err(_) => path,
        };
        if !path.is_empty() && !line.starts_with('#') {
            lines.push(format!("{exclude}{}", if inside.is_empty() { "**" } else { inside }));
        }
    }
    let patterns = Patterns::parse(&lines).map_err(|error| format!("hashFiles: {error}"))?;
    let mut search = Search { patterns: &patterns, total: Sha256::new(), files: 0 };
    // By open folders, because a process of the job may change names meanwhile, and the
    // agent may read more than the job.
    Dir::open(workspace)
        .and_then(|workspace| search.folder(&workspace, "", 0))
        .map_err(|error| format!("hashFiles cannot read the workspace: {error}"))?;
    if search.files == 0 {
        return Ok(String::new());
    }
    Ok(search.total.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

struct Search<'a> {
    patterns: &'a Patterns,
    total: Sha256,
    files: usize,
}

impl Search<'_> {
    fn folder(&mut self, folder: &Dir, relative: &str, depth: usize) -> io::Result<()> {
        if depth > DEPTH_MAX {
            return Err(io::Error::other(format!("`{relative}` is too deep")));
        }
        for (name, kind) in folder.entries()? {
            let Some(name) = name.to_str() else {
                continue;
            };
            let inner =
                if relative.is_empty() { name.to_owned() } else { format!("{relative}/{name}") };
            match kind {
                Kind::Folder => {
                    self.folder(&folder.beneath(Path::new(name))?, &inner, depth + 1)?;
                }
                Kind::File if self.patterns.matches(&inner) => {
                    self.file(folder.file(Path::new(name))?)?;
                }
                Kind::File | Kind::Symlink | Kind::Other => (),
            }
        }
        Ok(())
    }

    fn file(&mut self, mut file: File) -> io::Result<()> {
        if self.files >= FILES_MAX {
            return Err(io::Error::other(format!("more than {FILES_MAX} files match")));
        }
        let mut hash = Sha256::new();
        io::copy(&mut file, &mut hash)?;
        self.total.update(hash.finalize());
        self.files += 1;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn files_are_hashed_by_content_in_the_order_of_their_paths() {
        let dir = tempfile::tempdir().unwrap();
        for (path, text) in [("b.txt", "b"), ("a/z.txt", "z"), ("a/y.lock", "y")] {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let hash = |patterns: &[&str]| {
            let patterns: Vec<String> = patterns.iter().map(|p| (*p).to_owned()).collect();
            hash_files(dir.path(), &patterns).unwrap()
        };
        assert_eq!(hash(&["none"]), "");
        assert_eq!(hash(&[]), "");
        let z = Sha256::digest("z");
        let b = Sha256::digest("b");
        let want = Sha256::digest([z.as_slice(), b.as_slice()].concat());
        let want: String = want.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hash(&["**/*.txt"]), want);
        assert_eq!(hash(&["a\nb.txt\n!**/*.lock"]), want);
        assert_ne!(hash(&["*.txt"]), want);
    }
}
