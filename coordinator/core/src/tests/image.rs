use proptest::collection::vec;
use proptest::prelude::*;
use steading_model::Timestamp;
use steading_model::codec::Decode;

use crate::testkit::{Stage, job};
use crate::tests::properties::{play, some_cases, step};
use crate::{ImageError, Proposal, State};

#[test]
fn no_rows_are_the_empty_state_and_some_without_counters_are_none() {
    assert_eq!(State::from_rows([]), Ok(State::default()));
    let mut stage = Stage::default();
    play(&mut stage, &[[0, 0, 0, 0, 0, 0], [2, 0, 1, 0, 0, 0]]);
    let rows = stage.state.rows().skip(1);
    assert_eq!(State::from_rows(rows), Err(ImageError::MetaMissing));
    let foreign = stage.state.rows().chain([(vec![99, 1], vec![0])]);
    assert_eq!(State::from_rows(foreign), Err(ImageError::Table(Some(99))));
}

#[test]
fn a_row_under_another_rows_key_is_refused() {
    let mut stage = Stage::default();
    play(&mut stage, &[[0, 0, 0, 0, 0, 0]]);
    let rows = stage.state.rows().map(|(mut key, row)| {
        if key[0] == 4 {
            key[8] += 1;
        }
        (key, row)
    });
    assert_eq!(State::from_rows(rows), Err(ImageError::KeyDiffers { table: 4 }));
}

#[test]
fn only_what_changed_is_written_again() {
    let mut stage = Stage::default();
    play(&mut stage, &[[0, 0, 0, 0, 0, 0], [2, 0, 9, 0, 0, 0]]);
    let mut state = stage.state.clone();
    assert!(state.take_writes().is_empty(), "the stage took them");
    let refused = Proposal::AppendJobs {
        run: "run-9".parse().unwrap(),
        offset: 0,
        jobs: vec![job("a")],
        sealed: true,
    };
    state.apply(Timestamp::default(), refused).unwrap_err();
    let keys: Vec<Vec<u8>> = state.take_writes().into_iter().map(|(key, _)| key).collect();
    assert_eq!(keys, [vec![0]], "a refused proposal changes the counters' row alone");
}

#[test]
fn a_clone_is_left_alone_by_what_comes_after() {
    let mut stage = Stage::default();
    play(&mut stage, &[[0, 0, 0, 0, 0, 0], [2, 0, 9, 0, 0, 0]]);
    let view = stage.state.clone();
    let rows: Vec<_> = view.rows().collect();
    play(&mut stage, &[[4, 0, 0, 1, 5, 0], [13, 0, 0, 0, 0, 1]]);
    assert_ne!(stage.state, view);
    assert_eq!(view.rows().collect::<Vec<_>>(), rows);
}

proptest! {
    #![proptest_config(some_cases())]

    #[test]
    fn a_damaged_image_is_refused_or_read_but_never_a_panic(
        steps in vec(step(), 1..30),
        at in any::<prop::sample::Index>(),
        bit in 0usize..8,
    ) {
        let mut stage = Stage::default();
        play(&mut stage, &steps);
        let mut rows: Vec<_> = stage.state.rows().collect();
        let total: usize = rows.iter().map(|(key, row)| key.len() + row.len()).sum();
        let mut at = at.index(total);
        for (key, row) in &mut rows {
            for byte in key.iter_mut().chain(row) {
                if at == 0 {
                    *byte ^= 1 << bit;
                }
                at = at.wrapping_sub(1);
            }
        }
        let _ = State::from_rows(rows);
    }

    #[test]
    fn any_bytes_are_a_proposal_or_an_error(bytes in vec(any::<u8>(), 0..300), kind in 1u8..80) {
        let _ = Proposal::from_bytes(&bytes);
        let mut framed = vec![kind, bytes.len().min(127) as u8];
        framed.extend_from_slice(&bytes[..bytes.len().min(127)]);
        let _ = Proposal::from_bytes(&framed);
    }
}
