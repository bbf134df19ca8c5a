use steading_model::DigestFunction::{Blake3, Sha256};
use steading_proto::reapi_digest;
use tempfile::TempDir;

use super::*;
use crate::hash::digest_of;
use crate::store::StoreOptions;
use crate::tree::{Entry, FileEntry, Folder};

const ACTION: Digest = Digest { hash: [7; 32], size: 7 };

#[test]
fn a_result_is_found_in_its_scope_and_nowhere_else() {
    let (_dir, actions) = actions();
    let entry = entry(&[actions.store().put(Blake3, b"out").unwrap()]);
    actions.update("main", Blake3, &ACTION, &entry).unwrap();
    assert_eq!(actions.get("main", Blake3, &ACTION).unwrap(), Some(entry));
    assert_eq!(actions.get("other", Blake3, &ACTION).unwrap(), None);
    assert_eq!(actions.get("main", Sha256, &ACTION).unwrap(), None);
    assert_eq!(actions.get("main", Blake3, &Digest { size: 8, ..ACTION }).unwrap(), None);
}

#[test]
fn results_outlive_the_process_and_the_later_one_wins() {
    let (dir, actions) = actions();
    actions.update("main", Blake3, &ACTION, &entry(&[])).unwrap();
    let newer = ActionEntry { writer: "agent-2".to_owned(), ..entry(&[]) };
    actions.update("main", Blake3, &ACTION, &newer).unwrap();
    drop(actions);
    let again = open(&dir);
    assert_eq!(again.get("main", Blake3, &ACTION).unwrap(), Some(newer));
    again.forget("main", Blake3, &ACTION).unwrap();
    again.forget("main", Blake3, &ACTION).unwrap();
    assert_eq!(again.get("main", Blake3, &ACTION).unwrap(), None);
}

#[test]
fn a_result_whose_blobs_are_missing_is_neither_taken_nor_given() {
    let (_dir, actions) = actions();
    let output = digest_of(Blake3, b"out");
    let entry = entry(&[output]);
    let refused = actions.update("main", Blake3, &ACTION, &entry);
    assert!(matches!(refused, Err(ActionCacheError::Incomplete(missing)) if missing == [output]));

    actions.store().put(Blake3, b"out").unwrap();
    actions.update("main", Blake3, &ACTION, &entry).unwrap();
    actions.store().discard(Blake3, &output);
    assert_eq!(actions.get("main", Blake3, &ACTION).unwrap(), None);
    // It is gone for good: the blob alone does not bring it back.
    actions.store().put(Blake3, b"out").unwrap();
    assert_eq!(actions.get("main", Blake3, &ACTION).unwrap(), None);
}

#[test]
fn every_blob_of_an_output_folder_counts() {
    let (_dir, actions) = actions();
    let store = actions.store();
    let file = store.put(Blake3, b"deep").unwrap();
    let mut folder = Folder::default();
    let node = FileEntry { digest: file, executable: false, mode: None };
    folder.insert("a/b/c", Entry::File(node)).unwrap();
    let root = tree::save(store, &folder).unwrap().root;
    let message = tree::tree_message(store, &root).unwrap();
    let message = store.put(Blake3, &prost::Message::encode_to_vec(&message)).unwrap();
    let by_tree = reapi::OutputDirectory {
        path: "out".to_owned(),
        tree_digest: Some(reapi_digest(&message)),
        ..<_>::default()
    };
    let by_root = reapi::OutputDirectory {
        path: "out".to_owned(),
        root_directory_digest: Some(reapi_digest(&root)),
        ..<_>::default()
    };
    for directory in [by_tree, by_root] {
        let mut entry = entry(&[]);
        entry.result.output_directories.push(directory);
        actions.store().put(Blake3, b"deep").unwrap();
        actions.update("main", Blake3, &ACTION, &entry).unwrap();
        assert!(actions.get("main", Blake3, &ACTION).unwrap().is_some());
        actions.store().discard(Blake3, &file);
        assert_eq!(actions.get("main", Blake3, &ACTION).unwrap(), None);
    }
}

#[test]
fn a_corrupt_entry_is_a_miss() {
    let (dir, actions) = actions();
    actions.update("main", Blake3, &ACTION, &entry(&[])).unwrap();
    let path = actions.path("main", Blake3, &ACTION);
    let bytes = fs::read(&path).unwrap();
    for bad in [&bytes[..0], &bytes[..bytes.len() - 1], b"other"] {
        fs::write(&path, bad).unwrap();
        assert_eq!(actions.get("main", Blake3, &ACTION).unwrap(), None);
        assert!(!path.exists());
    }
    // An entry under another's name is as bad.
    fs::write(&path, &bytes).unwrap();
    let other = actions.path("other", Blake3, &ACTION);
    fs::create_dir_all(other.parent().unwrap()).unwrap();
    fs::rename(&path, &other).unwrap();
    assert_eq!(actions.get("other", Blake3, &ACTION).unwrap(), None);
    drop(dir);
}

#[test]
fn a_malformed_result_is_refused() {
    let (_dir, actions) = actions();
    let mut entry = entry(&[]);
    let nameless = reapi::OutputDirectory { path: "out".to_owned(), ..<_>::default() };
    entry.result.output_directories.push(nameless);
    assert!(matches!(
        actions.update("main", Blake3, &ACTION, &entry),
        Err(ActionCacheError::Malformed(_))
    ));
    entry.result.output_directories.clear();
    entry.result.stdout_raw = vec![0; RESULT_BYTES_MAX + 1];
    assert!(matches!(
        actions.update("main", Blake3, &ACTION, &entry),
        Err(ActionCacheError::Malformed(_))
    ));
}

#[test]
fn a_full_folder_loses_its_oldest_entries() {
    let (_dir, actions) = actions();
    let folder = actions.0.dir.join("00");
    fs::create_dir_all(&folder).unwrap();
    for n in 0..=FOLDER_ENTRIES_MAX {
        let file = fs::File::create(folder.join(n.to_string())).unwrap();
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(n as u64);
        file.set_modified(time).unwrap();
    }
    actions.bound(&folder.join("0"));
    assert_eq!(list(&folder).len(), FOLDER_ENTRIES_MAX / 8 * KEEP_EIGHTHS);
    assert!(!folder.join("0").exists());
    assert!(folder.join(FOLDER_ENTRIES_MAX.to_string()).exists());
}

fn actions() -> (TempDir, ActionCache) {
    let dir = TempDir::new().unwrap();
    let actions = open(&dir);
    (dir, actions)
}

fn open(dir: &TempDir) -> ActionCache {
    let options = StoreOptions { bytes_max: u64::MAX, durable: true };
    ActionCache::open(&Store::open(dir.path(), options).unwrap()).unwrap()
}

fn entry(outputs: &[Digest]) -> ActionEntry {
    let output_files = outputs
        .iter()
        .map(|digest| reapi::OutputFile {
            path: digest.to_string(),
            digest: Some(reapi_digest(digest)),
            ..<_>::default()
        })
        .collect();
    let result = reapi::ActionResult { output_files, ..<_>::default() };
    ActionEntry { result, writer: "agent-1".to_owned(), written_ms: 1_000 }
}
