use steading_model::limits::CERTIFICATE_MS;
use steading_model::{Role, Timestamp};

use crate::testkit::Stage;
use crate::{Effect, NewToken, Proposal, Rejection, State};

/// When a story begins, so that nothing of it is at the time that stands for none.
const START_MS: u64 = 1_000_000;

#[test]
fn a_token_works_once_and_answers_the_same_key_again() {
    check(&[
        (0, "token t agent uses=1 ttl=900000", "ok"),
        (1, "redeem t s k1 a", "agent/a"),
        (2, "redeem t s k1 a", "agent/a"),
        (3, "redeem t s k2 b", "! token was used as often as it may be"),
        (4, "redeem t s k1 c", "! token is bound to another name"),
        (5, "redeem t x k1 a", "! token is not known"),
        (6, "redeem u s k1 a", "! token is not known"),
        (900_000, "redeem t s k1 a", "! token is over"),
    ]);
}

#[test]
fn a_refused_try_uses_nothing_up() {
    check(&[
        (0, "token t agent uses=1 ttl=900000", "ok"),
        (1, "redeem t x k1 a", "! token is not known"),
        (
            2,
            "redeem t s k1 a/b",
            "! name has other characters than letters, digits, `-`, `_` and `.`",
        ),
        (3, "redeem t s k1 a", "agent/a"),
    ]);
}

#[test]
fn nobody_takes_a_name_that_another_key_has() {
    check(&[
        (0, "token t agent uses=9 ttl=900000000", "ok"),
        (1, "redeem t s k1 a", "agent/a"),
        (2, "redeem t s k2 a", "! name belongs to another key"),
        // Another role is another name.
        (3, "token c client uses=9 ttl=900000000", "ok"),
        (4, "redeem c s k2 a", "client/a"),
        // Who may have the name is said by a token that is bound to it.
        (5, "token b agent uses=1 ttl=900000 name=a", "ok"),
        (6, "redeem b s k3 z", "! token is bound to another name"),
        (7, "redeem b s k3 -", "agent/a"),
        (8, "redeem t s k1 a", "! name belongs to another key"),
        (9, "renew agent a k1", "! name belongs to another key"),
        (10, "renew agent a k3", "ok"),
        (10 + CERTIFICATE_MS - 1, "redeem t s k4 a", "! name belongs to another key"),
        (10 + CERTIFICATE_MS, "redeem t s k4 a", "agent/a"),
    ]);
}

#[test]
fn a_token_that_was_revoked_is_unknown() {
    check(&[
        (0, "token t client uses=2 ttl=900000", "ok"),
        (1, "redeem t s k1 a", "client/a"),
        (2, "revoke t", "ok"),
        (3, "redeem t s k1 a", "! token is not known"),
        (4, "revoke t", "! token is not known"),
    ]);
}

#[test]
fn who_is_denied_neither_joins_nor_renews() {
    check(&[
        (0, "token t agent uses=2 ttl=900000", "ok"),
        (1, "redeem t s k1 a", "agent/a"),
        (2, "deny agent/a", "ok"),
        (3, "redeem t s k1 a", "! it was denied to the cluster"),
        (4, "renew agent a k1", "! it was denied to the cluster"),
        (5, "allow agent/a", "ok"),
        (6, "allow agent/a", "! it is not denied"),
        (7, "redeem t s k1 a", "agent/a"),
    ]);
}

#[test]
fn full_tables_forget_what_is_over_and_refuse_otherwise() {
    check(&[
        (0, "token a agent uses=9 ttl=10", "ok"),
        (0, "token b agent uses=9 ttl=900000000", "ok"),
        (0, "token c agent uses=9 ttl=900000000", "ok"),
        (
            1,
            "token d agent uses=9 ttl=10",
            "! a limit is exceeded: number of tokens is 4, at most 3",
        ),
        (10, "token d agent uses=9 ttl=10", "ok"),
        (11, "redeem b s k1 a", "agent/a"),
        (12, "redeem b s k2 b", "agent/b"),
        (13, "redeem b s k3 c", "agent/c"),
        (14, "redeem b s k4 d", "! a limit is exceeded: number of members is 4, at most 3"),
        (12 + CERTIFICATE_MS, "redeem b s k4 d", "agent/d"),
    ]);
}

#[test]
fn a_ca_is_believed_for_a_while_after_its_coordinator_left_and_not_when_denied() {
    let mut stage = Stage::default();
    let (one, two) = ("1".repeat(32), "2".repeat(32));
    for (replica, storage_id) in [(1, &one), (2, &two)] {
        // The founder makes itself known, and lets the other one in.
        let proposal = if replica == 1 { update(1, storage_id) } else { admit(storage_id) };
        play(&mut stage, 0, proposal);
        let certificate = vec![replica as u8];
        let storage_id = storage_id.clone();
        let ancestors = Vec::new();
        play(&mut stage, 0, Proposal::AddAuthority { storage_id, certificate, ancestors });
    }
    assert_eq!(anchors(&stage.state, 0), [1, 2]);
    play(&mut stage, 5, Proposal::RemoveReplica { replica: 1, force: false });
    assert_eq!(anchors(&stage.state, 5 + CERTIFICATE_MS - 1), [1, 2]);
    assert_eq!(anchors(&stage.state, 5 + CERTIFICATE_MS), [2]);
    let subject = format!("coordinator/{one}");
    let by = "root".parse().unwrap();
    play(&mut stage, 6, Proposal::Deny { subject, reason: String::new(), by });
    assert_eq!(anchors(&stage.state, 6), [2]);
}

fn update(replica: u64, storage_id: &str) -> Proposal {
    let (storage_id, endpoint) = (storage_id.to_owned(), "unix:/s".to_owned());
    Proposal::UpdateReplica { replica, storage_id, endpoint, level: 1 }
}

fn admit(storage_id: &str) -> Proposal {
    let (storage_id, endpoint) = (storage_id.to_owned(), "unix:/t".to_owned());
    Proposal::AdmitReplica { storage_id, endpoint, level: 1 }
}

fn play(stage: &mut Stage, ms: u64, proposal: Proposal) {
    stage.apply(Timestamp::from_ms(START_MS + ms), proposal).unwrap();
}

fn anchors(state: &State, ms: u64) -> Vec<u8> {
    let now = Timestamp::from_ms(START_MS + ms);
    let anchors = state.authorities().filter(|authority| state.is_anchor(authority, now));
    anchors.map(|authority| authority.certificate[0]).collect()
}

/// Each line: when, what is proposed, and the answer.
fn check(story: &[(u64, &str, &str)]) {
    let mut stage = Stage::default();
    for (ms, line, want) in story {
        let now = Timestamp::from_ms(START_MS + ms);
        let got = match stage.apply(now, proposal(line)) {
            Ok(effects) => effects.first().map_or_else(|| "ok".to_owned(), show),
            Err(rejection) => format!("! {rejection}"),
        };
        assert_eq!(got, *want, "at {ms} `{line}`");
    }
}

fn proposal(line: &str) -> Proposal {
    let words: Vec<&str> = line.split(' ').collect();
    let by = || "root".parse().unwrap();
    match words[..] {
        ["token", id, role, ref options @ ..] => {
            let option = |name: &str| {
                options.iter().find_map(|option| option.strip_prefix(&format!("{name}=")))
            };
            Proposal::CreateToken {
                token: NewToken {
                    id: id.into(),
                    secret: bytes("s"),
                    role: role.parse().unwrap(),
                    pool: String::new(),
                    name: option("name").unwrap_or_default().into(),
                    uses: option("uses").unwrap().parse().unwrap(),
                    ttl_ms: option("ttl").unwrap().parse().unwrap(),
                    by: by(),
                },
            }
        }
        ["revoke", id] => Proposal::RevokeToken { id: id.into() },
        ["redeem", id, secret, key, name] => Proposal::RedeemToken {
            id: id.into(),
            secret: bytes(secret),
            key: bytes(key),
            name: if name == "-" { String::new() } else { name.into() },
        },
        ["renew", role, name, key] => Proposal::RenewMember {
            role: role.parse::<Role>().unwrap(),
            name: name.into(),
            key: bytes(key),
        },
        ["deny", subject] => {
            Proposal::Deny { subject: subject.into(), reason: "left".into(), by: by() }
        }
        ["allow", subject] => Proposal::Allow { subject: subject.into() },
        _ => panic!("no proposal `{line}`"),
    }
}

fn bytes(text: &str) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes[..text.len()].copy_from_slice(text.as_bytes());
    bytes
}

fn show(effect: &Effect) -> String {
    match effect {
        Effect::Redeemed { role, name } => format!("{role}/{name}"),
        other => format!("{other:?}"),
    }
}

#[test]
fn a_rejection_is_words_that_a_person_reads() {
    assert_eq!(Rejection::TokenDiffers.to_string(), "another token has this id");
}
