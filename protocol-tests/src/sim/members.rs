//! Machines that come and go: disks that are lost or rot, members that are replaced,
//! groups that grow and shrink. The leader follows the rows by the coordinator's own rule.
//!
//! What a voter has acknowledged counts until it is out of the group. So nothing is taken
//! from the group as long as something that it counts on is gone already: see
//! [`World::may_lose`].

use std::path::PathBuf;

use steading_coordinator::replica::sim_member::Member;
use steading_core::{Proposal, Rejection};

use super::calls::{Answered, Call, Purpose};
use super::host::Host;
use super::net::Peer;
use super::queue::{MS, S, Us};
use super::tally::Seen;
use super::world::{Event, World};

/// Most machines for replicas, those not counted that are gone for good.
const MACHINES_MAX: usize = 6;

impl World {
    /// Whether the group can do without this machine's disk.
    pub(crate) fn may_lose(&mut self, replica: usize) -> bool {
        let Some(leader) = self.leader() else { return false };
        let Some(member) = &self.hosts[leader].member else { return false };
        let (group, host) = (member.membership(), &self.hosts[replica]);
        let is_missed = |member: &Member| {
            let group = member.membership();
            self.dead.iter().any(|id| group.contains(*id))
        };
        let all_there = !self.hosts.iter().filter_map(|host| host.member.as_ref()).any(is_missed)
            && !self.hosts.iter().any(Host::is_doomed);
        let enough = !group.votes(host.id) || group.voters.len() >= 3;
        let settled = member.leads().is_some() && !group.is_joint();
        settled && all_there && enough && group.contains(host.id) && !host.is_gone
    }

    /// The disk is gone. An empty one takes its place, and joins as somebody new.
    pub(crate) fn wipe(&mut self, replica: usize, down: Us) {
        if self.may_lose(replica) {
            self.saw(Seen::Wiped);
            let old = self.hosts[replica].id;
            self.crash(replica, down);
            self.put_new_disk(replica);
            self.operate(Proposal::RemoveReplica { replica: old, force: false });
        }
    }

    /// The operator takes the member out; its machine comes back as somebody new.
    pub(crate) fn remove(&mut self, replica: usize) {
        if self.may_lose(replica) {
            self.saw(Seen::Removed);
            let id = self.hosts[replica].id;
            self.dead.insert(id);
            self.hosts[replica].comes_back = true;
            self.operate(Proposal::RemoveReplica { replica: id, force: true });
        }
    }

    /// A new machine takes the place of this one.
    pub(crate) fn replace(&mut self, replica: usize) {
        if self.may_lose(replica) && self.grow() {
            self.saw(Seen::Replaced);
            self.dead.insert(self.hosts[replica].id);
            self.hosts[replica].leaves = true;
        }
    }

    /// A new machine joins; whether there is room for it.
    pub(crate) fn grow(&mut self) -> bool {
        let machines = self.hosts.iter().filter(|host| !host.is_gone).count();
        if machines >= MACHINES_MAX {
            return false;
        }
        self.saw(Seen::Grown);
        let replica = self.hosts.len();
        let mut host = Host::new(0, self.plan.disk_us, 0, 0);
        host.storage_id = self.new_storage();
        host.is_empty = true;
        self.hosts.push(host);
        self.queue.push(self.now + S, Event::Restart { replica, life: 0 });
        true
    }

    /// A bit of the log or of a snapshot rots while the process is down.
    pub(crate) fn flip_bit(&mut self, replica: usize, snapshot: bool) {
        if self.hosts[replica].member.is_none() || !self.may_lose(replica) {
            return;
        }
        let host = &mut self.hosts[replica];
        let Some(member) = &mut host.member else { return };
        // Else the last frame could pass for one that was never finished.
        if host.fs.is_off() || host.busy_until > self.now || member.seal().is_err() {
            return;
        }
        let last = member.last_index();
        let folder = if snapshot { "snapshots" } else { "wal" };
        let rots = |path: &PathBuf| {
            let counts = !snapshot || path.extension().is_some_and(|end| end == "snap");
            path.parent().is_some_and(|dir| dir.ends_with(folder)) && counts
        };
        let paths: Vec<_> = host.fs.paths().into_iter().filter(rots).collect();
        if paths.is_empty() {
            return;
        }
        let path = &paths[self.dice.below(paths.len() as u64) as usize];
        let (dice, mut flipped) = (&mut self.dice, false);
        host.fs.damage(path, |bytes| {
            // Only where something was written: nothing is lost with zeros.
            let mut written: Vec<&mut u8> = bytes.iter_mut().filter(|byte| **byte != 0).collect();
            if !written.is_empty() {
                let at = dice.below(written.len() as u64) as usize;
                *written[at] ^= 1 << dice.below(8);
                flipped = true;
            }
        });
        if !flipped {
            return;
        }
        if snapshot {
            host.store.with(std::collections::BTreeMap::clear);
        }
        host.flipped = Some(last);
        host.rotten = snapshot.then(|| path.clone());
        self.saw(if snapshot { Seen::SnapshotRotten } else { Seen::LogRotten });
        self.crash(replica, S);
    }

    /// A replica with a flipped bit started after all, or refused to.
    pub(crate) fn flip_met(&mut self, replica: usize, last: u64) {
        let Some(member) = &mut self.hosts[replica].member else {
            self.saw(Seen::RotFound);
            let old = self.hosts[replica].id;
            self.put_new_disk(replica);
            return self.operate(Proposal::RemoveReplica { replica: old, force: false });
        };
        let there = member.last_index();
        if there < last {
            let what = format!("a flipped bit cost entries {there} to {last}, and nobody noticed");
            self.ensure(Err(what));
        }
    }

    fn put_new_disk(&mut self, replica: usize) {
        let storage_id = self.new_storage();
        let host = &mut self.hosts[replica];
        self.audit.tally.saw_losses(&host.fs.losses());
        self.dead.insert(host.id);
        let old = std::mem::replace(host, Host::new(0, self.plan.disk_us, host.rate_ppm, 0));
        (host.storage_id, host.is_empty, host.life) = (storage_id, true, old.life);
    }

    fn new_storage(&mut self) -> String {
        self.number += 1;
        format!("{:032x}", self.number)
    }

    fn operate(&mut self, proposal: Proposal) {
        self.ask(Peer::Client(0), Purpose::Operate, proposal, Us::MAX);
    }

    /// An empty directory asks to be somebody.
    pub(crate) fn ask_admission(&mut self, replica: usize) {
        let host = &self.hosts[replica];
        if host.calls.is_empty() {
            let admission = Member::admission(host.storage_id.clone());
            self.ask(Peer::Replica(replica), Purpose::Admit, admission, Us::MAX);
        }
    }

    /// A member says where it is, and hears whether it is one still.
    pub(crate) fn announce(&mut self, replica: usize) {
        let host = &self.hosts[replica];
        let announcement = Member::announcement(host.id, host.storage_id.clone());
        self.ask(Peer::Replica(replica), Purpose::Announce, announcement, Us::MAX);
    }

    pub(crate) fn replica_answered(&mut self, replica: usize, call: Call, answer: Answered) {
        match (call.purpose, answer) {
            (Purpose::Admit, Ok(_)) => {
                let host = &mut self.hosts[replica];
                let row = self.audit.state.replica_by_storage(&host.storage_id);
                let Some(row) = row else {
                    return self.ensure(Err("an admitted replica is not there".into()));
                };
                (host.id, host.is_empty) = (row.id, false);
                host.joined = Some(Member::joined(row.id, host.storage_id.clone()));
                self.saw(Seen::Admitted);
                self.restart(replica);
            }
            (Purpose::Announce, Err(Rejection::ReplicaRemoved)) => self.stop_removed(replica),
            (purpose, Err(rejection)) => {
                let what = format!("replica {replica}: {purpose:?} was refused: {rejection}");
                self.ensure(Err(what));
            }
            _ => (),
        }
    }

    /// What operators do: they take out who is to leave, and stop who has left.
    pub(crate) fn look_after_machines(&mut self) {
        let Some(leader) = self.leader() else { return };
        let Some(member) = self.hosts[leader].member.as_ref().filter(|it| it.leads().is_some())
        else {
            return;
        };
        let group = member.membership();
        let (mut leaving, mut left) = (Vec::new(), Vec::new());
        for (replica, host) in self.hosts.iter().enumerate() {
            if host.leaves && member.may_leave(host.id) {
                leaving.push((replica, host.id));
            }
            let removed = member.state().replica(host.id).is_some_and(|row| row.removed);
            if host.member.is_some() && removed && !group.contains(host.id) {
                left.push(replica);
            }
        }
        for (replica, id) in leaving {
            self.hosts[replica].leaves = false;
            self.operate(Proposal::RemoveReplica { replica: id, force: false });
        }
        left.into_iter().for_each(|replica| self.stop_removed(replica));
    }

    fn stop_removed(&mut self, replica: usize) {
        self.saw(Seen::Left);
        let down = 100 * MS + self.dice.below(3 * S);
        self.crash(replica, down);
        if self.hosts[replica].comes_back {
            self.put_new_disk(replica);
        } else {
            self.hosts[replica].is_gone = true;
        }
    }
}
