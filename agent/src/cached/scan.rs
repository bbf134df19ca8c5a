//! What a step's log tells: files that it missed, and secrets.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read as _};
use std::path::Path;

use steading_cas::tree::Folder;

use super::key::SECRET_BYTES_MIN;
use crate::sandbox::WORKSPACE;

/// Most undeclared files that are told: more are one mistake.
const UNDECLARED_MAX: usize = 20;

/// How much of a log is read for them, bytes from its end: the failure is there.
const TAIL_BYTES: u64 = 1 << 20;

/// Longest line that is looked at as a whole, bytes.
const LINE_BYTES_MAX: u64 = 64 << 10;

/// Files that stand in the workspace, that the log names, and that were not among the
/// inputs.
pub(super) fn undeclared(
    log: &Path,
    workspace: &Path,
    working_directory: &str,
    inputs: &Folder,
) -> io::Result<Vec<String>> {
    let tail = tail(log)?;
    let text = String::from_utf8_lossy(&tail);
    let mut found = BTreeSet::new();
    let mut seen = BTreeSet::new();
    let separators = |c: char| c.is_whitespace() || "'\"`()[]{}<>,;=|‘’“”".contains(c);
    for token in text.split(separators) {
        // `main.c:3:10:` names main.c.
        for candidate in [token, token.split(':').next().unwrap_or(token)] {
            let candidate = candidate.trim_end_matches(['.', ':', '!', '?']);
            if candidate.is_empty() || !seen.insert(candidate) {
                continue;
            }
            for path in places(candidate, working_directory) {
                if inputs.get(&path).is_none() && workspace.join(&path).is_file() {
                    found.insert(path);
                }
            }
        }
        if found.len() >= UNDECLARED_MAX {
            break;
        }
    }
    Ok(found.into_iter().take(UNDECLARED_MAX).collect())
}

/// Where in the workspace a name in the log may be.
fn places(name: &str, working_directory: &str) -> Vec<String> {
    if let Some(rest) = name.strip_prefix(WORKSPACE) {
        return rest.strip_prefix('/').and_then(normal).into_iter().collect();
    }
    if name.starts_with('/') {
        return Vec::new();
    }
    let here = normal(&format!("{working_directory}/{name}"));
    let top = normal(name);
    here.into_iter().chain(top).collect::<BTreeSet<_>>().into_iter().collect()
}

/// Without `.`, `..` and doubled slashes; none for what leaves the workspace.
fn normal(path: &str) -> Option<String> {
    let mut parts = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => (),
            ".." => {
                parts.pop()?;
            }
            part => parts.push(part),
        }
    }
    let first = parts.first()?;
    (*first != ".git").then(|| parts.join("/"))
}

fn tail(log: &Path) -> io::Result<Vec<u8>> {
    use std::io::{Seek as _, SeekFrom};
    let mut file = File::open(log)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
    let mut bytes = Vec::new();
    file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Whether the step masked a value: what it masks differs from run to run, and a
/// replayed log would show it.
pub(super) fn masks_values(log: &Path) -> io::Result<bool> {
    let mut reader = BufReader::new(File::open(log)?);
    let mut line = Vec::new();
    loop {
        line.clear();
        if (&mut reader).take(LINE_BYTES_MAX).read_until(b'\n', &mut line)? == 0 {
            return Ok(false);
        }
        let text = line.trim_ascii_start();
        if text.starts_with(b"::add-mask::") || text.starts_with(b"##[add-mask]") {
            return Ok(true);
        }
    }
}

/// Name of a secret whose value is in this file.
pub(super) fn secret_in<'a>(
    file: &Path,
    secrets: &'a BTreeMap<String, String>,
    names: &[String],
) -> io::Result<Option<&'a str>> {
    let wanted: Vec<(&str, &[u8])> = secrets
        .iter()
        .filter(|(name, value)| {
            value.len() >= SECRET_BYTES_MIN
                && names.iter().any(|known| known.eq_ignore_ascii_case(name))
        })
        .map(|(name, value)| (name.as_str(), value.as_bytes()))
        .collect();
    let Some(longest) = wanted.iter().map(|(_, value)| value.len()).max() else {
        return Ok(None);
    };
    let mut reader = File::open(file)?;
    let mut window = Vec::new();
    let mut chunk = vec![0; 256 << 10];
    loop {
        let length = reader.read(&mut chunk)?;
        if length == 0 {
            return Ok(None);
        }
        window.extend_from_slice(&chunk[..length]);
        for (name, value) in &wanted {
            if window.windows(value.len()).any(|here| here == *value) {
                return Ok(Some(name));
            }
        }
        // What may be the beginning of a value goes on into the next chunk.
        let keep = window.len().min(longest - 1);
        window.drain(..window.len() - keep);
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use steading_cas::tree::{Entry, FileEntry};
    use steading_model::Digest;

    #[test]
    fn files_that_the_log_names_and_the_inputs_lack_are_told() {
        let dir = tempfile::tempdir().unwrap();
        for path in ["src/a.c", "src/a.h", "include/b.h", "README"] {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        let mut inputs = Folder::default();
        let digest = Digest { hash: [0; 32], size: 0 };
        let file = Entry::File(FileEntry::with_mode(digest, 0o644));
        inputs.insert("src/a.c", file).unwrap();
        for (log, working_directory, told) in [
            ("src/a.c:1:10: fatal error: a.h: No such file", "src", vec!["src/a.h"]),
            ("cc: error: ./include/b.h: No such file or directory", "", vec!["include/b.h"]),
            ("cannot open '/workspace/include/b.h'.", "", vec!["include/b.h"]),
            ("../include/b.h missing", "src", vec!["include/b.h"]),
            ("see README", "", vec!["README"]),
            ("/etc/passwd ../../etc/passwd nothing.h", "src", vec![]),
        ] {
            let file = dir.path().join("log");
            fs::write(&file, log).unwrap();
            let found = undeclared(&file, dir.path(), working_directory, &inputs).unwrap();
            assert_eq!(found, told, "{log}");
        }
    }

    #[test]
    fn masking_is_seen_where_a_command_may_stand() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for (log, masks) in [
            ("a\n  ::add-mask::x\n", true),
            ("::add-mask::x", true),
            ("echo ::add-mask::x\n", false),
            ("", false),
        ] {
            fs::write(file.path(), log).unwrap();
            assert_eq!(masks_values(file.path()).unwrap(), masks, "{log}");
        }
    }

    #[test]
    fn a_secret_is_found_across_chunks() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let secrets = BTreeMap::from([("TOKEN".to_owned(), "hunter22".to_owned())]);
        let mut text = vec![b'x'; (256 << 10) - 3];
        text.extend_from_slice(b"hunter22");
        fs::write(file.path(), &text).unwrap();
        let names = ["token".to_owned()];
        assert_eq!(secret_in(file.path(), &secrets, &names).unwrap(), Some("TOKEN"));
        assert_eq!(secret_in(file.path(), &secrets, &[]).unwrap(), None);
    }
}
