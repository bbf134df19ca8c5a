//! The words of a step: of its script, and of the files of the workspace that it names.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read as _;
use std::path::Path;

/// Files that are looked into for one step.
const FILES_MAX: usize = 64;

/// Bytes that are looked at of one file. Scripts and makefiles are shorter.
const FILE_BYTES_MAX: u64 = 256 << 10;

/// What some programs read without being told.
const IMPLIED: [(&str, &[&str]); 7] = [
    ("make", &["Makefile", "makefile", "GNUmakefile"]),
    ("gmake", &["Makefile", "makefile", "GNUmakefile"]),
    ("just", &["justfile", "Justfile"]),
    ("npm", &["package.json"]),
    ("cargo", &["rust-toolchain.toml", "rust-toolchain"]),
    ("rustc", &["rust-toolchain.toml", "rust-toolchain"]),
    ("cmake", &["CMakeLists.txt"]),
];

/// All words that the script says, and that the files say that it names, and the files
/// that those name. Only decides what a step gets to see, so being wrong costs a clear
/// "not found", never a wrong result.
pub(crate) fn words(script: &str, workspace: &Path, working_directory: &str) -> BTreeSet<String> {
    let mut words = BTreeSet::new();
    let mut read = BTreeSet::new();
    let mut open = vec![script.to_owned()];
    while let Some(text) = open.pop() {
        let mut files = Vec::new();
        for token in text.split(|c: char| c.is_whitespace() || "'\"`;|&()<>=,{}$".contains(c)) {
            files.push(token.trim_start_matches("./"));
            for word in token.split(|c: char| !(c.is_alphanumeric() || "._-".contains(c))) {
                let word = word.trim_matches('.');
                if !word.is_empty() && word.len() <= 64 && words.insert(word.to_owned()) {
                    let implied = IMPLIED.iter().filter(|(program, _)| *program == word);
                    files.extend(implied.flat_map(|(_, files)| files.iter().copied()));
                }
            }
        }
        for file in files {
            if read.len() < FILES_MAX
                && is_inside(file)
                && let Some(text) = text_of(workspace, working_directory, file)
                && read.insert(file.to_owned())
            {
                open.push(text);
            }
        }
    }
    words
}

fn is_inside(file: &str) -> bool {
    !file.is_empty() && !file.starts_with('/') && !file.split('/').any(|part| part == "..")
}

fn text_of(workspace: &Path, working_directory: &str, file: &str) -> Option<String> {
    let path = workspace.join(working_directory).join(file);
    let file = File::open(&path).ok()?;
    let about = file.metadata().ok()?;
    if !about.is_file() || about.len() > FILE_BYTES_MAX {
        return None;
    }
    let mut text = String::new();
    file.take(FILE_BYTES_MAX).read_to_string(&mut text).ok()?;
    Some(text)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_step_says_what_its_files_say() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("Makefile"), "all:\n\t./tools/gen.sh > x\n").unwrap();
        fs::create_dir(dir.path().join("tools")).unwrap();
        fs::write(dir.path().join("tools/gen.sh"), "#!/usr/bin/env python3\n").unwrap();
        let found = words("make -j2 && cargo +nightly build", dir.path(), "");
        for word in ["make", "cargo", "nightly", "build", "python3", "gen.sh"] {
            assert!(found.contains(word), "{word} of {found:?}");
        }
        assert!(!found.contains("pip"));
    }

    #[test]
    fn files_outside_and_loops_are_no_trouble() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a"), "./a /etc/passwd ../x").unwrap();
        assert!(words("./a", dir.path(), "").contains("passwd"));
    }
}
