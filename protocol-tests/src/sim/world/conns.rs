//! Connections of agents: in order, or broken.

use super::{Conn, Event, Flow, World};
use crate::sim::host::Input;
use crate::sim::net::Peer;
use crate::sim::queue::Us;
use crate::sim::shell::End;

impl World {
    /// A connection of the agent to the replica; `None` where nobody answers.
    pub(crate) fn connect(&mut self, agent: usize, replica: usize) -> Option<u64> {
        let (from, to) = (Peer::Agent(agent), Peer::Replica(replica));
        let up = self.hosts[replica].member.is_some();
        if !up || self.net.is_cut(from, to) || self.net.is_cut(to, from) {
            return None;
        }
        self.number += 1;
        let replica_life = self.hosts[replica].life;
        let held = Default::default();
        let conn = Conn { agent, replica, replica_life, arrives: [0; 2], held };
        self.conns.insert(self.number, conn);
        Some(self.number)
    }

    /// Sends on a connection; `down` is towards the agent.
    pub(crate) fn flow(&mut self, number: u64, down: bool, flow: Flow, delay: Us) {
        let takes = delay + self.net.weather.delay(&mut self.dice);
        let Some(conn) = self.conns.get_mut(&number) else { return };
        let arrives = &mut conn.arrives[usize::from(down)];
        *arrives = (self.now + takes).max(*arrives + 1);
        self.queue.push(*arrives, Event::Flow { conn: number, down, flow });
    }

    pub(crate) fn flowed(&mut self, number: u64, down: bool, flow: Flow) {
        let Some(conn) = self.conns.get_mut(&number) else { return };
        let (agent, replica) = (conn.agent, conn.replica);
        let (from, to) = (Peer::Agent(agent), Peer::Replica(replica));
        let (from, to) = if down { (to, from) } else { (from, to) };
        // What was sent into a cut is sent again when it heals, in order.
        if self.net.is_cut(from, to) || !conn.held[usize::from(down)].is_empty() {
            conn.held[usize::from(down)].push_back(flow);
            return;
        }
        self.trace.tell(self.now, || format!("{from:?} to {to:?} on {number}: {flow:?}"));
        self.arrived(number, flow);
    }

    /// What came over the connection is with its receiver, whatever the network is like now.
    pub(crate) fn arrived(&mut self, number: u64, flow: Flow) {
        let Some(conn) = self.conns.get(&number) else { return };
        let replica = conn.replica;
        match flow {
            Flow::Say(say) => {
                if self.hosts[replica].life == conn.replica_life {
                    self.input(replica, Input::Say { conn: number, say });
                } else {
                    self.drop_conn(number, End::Broken, None);
                }
            }
            Flow::Hear(hear) => self.hear(conn.agent, number, hear),
            Flow::End(end, hint) => self.drop_conn(number, end, hint),
        }
    }

    /// What waited for the cut arrives, all at once: what is under way behind it must not
    /// overtake it.
    pub(crate) fn release_held(&mut self) {
        let net = &self.net;
        let mut released = Vec::new();
        for (number, conn) in &mut self.conns {
            let (agent, replica) = (Peer::Agent(conn.agent), Peer::Replica(conn.replica));
            for (down, from, to) in [(false, agent, replica), (true, replica, agent)] {
                if !net.is_cut(from, to) {
                    let held = std::mem::take(&mut conn.held[usize::from(down)]);
                    released.extend(held.into_iter().map(|flow| (*number, down, flow)));
                }
            }
        }
        for (number, down, flow) in released {
            self.flowed(number, down, flow);
        }
    }

    /// The agent hears that its connection is no more; one that is stopped, when it goes on.
    pub(crate) fn drop_conn(&mut self, number: u64, end: End, hint: Option<usize>) {
        if let Some(conn) = self.conns.get(&number)
            && self.agents[conn.agent].is_paused(self.now)
        {
            let flow = Flow::End(end, hint);
            let event = Event::Flow { conn: number, down: true, flow };
            self.agents[conn.agent].inbox.push(event);
            return;
        }
        if let Some(conn) = self.conns.remove(&number) {
            self.input(conn.replica, Input::Closed { conn: number });
            self.disconnected(conn.agent, number, end, hint);
        }
    }

    /// Whether somebody is at the other end of the connection.
    pub(crate) fn answers(&self, number: u64) -> bool {
        let Some(conn) = self.conns.get(&number) else { return false };
        let (agent, replica) = (Peer::Agent(conn.agent), Peer::Replica(conn.replica));
        let host = &self.hosts[conn.replica];
        let cut = self.net.is_cut(agent, replica) || self.net.is_cut(replica, agent);
        host.life == conn.replica_life && host.busy_until <= self.now && !cut
    }

    /// The agent gives its connection up; the replica hears of it.
    pub(crate) fn hang_up(&mut self, number: u64) {
        if let Some(conn) = self.conns.remove(&number) {
            let life = self.hosts[conn.replica].life;
            let (from, to) = (Peer::Agent(conn.agent), Peer::Replica(conn.replica));
            if life == conn.replica_life && !self.net.is_cut(from, to) {
                self.input(conn.replica, Input::Closed { conn: number });
            }
        }
    }

    /// A process is gone, and its connections with it.
    pub(crate) fn break_conns(&mut self, peer: Peer) {
        let of = |conn: &Conn| match peer {
            Peer::Replica(replica) => conn.replica == replica,
            Peer::Agent(agent) => conn.agent == agent,
            Peer::Client(_) => false,
        };
        let broken: Vec<u64> =
            self.conns.iter().filter(|(_, conn)| of(conn)).map(|(number, _)| *number).collect();
        for number in broken {
            match peer {
                Peer::Agent(_) => self.hang_up(number),
                // Mostly the machine says so at once; else the agent finds out by itself.
                _ if self.dice.chance(3, 4) => {
                    self.flow(number, true, Flow::End(End::Broken, None), 0);
                }
                _ => (),
            }
        }
    }
}
