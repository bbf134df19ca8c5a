//! How often things happened, to see that a simulation is worth its time: a fault that
//! never happened has shown nothing.

use std::fmt;

use steading_coordinator::replica::sim_fs::Losses;

macro_rules! seen {
    ($($name:ident = $text:literal,)*) => {
        /// Something that is counted.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Seen { $($name,)* }

        impl Seen {
            /// Everything that is counted.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            const fn text(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

seen! {
    // What the farm did.
    Accepted = "proposals accepted",
    Refused = "proposals refused",
    Runs = "runs admitted",
    Assigned = "leases granted",
    Completed = "attempts completed",
    Expired = "leases expired",
    StaleReports = "late reports refused",
    Registered = "agents registered",
    Cancels = "runs cancelled",
    Retried = "ended runs that went on",
    Replans = "plans accepted",
    Retired = "runs forgotten",
    Frozen = "jobs frozen at their deadline",
    Thawed = "jobs thawed",
    JobsKilled = "jobs killed, their lease refused",
    Renewed = "renewals acknowledged",
    Led = "terms begun",
    // What befell replicas.
    Killed = "replicas killed",
    LeaderKilled = "leaders killed",
    AllKilled = "all replicas killed",
    AllPower = "power cut everywhere",
    PowerInWrite = "power cut in a write or sync",
    PowerAtRest = "power cut at rest",
    SectorsLost = "unsynced sectors lost",
    SectorsKept = "unsynced sectors kept",
    SectorsOlder = "unsynced sectors kept as they had been",
    NamesLost = "unsynced names lost",
    Paused = "replicas stopped for a while",
    LeaderPaused = "leaders stopped for a while",
    Transferred = "leaderships handed over",
    ClockJumped = "clocks set",
    DiskSlow = "disks slow",
    SyncFailed = "syncs that failed",
    WriteFailed = "writes that failed",
    DiskFull = "writes to a full disk",
    DiskLow = "disks nearly full",
    AllLow = "all disks nearly full",
    LedLow = "terms begun on a disk that is nearly full",
    ImageLost = "images lost",
    SnapshotSent = "snapshots sent",
    SnapshotDamaged = "snapshots damaged on the way",
    SnapshotInstalled = "snapshots installed",
    InstalledAtWork = "snapshots installed while the keeper was at work",
    SentUnwritten = "messages that left before a write that failed",
    LogRotten = "bits flipped in a log",
    SnapshotRotten = "bits flipped in a snapshot, the image lost",
    RotFound = "starts refused because of a flipped bit",
    Wiped = "disks lost",
    Removed = "members taken out by force",
    Replaced = "members to be replaced",
    Grown = "machines that came new",
    Admitted = "directories admitted",
    LearnerAdded = "learners added",
    LearnerLeft = "learners taken out",
    VotersChanged = "joint configurations entered",
    JointLeft = "joint configurations left",
    HandedOver = "leaderships handed over for the group's sake",
    Left = "members stopped once they were out",
    // What befell the network.
    Lost = "packets lost",
    Doubled = "packets doubled",
    Overtaken = "packets delayed, so that others overtook them",
    Cut = "packets that met a cut",
    CutBoth = "two cut off from each other",
    CutOneWay = "two cut off in one direction",
    Isolated = "replicas cut off from the others",
    LeaderIsolated = "leaders cut off from the others",
    Stranded = "agents that reach a stopped leader only",
    AgentAlone = "agents cut off",
    Storm = "storms",
    // What befell agents.
    AgentKilled = "agents killed",
    MachineLost = "machines of agents lost",
    AgentPaused = "agents stopped for a while",
    MachinePaused = "machines of agents stopped for a while",
    Preempted = "machines of agents taken away after a notice",
    HandedBack = "leases handed back before that",
}

/// Counts of everything that is [`Seen`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tally([u64; Seen::ALL.len()]);

impl Default for Tally {
    fn default() -> Self {
        Self([0; Seen::ALL.len()])
    }
}

impl Tally {
    pub(crate) const fn saw(&mut self, what: Seen) {
        self.0[what as usize] += 1;
    }

    pub(crate) const fn saw_many(&mut self, what: Seen, count: u64) {
        self.0[what as usize] += count;
    }

    pub(crate) const fn saw_losses(&mut self, losses: &Losses) {
        self.saw_many(Seen::SectorsLost, losses.sectors_lost);
        self.saw_many(Seen::SectorsKept, losses.sectors_kept);
        self.saw_many(Seen::SectorsOlder, losses.sectors_older);
        self.saw_many(Seen::NamesLost, losses.names_lost);
        self.saw_many(Seen::PowerInWrite, losses.cut_short);
        self.saw_many(Seen::SyncFailed, losses.syncs_failed);
        self.saw_many(Seen::WriteFailed, losses.writes_failed);
        self.saw_many(Seen::DiskFull, losses.writes_refused);
    }

    /// How often it happened.
    pub const fn of(&self, what: Seen) -> u64 {
        self.0[what as usize]
    }

    /// Adds another world's.
    pub fn add(&mut self, other: &Self) {
        self.0.iter_mut().zip(other.0).for_each(|(count, more)| *count += more);
    }

    /// What never happened.
    pub fn missing(&self) -> Vec<Seen> {
        Seen::ALL.iter().copied().filter(|what| self.of(*what) == 0).collect()
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for what in Seen::ALL {
            writeln!(f, "{:>12} {}", self.of(*what), what.text())?;
        }
        Ok(())
    }
}
