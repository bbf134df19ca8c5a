//! Real processes, really killed: nothing that a replica acknowledged is gone when
//! it starts again.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use steading_coordinator::replica::sim_fs::Dice;

/// Kills in all.
const KILLS: u64 = 200;

/// Kills that one directory lives through.
const KILLS_PER_DIR: u64 = 20;

#[test]
fn nothing_acknowledged_is_lost_in_two_hundred_kills() {
    let mut acknowledged = 0;
    for dir in 0..KILLS / KILLS_PER_DIR {
        acknowledged += check(dir);
    }
    println!("{acknowledged} acknowledged proposals survived {KILLS} kills");
    assert!(acknowledged as u64 > KILLS, "the victims got to work");
}

/// One directory through its kills; how many proposals were acknowledged.
fn check(seed: u64) -> usize {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut dice = Dice::new(seed);
    let mut acknowledged: BTreeMap<String, String> = BTreeMap::new();
    for life in 0..=KILLS_PER_DIR {
        let mut victim = Victim::start(dir.path(), life);
        let mut have = BTreeSet::new();
        let mut left = dice.below(60);
        // Some are killed before they are ready: recovery is killed as well.
        let ready = life == KILLS_PER_DIR || dice.chance(4, 5);
        let mut complete = false;
        for line in victim.lines(ready) {
            match line.split(' ').collect::<Vec<_>>()[..] {
                ["have", name, id] => {
                    have.insert((name.to_owned(), id.to_owned()));
                }
                ["go"] => {
                    complete = true;
                    if left == 0 || life == KILLS_PER_DIR {
                        victim.kill();
                    }
                }
                ["ack", name, id] => {
                    acknowledged.insert(name.to_owned(), id.to_owned());
                    left = left.saturating_sub(1);
                    if left == 0 {
                        victim.kill();
                    }
                }
                _ => panic!("seed {seed}, life {life}: the victim says `{line}`"),
            }
            if complete && line == "go" {
                for (name, id) in &acknowledged {
                    let held = have.contains(&(name.clone(), id.clone()));
                    assert!(held, "seed {seed}, life {life}: `{name}` was acknowledged as {id}");
                }
            }
        }
        assert!(complete || !ready, "seed {seed}, life {life}: the replica did not start");
        victim.end();
    }
    acknowledged.len()
}

/// The process that is killed; killed as well when the test gives up.
struct Victim {
    child: Child,
    output: Option<BufReader<std::process::ChildStdout>>,
}

impl Victim {
    fn start(dir: &Path, life: u64) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_replica-victim"))
            .arg(dir)
            .arg(life.to_string())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the victim is a program of this package");
        let output = child.stdout.take().map(BufReader::new);
        Self { child, output }
    }

    /// What it says until it is dead; whole lines only. Dead at once unless `ready`.
    fn lines(&mut self, ready: bool) -> impl Iterator<Item = String> + use<> {
        if !ready {
            self.kill();
        }
        let mut output = self.output.take().expect("read once");
        std::iter::from_fn(move || {
            let mut line = String::new();
            output.read_line(&mut line).expect("a pipe can be read");
            line.strip_suffix('\n').map(str::to_owned)
        })
    }

    /// SIGKILL.
    fn kill(&mut self) {
        self.child.kill().expect("a child can be killed");
    }

    fn end(mut self) {
        self.kill();
        self.child.wait().expect("a child can be waited for");
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
