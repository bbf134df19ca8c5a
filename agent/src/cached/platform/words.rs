//! The words of a step: of its script, and of the files of the workspace that it names.

use std::collections::BTreeSet;
use std::io::Read as _;
use std::path::Path;

use steading_cas::Dir;
use steading_cas::tree::{Entry, Folder};

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

/// All words that the script says, and that the declared inputs say that it names, and
/// those that they name. Only decides what a step gets to see, so being wrong costs a clear
/// "not found", never a wrong result.
pub(crate) fn words(
    script: &str,
    workspace: &Path,
    working_directory: &str,
    inputs: &Folder,
) -> BTreeSet<String> {
    let mut words = BTreeSet::new();
    let mut read = BTreeSet::new();
    let mut open = vec![script.to_owned()];
    let opened = Dir::open(workspace).ok();
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
                && let Some(path) = path_of(working_directory, file)
                // What is not declared must not change the key.
                && matches!(inputs.get(&path), Some(Entry::File(_)))
                && read.insert(path.clone())
                && let Some(text) = text_of(opened.as_ref(), &path)
            {
                open.push(text);
            }
        }
    }
    words
}

/// Where in the workspace a file is that is named in this folder.
fn path_of(working_directory: &str, file: &str) -> Option<String> {
    if file.starts_with('/') {
        return None;
    }
    let parts = working_directory.split('/').chain(file.split('/'));
    let parts: Vec<&str> = parts.filter(|part| !matches!(*part, "" | ".")).collect();
    let inside = !parts.is_empty() && !parts.contains(&"..");
    inside.then(|| parts.join("/"))
}

/// Through no link, and without waiting for a pipe: the workspace is the job's.
fn text_of(workspace: Option<&Dir>, path: &str) -> Option<String> {
    let file = workspace?.file(Path::new(path)).ok()?;
    let about = file.metadata().ok()?;
    if about.len() > FILE_BYTES_MAX {
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
    use steading_cas::tree::FileEntry;
    use steading_model::Digest;

    #[test]
    fn a_step_says_what_its_inputs_say() {
        let dir = tempfile::tempdir().unwrap();
        let inputs = inputs(
            dir.path(),
            &[("Makefile", "all:\n\t./tools/gen.sh > x\n"), ("tools/gen.sh", "env python3\n")],
        );
        fs::write(dir.path().join("notes"), "pip").unwrap();
        let found = words("make -j2 && cargo +nightly build notes", dir.path(), "", &inputs);
        for word in ["make", "cargo", "nightly", "build", "python3", "gen.sh"] {
            assert!(found.contains(word), "{word} of {found:?}");
        }
        assert!(!found.contains("pip"), "what is not declared says nothing");
    }

    #[test]
    fn files_are_found_from_the_working_directory() {
        let dir = tempfile::tempdir().unwrap();
        let inputs = inputs(dir.path(), &[("sub/run", "cargo"), ("run", "npm")]);
        let found = words("./run", dir.path(), "sub", &inputs);
        assert!(found.contains("cargo") && !found.contains("npm"), "{found:?}");
    }

    #[test]
    fn files_outside_and_loops_are_no_trouble() {
        let dir = tempfile::tempdir().unwrap();
        let inputs = inputs(dir.path(), &[("a", "./a /etc/passwd ../x")]);
        assert!(words("./a", dir.path(), "", &inputs).contains("passwd"));
    }

    fn inputs(dir: &Path, files: &[(&str, &str)]) -> Folder {
        let mut inputs = Folder::default();
        for (path, text) in files {
            fs::create_dir_all(dir.join(path).parent().unwrap()).unwrap();
            fs::write(dir.join(path), text).unwrap();
            let digest = Digest { hash: [0; 32], size: 0 };
            let entry = Entry::File(FileEntry::with_mode(digest, 0o644));
            inputs.insert(path, entry).unwrap();
        }
        inputs
    }
}
