//! The image in sled may be flipped, truncated or gone: the replica sets it aside and
//! makes the same state again from snapshot and log.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use steading_coordinator::replica::Cadence;
use steading_coordinator::replica::StartError;
use steading_coordinator::replica::testkit::{Layout, SledStore, StepReplica};
use steading_coordinator::replica::vfs::RealFs;
use steading_protocol_tests::replica_kit::register;

#[test]
fn a_whole_image_is_where_a_start_begins() {
    let farm = Farm::new();
    let replica = farm.open().expect("nothing is broken");
    assert_eq!(replica.state().chain(), farm.chain);
    assert!(!farm.image_was_set_aside());
}

#[test]
fn a_removed_image_is_made_again() {
    check(|image| fs::remove_dir_all(image).expect("the image is there"));
}

#[test]
fn an_image_whose_file_is_removed_is_made_again() {
    check(|image| fs::remove_file(image.join("db")).expect("sled keeps its data in `db`"));
}

#[test]
fn a_truncated_image_is_made_again() {
    for part in [0, 1, 2, 3] {
        check(|image| {
            let file = fs::OpenOptions::new().write(true).open(image.join("db"));
            let file = file.expect("sled keeps its data in `db`");
            let len = file.metadata().expect("an open file has a length").len();
            file.set_len(len * part / 4).expect("a file can be made shorter");
        });
    }
}

#[test]
fn a_flipped_image_is_made_again_or_was_flipped_where_nothing_is() {
    let size = farm_bytes().len();
    for trial in 0..24 {
        let offset = size * trial / 24 + trial;
        check(|image| edit(image, |bytes| bytes[offset] ^= 1 << (trial % 8)));
    }
}

#[test]
fn a_zeroed_page_of_the_image_is_noticed() {
    let size = farm_bytes().len();
    for trial in 0..8 {
        let from = size * trial / 8;
        check(|image| {
            edit(image, |bytes| {
                let to = (from + 4096).min(bytes.len());
                bytes[from..to].fill(0);
            });
        });
    }
}

#[test]
fn an_image_of_the_past_is_brought_up_to_date_from_the_log() {
    let mut farm = Farm::new();
    let copy = tempfile::tempdir().expect("a temporary directory");
    copy_dir(&farm.image(), copy.path());
    farm.chain = grow(&mut farm.open().expect("nothing is broken"), "later", 3);
    fs::remove_dir_all(farm.image()).expect("the image is there");
    copy_dir(copy.path(), &farm.image());
    assert_eq!(farm.open().expect("the log goes on from it").state().chain(), farm.chain);
}

#[test]
fn an_image_ahead_of_the_log_is_refused_since_the_log_has_lost_something() {
    let farm = Farm::new();
    let copy = tempfile::tempdir().expect("a temporary directory");
    copy_dir(farm.dir.path(), copy.path());
    let mut replica = farm.open().expect("nothing is broken");
    grow(&mut replica, "later", 30);
    drop(replica);
    // The log and the snapshots of before, the image of after.
    for part in ["wal", "snapshots"] {
        fs::remove_dir_all(farm.dir.path().join(part)).expect("it is there");
        copy_dir(&copy.path().join(part), &farm.dir.path().join(part));
    }
    let error = farm.open().expect_err("what was acknowledged is gone");
    assert!(matches!(error, StartError::LogBehind { what: "image", .. }), "{error:?}");
}

#[test]
fn a_rotten_snapshot_and_no_image_fall_back_to_the_snapshot_before() {
    let farm = Farm::new();
    fs::remove_dir_all(farm.image()).expect("the image is there");
    let mut snapshots: Vec<PathBuf> = fs::read_dir(farm.dir.path().join("snapshots"))
        .expect("there are snapshots")
        .map(|entry| entry.expect("a readable directory").path())
        .collect();
    snapshots.sort();
    assert_eq!(snapshots.len(), 2, "the newest two are kept");
    let newest = snapshots.pop().expect("two are more than none");
    let mut bytes = fs::read(&newest).expect("a readable file");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&newest, bytes).expect("a writable file");
    assert_eq!(farm.open().expect("the older one is whole").state().chain(), farm.chain);
}

/// Damages the image of a farm, and wants the same state again, twice: the second start
/// begins with the image that the first one made.
fn check(damage: impl FnOnce(&Path)) {
    let mut farm = Farm::new();
    damage(&farm.image());
    let mut replica = farm.open().expect("the image is never a reason not to start");
    assert_eq!(replica.state().chain(), farm.chain);
    replica.state().check_invariants().expect("the state is whole");
    farm.chain = grow(&mut replica, "after", 12);
    drop(replica);
    assert_eq!(farm.open().expect("it starts again").state().chain(), farm.chain);
}

/// A replica's directory with an image, two snapshots, and a log behind them.
struct Farm {
    dir: tempfile::TempDir,
    chain: [u8; 32],
}

impl Farm {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut farm = Self { dir, chain: [0; 32] };
        farm.chain = grow(&mut farm.open().expect("an empty directory"), "agent", 60);
        farm
    }

    fn open(&self) -> Result<StepReplica, StartError> {
        let layout = Layout {
            vfs: Arc::new(RealFs),
            dir: self.dir.path().to_owned(),
            segment_bytes: 8 << 10,
            frame_bytes: 1 << 20,
            cadence: Cadence {
                checkpoint_entries: 5,
                checkpoint_ms: 1 << 40,
                snapshot_bytes: 9_000,
            },
        };
        let store = SledStore::open(self.image()).expect("an image can always be made");
        StepReplica::open(&layout, Box::new(store))
    }

    fn image(&self) -> PathBuf {
        self.dir.path().join("image")
    }

    fn image_was_set_aside(&self) -> bool {
        self.dir.path().join("image.bad.1").exists()
    }
}

/// Proposes, keeps image and snapshots up to date, and answers the state's hash.
fn grow(replica: &mut StepReplica, prefix: &str, count: usize) -> [u8; 32] {
    for number in 0..count {
        let wave = vec![register(&format!("{prefix}-{number}"), 300)];
        let answers = replica.propose(&[wave]).expect("the disk is fine");
        assert!(answers.iter().all(Result::is_ok), "{answers:?}");
        replica.keep();
    }
    replica.state().chain()
}

fn farm_bytes() -> Vec<u8> {
    fs::read(Farm::new().image().join("db")).expect("sled keeps its data in `db`")
}

fn edit(image: &Path, edit: impl FnOnce(&mut Vec<u8>)) {
    let path = image.join("db");
    let mut bytes = fs::read(&path).expect("sled keeps its data in `db`");
    edit(&mut bytes);
    fs::write(&path, bytes).expect("a writable file");
}

fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a writable directory");
    for entry in fs::read_dir(from).expect("a readable directory") {
        let path = entry.expect("a readable directory").path();
        let target = to.join(path.file_name().expect("an entry has a name"));
        if path.is_dir() {
            copy_dir(&path, &target);
        } else {
            fs::copy(&path, &target).expect("a readable file");
        }
    }
}
