use steading_model::Timestamp;

use crate::testkit::Stage;
use crate::{Proposal, Rejection};

#[test]
fn a_directory_is_a_member_once_and_an_empty_one_is_somebody_new() {
    check(&[
        ("update 1 a unix:/a", "1:a@unix:/a"),
        ("admit b unix:/b", "1:a@unix:/a 2:b@unix:/b"),
        ("admit b unix:/b", "1:a@unix:/a 2:b@unix:/b"),
        ("admit c unix:/b", "1:a@unix:/a 2:b@unix:/b 3:c@unix:/b"),
        ("admit b unix:/elsewhere", "1:a@unix:/a 2:b@unix:/elsewhere 3:c@unix:/b"),
        ("update 2 c unix:/b", "! replica and directory do not belong together"),
        ("update 2 d unix:/b", "! replica and directory do not belong together"),
        ("admit xyz unix:/b", "! replica and directory do not belong together"),
    ]);
}

#[test]
fn an_id_that_was_never_given_out_is_nobodys() {
    check(&[
        ("update 0 a unix:/a", "! replica is not known"),
        ("update 2 a unix:/a", "! replica is not known"),
        ("update 18446744073709551615 a unix:/a", "! replica is not known"),
        ("admit b unix:/b", "2:b@unix:/b"),
    ]);
}

#[test]
fn the_founder_keeps_its_id_though_others_were_admitted_first() {
    check(&[
        ("admit b unix:/b", "2:b@unix:/b"),
        ("update 1 a unix:/a", "1:a@unix:/a 2:b@unix:/b"),
        ("admit c unix:/c", "1:a@unix:/a 2:b@unix:/b 3:c@unix:/c"),
    ]);
}

#[test]
fn who_was_removed_stays_out_and_the_last_one_stays_in() {
    check(&[
        ("update 1 a unix:/a", "1:a@unix:/a"),
        ("remove 1", "! replica is the last one of the group"),
        ("admit b unix:/b", "1:a@unix:/a 2:b@unix:/b"),
        ("remove 2", "1:a@unix:/a 2:b@unix:/b(removed)"),
        ("remove 2", "1:a@unix:/a 2:b@unix:/b(removed)"),
        ("remove 1", "! replica is the last one of the group"),
        ("remove 9", "! replica is not known"),
        ("admit b unix:/b", "! replica was removed from the group; begin with an empty directory"),
        (
            "update 2 b unix:/b",
            "! replica was removed from the group; begin with an empty directory",
        ),
        ("admit c unix:/b", "1:a@unix:/a 2:b@unix:/b(removed) 3:c@unix:/b"),
    ]);
}

#[test]
fn a_full_table_forgets_who_was_removed_first() {
    check(&[
        ("update 1 a unix:/a", "1:a@unix:/a"),
        ("admit b unix:/b", "1:a@unix:/a 2:b@unix:/b"),
        ("admit c unix:/c", "1:a@unix:/a 2:b@unix:/b 3:c@unix:/c"),
        ("admit d unix:/d", "1:a@unix:/a 2:b@unix:/b 3:c@unix:/c 4:d@unix:/d"),
        ("admit e unix:/e", "! a limit is exceeded: number of replicas is 5, at most 4"),
        ("remove 3", "1:a@unix:/a 2:b@unix:/b 3:c@unix:/c(removed) 4:d@unix:/d"),
        ("admit e unix:/e", "1:a@unix:/a 2:b@unix:/b 4:d@unix:/d 5:e@unix:/e"),
    ]);
}

/// Each line is a proposal, and the replicas after it or why it was refused. A letter
/// stands for the directory of that digit.
fn check(story: &[(&str, &str)]) {
    let mut stage = Stage::default();
    for (line, want) in story {
        let words: Vec<&str> = line.split(' ').collect();
        let directory = |word: &str| match word {
            letter if letter.len() == 1 => letter.repeat(32),
            other => other.to_owned(),
        };
        let id = |word: &str| word.parse().expect("an id is a number");
        let proposal = match words[..] {
            ["admit", storage, endpoint] => Proposal::AdmitReplica {
                storage_id: directory(storage),
                endpoint: endpoint.into(),
                level: 1,
            },
            ["update", replica, storage, endpoint] => Proposal::UpdateReplica {
                replica: id(replica),
                storage_id: directory(storage),
                endpoint: endpoint.into(),
                level: 1,
            },
            ["remove", replica] => Proposal::RemoveReplica { replica: id(replica), force: false },
            _ => panic!("no proposal `{line}`"),
        };
        let got = match stage.apply(Timestamp::from_ms(1_000_000), proposal) {
            Ok(_) => show(&stage),
            Err(rejection) => refused(&rejection),
        };
        assert_eq!(got, *want, "after `{line}`");
    }
}

fn show(stage: &Stage) -> String {
    let replicas = stage.state.replicas().map(|replica| {
        let removed = if replica.removed { "(removed)" } else { "" };
        format!("{}:{}@{}{removed}", replica.id, &replica.storage_id[..1], replica.endpoint)
    });
    replicas.collect::<Vec<_>>().join(" ")
}

fn refused(rejection: &Rejection) -> String {
    format!("! {rejection}")
}
