use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;

use proptest::prelude::*;
use prost::Message as _;
use steading_model::DigestFunction;
use steading_proto::{reapi, reapi_digest};
use tempfile::TempDir;

use super::*;
use crate::store::{Store, StoreOptions};

const BLAKE3: DigestFunction = DigestFunction::Blake3;

#[test]
fn a_tree_comes_back_as_it_was() {
    let farm = Farm::new();
    farm.write("src/main.c", "int main;", 0o644);
    farm.write("src/deep/er/x", "x", 0o644);
    farm.write("run.sh", "#!", 0o755);
    fs::create_dir_all(farm.dir.path().join("in/empty")).unwrap();
    symlink("../run.sh", farm.dir.path().join("in/link")).unwrap();
    symlink("/nowhere", farm.dir.path().join("dangling")).unwrap();

    let tree = farm.capture(&["**"]);
    assert_eq!((tree.files, tree.bytes), (5, 12));
    let out = TempDir::new().unwrap();
    let written = materialize(&farm.store, &tree.root, out.path(), &Materialize::WRITABLE).unwrap();
    assert_eq!(written, tree);
    assert_eq!(describe(out.path()), describe(farm.dir.path()));
    assert_eq!(farm.capture_of(out.path(), &["**"]), tree);
}

#[test]
fn equal_trees_have_equal_digests_whatever_the_umask() {
    let farm = Farm::new();
    farm.write("a", "a", 0o644);
    farm.write("b", "b", 0o755);
    let tree = farm.capture(&["**"]);
    farm.write("a", "a", 0o660);
    farm.write("b", "b", 0o700);
    assert_eq!(farm.capture(&["**"]), tree);
    farm.write("a", "a", 0o744);
    assert_ne!(farm.capture(&["**"]), tree);
}

#[test]
fn all_permission_bits_are_kept_where_they_are_asked_for() {
    let farm = Farm::new();
    farm.write("in/secret", "s", 0o600);
    farm.write("in/group", "g", 0o775);
    fs::set_permissions(farm.dir.path().join("in"), fs::Permissions::from_mode(0o750)).unwrap();
    let patterns = Patterns::parse(&["**"]).unwrap();
    let options = CaptureOptions { patterns: &patterns, modes: Modes::All, memo: None };
    let capture = capture(&farm.store, farm.dir.path(), &options).unwrap();
    let out = TempDir::new().unwrap();
    let root = &capture.summary.root;
    materialize(&farm.store, root, out.path(), &Materialize::WRITABLE).unwrap();
    assert_eq!(describe(out.path()), describe(farm.dir.path()));
    assert_eq!(load(&farm.store, root).unwrap(), capture.folder);
}

#[test]
fn patterns_start_at_the_root_and_the_last_one_decides() {
    let check = |patterns: &[&str], chosen: &[&str], others: &[&str]| {
        let parsed = Patterns::parse(patterns).unwrap();
        for path in chosen {
            assert!(parsed.matches(path), "{patterns:?} should choose {path}");
        }
        for path in others {
            assert!(!parsed.matches(path), "{patterns:?} should not choose {path}");
        }
    };
    check(&["*.c"], &["a.c"], &["d/a.c", "a.h"]);
    check(&["**/*.c"], &["a.c", "d/e/a.c"], &["a.h"]);
    check(&["src"], &["src", "src/a", "src/b/c"], &["x/src", "srcs"]);
    check(&["./src/"], &["src/a"], &["a"]);
    check(&["src/**"], &["src/a", "src/b/c"], &["a"]);
    check(&["src", "!src/gen", "src/gen/keep"], &["src/a", "src/gen/keep"], &["src/gen/x"]);
    check(&["**", "!.git"], &["a", "a/b/c", ".gitignore", "a/.git"], &[".git", ".git/HEAD"]);
    check(&["."], &["a", "a/b"], &[]);
    check(&["a?c", "[xy]z", "{p,q}/r"], &["abc", "xz", "q/r"], &["a/c", "zz", "pq/r"]);
    check(&["out/*.o"], &["out/a.o"], &["out/a/b.o", "out"]);
    check(&[], &[], &["a"]);
}

#[test]
fn patterns_that_leave_the_workspace_are_refused() {
    for pattern in ["/etc/passwd", "../x", "a/../../x", "!/x"] {
        assert!(matches!(Patterns::parse(&[pattern]), Err(PatternError::Outside(_))), "{pattern}");
    }
    assert!(matches!(Patterns::parse(&[""]), Err(PatternError::Empty(_))));
    assert!(matches!(Patterns::parse(&["a[", "b"]), Err(PatternError::Glob { .. })));
}

#[test]
fn a_selection_names_the_patterns_that_chose_nothing() {
    let farm = Farm::new();
    farm.write("src/a.c", "a", 0o644);
    farm.write("src/b.h", "b", 0o644);
    fs::create_dir_all(farm.dir.path().join("empty")).unwrap();
    let whole = farm.capture(&["**"]);
    let patterns = Patterns::parse(&["src/*.c", "empty", "gone/*.o", "!src/never"]).unwrap();
    let (chosen, unmatched) = subset(&farm.store, &whole.root, &patterns).unwrap();
    assert_eq!(unmatched, ["gone/*.o"]);
    assert_eq!(farm.paths(&chosen.root), ["empty/", "src/", "src/a.c"]);
    // Choosing on disk and choosing from the tree are the same.
    let options = CaptureOptions { patterns: &patterns, modes: Modes::Executable, memo: None };
    let capture = capture(&farm.store, farm.dir.path(), &options).unwrap();
    assert_eq!((capture.summary, capture.unmatched), (chosen, unmatched));
}

#[test]
fn layers_replace_files_and_join_folders() {
    let farm = Farm::new();
    farm.write("a", "old", 0o644);
    farm.write("d/x", "x", 0o644);
    farm.write("e", "file", 0o644);
    let base = farm.capture(&["**"]);
    let above = Farm { dir: TempDir::new().unwrap(), ..farm.share() };
    above.write("a", "new", 0o755);
    above.write("d/y", "y", 0o644);
    above.write("e/now/a/folder", "f", 0o644);
    let layer = above.capture(&["**"]);
    let merged = merge(&farm.store, &base.root, &layer.root).unwrap();
    assert_eq!(
        farm.paths(&merged.root),
        ["a", "d/", "d/x", "d/y", "e/", "e/now/", "e/now/a/", "e/now/a/folder"]
    );
    // Writing one over the other on disk gives the same.
    let out = TempDir::new().unwrap();
    for root in [&base.root, &layer.root] {
        materialize(&farm.store, root, out.path(), &Materialize::WRITABLE).unwrap();
    }
    assert_eq!(farm.capture_of(out.path(), &["**"]), merged);
}

#[test]
fn an_applied_layer_leaves_nothing_of_what_it_replaces() {
    let farm = Farm::new();
    farm.write("out/new.o", "new", 0o644);
    let layer = farm.capture(&["**"]);
    let target = Farm { dir: TempDir::new().unwrap(), ..farm.share() };
    target.write("out/old.o", "old", 0o444);
    target.write("out/deep/old.o", "old", 0o444);
    target.write("out/keep.txt", "keep", 0o644);
    target.write("src/a.c", "a", 0o644);
    let replaced = Patterns::parse(&["out", "!out/keep.txt"]).unwrap();
    let (store, dest) = (&farm.store, target.dir.path());
    apply_layer(store, &layer.root, dest, &replaced, &Materialize::WRITABLE).unwrap();
    let paths: Vec<String> = describe(dest).into_iter().map(|(path, _)| path).collect();
    assert_eq!(paths, ["out", "out/keep.txt", "out/new.o", "src", "src/a.c"]);
}

#[test]
fn read_only_lowers_are_hard_links_with_fixed_modes_and_times() {
    let farm = Farm::new();
    farm.write("bin/tool", "t", 0o755);
    farm.write("data", "d", 0o664);
    symlink("data", farm.dir.path().join("link")).unwrap();
    let tree = farm.capture(&["**"]);
    let (one, two) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    for out in [&one, &two] {
        materialize(&farm.store, &tree.root, out.path(), &Materialize::LOWER).unwrap();
    }
    for (path, mode) in [("bin/tool", 0o555), ("data", 0o444)] {
        let [a, b] = [&one, &two].map(|out| fs::metadata(out.path().join(path)).unwrap());
        assert_eq!(a.ino(), b.ino(), "{path}");
        assert_eq!((a.mode() & 0o777, a.mtime()), (mode, 946_684_800), "{path}");
    }
    for path in ["bin", "link", "."] {
        let metadata = fs::symlink_metadata(one.path().join(path)).unwrap();
        assert_eq!(metadata.mtime(), 946_684_800, "{path}");
    }
}

#[test]
fn a_workspace_can_be_changed_without_harm_to_the_store() {
    let farm = Farm::new();
    farm.write("a", "content", 0o755);
    let tree = farm.capture(&["**"]);
    let lower = TempDir::new().unwrap();
    materialize(&farm.store, &tree.root, lower.path(), &Materialize::LOWER).unwrap();
    let options = Materialize { mtime: Mtime::Fixed, ..Materialize::WRITABLE };
    let out = TempDir::new().unwrap();
    materialize(&farm.store, &tree.root, out.path(), &options).unwrap();
    assert_eq!(fs::metadata(out.path().join("a")).unwrap().mtime(), 946_684_800);
    fs::write(out.path().join("a"), "other").unwrap();
    fs::set_permissions(out.path().join("a"), fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(fs::read_to_string(lower.path().join("a")).unwrap(), "content");
    let again = TempDir::new().unwrap();
    materialize(&farm.store, &tree.root, again.path(), &options).unwrap();
    assert_eq!(farm.capture_of(again.path(), &["**"]), tree);
}

#[test]
fn a_wide_folder_is_written_whole() {
    let farm = Farm::new();
    for n in 0..1500 {
        farm.write(&format!("wide/{n}"), &n.to_string(), 0o644);
    }
    let tree = farm.capture(&["**"]);
    for options in [Materialize::WRITABLE, Materialize::LOWER] {
        let out = TempDir::new().unwrap();
        let written = materialize(&farm.store, &tree.root, out.path(), &options).unwrap();
        assert_eq!(written, tree);
        assert_eq!(farm.capture_of(out.path(), &["**"]), tree);
    }
}

#[test]
fn a_missing_blob_is_named() {
    let farm = Farm::new();
    let gone = crate::hash::digest_of(BLAKE3, b"gone");
    let mut folder = Folder::default();
    let file = FileEntry { digest: gone, executable: true, mode: None };
    folder.insert("a/b", Entry::File(file)).unwrap();
    let root = save(&farm.store, &folder).unwrap().root;
    for options in [Materialize::WRITABLE, Materialize::LOWER] {
        let out = TempDir::new().unwrap();
        let result = materialize(&farm.store, &root, out.path(), &options);
        assert!(matches!(result, Err(TreeError::Missing(digest)) if digest == gone));
    }
    assert!(matches!(load(&farm.store, &gone), Err(TreeError::Missing(digest)) if digest == gone));
}

#[test]
fn sockets_pipes_and_strange_names_are_refused_by_name() {
    let farm = Farm::new();
    let dir = farm.dir.path();
    nix::unistd::mkfifo(&dir.join("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let all = Patterns::parse(&["**"]).unwrap();
    let refused = snapshot_dir(&farm.store, dir, &all, None).unwrap_err().to_string();
    assert_eq!(refused, "`pipe` is a named pipe, which no tree can hold: remove or exclude it");
    // What is not chosen may be anything.
    farm.capture(&["**", "!pipe"]);

    fs::remove_file(dir.join("pipe")).unwrap();
    let _listener = std::os::unix::net::UnixListener::bind(dir.join("sock")).unwrap();
    let refused = snapshot_dir(&farm.store, dir, &all, None).unwrap_err().to_string();
    assert!(refused.starts_with("`sock` is a socket"), "{refused}");

    fs::remove_file(dir.join("sock")).unwrap();
    let name: &std::ffi::OsStr = std::os::unix::ffi::OsStrExt::from_bytes(b"a\xff");
    fs::write(dir.join(name), "x").unwrap();
    assert!(matches!(snapshot_dir(&farm.store, dir, &all, None), Err(TreeError::NotUtf8 { .. })));
}

#[test]
fn hostile_folders_are_refused() {
    let farm = Farm::new();
    let digest = Some(reapi_digest(&farm.store.put(BLAKE3, b"x").unwrap()));
    let file = |name: &str| reapi::FileNode {
        name: name.to_owned(),
        digest: digest.clone(),
        ..<_>::default()
    };
    let folder =
        |name: &str| reapi::DirectoryNode { name: name.to_owned(), digest: digest.clone() };
    let link = |name: &str, target: &str| reapi::SymlinkNode {
        name: name.to_owned(),
        target: target.to_owned(),
        node_properties: None,
    };
    let long = "n".repeat(256);
    let names = ["", ".", "..", "a/b", "/abs", "../up", "nul\0", &long];
    let mut hostile: Vec<reapi::Directory> = Vec::new();
    for name in names {
        hostile.push(reapi::Directory { files: vec![file(name)], ..<_>::default() });
        hostile.push(reapi::Directory { directories: vec![folder(name)], ..<_>::default() });
        hostile.push(reapi::Directory { symlinks: vec![link(name, "t")], ..<_>::default() });
    }
    hostile.push(reapi::Directory { files: vec![file("b"), file("a")], ..<_>::default() });
    hostile.push(reapi::Directory { files: vec![file("a"), file("a")], ..<_>::default() });
    // A link and then a folder of the same name: writing would go through the link.
    hostile.push(reapi::Directory {
        directories: vec![folder("a")],
        symlinks: vec![link("a", "/etc")],
        ..<_>::default()
    });
    hostile.push(reapi::Directory { symlinks: vec![link("a", "")], ..<_>::default() });
    hostile.push(reapi::Directory {
        files: vec![reapi::FileNode { digest: None, ..file("a") }],
        ..<_>::default()
    });
    for message in hostile {
        let root = farm.store.put(BLAKE3, &message.encode_to_vec()).unwrap();
        let out = TempDir::new().unwrap();
        let result = materialize(&farm.store, &root, out.path(), &Materialize::WRITABLE);
        assert!(matches!(result, Err(TreeError::Malformed { .. })), "{message:?}");
        assert!(matches!(load(&farm.store, &root), Err(TreeError::Malformed { .. })));
        assert_eq!(describe(out.path()), []);
    }
}

#[test]
fn nothing_is_written_or_read_through_a_symbolic_link() {
    let farm = Farm::new();
    farm.write("dir/file", "new", 0o644);
    farm.write("file", "new", 0o644);
    let tree = farm.capture(&["**"]);

    let outside = TempDir::new().unwrap();
    fs::write(outside.path().join("file"), "precious").unwrap();
    let out = TempDir::new().unwrap();
    symlink(outside.path(), out.path().join("dir")).unwrap();
    symlink(outside.path().join("file"), out.path().join("file")).unwrap();
    materialize(&farm.store, &tree.root, out.path(), &Materialize::WRITABLE).unwrap();
    assert_eq!(fs::read_to_string(outside.path().join("file")).unwrap(), "precious");
    assert_eq!(farm.capture_of(out.path(), &["**"]), tree);

    // Removing and capturing stop at links too.
    symlink(outside.path(), out.path().join("way-out")).unwrap();
    let captured = farm.capture_of(out.path(), &["way-out"]);
    assert_eq!(farm.paths(&captured.root), ["way-out"]);
    remove_matching(out.path(), &Patterns::parse(&["**"]).unwrap()).unwrap();
    assert_eq!(describe(out.path()), []);
    assert!(outside.path().join("file").exists());
}

#[test]
fn trees_without_end_are_refused() {
    let farm = Farm::new();
    // Each level names the one below twice: a few messages, 2^40 folders.
    let mut below = farm.store.put(BLAKE3, b"").unwrap();
    for _ in 0..40 {
        let node = |name: &str| reapi::DirectoryNode {
            name: name.to_owned(),
            digest: Some(reapi_digest(&below)),
        };
        let message =
            reapi::Directory { directories: vec![node("a"), node("b")], ..<_>::default() };
        below = farm.store.put(BLAKE3, &message.encode_to_vec()).unwrap();
    }
    // Each blob once.
    assert_eq!(blobs_below(&farm.store, BLAKE3, &below).unwrap().len(), 41);

    let mut deep = farm.store.put(BLAKE3, b"").unwrap();
    for _ in 0..DEPTH_MAX + 2 {
        let node = reapi::DirectoryNode { name: "d".to_owned(), digest: Some(reapi_digest(&deep)) };
        let message = reapi::Directory { directories: vec![node], ..<_>::default() };
        deep = farm.store.put(BLAKE3, &message.encode_to_vec()).unwrap();
    }
    assert!(matches!(load(&farm.store, &deep), Err(TreeError::TooDeep { .. })));
    let out = TempDir::new().unwrap();
    let result = materialize(&farm.store, &deep, out.path(), &Materialize::WRITABLE);
    assert!(matches!(result, Err(TreeError::TooDeep { .. })));
}

#[test]
fn the_message_of_a_tree_holds_every_folder_once() {
    let farm = Farm::new();
    for path in ["a/same/x", "b/same/x", "c/y"] {
        farm.write(path, "x", 0o644);
    }
    let tree = farm.capture(&["**"]);
    let message = tree_message(&farm.store, &tree.root).unwrap();
    // The root apart: a and b are the same folder, and so is what is in them.
    assert_eq!(message.children.len(), 3);
    assert_eq!(message.root.unwrap().directories.len(), 3);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn any_tree_survives_disk_and_store(files in files()) {
        let farm = Farm::new();
        let mut folder = Folder::default();
        for (path, content, mode) in &files {
            let entry = match mode {
                0 => Entry::Symlink { target: format!("../{content}x") },
                1 => Entry::Folder(Folder::default()),
                _ => Entry::File(FileEntry::with_mode(
                    farm.store.put(BLAKE3, content.as_bytes()).unwrap(),
                    *mode,
                )),
            };
            folder.insert(path, entry).unwrap();
        }
        let tree = save(&farm.store, &folder).unwrap();
        prop_assert_eq!(&load(&farm.store, &tree.root).unwrap(), &folder);
        let out = TempDir::new().unwrap();
        let written = materialize(&farm.store, &tree.root, out.path(), &Materialize::WRITABLE);
        prop_assert_eq!(written.unwrap(), tree);
        let patterns = Patterns::parse(&["**"]).unwrap();
        let options = CaptureOptions { patterns: &patterns, modes: Modes::All, memo: None };
        let captured = capture(&farm.store, out.path(), &options).unwrap();
        prop_assert_eq!(captured.folder, folder);
        prop_assert_eq!(captured.summary, tree);
    }

    #[test]
    fn no_bytes_make_the_decoder_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let digest = crate::hash::digest_of(BLAKE3, &bytes);
        let _ = decode_directory(&digest, &bytes);
    }
}

/// Few names, so that paths collide: a file where a folder was, and the other way round.
fn files() -> impl Strategy<Value = Vec<(String, String, u32)>> {
    let name = prop_oneof![Just("a"), Just("b"), Just("ünï"), Just(".h"), Just("c d")];
    let path = prop::collection::vec(name, 1..5).prop_map(|names| names.join("/"));
    let mode =
        prop_oneof![Just(0_u32), Just(1), Just(0o644), Just(0o755), Just(0o600), Just(0o511)];
    prop::collection::vec((path, "[a-c]{0,3}", mode), 0..25)
}

struct Farm {
    store: Store,
    _store_dir: Option<TempDir>,
    dir: TempDir,
}

impl Farm {
    fn new() -> Self {
        let store_dir = TempDir::new().unwrap();
        let options = StoreOptions { bytes_max: u64::MAX, durable: false };
        let store = Store::open(store_dir.path(), options).unwrap();
        Self { store, _store_dir: Some(store_dir), dir: TempDir::new().unwrap() }
    }

    fn share(&self) -> Self {
        Self { store: self.store.clone(), _store_dir: None, dir: TempDir::new().unwrap() }
    }

    fn write(&self, path: &str, content: &str, mode: u32) {
        let path = self.dir.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    }

    fn capture(&self, patterns: &[&str]) -> TreeSummary {
        self.capture_of(self.dir.path(), patterns)
    }

    fn capture_of(&self, dir: &Path, patterns: &[&str]) -> TreeSummary {
        let patterns = Patterns::parse(patterns).unwrap();
        snapshot_dir(&self.store, dir, &patterns, None).unwrap()
    }

    fn paths(&self, root: &Digest) -> Vec<String> {
        let mut paths = Vec::new();
        walk(&self.store, root, &mut |path, entry| {
            let slash = if matches!(entry, Entry::Folder(_)) { "/" } else { "" };
            paths.push(format!("{path}{slash}"));
        })
        .unwrap();
        paths
    }
}

/// Every path with its kind, permission bits and content.
fn describe(dir: &Path) -> Vec<(String, String)> {
    let mut rows = BTreeSet::new();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let metadata = fs::symlink_metadata(&path).unwrap();
            let what = if metadata.is_symlink() {
                format!("-> {}", fs::read_link(&path).unwrap().display())
            } else if metadata.is_dir() {
                folders.push(path.clone());
                format!("{:o}", metadata.mode())
            } else {
                format!("{:o} {}", metadata.mode(), fs::read_to_string(&path).unwrap())
            };
            rows.insert((path.strip_prefix(dir).unwrap().to_str().unwrap().to_owned(), what));
        }
    }
    rows.into_iter().collect()
}
