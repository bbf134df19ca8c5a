use std::io::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};

use tempfile::TempDir;

use super::*;

const BLAKE3: DigestFunction = DigestFunction::Blake3;

#[test]
fn what_is_put_can_be_got_under_either_function() {
    let (_dir, store) = store(u64::MAX);
    for function in [BLAKE3, DigestFunction::Sha256] {
        let digest = store.put(function, b"hello").unwrap();
        assert_eq!(digest.size, 5);
        assert_eq!(store.get(function, &digest).unwrap().as_deref(), Some(&b"hello"[..]));
    }
    let sha = store.put(DigestFunction::Sha256, b"hello").unwrap();
    assert_eq!(sha.hash_hex(), "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824");
    assert!(!store.contains(BLAKE3, &sha));
}

#[test]
fn the_empty_blob_is_always_there() {
    let (_dir, store) = store(0);
    store.wait_scanned();
    store.put(BLAKE3, b"too much").unwrap();
    let empty = crate::hash::digest_of(BLAKE3, b"");
    assert_eq!(store.get(BLAKE3, &empty).unwrap().as_deref(), Some(&b""[..]));
    assert_eq!(store.missing(BLAKE3, &[empty]), []);
}

#[test]
fn a_digest_with_another_size_names_nothing_and_harms_nothing() {
    let (_dir, store) = store(u64::MAX);
    let digest = store.put(BLAKE3, b"hello").unwrap();
    let other = Digest { size: 6, ..digest };
    assert!(!store.contains(BLAKE3, &other));
    assert!(store.get(BLAKE3, &other).unwrap().is_none());
    assert!(store.contains(BLAKE3, &digest));
}

#[test]
fn missing_blobs_are_named_once_and_in_order() {
    let (_dir, store) = store(u64::MAX);
    let held = store.put(BLAKE3, b"held").unwrap();
    let (a, b) = (Digest { hash: [1; 32], size: 1 }, Digest { hash: [2; 32], size: 2 });
    assert_eq!(store.missing(BLAKE3, &[b, held, a, b]), [b, a]);
}

#[test]
fn a_store_that_was_closed_has_everything_when_it_opens_again() {
    let dir = TempDir::new().unwrap();
    let digests = {
        let store = Store::open(dir.path(), OPTIONS).unwrap();
        let blobs: Vec<Vec<u8>> = (0..100_u8).map(|n| vec![n; 10]).collect();
        store.put_many(BLAKE3, blobs.iter().map(Vec::as_slice)).unwrap()
    };
    let store = Store::open(dir.path(), OPTIONS).unwrap();
    assert_eq!(store.missing(BLAKE3, &digests), []);
    store.wait_scanned();
    assert_eq!(store.missing(BLAKE3, &digests), []);
    // Two of them empty.
    assert_eq!((store.len(), store.bytes()), (102, 1000));
}

#[test]
fn what_a_killed_process_left_is_swept_out() {
    let (dir, store) = store(u64::MAX);
    let mut writer = store.writer(BLAKE3, None).unwrap();
    writer.push(b"half a blo").unwrap();
    // As if the process had died here.
    std::mem::forget(writer);
    let tmp = dir.path().join("tmp");
    assert_eq!(fs::read_dir(&tmp).unwrap().count(), 1);
    let _again = Store::open(dir.path(), OPTIONS).unwrap();
    assert_eq!(fs::read_dir(&tmp).unwrap().count(), 0);
}

#[test]
fn a_writer_takes_only_what_was_named() {
    let (dir, store) = store(u64::MAX);
    let expected = crate::hash::digest_of(BLAKE3, b"hello");

    let mut writer = store.writer(BLAKE3, Some(expected)).unwrap();
    writer.push(b"hel").unwrap();
    writer.push(b"lo").unwrap();
    assert!(matches!(writer.push(b"!"), Err(StoreError::TooLong { size: 5 })));
    assert_eq!(writer.commit().unwrap(), expected);

    let other = crate::hash::digest_of(BLAKE3, b"other");
    let mut writer = store.writer(BLAKE3, Some(other)).unwrap();
    writer.push(b"never").unwrap();
    assert!(matches!(writer.commit(), Err(StoreError::Mismatch { .. })));
    assert!(matches!(
        store.put_expected(BLAKE3, &other, b"never"),
        Err(StoreError::Mismatch { .. })
    ));
    assert!(!store.contains(BLAKE3, &other));
    assert_eq!(fs::read_dir(dir.path().join("tmp")).unwrap().count(), 0);
}

#[test]
fn a_corrupt_blob_is_removed_and_counts_as_missing() {
    let (dir, store) = store(u64::MAX);
    let digest = store.put(BLAKE3, b"hello").unwrap();
    overwrite(&file_of(&dir, &digest), b"hellO");
    assert!(store.get(BLAKE3, &digest).unwrap().is_none());
    assert!(!store.contains(BLAKE3, &digest));
    store.put(BLAKE3, b"hello").unwrap();
    assert_eq!(store.get(BLAKE3, &digest).unwrap().as_deref(), Some(&b"hello"[..]));
}

#[test]
fn a_blob_that_a_power_cut_shortened_is_missing_after_a_restart() {
    let (dir, store) = store(u64::MAX);
    let digest = store.put(BLAKE3, b"hello").unwrap();
    drop(store);
    overwrite(&file_of(&dir, &digest), b"");
    let store = Store::open(dir.path(), OPTIONS).unwrap();
    store.wait_scanned();
    assert!(!store.contains(BLAKE3, &digest));
    assert!(store.open_blob(BLAKE3, &digest).unwrap().is_none());
}

#[test]
fn a_blob_that_somebody_deleted_is_missing() {
    let (dir, store) = store(u64::MAX);
    store.wait_scanned();
    let digest = store.put(BLAKE3, b"hello").unwrap();
    fs::remove_file(file_of(&dir, &digest)).unwrap();
    assert!(store.get(BLAKE3, &digest).unwrap().is_none());
    assert!(!store.contains(BLAKE3, &digest));
}

#[test]
fn the_least_recently_used_goes_first_and_pins_stay() {
    let (_dir, store) = store(1000);
    store.wait_scanned();
    let put = |byte: u8| store.put(BLAKE3, &[byte; 200]).unwrap();
    let digests: Vec<Digest> = (1..=5).map(put).collect();
    let pin = store.pin(BLAKE3, &digests[..1]);
    assert!(store.contains(BLAKE3, &digests[1]));
    // Over the bound: down to 900 bytes. The first is pinned, the second was just used.
    let sixth = put(6);
    assert_eq!(store.missing(BLAKE3, &digests), digests[2..4]);
    assert!(store.contains(BLAKE3, &sixth));

    drop(pin);
    for byte in 7..=10 {
        put(byte);
    }
    assert!(!store.contains(BLAKE3, &digests[0]));
    assert!(store.bytes() <= 1000);
}

#[test]
fn pinned_blobs_may_exceed_the_bound() {
    let (_dir, store) = store(300);
    store.wait_scanned();
    let blobs: Vec<Vec<u8>> = (1..=4_u8).map(|byte| vec![byte; 200]).collect();
    let digests: Vec<Digest> =
        blobs.iter().map(|blob| crate::hash::digest_of(BLAKE3, blob)).collect();
    let pin = store.pin(BLAKE3, &digests);
    store.put_many(BLAKE3, blobs.iter().map(Vec::as_slice)).unwrap();
    assert_eq!(store.missing(BLAKE3, &digests), []);
    assert_eq!(store.bytes(), 800);
    drop(pin);
    store.evict();
    assert!(store.bytes() <= 300);
}

#[test]
fn a_store_that_is_larger_than_it_may_be_says_so_once_a_pause() {
    // Larger by what is pinned, and by what others name.
    for is_named in [false, true] {
        let (_dir, store) = store(if is_named { u64::MAX } else { 300 });
        store.wait_scanned();
        let blobs: Vec<Vec<u8>> = (1..=6_u8).map(|byte| vec![byte; 200]).collect();
        let digests: Vec<Digest> =
            blobs.iter().map(|blob| crate::hash::digest_of(BLAKE3, blob)).collect();
        let _pin = (!is_named).then(|| store.pin(BLAKE3, &digests));
        let warnings = Warnings::default();
        tracing::subscriber::with_default(warnings.clone(), || {
            if is_named {
                let named = digests.iter().map(|digest| (BLAKE3, *digest)).collect::<Vec<_>>();
                store.bound(300, Box::new(move || Some(named.clone())));
            }
            for blob in &blobs {
                store.put(BLAKE3, blob).unwrap();
            }
        });
        assert_eq!(store.missing(BLAKE3, &digests), []);
        assert_eq!(warnings.0.load(Ordering::Relaxed), 1, "named: {is_named}");
    }
}

#[test]
fn what_is_named_stays_and_nothing_goes_while_nobody_can_tell() {
    let (_dir, store) = store(u64::MAX);
    let digests: Vec<Digest> =
        (1..=5_u8).map(|byte| store.put(BLAKE3, &[byte; 200]).unwrap()).collect();
    store.wait_scanned();
    let can_tell = Arc::new(AtomicBool::new(false));
    let (tells, named) = (Arc::clone(&can_tell), vec![(BLAKE3, digests[0])]);
    let named = move || tells.load(Ordering::Relaxed).then(|| named.clone());
    store.bound(500, Box::new(named));
    assert_eq!(store.missing(BLAKE3, &digests), []);
    can_tell.store(true, Ordering::Relaxed);
    store.evict();
    // The named one is the oldest of all.
    assert_eq!(store.missing(BLAKE3, &digests), digests[1..4]);
}

#[test]
fn eviction_after_a_restart_goes_by_the_files_access_times() {
    let dir = TempDir::new().unwrap();
    let options = StoreOptions { bytes_max: 1000, durable: false };
    let digests: Vec<Digest> = {
        let store = Store::open(dir.path(), options).unwrap();
        (1..=4_u8).map(|byte| store.put(BLAKE3, &[byte; 200]).unwrap()).collect()
    };
    for (digest, age_s) in digests.iter().zip([100_i64, 400, 200, 300]) {
        let time = nix::sys::time::TimeSpec::new(1_700_000_000 - age_s, 0);
        let path = file_of(&dir, digest);
        let cwd = nix::fcntl::AT_FDCWD;
        let flag = nix::sys::stat::UtimensatFlags::NoFollowSymlink;
        nix::sys::stat::utimensat(cwd, &path, &time, &time, flag).unwrap();
    }
    let store = Store::open(dir.path(), options).unwrap();
    store.wait_scanned();
    store.put(BLAKE3, &[5; 300]).unwrap();
    assert_eq!(store.missing(BLAKE3, &digests), [digests[1]]);
}

#[test]
fn files_are_put_small_and_large() {
    let (dir, store) = store(u64::MAX);
    for size in [0, 1, 1 << 20, (1 << 20) + 1, 3 << 20] {
        let path = dir.path().join("file");
        let content = vec![7; size];
        fs::write(&path, &content).unwrap();
        let digest = store.put_file(BLAKE3, &path).unwrap();
        assert_eq!(digest, crate::hash::digest_of(BLAKE3, &content));
        assert_eq!(store.put_file(BLAKE3, &path).unwrap(), digest);
        assert_eq!(store.get(BLAKE3, &digest).unwrap().as_deref(), Some(&content[..]));
    }
}

#[test]
fn a_durable_batch_of_any_size_is_there_afterwards() {
    let dir = TempDir::new().unwrap();
    let options = StoreOptions { bytes_max: u64::MAX, durable: true };
    let store = Store::open(dir.path(), options).unwrap();
    // One file at a time, and one sync for all; twice the same blob in one batch.
    for count in [1_u16, 7, 8, 300] {
        let mut blobs: Vec<Vec<u8>> =
            (0..count).map(|n| format!("{count}/{n}").into_bytes()).collect();
        blobs.push(blobs[0].clone());
        let digests = store.put_many(BLAKE3, blobs.iter().map(Vec::as_slice)).unwrap();
        assert_eq!(store.missing(BLAKE3, &digests), []);
        for (digest, blob) in digests.iter().zip(&blobs) {
            assert_eq!(store.get(BLAKE3, digest).unwrap().as_deref(), Some(&blob[..]));
        }
    }
}

#[test]
fn nobody_else_may_look_into_the_store() {
    let (dir, store) = store(u64::MAX);
    let digest = store.put(BLAKE3, b"secret").unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    for folder in ["", "blobs", "tmp", "blobs/blake3"] {
        assert_eq!(mode(&dir.path().join(folder)) & 0o077, 0, "{folder}");
    }
    assert_eq!(mode(&file_of(&dir, &digest)), 0o444);
}

/// Counts the warnings of its thread.
#[derive(Clone, Default)]
struct Warnings(Arc<AtomicU64>);

impl tracing::Subscriber for Warnings {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        *metadata.level() == tracing::Level::WARN
    }

    fn event(&self, _: &tracing::Event<'_>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}

const OPTIONS: StoreOptions = StoreOptions { bytes_max: u64::MAX, durable: false };

fn store(bytes_max: u64) -> (TempDir, Store) {
    let dir = TempDir::new().unwrap();
    let store = Store::open(dir.path(), StoreOptions { bytes_max, durable: false }).unwrap();
    (dir, store)
}

fn file_of(dir: &TempDir, digest: &Digest) -> PathBuf {
    dir.path().join("blobs").join(blob_path(BLAKE3, digest))
}

fn overwrite(path: &Path, content: &[u8]) {
    fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
    let mut file = fs::OpenOptions::new().write(true).truncate(true).open(path).unwrap();
    file.write_all(content).unwrap();
}
