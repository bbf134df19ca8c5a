//! The promise that everything else rests on: what was acknowledged survives a power
//! cut at any write and any sync, with unsynced sectors lost, kept and mixed, and no
//! such cut makes a replica refuse to start.

use steading_coordinator::replica::sim_fs::{Dice, Faults, SimFs};
use steading_coordinator::replica::testkit::{MemStore, StepReplica};
use steading_protocol_tests::replica_kit::{Acknowledged, register, registered, small_layout};

/// Power cuts in all; `STEADING_POWER_CUTS` asks for more.
const CUTS: u64 = 10_000;

/// Cuts that one disk lives through, so that later ones meet what earlier ones left.
const CUTS_PER_DISK: u64 = 20;

#[test]
fn nothing_acknowledged_is_lost_in_ten_thousand_power_cuts() {
    let cuts = std::env::var("STEADING_POWER_CUTS")
        .map_or(CUTS, |cuts| cuts.parse().expect("STEADING_POWER_CUTS is a number"));
    let mut tally = Tally::default();
    for seed in 0..cuts.div_ceil(CUTS_PER_DISK) {
        if let Err(broken) = live(seed, Faults::default(), &mut tally) {
            panic!("seed {seed}: {broken}");
        }
    }
    println!("{tally:?}");
    // The test is worth its name only if cuts hit everything.
    assert!(tally.cut_in_open > cuts / 100, "{tally:?}");
    assert!(tally.cut_in_wave > cuts / 10, "{tally:?}");
    assert!(tally.cut_elsewhere > cuts / 100, "{tally:?}");
    assert!(tally.acknowledged > cuts, "{tally:?}");
}

#[test]
fn the_test_finds_the_loss_when_fdatasync_is_taken_out() {
    let faults = Faults { ignore_data_syncs: true, ..Faults::default() };
    let lost = (0..50).filter(|seed| {
        let outcome = live(*seed, faults, &mut Tally::default());
        matches!(outcome, Err(Broken::Lost(_)))
    });
    assert!(lost.count() > 0, "without fdatasync acknowledged proposals must get lost");
}

#[test]
fn a_failed_fdatasync_is_never_acknowledged_and_never_tried_again() {
    for seed in 0..200 {
        let mut tally = Tally::default();
        let fail_sync_in = Some(Dice::new(seed).below(40));
        if let Err(broken) = live(seed, Faults { fail_sync_in, ..Faults::default() }, &mut tally) {
            panic!("seed {seed}: {broken}");
        }
    }
}

#[test]
fn a_full_disk_stops_the_replica_and_loses_nothing() {
    for seed in 0..100 {
        let mut tally = Tally::default();
        let capacity = Some(6_000 + Dice::new(seed).below(20_000));
        if let Err(broken) = live(seed, Faults { capacity, ..Faults::default() }, &mut tally) {
            panic!("seed {seed}: {broken}");
        }
    }
}

/// What went wrong.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error("`{0}` was acknowledged and is lost")]
    Lost(String),
    #[error("the replica refuses to start after an ordinary power cut: {0}")]
    Refused(String),
    #[error("the state is broken: {0}")]
    Invariant(String),
}

/// What the cuts hit.
#[derive(Debug, Default)]
struct Tally {
    cut_in_open: u64,
    cut_in_wave: u64,
    cut_elsewhere: u64,
    acknowledged: u64,
}

/// One disk through all of its power cuts.
fn live(seed: u64, faults: Faults, tally: &mut Tally) -> Result<(), Broken> {
    let mut dice = Dice::new(seed);
    let (fs, store) = (SimFs::new(), MemStore::default());
    let mut acknowledged = Acknowledged::default();
    let mut last = 0;
    for cut in 0..CUTS_PER_DISK {
        // Faults come once the replica exists, or nothing would ever be acknowledged.
        fs.set_faults(if cut == 0 { Faults::default() } else { faults });
        // Half of the cuts hit soon, so that recovery itself is hit.
        let reach = if dice.chance(1, 2) { 12 } else { 90 };
        fs.cut_power_after(dice.below(reach));
        life(&fs, &store, &mut dice, &mut acknowledged, &mut last, tally)?;
        // Sometimes the process is killed first, and what it wrote is still readable.
        fs.set_faults(Faults { capacity: None, ..faults });
        if dice.chance(1, 4) && !fs.is_off() {
            fs.kill();
            fs.cut_power_after(dice.below(12));
            life(&fs, &store, &mut dice, &mut acknowledged, &mut last, tally)?;
        }
        fs.power_cycle(&mut dice);
        if dice.chance(1, 10) {
            damage_image(&store, &mut dice);
        }
    }
    fs.set_faults(Faults { capacity: None, fail_sync_in: None, ..faults });
    let replica = open(&fs, &store)?.ok_or_else(|| Broken::Refused("power is on".into()))?;
    check(&replica, &acknowledged)
}

/// From a start until the power goes (or the disk fails).
fn life(
    fs: &SimFs,
    store: &MemStore,
    dice: &mut Dice,
    acknowledged: &mut Acknowledged,
    last: &mut u64,
    tally: &mut Tally,
) -> Result<(), Broken> {
    let Some(mut replica) = open(fs, store)? else {
        tally.cut_in_open += 1;
        return Ok(());
    };
    check(&replica, acknowledged)?;
    loop {
        let count = 1 + dice.below(5);
        let names: Vec<String> =
            (*last..*last + count).map(|number| format!("n{number}")).collect();
        *last += count;
        // Few sizes, so that frames of different lives often begin at the same byte.
        let bytes = 100 * dice.below(7) as usize;
        let proposals = names.iter().map(|name| register(name, bytes));
        // One entry or several: these make several frames before one sync.
        let waves: Vec<Vec<_>> = match dice.chance(1, 2) {
            true => vec![proposals.collect()],
            false => proposals.map(|proposal| vec![proposal]).collect(),
        };
        let Ok(answers) = replica.propose(&waves) else {
            tally.cut_in_wave += 1;
            return Ok(());
        };
        for (name, answer) in names.into_iter().zip(answers) {
            if let Some(id) = answer.ok().and_then(|effects| registered(&effects)) {
                acknowledged.0.push((name, id));
                tally.acknowledged += 1;
            }
        }
        if dice.chance(1, 3) && replica.idle().is_err() {
            tally.cut_elsewhere += 1;
            return Ok(());
        }
        if dice.chance(1, 2) {
            replica.keep();
            if fs.is_off() {
                tally.cut_elsewhere += 1;
                return Ok(());
            }
        }
    }
}

/// `None` if the power went, or the disk failed, before it was open.
fn open(fs: &SimFs, store: &MemStore) -> Result<Option<StepReplica>, Broken> {
    let failures = fs.failures();
    match StepReplica::open(&small_layout(fs), Box::new(store.clone())) {
        Ok(replica) => Ok(Some(replica)),
        Err(_) if fs.is_off() || fs.failures() > failures => Ok(None),
        Err(error) => Err(Broken::Refused(format!("{error:?}"))),
    }
}

fn check(replica: &StepReplica, acknowledged: &Acknowledged) -> Result<(), Broken> {
    match acknowledged.missing_in(replica.state()) {
        Some(name) => Err(Broken::Lost(name.to_owned())),
        None => replica.state().check_invariants().map_err(Broken::Invariant),
    }
}

/// The image may fail in any way: it is made again.
fn damage_image(store: &MemStore, dice: &mut Dice) {
    store.with(|rows| match dice.below(3) {
        0 => rows.clear(),
        1 => {
            let victim = rows.keys().nth(dice.below(rows.len().max(1) as u64) as usize).cloned();
            victim.and_then(|key| rows.remove(&key));
        }
        _ => {
            let index = dice.below(rows.len().max(1) as u64) as usize;
            if let Some(byte) = rows.values_mut().nth(index).and_then(|row| row.last_mut()) {
                *byte ^= 1 << dice.below(8);
            }
        }
    });
}
