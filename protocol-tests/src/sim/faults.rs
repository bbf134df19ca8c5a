//! Faults as they happen, and how they end.

use steading_coordinator::replica::sim_fs::Faults;

use super::host::Input;
use super::net::Peer;
use super::plan::Fault;
use super::queue::{MS, S, Us};
use super::tally::Seen;
use super::world::{AgentEvent, Event, Heal, World};

impl World {
    /// A fault of the schedule happens.
    pub(crate) fn fault(&mut self, place: usize) {
        if !self.stormy {
            return;
        }
        self.happened.push(place);
        let there: Vec<usize> =
            (0..self.hosts.len()).filter(|replica| !self.hosts[*replica].is_gone).collect();
        let Some(fault) = self.plan.faults[place].1.clone().at(&there) else { return };
        self.trace.tell(self.now, || format!("FAULT {place}: {fault:?}"));
        let up = |replica: usize| self.hosts[replica].member.is_some();
        match fault {
            Fault::Kill { replica, .. } | Fault::Pause { replica, .. } if !up(replica) => (),
            Fault::Kill { replica, down } => {
                self.saw(Seen::Killed);
                self.crash(replica, down);
            }
            Fault::KillLeader { down } => {
                if let Some(leader) = self.leader() {
                    self.saw(Seen::LeaderKilled);
                    self.crash(leader, down);
                }
            }
            Fault::PowerCut { replica, operations, down } => {
                self.hosts[replica].down_us = down;
                self.hosts[replica].fs.cut_power_after(operations);
                let heal = Heal::PowerOff { replica, life: self.hosts[replica].life, down };
                self.queue.push(self.now + S, Event::Heal(heal));
            }
            Fault::KillAll { power, down } => {
                self.saw(if power { Seen::AllPower } else { Seen::AllKilled });
                for replica in there {
                    // Where the process is down, its page cache is still there to lose.
                    if power {
                        self.hosts[replica].fs.power_cycle(&mut self.dice);
                    }
                    let down = down + self.dice.below(S);
                    self.crash(replica, down);
                }
            }
            Fault::Pause { replica, lasts } => {
                if self.stop_until(replica, self.now + lasts) {
                    self.saw(Seen::Paused);
                }
            }
            Fault::PauseLeader { lasts } => {
                if let Some(leader) = self.leader()
                    && self.stop_until(leader, self.now + lasts)
                {
                    self.saw(Seen::LeaderPaused);
                }
            }
            Fault::Transfer { to } => {
                // Who has no directory yet has no number either.
                let (to, known) = (self.hosts[to].id, !self.hosts[to].is_empty);
                let leader = self.leader().filter(|leader| self.hosts[*leader].id != to);
                if let Some(leader) = leader.filter(|_| known) {
                    self.saw(Seen::Transferred);
                    self.input(leader, Input::Transfer { to });
                }
            }
            Fault::Cut { a, b, both, lasts } => {
                let mut cuts = vec![(a, b)];
                if both {
                    cuts.push((b, a));
                }
                self.saw(if both { Seen::CutBoth } else { Seen::CutOneWay });
                self.cut(cuts, lasts);
            }
            Fault::Strand { agent, lasts } => {
                if let Some(leader) = self.leader() {
                    self.saw(Seen::Stranded);
                    // One that has something to lose, if there is one.
                    let agents = self.agents.len();
                    let mut candidates = (agent..agents).chain(0..agent);
                    let holds = |agent: &usize| !self.agents[*agent].held.is_empty();
                    let agent = candidates.find(holds).unwrap_or(agent);
                    self.stop_until(leader, self.now + lasts);
                    let here = Peer::Agent(agent);
                    let others = (0..self.hosts.len()).filter(|other| *other != leader);
                    let others: Vec<Peer> = others.map(Peer::Replica).collect();
                    let around = |of: Peer| {
                        others.iter().flat_map(move |there| [(of, *there), (*there, of)]).collect()
                    };
                    self.cut(around(here), lasts + 15 * S);
                    // It hears of its successor late, too.
                    self.cut(around(Peer::Replica(leader)), lasts + 3 * S);
                }
            }
            Fault::AgentAlone { agent, lasts } => {
                self.saw(Seen::AgentAlone);
                let here = Peer::Agent(agent);
                let all = (0..self.hosts.len()).map(Peer::Replica);
                let cuts = all.flat_map(|there| [(here, there), (there, here)]).collect();
                self.cut(cuts, lasts);
            }
            Fault::Isolate { replica, lasts } => {
                if self.isolate(replica, lasts) {
                    self.saw(Seen::Isolated);
                }
            }
            Fault::IsolateLeader { lasts } => {
                if let Some(leader) = self.leader()
                    && self.isolate(leader, lasts)
                {
                    self.saw(Seen::LeaderIsolated);
                }
            }
            Fault::Storm { weather, lasts } => {
                self.saw(Seen::Storm);
                self.net.weather = weather;
                self.queue.push(self.now + lasts, Event::Heal(Heal::Weather));
            }
            Fault::ClockJump { replica, ms } => {
                self.saw(Seen::ClockJumped);
                self.hosts[replica].offset_ms += ms;
            }
            Fault::SlowDisk { replica, sync_us, lasts } => {
                self.saw(Seen::DiskSlow);
                self.hosts[replica].sync_us = sync_us;
                self.queue.push(self.now + lasts, Event::Heal(Heal::Disk(replica)));
            }
            Fault::FailDisk { replica, write, after } => {
                let faults = match write {
                    true => Faults { fail_write_in: Some(after), ..Faults::default() },
                    false => Faults { fail_sync_in: Some(after), ..Faults::default() },
                };
                self.hosts[replica].fs.set_faults(faults);
            }
            Fault::FullDisk { replica, room, lasts } => {
                let fs = &self.hosts[replica].fs;
                let capacity = Some(fs.used() + room);
                fs.set_faults(Faults { capacity, ..Faults::default() });
                self.queue.push(self.now + lasts, Event::Heal(Heal::Disk(replica)));
            }
            Fault::LowDisk { replica, all, lasts } => {
                self.saw(if all { Seen::AllLow } else { Seen::DiskLow });
                let low = if all { there } else { vec![replica] };
                low.iter().for_each(|replica| self.hosts[*replica].is_low = true);
                if let Some(lasts) = lasts {
                    self.queue.push(self.now + lasts, Event::Heal(Heal::Room(low)));
                }
            }
            Fault::LoseImage { replica } => {
                self.saw(Seen::ImageLost);
                self.crash(replica, S);
                self.hosts[replica].store.with(std::collections::BTreeMap::clear);
            }
            Fault::Wipe { replica, down } => self.wipe(replica, down),
            Fault::FlipBit { replica, snapshot } => self.flip_bit(replica, snapshot),
            Fault::Remove { replica } => self.remove(replica),
            Fault::Replace { replica } => self.replace(replica),
            Fault::Grow => drop(self.grow()),
            Fault::AgentKill { agent, down } => self.kill_agent(agent, down),
            Fault::MachineLost { agent, down } => self.lose_machine(agent, down),
            Fault::AgentPause { agent, machine, lasts } => self.pause_agent(agent, machine, lasts),
            Fault::Preempt { agent, down } => self.preempt(agent, down),
        }
    }

    /// Counts something that happened.
    pub(crate) const fn saw(&mut self, what: Seen) {
        self.audit.tally.saw(what);
    }

    /// The replica that leads the latest term, as far as anybody knows.
    pub(crate) fn leader(&mut self) -> Option<usize> {
        let mut best = None;
        for (place, host) in self.hosts.iter_mut().enumerate() {
            let Some(member) = &mut host.member else { continue };
            if member.is_leader() {
                best = best.max(Some((member.standing().0, place)));
            }
        }
        best.map(|(_, place)| place)
    }

    /// Whether there was anybody to cut it off from.
    fn isolate(&mut self, replica: usize, lasts: Us) -> bool {
        let here = Peer::Replica(replica);
        let is_other = |other: &usize| *other != replica && !self.hosts[*other].is_gone;
        let others = (0..self.hosts.len()).filter(is_other).map(Peer::Replica);
        let cuts: Vec<_> = others.flat_map(|other| [(here, other), (other, here)]).collect();
        let any = !cuts.is_empty();
        self.cut(cuts, lasts);
        any
    }

    fn cut(&mut self, cuts: Vec<(Peer, Peer)>, lasts: Us) {
        for (from, to) in &cuts {
            self.net.cut(*from, *to);
        }
        self.queue.push(self.now + lasts, Event::Heal(Heal::Cuts(cuts)));
    }

    /// A fault ends.
    pub(crate) fn heal(&mut self, heal: Heal) {
        match heal {
            Heal::Cuts(cuts) => {
                for (from, to) in cuts {
                    self.net.heal(from, to);
                }
                self.release_held();
            }
            Heal::Weather => self.net.weather = self.net.fair,
            Heal::Disk(replica) => {
                self.hosts[replica].sync_us = self.plan.disk_us;
                self.hosts[replica].fs.set_faults(Faults::default());
            }
            Heal::Room(low) => {
                low.into_iter().for_each(|replica| self.hosts[replica].is_low = false);
            }
            Heal::PowerOff { replica, life, down } => {
                let host = &self.hosts[replica];
                // The write that it was to be cut in never came. A process of another life
                // is back already, from this power cut or from something else.
                if self.stormy && host.member.is_some() && host.life == life {
                    self.saw(Seen::PowerAtRest);
                    self.hosts[replica].fs.power_cycle(&mut self.dice);
                    self.crash(replica, down);
                }
            }
        }
    }

    /// All of them end.
    pub(crate) fn calm_faults(&mut self) {
        for replica in 0..self.hosts.len() {
            let host = &mut self.hosts[replica];
            host.sync_us = self.plan.disk_us;
            if !host.fs.is_off() {
                host.fs.set_faults(Faults::default());
            }
            host.fs.calm();
            host.kept_at = 0;
            if host.busy_until > self.now {
                host.busy_until = self.now;
                let life = host.life;
                self.queue.push(self.now, Event::Wake { replica, life });
            }
        }
        for agent in 0..self.agents.len() {
            let life = self.agents[agent].life;
            if self.agents[agent].is_paused(self.now) {
                self.agents[agent].paused_until = self.now;
                self.queue.push(self.now, Event::Agent { agent, life, what: AgentEvent::Wake });
            }
        }
        self.trace.note(self.now / MS);
    }
}
