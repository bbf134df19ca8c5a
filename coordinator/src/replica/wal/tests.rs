//! The log on a simulated disk, where the crash is chosen instead of drawn. What is
//! drawn is in `protocol-tests`: power cuts, bit flips and fuzz.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use super::super::sim_fs::{Dice, SimFs};
use super::*;

const SEGMENT: u64 = 4 << 10;

#[test]
fn entries_come_back_as_they_were_written() {
    let fs = SimFs::new();
    let mut wal = create(&fs);
    wal.append(&[entry(1, 1, b"a"), entry(2, 1, b"b")], true).unwrap();
    let promise = Promise { term: 3, vote: 1, commit: 2 };
    wal.append(&[entry(3, 3, b"c"), Record::Promise(promise)], true).unwrap();
    let found = reopen(&fs, wal);
    assert_eq!(texts(&found), ["a", "b", "c"]);
    assert_eq!(found.promise, promise);
    assert!(!found.torn);
}

#[test]
fn a_conflicting_suffix_is_gone_after_a_cut() {
    let fs = SimFs::new();
    let mut wal = create(&fs);
    wal.append(&[entry(1, 1, b"a"), entry(2, 1, b"b"), entry(3, 1, b"c")], true).unwrap();
    wal.append(&[Record::Cut(at(1, 1)), entry(2, 2, b"B")], true).unwrap();
    assert_eq!(texts(&reopen(&fs, wal)), ["a", "B"]);
}

#[test]
fn a_restart_voids_what_was_before() {
    let fs = SimFs::new();
    let mut wal = create(&fs);
    wal.append(&[entry(1, 1, b"a")], true).unwrap();
    wal.append(&[Record::Restart(at(10, 2)), entry(11, 2, b"k")], true).unwrap();
    let found = reopen(&fs, wal);
    assert_eq!(found.base, at(10, 2));
    assert_eq!(texts(&found), ["k"]);
}

#[test]
fn segments_follow_each_other_and_old_ones_can_go() {
    let fs = SimFs::new();
    let mut wal = create(&fs);
    for index in 1..=40 {
        wal.append(&[entry(index, 1, &[b'x'; 500])], true).unwrap();
    }
    let before = wal.segments.len();
    assert!(before > 4);
    let gone = wal.cut(20);
    remove_segments(&fs, &gone).unwrap();
    let base = wal.base();
    assert!(base.index <= 20 && base.index > 10, "{base:?}");
    let found = reopen(&fs, wal);
    assert_eq!(found.base, base);
    assert_eq!(found.entries.len() as u64, 40 - base.index);
}

#[test]
fn an_entry_larger_than_a_segment_has_one_of_its_own() {
    let fs = SimFs::new();
    let mut wal = create(&fs);
    let large = vec![7; 3 * SEGMENT as usize];
    wal.append(&[entry(1, 1, b"a"), entry(2, 1, &large), entry(3, 1, b"c")], true).unwrap();
    wal.append(&[entry(4, 1, b"d")], true).unwrap();
    assert_eq!(reopen(&fs, wal).entries.len(), 4);
}

#[test]
fn a_frame_of_a_torn_tail_does_not_come_back_behind_a_later_write() {
    let fs = SimFs::new();
    let mut wal = create(&fs);
    wal.append(&[entry(1, 1, b"acknowledged")], true).unwrap();
    let from = wal.at as usize;
    wal.append(&[entry(2, 1, b"lost-lost")], false).unwrap();
    let to = wal.at as usize;
    wal.append(&[entry(3, 1, b"kept-kept")], false).unwrap();
    drop(wal);
    // The power went: of the two the first did not reach the disk, the second did.
    fs.damage(&segment(1), |bytes| bytes[from..to].fill(0));
    let (mut wal, found) = Wal::open(Arc::new(fs.clone()), options()).unwrap();
    assert_eq!(texts(&found), ["acknowledged"]);
    assert!(found.torn);
    // Ends at the very byte where the stale frame with the next number began.
    wal.append(&[entry(2, 1, b"new--new-")], true).unwrap();
    assert_eq!(wal.at as usize, to);
    assert_eq!(texts(&reopen(&fs, wal)), ["acknowledged", "new--new-"]);
}

#[test]
fn what_a_killed_process_wrote_is_made_durable_before_it_is_believed() {
    let fs = SimFs::new();
    let mut wal = create(&fs);
    wal.append(&[entry(1, 1, b"written, not synced")], false).unwrap();
    drop(wal);
    fs.kill();
    let (wal, found) = Wal::open(Arc::new(fs.clone()), options()).unwrap();
    assert_eq!(texts(&found), ["written, not synced"]);
    drop(wal);
    fs.power_cycle(&mut Dice::new(1));
    let (_, found) = Wal::open(Arc::new(fs), options()).unwrap();
    assert_eq!(texts(&found), ["written, not synced"]);
}

#[test]
fn damage_to_the_last_write_is_a_torn_tail_until_it_is_sealed() {
    for sealed in [false, true] {
        let fs = SimFs::new();
        let mut wal = create(&fs);
        wal.append(&[entry(1, 1, b"first")], true).unwrap();
        let last = wal.at as usize;
        wal.append(&[entry(2, 1, b"last")], true).unwrap();
        if sealed {
            wal.seal().unwrap();
            assert!(!wal.wants_seal());
        }
        drop(wal);
        fs.damage(&segment(1), |bytes| bytes[last + 40] ^= 1);
        match Wal::open(Arc::new(fs), options()) {
            Ok((_, found)) => {
                assert!(!sealed && found.torn);
                assert_eq!(texts(&found), ["first"]);
            }
            Err(error) => {
                assert!(sealed, "{error}");
                assert!(matches!(error, WalError::Damaged { seq: 3, .. }), "{error:?}");
            }
        }
    }
}

#[test]
fn a_frame_of_another_log_or_a_later_format_is_never_wiped() {
    let fs = SimFs::new();
    drop(create(&fs));
    let other = WalOptions { id: LogId([9; 16]), ..options() };
    let error = Wal::open(Arc::new(fs.clone()), other).unwrap_err();
    assert!(matches!(error, WalError::Missing { .. }), "{error:?}");
    assert!(Wal::open(Arc::new(fs), options()).is_ok(), "nothing was changed");
}

#[test]
fn a_missing_segment_is_refused() {
    let fs = SimFs::new();
    let mut wal = create(&fs);
    for index in 1..=40 {
        wal.append(&[entry(index, 1, &[b'x'; 500])], true).unwrap();
    }
    drop(wal);
    fs.remove(&segment(3)).unwrap();
    let error = Wal::open(Arc::new(fs), options()).unwrap_err();
    assert!(matches!(error, WalError::Missing { .. }), "{error:?}");
}

#[test]
fn a_truncated_segment_is_refused() {
    let fs = SimFs::new();
    let mut wal = create(&fs);
    wal.append(&[entry(1, 1, b"a")], true).unwrap();
    let end = wal.at as usize;
    drop(wal);
    fs.damage(&segment(1), |bytes| bytes.truncate(end));
    let error = Wal::open(Arc::new(fs), options()).unwrap_err();
    assert!(matches!(error, WalError::Inconsistent { .. }), "{error:?}");
}

fn create(fs: &SimFs) -> Wal {
    Wal::create(Arc::new(fs.clone()), options(), Position::default(), Promise::default()).unwrap()
}

fn reopen(fs: &SimFs, wal: Wal) -> Recovered {
    drop(wal);
    fs.power_cycle(&mut Dice::new(1));
    Wal::open(Arc::new(fs.clone()), options()).unwrap().1
}

fn options() -> WalOptions {
    WalOptions {
        dir: PathBuf::from("/wal"),
        id: LogId([5; 16]),
        segment_bytes: SEGMENT,
        frame_bytes: FRAME_BYTES,
        background: false,
    }
}

fn segment(number: u64) -> PathBuf {
    path_of(Path::new("/wal"), number)
}

fn entry(index: u64, term: u64, data: &[u8]) -> Record {
    Record::Entry {
        at: at(index, term),
        kind: 0,
        context: Bytes::new(),
        data: Bytes::copy_from_slice(data),
    }
}

const fn at(index: u64, term: u64) -> Position {
    Position { index, term }
}

fn texts(found: &Recovered) -> Vec<String> {
    let text = |record: &Record| match record {
        Record::Entry { data, .. } => Some(String::from_utf8_lossy(data).into_owned()),
        _ => None,
    };
    found.entries.iter().filter_map(text).collect()
}
