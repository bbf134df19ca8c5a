use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::process::Command;
use std::time::{Duration, SystemTime};

use tempfile::TempDir;

use super::*;
use crate::store::StoreOptions;

#[test]
fn a_repository_gives_its_tracked_and_its_new_files() {
    let source = Tree::new().git();
    source.write(".gitignore", "*.o\n/build/\n");
    source.write("src/a.c", "a");
    source.write("src/a.o", "ignored");
    source.write("build/out", "ignored");
    source.write("forced.o", "tracked although ignored");
    source.run(&["add", "."]);
    source.run(&["add", "-f", "forced.o"]);
    source.run(&["commit", "-q", "-m", "first"]);
    let clean = source.snapshot();
    assert_eq!(clean.paths, [".gitignore", "forced.o", "src/a.c"]);
    assert!(!clean.source.dirty);
    assert_eq!(clean.source.head.as_deref(), Some(source.run(&["rev-parse", "HEAD"]).trim()));
    assert_eq!(clean.source.git_ref.as_deref(), Some("refs/heads/main"));

    source.write("new.c", "untracked");
    let dirty = source.snapshot();
    assert_eq!(dirty.paths, [".gitignore", "forced.o", "new.c", "src/a.c"]);
    assert!(dirty.source.dirty);
    assert_eq!(dirty.source.head, clean.source.head);

    source.run(&["checkout", "-q", "--detach"]);
    assert_eq!(source.snapshot().source.git_ref, None);
}

#[test]
fn what_is_changed_or_deleted_shows_as_it_is_on_disk() {
    let source = Tree::new().git();
    for path in ["kept", "changed", "deleted", "d/moved", "link"] {
        source.write(path, path);
    }
    source.run(&["add", "."]);
    source.run(&["commit", "-q", "-m", "first"]);
    let before = source.snapshot();
    source.write("changed", "other");
    fs::remove_file(source.path("deleted")).unwrap();
    // A folder that is now a link out of the tree: what was in it is gone.
    fs::rename(source.path("d"), source.path("../d")).unwrap();
    symlink("../d", source.path("d")).unwrap();
    fs::remove_file(source.path("link")).unwrap();
    symlink("kept", source.path("link")).unwrap();
    let after = source.snapshot();
    assert_eq!(after.paths, ["changed", "d -> ../d", "kept", "link -> kept"]);
    assert!(after.source.dirty);
    assert_ne!(after.source.root, before.source.root);
}

#[test]
fn executable_bits_count_before_and_after_they_are_staged() {
    let source = Tree::new().git();
    source.write("run.sh", "#!");
    source.run(&["add", "."]);
    source.run(&["commit", "-q", "-m", "first"]);
    let plain = source.snapshot();
    fs::set_permissions(source.path("run.sh"), fs::Permissions::from_mode(0o755)).unwrap();
    let changed = source.snapshot();
    assert_eq!(changed.paths, ["run.sh*"]);
    source.run(&["add", "."]);
    assert_eq!(source.snapshot().source.root, changed.source.root);
    source.run(&["commit", "-q", "-m", "second"]);
    let committed = source.snapshot();
    assert_eq!(committed.source.root, changed.source.root);
    assert!(!committed.source.dirty);
    // Where the file system has no such bits, the index knows.
    source.run(&["config", "core.fileMode", "false"]);
    fs::set_permissions(source.path("run.sh"), fs::Permissions::from_mode(0o644)).unwrap();
    assert_eq!(source.snapshot().source.root, changed.source.root);
    assert_ne!(plain.source.root, changed.source.root);
}

#[test]
fn who_made_the_tree_and_when_makes_no_difference() {
    let one = Tree::new().git();
    let two = Tree::new();
    for source in [&one, &two] {
        source.write("a/b", "content");
        source.write("x", "x");
    }
    fs::set_permissions(two.path("x"), fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(one.snapshot().source.root, two.snapshot().source.root);
}

#[test]
fn part_of_a_repository_can_be_the_source() {
    let source = Tree::new().git();
    source.write("top", "t");
    source.write("part/of/a", "a");
    source.write("part/b", "b");
    source.run(&["add", "."]);
    source.run(&["commit", "-q", "-m", "first"]);
    source.write("elsewhere", "dirty, but not here");
    let part = source.snapshot_of("part");
    assert_eq!(part.paths, ["b", "of/a"]);
    assert!(!part.source.dirty);
    fs::set_permissions(source.path("part/b"), fs::Permissions::from_mode(0o755)).unwrap();
    source.write("part/new", "n");
    let part = source.snapshot_of("part");
    assert_eq!(part.paths, ["b*", "new", "of/a"]);
    assert!(part.source.dirty);
}

#[test]
fn a_folder_that_its_repository_ignores_stands_for_itself() {
    let source = Tree::new().git();
    source.write(".gitignore", "scratch\n");
    source.write("scratch/a", "a");
    let scratch = source.snapshot_of("scratch");
    assert_eq!(scratch.paths, ["a"]);
    assert_eq!(scratch.source.head, None);
}

#[test]
fn submodules_come_along_as_far_as_they_are_checked_out() {
    let library = Tree::new().git();
    library.write("lib.c", "l");
    library.run(&["add", "."]);
    library.run(&["commit", "-q", "-m", "first"]);
    let source = Tree::new().git();
    let url = library.dir.path().join("source");
    let allow = ["-c", "protocol.file.allow=always", "submodule", "add", "-q"];
    source.run(&[&allow[..], &[url.to_str().unwrap(), "vendor/lib"]].concat());
    source.run(&["commit", "-q", "-m", "first"]);
    let whole = source.snapshot();
    assert_eq!(whole.paths, [".gitmodules", "vendor/lib/lib.c"]);
    assert!(!whole.source.dirty);
    source.write("vendor/lib/new.c", "n");
    assert!(source.snapshot().source.dirty);
    source.run(&["submodule", "deinit", "-q", "-f", "vendor/lib"]);
    assert_eq!(source.snapshot().paths, [".gitmodules", "vendor/lib/"]);
}

#[test]
fn outside_git_ignore_files_and_empty_folders_count() {
    let source = Tree::new();
    source.write(".gitignore", "*.log\n");
    source.write("sub/.gitignore", "/private\n");
    source.write("sub/private/x", "ignored");
    source.write("sub/public", "p");
    source.write("a.log", "ignored");
    source.write(".hidden/file", "h");
    fs::create_dir_all(source.path("empty/inner")).unwrap();
    symlink("/nowhere", source.path("link")).unwrap();
    let snapshot = source.snapshot();
    assert_eq!(
        snapshot.paths,
        [
            ".gitignore",
            ".hidden/file",
            "empty/inner/",
            "link -> /nowhere",
            "sub/.gitignore",
            "sub/public"
        ]
    );
    assert!(snapshot.source.dirty);
}

#[test]
fn the_farms_own_state_is_no_source() {
    for source in [Tree::new(), Tree::new().git()] {
        source.write(".steading/pipelines/main.yml", "jobs: {}");
        source.write(".steading/state/cas/x", "x");
        source.write("data/LOCK", "");
        let path = source.path("data");
        let snapshot = source.snapshot_with(&[&path]);
        assert_eq!(snapshot.paths, [".steading/pipelines/main.yml"]);
    }
}

#[test]
fn only_what_changed_is_read_again() {
    let mut source = Tree::new();
    for n in 0..100 {
        source.write(&format!("d{}/{n}", n % 7), &n.to_string());
    }
    source.age();
    let first = source.snapshot();
    assert_eq!(first.source.rehashed, 100);
    let second = source.snapshot();
    assert_eq!(second.source.rehashed, 0);
    assert_eq!(second.source.root, first.source.root);

    // Same size, same modification time: the time of the change tells.
    let path = source.path("d1/1");
    let time = fs::metadata(&path).unwrap().modified().unwrap();
    fs::write(&path, "X").unwrap();
    fs::File::open(&path).unwrap().set_modified(time).unwrap();
    source.later = Duration::ZERO;
    let third = source.snapshot();
    assert_eq!(third.source.rehashed, 1);
    assert_ne!(third.source.root, first.source.root);
    // It is younger than two seconds, so the next one reads it too.
    assert_eq!(source.snapshot().source.rehashed, 1);
}

#[test]
fn a_memory_that_is_torn_or_of_another_store_costs_only_time() {
    let mut source = Tree::new();
    source.write("a", "content");
    source.age();
    let first = source.snapshot();
    let memo = source.dir.path().join("memo");
    let bytes = fs::read(&memo).unwrap();
    for cut in [0, 7, bytes.len() / 2, bytes.len() - 1] {
        fs::write(&memo, &bytes[..cut]).unwrap();
        assert_eq!(source.snapshot().source.root, first.source.root);
    }
    for flip in 0..bytes.len() {
        let mut bad = bytes.clone();
        bad[flip] ^= 1;
        fs::write(&memo, bad).unwrap();
        assert_eq!(source.snapshot().source.root, first.source.root);
    }
    fs::write(&memo, bytes).unwrap();
    let store = TempDir::new().unwrap();
    let options = StoreOptions { bytes_max: u64::MAX, durable: false };
    let store = Store::open(store.path(), options).unwrap();
    let again = snapshot(&store, &source.path("."), &memo).unwrap();
    assert_eq!((again.root, again.rehashed), (first.source.root, 1));
    assert!(tree::load(&store, &again.root).is_ok());
}

#[test]
fn what_a_source_cannot_hold_is_refused_by_name() {
    let source = Tree::new();
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n";
    source.write("assets/big.bin", pointer);
    let refused = source.try_snapshot().unwrap_err();
    assert!(matches!(&refused, SourceError::Lfs { path } if path == "assets/big.bin"));

    let source = Tree::new();
    nix::unistd::mkfifo(&source.path("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let refused = source.try_snapshot().unwrap_err().to_string();
    assert!(refused.starts_with("`pipe` is a named pipe"), "{refused}");

    for source in [Tree::new(), Tree::new().git()] {
        let name: &std::ffi::OsStr = std::os::unix::ffi::OsStrExt::from_bytes(b"caf\xe9");
        fs::write(source.path(".").join(name), "x").unwrap();
        assert!(matches!(source.try_snapshot(), Err(SourceError::NotUtf8 { .. })));
    }

    let store = TempDir::new().unwrap();
    let options = StoreOptions { bytes_max: u64::MAX, durable: false };
    let store = Store::open(store.path(), options).unwrap();
    let gone = Path::new("/nowhere/at/all");
    assert!(matches!(snapshot(&store, gone, gone), Err(SourceError::Dir { .. })));
}

#[test]
fn strange_names_are_kept_to_the_letter() {
    let source = Tree::new().git();
    let names = [" lead", "new\nline", "quo\"te", "tab\there", "ünï", "-dash", "a b"];
    for name in names {
        source.write(name, name);
    }
    let untracked = source.snapshot();
    source.run(&["add", "."]);
    assert_eq!(source.snapshot().source.root, untracked.source.root);
    source.run(&["commit", "-q", "-m", "first"]);
    for name in names {
        fs::set_permissions(source.path(name), fs::Permissions::from_mode(0o755)).unwrap();
    }
    let mut expected: Vec<String> = names.iter().map(|name| format!("{name}*")).collect();
    expected.sort();
    assert_eq!(source.snapshot().paths, expected);
}

struct Tree {
    dir: TempDir,
    store: Store,
    later: Duration,
}

struct Snapshot {
    source: Source,
    /// `file`, `executable*`, `link -> target`, `empty/`.
    paths: Vec<String>,
}

impl Tree {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        fs::create_dir(dir.path().join("source")).unwrap();
        let options = StoreOptions { bytes_max: u64::MAX, durable: false };
        let store = Store::open(&dir.path().join("store"), options).unwrap();
        Self { dir, store, later: Duration::ZERO }
    }

    fn git(self) -> Self {
        self.run(&["init", "-q", "-b", "main"]);
        self
    }

    fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join("source").join(path)
    }

    fn write(&self, path: &str, content: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    fn run(&self, arguments: &[&str]) -> String {
        let output = Command::new("git")
            .arg("-C")
            .arg(self.path("."))
            .args(["-c", "user.name=t", "-c", "user.email=t@example.org"])
            .args(arguments)
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_CONFIG_SYSTEM", "/dev/null")
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Snapshots from here on are taken a while after the files were written.
    fn age(&mut self) {
        self.later = Duration::from_secs(3);
    }

    fn snapshot(&self) -> Snapshot {
        self.snapshot_of(".")
    }

    fn snapshot_of(&self, part: &str) -> Snapshot {
        let memo = self.dir.path().join("memo");
        let now = SystemTime::now() + self.later;
        self.describe(snapshot_at(now, &self.store, &self.path(part), &memo, &[]).unwrap())
    }

    fn snapshot_with(&self, exclude: &[&Path]) -> Snapshot {
        let memo = self.dir.path().join("memo");
        let source = snapshot_excluding(&self.store, &self.path("."), &memo, exclude);
        self.describe(source.unwrap())
    }

    fn try_snapshot(&self) -> Result<Source, SourceError> {
        snapshot(&self.store, &self.path("."), &self.dir.path().join("memo"))
    }

    fn describe(&self, source: Source) -> Snapshot {
        let mut paths = Vec::new();
        tree::walk(&self.store, &source.root, &mut |path, entry| match entry {
            Entry::File(file) if file.executable => paths.push(format!("{path}*")),
            Entry::File(_) => paths.push(path.to_owned()),
            Entry::Symlink { target } => paths.push(format!("{path} -> {target}")),
            Entry::Folder(folder) if folder.entries.is_empty() => paths.push(format!("{path}/")),
            Entry::Folder(_) => (),
        })
        .unwrap();
        paths.sort();
        Snapshot { source, paths }
    }
}
