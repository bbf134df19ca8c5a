use steading_core::{NewAgent, Proposal};
use steading_model::{Provisioning, Resources, Timestamp};

use super::*;

#[test]
fn a_backup_is_read_back_as_it_was_taken_and_a_damaged_one_is_none() {
    let state = state_of(50);
    let manifest = Manifest::of(&state, "ab".repeat(16), 7, true);
    let mut file = packed(&manifest, &state);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("backup");
    let read_back = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        read(&path)
    };
    assert_eq!(read_back(&file).unwrap(), (manifest, state));

    for at in (0..file.len()).step_by(7) {
        let mut damaged = file.clone();
        damaged[at] ^= 1;
        assert!(read_back(&damaged).is_err(), "byte {at} was changed");
        assert!(read_back(&file[..at]).is_err(), "cut at {at}");
    }
    file.push(0);
    assert!(read_back(&file).is_err(), "something follows");
}

#[test]
fn a_backup_that_nobody_wants_any_more_ends() {
    let state = state_of(1);
    let manifest = Manifest::of(&state, String::new(), 1, false);
    let mut parts = 0;
    pack(&manifest, &state, &mut |_| {
        parts += 1;
        false
    })
    .unwrap();
    assert_eq!(parts, 1);
}

#[test]
fn a_backup_of_a_newer_level_is_refused_and_says_so() {
    let mut state = state_of(1);
    let newer = FEATURE_LEVEL + 1;
    let now = Timestamp::from_ms(10_000);
    let storage_id = "a".repeat(32);
    let endpoint = "https://a:1".to_owned();
    let update = Proposal::UpdateReplica { replica: 1, storage_id, endpoint, level: newer };
    for proposal in [update, Proposal::SetFeatureLevel { level: newer }] {
        state.apply(now, proposal).unwrap();
    }
    drop(state.take_writes());
    let manifest = Manifest::of(&state, String::new(), 1, false);
    assert_eq!(manifest.feature_level, newer);
    // Whatever the manifest says, the rows say it as well.
    for manifest in [Manifest { feature_level: 1, ..manifest.clone() }, manifest] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("backup");
        std::fs::write(&path, packed(&manifest, &state)).unwrap();
        let refused = read(&path).unwrap_err().to_string();
        assert!(refused.contains(&format!("feature level {newer}")), "{refused}");
        assert!(refused.contains("use a newer one"), "{refused}");
    }
}

fn packed(manifest: &Manifest, state: &State) -> Vec<u8> {
    let mut file = Vec::new();
    pack(manifest, state, &mut |part| {
        file.extend_from_slice(&part);
        true
    })
    .unwrap();
    file
}

fn state_of(agents: u32) -> State {
    let mut state = State::default();
    for number in 0..agents {
        let agent = NewAgent {
            name: format!("agent-{number}"),
            pool: "default".to_owned(),
            provisioning: Provisioning::OnDemand,
            labels: vec!["linux".to_owned()],
            slots: 1,
            resources: Resources { cpu_milli: 1_000, memory_mib: 1_000 },
            cache_endpoint: String::new(),
            start: 0,
            properties: Default::default(),
        };
        let now = Timestamp::from_ms(1_000 + u64::from(number));
        state.apply(now, Proposal::RegisterAgent { agent }).unwrap();
    }
    drop(state.take_writes());
    state
}
