//! The reader of the log against damage: every single bit of a small log, and
//! anything that a fuzzer thinks of. It recovers a torn tail or refuses clearly;
//! it never panics, and never shows an entry that was not written.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use proptest::prelude::*;
use steading_coordinator::replica::sim_fs::SimFs;
use steading_coordinator::replica::wal::{
    LogId, Position, Promise, Record, Recovered, Wal, WalError, WalOptions,
};

#[test]
fn every_single_bit_flip_of_a_sealed_log_is_noticed_or_harmless() {
    let written = Written::new(true);
    for (name, bytes) in &written.segments {
        for bit in 0..bytes.len() * 8 {
            let outcome = written.open_with(name, |bytes| bytes[bit / 8] ^= 1 << (bit % 8));
            match outcome {
                // Behind the last frame, or in the frame that only seals.
                Ok(found) => assert_eq!(found.entries, written.entries, "{name} bit {bit}"),
                Err(error) => assert_clear(&error, name),
            }
        }
    }
}

#[test]
fn every_single_bit_flip_of_an_unsealed_log_costs_at_most_the_last_write() {
    let written = Written::new(false);
    let mut torn = 0;
    for (name, bytes) in &written.segments {
        for bit in 0..bytes.len() * 8 {
            match written.open_with(name, |bytes| bytes[bit / 8] ^= 1 << (bit % 8)) {
                Ok(found) => {
                    let all = &written.entries;
                    assert!(all.starts_with(&found.entries), "{name} bit {bit}");
                    assert!(found.entries.len() + 1 >= all.len(), "{name} bit {bit}");
                    torn += usize::from(found.entries.len() < all.len());
                }
                Err(error) => assert_clear(&error, name),
            }
        }
    }
    assert!(torn > 0, "the last write is not sealed, so damage to it looks torn");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_damage_makes_the_reader_panic_or_invent(
        damages in proptest::collection::vec(damage(), 1..6),
        sealed: bool,
    ) {
        let written = Written::new(sealed);
        let fs = written.fs.copy();
        for Damage { segment, offset, bytes } in damages {
            let (name, size) = &written.segments[segment % written.segments.len()];
            let offset = offset % size.len();
            fs.damage(&path(name), |content| {
                let end = (offset + bytes.len()).min(content.len());
                content[offset..end].copy_from_slice(&bytes[..end - offset]);
            });
        }
        // Several regions may be hit, the proofs with the frames, so that entries may be
        // missing; but what is there was written.
        if let Ok((_, found)) = Wal::open(Arc::new(fs), options()) {
            prop_assert!(written.entries.starts_with(&found.entries));
        }
    }

    #[test]
    fn bytes_that_are_no_log_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
        let fs = Written::new(true).fs.copy();
        fs.damage(&path("0000000000000001.seg"), |content| *content = bytes);
        prop_assert!(Wal::open(Arc::new(fs), options()).is_err());
    }

    #[test]
    fn moved_and_repeated_parts_of_the_log_itself_are_no_entries(
        from in 0usize..2048, to in 0usize..2048, len in 1usize..600,
    ) {
        let written = Written::new(true);
        let name = &written.segments[0].0;
        let outcome = written.open_with(name, |bytes| {
            let (from, to) = (from % bytes.len() / 8 * 8, to % bytes.len() / 8 * 8);
            let len = len.min(bytes.len() - from).min(bytes.len() - to);
            bytes.copy_within(from..from + len, to);
        });
        if let Ok(found) = outcome {
            prop_assert!(written.entries.starts_with(&found.entries));
        }
    }
}

#[derive(Clone, Debug)]
struct Damage {
    segment: usize,
    offset: usize,
    bytes: Vec<u8>,
}

fn damage() -> impl Strategy<Value = Damage> {
    let bytes = prop_oneof![
        proptest::collection::vec(any::<u8>(), 1..64),
        // Lost sectors and lost pages.
        (1usize..2000).prop_map(|len| vec![0; len]),
        (1usize..2000).prop_map(|len| vec![0xff; len]),
    ];
    (any::<usize>(), any::<usize>(), bytes).prop_map(|(segment, offset, bytes)| Damage {
        segment,
        offset,
        bytes,
    })
}

/// A small log of several segments, and what was written to it.
struct Written {
    fs: SimFs,
    entries: Vec<Record>,
    segments: Vec<(String, Vec<u8>)>,
}

impl Written {
    fn new(sealed: bool) -> Self {
        let fs = SimFs::new();
        let mut wal =
            Wal::create(Arc::new(fs.clone()), options(), Position::default(), Promise::default())
                .expect("a simulated disk takes a log");
        let mut entries = Vec::new();
        for index in 1..=9 {
            let entry = Record::Entry {
                at: Position { index, term: 1 + index / 4 },
                kind: 0,
                context: bytes::Bytes::new(),
                data: vec![index as u8; 40 * index as usize % 190].into(),
            };
            let promise = Promise { term: 1 + index / 4, vote: 1, commit: index - 1 };
            wal.append(&[entry.clone(), Record::Promise(promise)], true).expect("the disk is fine");
            entries.push(entry);
        }
        if sealed {
            wal.seal().expect("the disk is fine");
        }
        drop(wal);
        let numbered = |number: u64| format!("{number:016}.seg");
        let segments: Vec<_> = (1..)
            .map(numbered)
            .map_while(|name| fs.bytes(&path(&name)).map(|bytes| (name, bytes)))
            .collect();
        assert!(segments.len() > 1, "the log has several segments");
        Self { fs, entries, segments }
    }

    fn open_with(
        &self,
        name: &str,
        damage: impl FnOnce(&mut Vec<u8>),
    ) -> Result<Recovered, WalError> {
        let fs = self.fs.copy();
        fs.damage(&path(name), damage);
        let before = fs.bytes(&path(name));
        let outcome = Wal::open(Arc::new(fs.clone()), options()).map(|(_, found)| found);
        if outcome.is_err() {
            assert_eq!(fs.bytes(&path(name)), before, "a log that is refused is not changed");
        }
        outcome
    }
}

fn assert_clear(error: &WalError, name: &str) {
    let text = error.to_string();
    assert!(text.contains("Nothing was changed"), "{name}: {text}");
    assert!(!matches!(error, WalError::Io { .. }), "{name}: {text}");
}

fn options() -> WalOptions {
    WalOptions {
        dir: PathBuf::from("/wal"),
        id: LogId(*b"sixteen bytes id"),
        segment_bytes: 1 << 10,
        frame_bytes: 200,
        background: false,
    }
}

fn path(name: &str) -> PathBuf {
    Path::new("/wal").join(name)
}
