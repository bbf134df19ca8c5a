//! The life of a replica's process: how it stops, and how it starts on what its disk holds.

use steading_coordinator::replica::ReplicaError;
use steading_coordinator::replica::sim_member::Member;

use crate::sim::net::Peer;
use crate::sim::queue::{MS, S, Us};
use crate::sim::shell::Shell;
use crate::sim::world::{Event, World};

impl World {
    /// The replica stopped by itself, which only its disk may make it do: one that failed in
    /// this very round, and none that failed before and did no harm then.
    pub(super) fn stopped(&mut self, replica: usize, error: &ReplicaError) {
        let host = &self.hosts[replica];
        let failed = host.fs.is_off() || host.fs.failures() > host.failures;
        if !failed || !matches!(error, ReplicaError::Wal(_)) {
            let what = format!("replica {} stopped: {error:?}", host.id);
            return self.ensure(Err(what));
        }
        self.trace.tell(self.now, || format!("replica {replica} stops: {error:?}"));
        let down = self.hosts[replica].down_us;
        self.crash(replica, down);
    }

    /// The process is gone, and comes back.
    pub(crate) fn crash(&mut self, replica: usize, down: Us) {
        let host = &mut self.hosts[replica];
        if host.member.take().is_none() {
            return;
        }
        host.life += 1;
        host.inbox.clear();
        host.ticks_missed = 0;
        host.kept_at = 0;
        host.busy_until = 0;
        host.calls.clear();
        host.shell = Shell::default();
        if !host.fs.is_off() {
            host.fs.kill();
        }
        let life = host.life;
        self.trace.tell(self.now, || format!("replica {replica} is down for {} ms", down / MS));
        self.queue.push(self.now + down, Event::Restart { replica, life });
        self.break_conns(Peer::Replica(replica));
    }

    /// Starts the process on what its disk holds.
    pub(crate) fn restart(&mut self, replica: usize) {
        let cadence = self.plan.cadence;
        let host = &mut self.hosts[replica];
        if host.member.is_some() || host.is_gone {
            return;
        }
        if host.is_empty {
            return self.ask_admission(replica);
        }
        if host.fs.is_off() {
            host.fs.power_cycle(&mut self.dice);
        }
        host.failures = host.fs.failures();
        let seed = self.dice.roll();
        let store = Box::new(host.store.clone());
        let joined = host.joined.clone();
        let opened = Member::open(&host.layout(cadence), store, joined, seed);
        let excused = host.fs.is_off() || host.fs.failures() > host.failures;
        let flipped = if excused { None } else { host.flipped.take() };
        match opened {
            Ok(member) => {
                host.member = Some(member);
                host.failures = host.fs.failures();
                let life = host.life;
                let first = 1 + self.dice.below(self.plan.tick_us);
                self.trace.tell(self.now, || format!("replica {replica} is up"));
                self.queue.push(self.now + first, Event::Tick { replica, life });
                let audited = self.compare(replica);
                self.ensure(audited);
                self.announce(replica);
            }
            Err(_) if excused || flipped.is_some() => {
                let life = host.life;
                self.queue.push(self.now + S, Event::Restart { replica, life });
            }
            Err(error) => {
                let what = format!("replica {} refuses to start: {error:?}", host.id);
                self.ensure(Err(what));
            }
        }
        if let Some(last) = flipped {
            self.flip_met(replica, last);
        }
    }

    fn compare(&mut self, replica: usize) -> Result<(), String> {
        let Some(member) = &self.hosts[replica].member else { return Ok(()) };
        self.audit.compare(member.applied(), member.state().chain())?;
        self.audit.same(member.applied(), member.state())
    }
}
