use std::sync::Arc;

use bytes::Bytes;
use object_store::memory::InMemory;
use steading_model::DigestFunction::{Blake3, Sha256};
use steading_proto::reapi;
use steading_proto::reapi_digest;
use tempfile::TempDir;

use super::*;
use crate::actions::{ActionCache, ActionEntry};
use crate::front::Front;
use crate::hash::digest_of;
use crate::store::{Store, StoreOptions};
use crate::tree::{Entry, FileEntry, Folder};

#[tokio::test]
async fn what_one_coordinator_took_another_has() {
    for places in both_kinds() {
        let (one, other) = (places.coordinator(), places.coordinator());
        let blobs = [&b"small"[..], &vec![7; 9 << 20], b""];
        let digests = put(&one, &blobs).await;
        assert_eq!(other.missing(Blake3, digests.clone()).await.unwrap(), []);
        for (digest, bytes) in digests.iter().zip(blobs) {
            let _pin = other.bring(Blake3, &[*digest]).await.unwrap();
            let held = other.store().get(Blake3, digest).unwrap();
            assert!(held.is_some_and(|held| held == bytes), "{digest} of {}", places.name);
        }
        // A function of its own has blobs of its own.
        let sha = digest_of(Sha256, b"small");
        assert_eq!(other.missing(Sha256, vec![sha]).await.unwrap(), [sha]);
    }
}

#[tokio::test]
async fn what_only_a_store_has_is_not_durable_until_it_is_published() {
    for places in both_kinds() {
        let (one, other) = (places.coordinator(), places.coordinator());
        let small = one.store().put(Blake3, b"streamed").unwrap();
        let large = one.store().put(Blake3, &vec![1; 20 << 20]).unwrap();
        let nowhere = digest_of(Blake3, b"never put");
        assert_eq!(one.missing(Blake3, vec![small, large]).await.unwrap(), [small, large]);
        let left = one.publish(Blake3, vec![small, large, nowhere]).await.unwrap();
        assert_eq!(left, [nowhere]);
        assert_eq!(other.missing(Blake3, vec![small, large]).await.unwrap(), []);
        let _pin = other.bring(Blake3, &[small, large, nowhere]).await.unwrap();
        assert_eq!(other.store().missing(Blake3, &[small, large, nowhere]), [nowhere]);
    }
}

#[tokio::test]
async fn many_who_want_one_blob_at_once_all_get_it() {
    let places = Places::directory();
    let (one, other) = (places.coordinator(), places.coordinator());
    let digest = put(&one, &[b"wanted"]).await[0];
    let mut wanting = tokio::task::JoinSet::new();
    for _ in 0..40 {
        let other = other.clone();
        wanting.spawn(async move {
            let _pin = other.bring(Blake3, &[digest]).await.unwrap();
            assert!(other.store().contains(Blake3, &digest));
        });
    }
    while let Some(ended) = wanting.join_next().await {
        ended.unwrap();
    }
    // Nobody is remembered.
    assert!(other.origin().unwrap().0.fetching.is_empty());
}

#[tokio::test]
async fn an_object_that_is_not_what_its_name_says_goes_and_may_come_again() {
    let places = Places::directory();
    let one = places.coordinator();
    let digest = put(&one, &[b"right"]).await[0];
    let file = places.file(&digest);
    for wrong in ["wrong", "longer than it says", ""] {
        std::fs::write(&file, wrong).unwrap();
        let other = places.coordinator();
        let _pin = other.bring(Blake3, &[digest]).await.unwrap();
        assert!(!other.store().contains(Blake3, &digest), "{wrong}");
        assert!(!file.exists(), "{wrong}");
        assert_eq!(other.missing(Blake3, vec![digest]).await.unwrap(), [digest]);
        put(&other, &[b"right"]).await;
        assert_eq!(std::fs::read(&file).unwrap(), b"right");
    }
}

#[tokio::test]
async fn a_result_is_shared_and_goes_when_a_blob_of_it_is_gone() {
    for places in both_kinds() {
        let (one, other) = (places.coordinator(), places.coordinator());
        let action = digest_of(Blake3, b"action");
        let entry = tree_result(&one);
        one.put_action("project", Blake3, &action, entry.clone()).await.unwrap();
        let found = other.action("project", Blake3, &action).await.unwrap();
        assert_eq!(found.as_ref(), Some(&entry), "{}", places.name);
        for (scope, function) in [("other", Blake3), ("project", Sha256), ("Pro/ject", Blake3)] {
            assert_eq!(other.action(scope, function, &action).await.unwrap(), None);
        }
        // Gone from the origin, and a third one never had it.
        let file = digest_of(Blake3, b"deep");
        let third = places.coordinator();
        let origin = third.origin().unwrap();
        origin.remove(&origin.blob_path(Blake3, &file)).await.unwrap();
        assert_eq!(third.action("project", Blake3, &action).await.unwrap(), None);
        let fourth = places.coordinator();
        assert_eq!(fourth.action("project", Blake3, &action).await.unwrap(), None);
    }
}

#[tokio::test]
async fn a_blob_that_is_gone_is_put_back_by_whoever_still_has_it() {
    let places = Places::directory();
    let one = places.coordinator();
    let action = digest_of(Blake3, b"action");
    one.put_action("project", Blake3, &action, tree_result(&one)).await.unwrap();
    std::fs::remove_file(places.file(&digest_of(Blake3, b"deep"))).unwrap();
    // Started again: it remembers nothing, and has its store.
    let origin = Some(Origin::directory(places.dir.path()).unwrap());
    let actions = ActionCache::open(one.store()).unwrap();
    let again = Front::new(one.store().clone(), actions, origin);
    assert!(again.action("project", Blake3, &action).await.unwrap().is_some());
    assert!(places.coordinator().action("project", Blake3, &action).await.unwrap().is_some());
}

#[tokio::test]
async fn a_result_that_names_what_is_nowhere_is_refused() {
    let places = Places::directory();
    let one = places.coordinator();
    let lost = digest_of(Blake3, b"lost");
    let result = reapi::ActionResult { stdout_digest: Some(reapi_digest(&lost)), ..<_>::default() };
    let entry = ActionEntry { result, writer: String::new(), written_ms: 1 };
    let refused = one.put_action("project", Blake3, &lost, entry).await;
    assert!(matches!(refused, Err(crate::ActionCacheError::Incomplete(named)) if named == [lost]));
}

#[tokio::test]
async fn what_a_store_knew_while_it_was_the_origin_goes_along_to_one() {
    for places in both_kinds() {
        let dir = tempfile::tempdir().unwrap();
        let options = StoreOptions { bytes_max: 1 << 30, durable: false };
        let store = Store::open(dir.path(), options).unwrap();
        let actions = ActionCache::open(&store).unwrap();
        let alone = Front::new(store.clone(), actions.clone(), None);
        let [action, broken] = [b"action", b"broken"].map(|name| digest_of(Blake3, name));
        let entry = ActionEntry { writer: "agent/a".to_owned(), ..tree_result(&alone) };
        alone.put_action("project", Blake3, &action, entry.clone()).await.unwrap();
        // Of one, what it names is gone; and somebody left a file that is none.
        let (lost, held) = (digest_of(Blake3, b"lost"), b"lost");
        store.put(Blake3, held).unwrap();
        let result =
            reapi::ActionResult { stdout_digest: Some(reapi_digest(&lost)), ..<_>::default() };
        let gone = ActionEntry { result, ..entry.clone() };
        alone.put_action("project", Blake3, &broken, gone).await.unwrap();
        let hex = lost.hash_hex();
        let file = format!("blobs/blake3/{}/{hex}-4", &hex[..2]);
        std::fs::remove_file(dir.path().join(file)).unwrap();
        std::fs::write(dir.path().join("actions/junk"), "").unwrap();
        drop((alone, actions, store));

        let store = Store::open(dir.path(), options).unwrap();
        let actions = ActionCache::open(&store).unwrap();
        let origin = places.coordinator().origin().unwrap().clone();
        let shared = Front::new(store, actions, Some(origin));
        assert_eq!(shared.publish_all().await.unwrap().1, 1);
        let other = places.coordinator();
        let found = other.action("project", Blake3, &action).await.unwrap();
        assert_eq!(found.as_ref(), Some(&entry), "{}", places.name);
        assert_eq!(other.action("project", Blake3, &broken).await.unwrap(), None);
    }
}

#[tokio::test]
async fn objects_of_other_kinds_are_put_read_and_removed_by_folder() {
    for places in both_kinds() {
        let origin = places.coordinator().origin().unwrap().clone();
        for (folder, name) in [("1", "a"), ("1", "b"), ("12", "a")] {
            origin.put_object(["logs", folder, name], name.into()).await.unwrap();
        }
        let again = places.coordinator().origin().unwrap().clone();
        let read = async |folder, name| again.object(["logs", folder, name]).await.unwrap();
        assert_eq!(read("1", "b").await.as_deref(), Some(&b"b"[..]), "{}", places.name);
        again.remove_objects(["logs", "1"]).await.unwrap();
        again.remove_objects(["logs", "1"]).await.unwrap();
        assert_eq!((read("1", "a").await, read("1", "b").await), (None, None));
        // A folder is not what its name begins with.
        assert!(read("12", "a").await.is_some(), "{}", places.name);
        again.adopt("a1b2").await.unwrap();
        assert!(origin.is_adopted("a1b2").await.unwrap());
        assert!(!origin.is_adopted("a1").await.unwrap());
    }
}

#[tokio::test]
async fn only_the_groups_own_origin_knows_it() {
    let (one, other) = (Places::directory(), Places::directory());
    let origin = Origin::directory(one.dir.path()).unwrap();
    origin.adopt("a1b2").await.unwrap();
    origin.adopt("a1b2").await.unwrap();
    assert!(Origin::directory(one.dir.path()).unwrap().is_adopted("a1b2").await.unwrap());
    origin.leave_sign("new").await.unwrap();
    let same = Origin::directory(one.dir.path()).unwrap();
    assert!(same.is_seen_by("new").await.unwrap());
    assert!(!Origin::directory(other.dir.path()).unwrap().is_seen_by("new").await.unwrap());
    same.remove_sign("new").await.unwrap();
    same.remove_sign("new").await.unwrap();
    assert!(!origin.is_seen_by("new").await.unwrap());
    assert!(!origin.is_adopted("c3d4").await.unwrap());
    assert!(!Origin::directory(other.dir.path()).unwrap().is_adopted("a1b2").await.unwrap());
}

#[tokio::test]
async fn a_directory_that_is_not_mounted_any_more_is_away_and_not_empty() {
    let places = Places::directory();
    let front = places.coordinator();
    let origin = front.origin().unwrap();
    origin.adopt("a1b2").await.unwrap();
    let digests = put(&front, &[b"kept"]).await;

    let (dir, aside) = (places.dir.path(), tempfile::tempdir().unwrap());
    std::fs::rename(dir, aside.path().join("unmounted")).unwrap();
    std::fs::create_dir(dir).unwrap();
    let away = |error: OriginError| error.to_string().contains("still mounted");
    let name = ["logs", "run-1", "index"];
    assert!(away(origin.object(name).await.unwrap_err()));
    assert!(away(origin.put_object(name, Bytes::from_static(b"lost")).await.unwrap_err()));
    let new = Origin::directory(dir).unwrap();
    assert!(!new.is_adopted("a1b2").await.unwrap(), "an origin that was never here");
    std::fs::remove_dir_all(dir).unwrap();
    std::fs::rename(aside.path().join("unmounted"), dir).unwrap();
    assert_eq!(origin.object(name).await.unwrap(), None);
    assert!(places.file(&digests[0]).exists());
}

#[test]
fn other_users_do_not_look_into_a_directory_that_was_made_here() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("farm").join("origin");
    let mode = || std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;
    Origin::directory(&path).unwrap();
    assert_eq!(mode() & 0o027, 0);
    // One that is there keeps what its owner gave it.
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o775)).unwrap();
    Origin::directory(&path).unwrap();
    assert_eq!(mode(), 0o775);
}

#[test]
fn a_tree_that_cannot_be_read_now_is_not_taken_for_one_that_names_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let options = StoreOptions { bytes_max: 1 << 30, durable: false };
    let store = Store::open(dir.path(), options).unwrap();
    let front = Front::new(store.clone(), ActionCache::open(&store).unwrap(), None);
    let result = tree_result(&front).result;
    let root = result.output_directories[0].root_directory_digest.as_ref();
    let root = crate::tree::wire_digest(root).unwrap();
    // Two folders, and the file.
    assert_eq!(front.tree_blobs(Blake3, &root).unwrap().len(), 3);
    // The file of a blob is never a link: to open it fails, which says nothing of the blob.
    let hex = root.hash_hex();
    let file = dir.path().join(format!("blobs/blake3/{}/{hex}-{}", &hex[..2], root.size));
    let aside = dir.path().join("aside");
    std::fs::rename(&file, &aside).unwrap();
    std::os::unix::fs::symlink(&aside, &file).unwrap();
    let failed = front.tree_blobs(Blake3, &root);
    assert!(matches!(failed, Err(crate::tree::TreeError::Store(_))), "{failed:?}");
    // Gone, and no tree at all: these name nothing more.
    std::fs::remove_file(&file).unwrap();
    assert_eq!(front.tree_blobs(Blake3, &root).unwrap(), [root]);
    let none = store.put(Blake3, b"no tree").unwrap();
    assert_eq!(front.tree_blobs(Blake3, &none).unwrap(), [none]);
}

#[test]
fn a_scope_is_a_part_of_a_path_whatever_it_holds() {
    for (scope, plain) in
        [("project-1", true), ("", false), ("../up", false), ("a/b", false), ("Caps", false)]
    {
        let part = scope_part(scope);
        assert_eq!(part == scope, plain, "{scope}");
        assert!(!part.is_empty() && !part.contains(['/', '.']), "{part}");
    }
}

/// Where coordinators keep their blobs, and their origin.
struct Places {
    name: &'static str,
    dir: TempDir,
    objects: Option<Arc<InMemory>>,
    /// A real one, with a prefix that nobody else has there.
    bucket: Option<(String, String)>,
}

/// A directory and a bucket in memory; and the bucket that STEADING_TEST_BUCKET names, if it
/// does and the program can speak to one. Who we are there comes from the environment.
fn both_kinds() -> Vec<Places> {
    let objects = Some(Arc::new(InMemory::new()));
    let mut places =
        vec![Places::directory(), Places { name: "memory", objects, ..Places::directory() }];
    if let (true, Ok(url)) = (cfg!(feature = "buckets"), std::env::var("STEADING_TEST_BUCKET")) {
        let directory = Places::directory();
        let prefix = directory.dir.path().file_name().unwrap().to_string_lossy().into_owned();
        places.push(Places { name: "bucket", bucket: Some((url, prefix)), ..directory });
    }
    places
}

impl Places {
    fn directory() -> Self {
        Self { name: "directory", dir: tempfile::tempdir().unwrap(), objects: None, bucket: None }
    }

    /// A coordinator that was just started with an empty disk.
    fn coordinator(&self) -> Front {
        let origin = match (&self.objects, &self.bucket) {
            (Some(objects), _) => Origin::over(Arc::clone(objects) as _, "farm"),
            (None, Some((url, prefix))) => Origin::bucket(url, prefix).unwrap(),
            (None, None) => Origin::directory(self.dir.path()).unwrap(),
        };
        let dir = tempfile::tempdir_in(self.dir.path()).unwrap();
        let options = StoreOptions { bytes_max: 1 << 30, durable: false };
        let store = Store::open(&dir.keep(), options).unwrap();
        let actions = ActionCache::open(&store).unwrap();
        Front::new(store, actions, Some(origin))
    }

    /// The blob's file in the directory.
    fn file(&self, digest: &Digest) -> PathBuf {
        let hex = digest.hash_hex();
        let name = format!("{hex}-{}", digest.size);
        self.dir.path().join("cas/blake3").join(&hex[..2]).join(name)
    }
}

async fn put(front: &Front, blobs: &[&[u8]]) -> Vec<Digest> {
    let hashed: Vec<(Digest, Bytes)> = blobs
        .iter()
        .map(|bytes| (digest_of(Blake3, bytes), Bytes::copy_from_slice(bytes)))
        .collect();
    let digests = hashed.iter().map(|(digest, _)| *digest).collect();
    front.put_hashed(Blake3, hashed).await.unwrap();
    digests
}

/// A result whose one file lies two folders deep, all of it in the store alone.
fn tree_result(front: &Front) -> ActionEntry {
    let digest = front.store().put(Blake3, b"deep").unwrap();
    let file = Entry::File(FileEntry { digest, executable: false, mode: None });
    let inner = Folder { entries: [("file".to_owned(), file)].into(), mode: None };
    let outer = Folder { entries: [("inner".to_owned(), Entry::Folder(inner))].into(), mode: None };
    let root = crate::tree::save(front.store(), &outer).unwrap().root;
    let directory = reapi::OutputDirectory {
        path: "out".to_owned(),
        root_directory_digest: Some(reapi_digest(&root)),
        ..<_>::default()
    };
    let result = reapi::ActionResult { output_directories: vec![directory], ..<_>::default() };
    ActionEntry { result, writer: String::new(), written_ms: 1 }
}
