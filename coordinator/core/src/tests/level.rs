use crate::testkit::Stage;
use crate::{Proposal, Rejection};
use steading_model::Timestamp;

const NOW: Timestamp = Timestamp::from_ms(1000);

#[test]
fn the_level_is_raised_once_all_replicas_know_it_and_never_lowered() {
    let mut stage = Stage::default();
    let refused = |level| Err(Rejection::FeatureLevel { level, current: 1 });
    assert_eq!(stage.apply(NOW, Proposal::SetFeatureLevel { level: 2 }), refused(2));
    stage.apply(NOW, update(1, 2)).unwrap();
    stage.apply(NOW, admit("b", 1)).unwrap();
    assert_eq!(stage.apply(NOW, Proposal::SetFeatureLevel { level: 2 }), refused(2));
    assert_eq!(stage.apply(NOW, probe()), refused(2));
    assert!(!stage.state.chain_is_common(1, 2));

    stage.apply(NOW, admit("b", 2)).unwrap();
    stage.apply(NOW, Proposal::SetFeatureLevel { level: 2 }).unwrap();
    assert_eq!(stage.state.feature_level(), 2);
    assert!(stage.state.chain_is_common(1, 2));
    stage.apply(NOW, probe()).unwrap();
    let refused = |level| Err(Rejection::FeatureLevel { level, current: 2 });
    for level in [0, 1, 2, 3] {
        assert_eq!(stage.apply(NOW, Proposal::SetFeatureLevel { level }), refused(level));
    }
    // An older version would not understand the log.
    assert_eq!(stage.apply(NOW, admit("c", 1)), refused(1));
}

#[test]
fn a_new_version_compares_nothing_before_its_row_says_that_it_is_new() {
    let mut stage = Stage::default();
    stage.apply(NOW, update(1, 1)).unwrap();
    stage.apply(NOW, admit("b", 1)).unwrap();
    assert!(stage.state.chain_is_common(1, 1));
    // Replica 1 was started as a later version just now, and hashes what that would.
    assert!(!stage.state.chain_is_common(1, 2));
}

#[test]
fn the_chain_begins_anew_when_the_last_of_a_later_version_is_gone() {
    let mut stage = Stage::default();
    stage.apply(NOW, update(1, 1)).unwrap();
    stage.apply(NOW, admit("b", 1)).unwrap();
    assert_eq!(stage.state.chain_from(), 0);
    // What it hashes from here on may be other than what the others do.
    stage.apply(NOW, admit("b", 2)).unwrap();
    assert_eq!(stage.state.chain_from(), 0, "nothing is compared yet");
    stage.apply(NOW, admit("b", 1)).unwrap();
    assert_eq!(stage.state.chain_from(), 3, "it went back");
    stage.apply(NOW, admit("b", 1)).unwrap();
    stage.apply(NOW, admit("c", 2)).unwrap();
    stage.apply(NOW, Proposal::RemoveReplica { replica: 3, force: false }).unwrap();
    assert_eq!(stage.state.chain_from(), 6, "it left");
    assert!(stage.state.chain_is_common(1, 1));
}

fn update(replica: u64, level: u32) -> Proposal {
    Proposal::UpdateReplica {
        replica,
        storage_id: "a".repeat(32),
        endpoint: "https://a:1".into(),
        level,
    }
}

fn admit(name: &str, level: u32) -> Proposal {
    Proposal::AdmitReplica { storage_id: name.repeat(32), endpoint: "https://b:1".into(), level }
}

fn probe() -> Proposal {
    Proposal::Probe { note: "new".into() }
}
