//! The digest of a root's content, computed anew only for what changed.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use super::PlatformError;
use super::walk::{Entry, Kind, Root, Stat, entries};

/// First bytes of a memo. Another version is as good as none.
const MAGIC: &[u8; 8] = b"stdfp\0\0\x01";

/// A file that changed this short a time before it was looked at may change again
/// without a new time. Nanoseconds.
const RACY_NS: i64 = 2_000_000_000;

pub(super) type Hash = [u8; 32];

/// The digest of `root`'s content. `dir` holds the memos.
pub(super) fn digest(dir: &Path, root: &Root) -> Result<Hash, PlatformError> {
    let now = now_ns();
    let entries = entries(root)?;
    let file = dir.join(memo_name(root));
    let known = load(&file).unwrap_or_default();
    let mut changed = false;
    let mut hashes = Vec::with_capacity(entries.len());
    let mut candidates = known.iter().peekable();
    for entry in &entries {
        while candidates.next_if(|known| known.path < entry.path).is_some() {
            changed = true;
        }
        let memo = candidates.next_if(|known| known.path == entry.path);
        match (&entry.kind, memo) {
            (Kind::File { .. }, Some(memo)) if memo.stat == entry.stat => hashes.push(memo.hash),
            (Kind::File { .. }, _) => {
                changed = true;
                hashes.push(content(&full_path(root, entry))?);
            }
            (_, memo) => {
                changed |= memo.is_none();
                hashes.push(Hash::default());
            }
        }
    }
    changed |= candidates.next().is_some();
    if changed {
        let saved = save(dir, &file, &entries, &hashes, now);
        if let Err(error) = saved {
            // Only time is lost.
            tracing::debug!(%error, file = %file.display(), "fingerprint memo not saved");
        }
    }
    Ok(combine(&entries, &hashes))
}

fn full_path(root: &Root, entry: &Entry) -> PathBuf {
    use std::os::unix::ffi::OsStrExt as _;
    if entry.path.is_empty() {
        return root.path.clone();
    }
    root.path.join(std::ffi::OsStr::from_bytes(&entry.path))
}

fn content(path: &Path) -> Result<Hash, PlatformError> {
    let read = || -> io::Result<Hash> {
        let mut hasher = blake3::Hasher::new();
        hasher.update_reader(File::open(path)?)?;
        Ok(*hasher.finalize().as_bytes())
    };
    match read() {
        Ok(hash) => Ok(hash),
        // Gone, or forbidden in a way that its mode does not tell.
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied
            ) =>
        {
            Ok(Hash::default())
        }
        Err(source) => Err(PlatformError::Read { path: path.to_owned(), source }),
    }
}

/// Names, kinds, executable bits, link targets and contents; no times, no owners.
fn combine(entries: &[Entry], hashes: &[Hash]) -> Hash {
    let mut hasher = blake3::Hasher::new();
    for (entry, hash) in entries.iter().zip(hashes) {
        field(&mut hasher, &entry.path);
        match &entry.kind {
            Kind::Folder => hasher.update(b"d"),
            Kind::Private => hasher.update(b"p"),
            Kind::File { executable: false } => hasher.update(b"f").update(hash),
            Kind::File { executable: true } => hasher.update(b"x").update(hash),
            Kind::Link(target) => {
                hasher.update(b"l");
                field(&mut hasher, target)
            }
        };
    }
    *hasher.finalize().as_bytes()
}

fn field<'a>(hasher: &'a mut blake3::Hasher, bytes: &[u8]) -> &'a mut blake3::Hasher {
    hasher.update(&(bytes.len() as u64).to_le_bytes());
    hasher.update(bytes)
}

struct Known {
    path: Vec<u8>,
    stat: Stat,
    hash: Hash,
}

fn memo_name(root: &Root) -> String {
    let mut hasher = blake3::Hasher::new();
    field(&mut hasher, root.path.as_os_str().as_encoded_bytes());
    hasher.update(format!("{:?}", root.depth).as_bytes());
    hasher.finalize().to_hex().chars().take(32).collect()
}

/// None where there is no memo, or none that can be used.
fn load(file: &Path) -> Option<Vec<Known>> {
    let bytes = fs::read(file).ok()?;
    let (body, sum) = bytes.split_last_chunk::<32>()?;
    // A memo cut short by a full disk must not pass for one.
    if blake3::hash(body).as_bytes() != sum {
        return None;
    }
    let mut rest = body.strip_prefix(MAGIC)?;
    let mut known = Vec::new();
    while !rest.is_empty() {
        let length = u32::from_le_bytes(*take(&mut rest)?) as usize;
        let (path, after) = rest.split_at_checked(length)?;
        rest = after;
        known.push(Known {
            path: path.to_vec(),
            stat: Stat {
                inode: u64::from_le_bytes(*take(&mut rest)?),
                size: u64::from_le_bytes(*take(&mut rest)?),
                mtime_ns: i64::from_le_bytes(*take(&mut rest)?),
                ctime_ns: i64::from_le_bytes(*take(&mut rest)?),
            },
            hash: *take(&mut rest)?,
        });
    }
    Some(known)
}

fn take<'a, const N: usize>(rest: &mut &'a [u8]) -> Option<&'a [u8; N]> {
    let (head, tail) = rest.split_first_chunk::<N>()?;
    *rest = tail;
    Some(head)
}

fn save(dir: &Path, file: &Path, entries: &[Entry], hashes: &[Hash], now: i64) -> io::Result<()> {
    let mut bytes = MAGIC.to_vec();
    for (entry, hash) in entries.iter().zip(hashes) {
        let racy = entry.stat.ctime_ns > now - RACY_NS || entry.stat.mtime_ns > now - RACY_NS;
        // Kept under its path, but never equal to a file again.
        let stat = if racy { Stat { inode: u64::MAX, ..Stat::default() } } else { entry.stat };
        bytes.extend_from_slice(&(entry.path.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&entry.path);
        bytes.extend_from_slice(&stat.inode.to_le_bytes());
        bytes.extend_from_slice(&stat.size.to_le_bytes());
        bytes.extend_from_slice(&stat.mtime_ns.to_le_bytes());
        bytes.extend_from_slice(&stat.ctime_ns.to_le_bytes());
        bytes.extend_from_slice(hash);
    }
    let sum = blake3::hash(&bytes);
    bytes.extend_from_slice(sum.as_bytes());
    fs::create_dir_all(dir)?;
    let mut temporary = tempfile::NamedTempFile::new_in(dir)?;
    io::Write::write_all(&mut temporary, &bytes)?;
    temporary.persist(file)?;
    Ok(())
}

fn now_ns() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| i64::try_from(since.as_nanos()).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    #[test]
    fn content_names_bits_and_links_count() {
        type Change = (&'static str, fn(&Path));
        let changes: [Change; 7] = [
            ("content", |dir| fs::write(dir.join("bin/cc"), "other").unwrap()),
            ("a new file", |dir| fs::write(dir.join("bin/ld"), "ld").unwrap()),
            ("a file less", |dir| fs::remove_file(dir.join("lib/libc")).unwrap()),
            ("another name", |dir| fs::rename(dir.join("bin/cc"), dir.join("bin/c")).unwrap()),
            ("an executable bit", |dir| mode(&dir.join("lib/libc"), 0o755)),
            ("a link", |dir| {
                fs::remove_file(dir.join("bin/c99")).unwrap();
                symlink("gcc", dir.join("bin/c99")).unwrap();
            }),
            ("an empty folder", |dir| fs::create_dir(dir.join("etc")).unwrap()),
        ];
        for (what, change) in changes {
            let (memos, tools) = tools();
            let before = of(&memos, &tools);
            change(tools.path());
            assert_ne!(before, of(&memos, &tools), "{what}");
        }
    }

    #[test]
    fn times_and_places_do_not_count() {
        let (memos, tools) = tools();
        let before = of(&memos, &tools);
        fs::write(tools.path().join("bin/cc"), "cc").unwrap();
        let (_, elsewhere) = self::tools();
        assert_eq!(before, of(&memos, &tools));
        assert_eq!(before, of(&memos, &elsewhere));
    }

    #[test]
    fn what_was_hashed_is_not_read_again() {
        let (memos, tools) = tools();
        let root = Root::all(tools.path());
        let found = entries(&root).unwrap();
        // Hashes that no content has: if they come back, nothing was read.
        let hashes = vec![[7; 32]; found.len()];
        let file = memos.path().join(memo_name(&root));
        save(memos.path(), &file, &found, &hashes, i64::MAX).unwrap();
        assert_eq!(of(&memos, &tools), combine(&found, &hashes));
    }

    #[test]
    fn a_file_that_just_changed_is_read_again() {
        let (memos, tools) = tools();
        let root = Root::all(tools.path());
        let found = entries(&root).unwrap();
        let file = memos.path().join(memo_name(&root));
        save(memos.path(), &file, &found, &vec![[7; 32]; found.len()], now_ns()).unwrap();
        assert_ne!(of(&memos, &tools), combine(&found, &vec![[7; 32]; found.len()]));
    }

    #[test]
    fn a_damaged_memo_is_as_good_as_none() {
        let (memos, tools) = tools();
        let before = of(&memos, &tools);
        let file = memos.path().join(memo_name(&Root::all(tools.path())));
        let mut bytes = fs::read(&file).unwrap();
        bytes[20] ^= 1;
        fs::write(&file, bytes).unwrap();
        assert!(load(&file).is_none());
        assert_eq!(before, of(&memos, &tools));
    }

    #[test]
    fn a_folder_of_path_counts_the_programs_behind_its_links() {
        let (memos, tools) = tools();
        let bin = tempfile::tempdir().unwrap();
        symlink(tools.path().join("bin/cc"), bin.path().join("cc")).unwrap();
        let root = Root::flat(bin.path());
        let before = digest(memos.path(), &root).unwrap();
        fs::write(tools.path().join("bin/cc"), "other").unwrap();
        assert_ne!(before, digest(memos.path(), &root).unwrap());
    }

    #[test]
    fn what_is_not_there_has_a_digest_too() {
        let memos = tempfile::tempdir().unwrap();
        let missing = Root::all(memos.path().join("none"));
        assert_eq!(digest(memos.path(), &missing).unwrap(), combine(&[], &[]));
    }

    fn tools() -> (tempfile::TempDir, tempfile::TempDir) {
        let tools = tempfile::tempdir().unwrap();
        for folder in ["bin", "lib", "share"] {
            fs::create_dir(tools.path().join(folder)).unwrap();
        }
        fs::write(tools.path().join("bin/cc"), "cc").unwrap();
        mode(&tools.path().join("bin/cc"), 0o755);
        fs::write(tools.path().join("lib/libc"), "libc").unwrap();
        symlink("cc", tools.path().join("bin/c99")).unwrap();
        (tempfile::tempdir().unwrap(), tools)
    }

    fn of(memos: &tempfile::TempDir, tools: &tempfile::TempDir) -> Hash {
        digest(memos.path(), &Root::all(tools.path())).unwrap()
    }

    fn mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }
}
