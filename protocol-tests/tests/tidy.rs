//! The house rules that Cargo and clippy do not keep: who may import whom, how
//! long a file may be, and that every dependency has its reason.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Longest source file, lines. One that outgrows it wants a second noun.
const FILE_LINES_MAX: usize = 500;

/// Who may import whom among our own crates.
const IMPORTS: &[(&str, &[&str])] = &[
    ("steading-model", &[]),
    ("steading-core", &["steading-model"]),
    ("steading-pipeline", &["steading-model"]),
    ("steading-proto", &["steading-model"]),
    ("steading-cas", &["steading-model", "steading-proto"]),
    (
        "steading-coordinator",
        &["steading-core", "steading-pipeline", "steading-cas", "steading-proto", "steading-model"],
    ),
    ("steading-agent", &["steading-pipeline", "steading-cas", "steading-proto", "steading-model"]),
    ("stead", ANY),
    ("steading-protocol-tests", ANY),
    ("steading-benches", ANY),
];

const ANY: &[&str] = &["*"];

/// What the pure crates must not even name.
const PURE: &[(&str, &[&str])] = &[
    ("steading-model", &["tokio", "prost", "serde", "tracing", "rand"]),
    ("steading-core", &["tokio", "prost", "serde", "tracing", "rand"]),
    ("steading-pipeline", &["tokio", "prost", "tonic", "rand"]),
];

#[test]
fn crates_import_only_what_the_table_allows() {
    let packages = packages();
    let ours: BTreeSet<&str> = packages.keys().map(String::as_str).collect();
    let table: BTreeMap<&str, &[&str]> = IMPORTS.iter().copied().collect();
    assert_eq!(ours, table.keys().copied().collect(), "every crate has its line in the table");
    for (name, package) in &packages {
        let allowed = table[name.as_str()];
        for dependency in package.dependencies.iter().filter(|d| ours.contains(d.as_str())) {
            assert!(
                allowed == ANY || allowed.contains(&dependency.as_str()),
                "{name} must not import {dependency}"
            );
            assert!(
                !["steading-protocol-tests", "steading-benches"].contains(&dependency.as_str()),
                "nothing imports {dependency}"
            );
        }
    }
}

#[test]
fn pure_crates_name_nothing_impure() {
    let packages = packages();
    for (name, banned) in PURE {
        for dependency in &packages[*name].dependencies {
            assert!(!banned.contains(&dependency.as_str()), "{name} must not import {dependency}");
        }
    }
}

#[test]
fn every_dependency_has_its_line_of_reason() {
    let text = read(&root().join("ARCHITECTURE.md"));
    for package in packages().values() {
        for dependency in package.dependencies.iter().filter(|d| !d.starts_with("stead")) {
            assert!(
                text.contains(&format!("`{dependency}`")),
                "ARCHITECTURE.md does not say why there is `{dependency}`"
            );
        }
    }
}

#[test]
fn no_source_file_outgrows_its_noun() {
    let sources = sources();
    assert!(sources.len() > 100, "only {} source files were found", sources.len());
    let long: Vec<String> = sources
        .into_iter()
        .map(|path| (read(&path).lines().count(), path))
        .filter(|(lines, _)| *lines > FILE_LINES_MAX)
        .map(|(lines, path)| format!("{} has {lines} lines", path.display()))
        .collect();
    assert!(long.is_empty(), "more than {FILE_LINES_MAX} lines: {long:#?}");
}

#[test]
fn unsafe_code_stays_in_its_one_module() {
    let allowed: Vec<PathBuf> = sources()
        .into_iter()
        .filter(|path| read(path).contains(concat!("allow(", "unsafe_code)")))
        .collect();
    assert!(allowed.len() <= 1, "unsafe code in more than one module: {allowed:?}");
}

#[derive(Debug)]
struct Package {
    dependencies: BTreeSet<String>,
}

fn packages() -> BTreeMap<String, Package> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let out = Command::new(cargo)
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(root())
        .output()
        .expect("cargo runs, for it runs this test");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let metadata: serde_json::Value =
        serde_json::from_slice(&out.stdout).expect("metadata is JSON");
    let strings = |value: &serde_json::Value| value.as_str().expect("a string").to_owned();
    metadata["packages"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|package| {
            let dependencies = package["dependencies"]
                .as_array()
                .expect("a list")
                .iter()
                .map(|dependency| strings(&dependency["name"]))
                .filter(|name| *name != strings(&package["name"]))
                .collect();
            (strings(&package["name"]), Package { dependencies })
        })
        .collect()
}

/// Every Rust file that git tracks or would track.
fn sources() -> Vec<PathBuf> {
    // A snapshot of the source has no `.git`, and may stand in a folder that another
    // repository ignores: walk it.
    if !root().join(".git").exists() {
        let mut files = Vec::new();
        walk(&root(), &mut files);
        return files;
    }
    let out = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard", "-z", "*.rs"])
        .current_dir(root())
        .output()
        .expect("git runs");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout)
        .expect("paths are UTF-8")
        .split_terminator('\0')
        .map(|path| root().join(path))
        .filter(|path| path.exists())
        .collect()
}

fn walk(dir: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).expect("the folder is readable") {
        let entry = entry.expect("the entry is readable");
        let name = entry.file_name();
        let path = entry.path();
        if entry.file_type().expect("the entry has a type").is_dir() {
            if !["target", ".git", ".steading"].contains(&name.to_string_lossy().as_ref()) {
                walk(&path, files);
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate is in the workspace").into()
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
