//! Snapshots that rot on the disk.

use std::path::{Path, PathBuf};

use steading_core::State;

use crate::replica::identity::Identity;
use crate::replica::membership::Membership;
use crate::replica::open::{StartError, read_snapshot};
use crate::replica::sim_fs::SimFs;
use crate::replica::snapshot::{self, Header};
use crate::replica::vfs::{RealFs, Vfs as _};
use crate::replica::wal::{Position, Promise, Recovered};

/// The log is cut up to the older of two snapshots, so that has to be whole.
#[test]
fn a_snapshot_that_rotted_is_not_what_the_log_reaches_back_to() {
    let fs = disk();
    let paths: Vec<PathBuf> = [5, 7, 9].map(|index| write(&fs, index)).to_vec();
    rot(&fs, &paths[1]);
    assert_eq!(snapshot::prune(&fs, dir(), at(9)).unwrap(), Some(at(5)));
    assert_eq!(kept(&fs), [9, 5]);

    rot(&fs, &paths[0]);
    write(&fs, 11);
    assert_eq!(snapshot::prune(&fs, dir(), at(11)).unwrap(), Some(at(9)));
    rot(&fs, &paths[2]);
    write(&fs, 13);
    rot(&fs, &dir().join(format!("{:016}-{:08}.snap", 11, 1)));
    assert_eq!(snapshot::prune(&fs, dir(), at(13)).unwrap(), None, "then the log is not cut");
    assert_eq!(kept(&fs), [13]);
}

/// It may be whole: the log is not cut up to it now, and it stays.
#[test]
fn a_snapshot_that_cannot_be_read_now_is_not_removed() {
    let dir = tempfile::tempdir().unwrap();
    let state = State::default();
    let (membership, chain) = (Membership::single(1), state.chain());
    let header = Header { at: at(9), membership, chain, hashed_by: 1 };
    snapshot::write(&RealFs, dir.path(), &header, &state).unwrap();
    // Opened, and then refused: as by a disk that fails.
    let unreadable = dir.path().join(format!("{:016}-{:08}.snap", 5, 1));
    std::fs::create_dir(&unreadable).unwrap();
    assert_eq!(snapshot::prune(&RealFs, dir.path(), at(9)).unwrap(), None);
    assert!(unreadable.exists());
}

/// The founder's log begins where nothing was yet. Another's begins there by mistake only,
/// and alone it would be a second group of the same name.
#[test]
fn only_the_founder_goes_back_to_the_beginning() {
    let fs = disk();
    let base = at(1);
    let promise = Promise { term: 1, vote: 0, commit: 1 };
    let recovered = Recovered { base, entries: Vec::new(), promise, torn: false };
    let founder = Identity::first([7; 32]);
    let (meta, state) = read_snapshot(&fs, dir(), &recovered, &founder).unwrap();
    assert_eq!((meta.membership, state.chain()), (Membership::single(1), State::default().chain()));
    let other = Identity { replica_id: 2, ..founder };
    let refused = read_snapshot(&fs, dir(), &recovered, &other);
    assert!(matches!(refused, Err(StartError::NothingToStartFrom { base: 1 })), "{refused:?}");
}

fn disk() -> SimFs {
    let fs = SimFs::new();
    fs.create_dir(dir()).unwrap();
    fs
}

fn dir() -> &'static Path {
    Path::new("/snapshots")
}

const fn at(index: u64) -> Position {
    Position { index, term: 1 }
}

fn write(fs: &SimFs, index: u64) -> PathBuf {
    let state = State::default();
    let (membership, chain) = (Membership::single(1), state.chain());
    let header = Header { at: at(index), membership, chain, hashed_by: 1 };
    snapshot::write(fs, dir(), &header, &state).unwrap()
}

fn rot(fs: &SimFs, path: &Path) {
    fs.damage(path, |bytes| *bytes.last_mut().unwrap() ^= 1);
}

fn kept(fs: &SimFs) -> Vec<u64> {
    snapshot::list(fs, dir()).unwrap().into_iter().map(|(at, _)| at.index).collect()
}
