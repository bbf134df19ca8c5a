//! Unary calls of agents and clients: tried at one replica after the other until an
//! answer comes, or until it is too late.

use steading_core::{Effect, Lease, Proposal, Rejection};

use super::net::Peer;
use super::queue::{MS, S, Us};
use super::shell::Told;
use super::world::{Event, Packet, World};

/// What a call is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    Register,
    /// `success`: the report says so.
    Complete {
        lease: Lease,
        success: bool,
    },
    Release(Lease),
    Claim,
    Resolve,
    /// Of leases that were not started, by an agent whose machine is taken away.
    HandBack(Vec<Lease>),
    /// `good`: nothing is wrong with it.
    Submit {
        id: String,
        good: bool,
    },
    Append {
        id: String,
    },
    Cancel,
    Retry,
    /// Of an operator.
    Operate,
    /// Of a replica: to become one, and to say that it is one.
    Admit,
    Announce,
}

/// A call that has no answer yet.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) purpose: Purpose,
    pub(crate) proposal: Proposal,
    pub(crate) target: usize,
    /// Given up after this.
    pub(crate) until: Us,
}

/// How a call ended.
pub(crate) type Answered = Result<Vec<Effect>, Rejection>;

impl World {
    /// Makes a call.
    pub(crate) fn ask(&mut self, who: Peer, purpose: Purpose, proposal: Proposal, until: Us) {
        let target = match who {
            Peer::Agent(agent) => self.agents[agent].target,
            Peer::Client(client) => self.clients[client].target,
            Peer::Replica(replica) => self.hosts[replica].target,
        };
        self.call(who, Call { purpose, proposal, target, until });
    }

    fn call(&mut self, who: Peer, call: Call) {
        self.number += 1;
        let number = self.number;
        let ask = Packet::Ask { call: number, proposal: call.proposal.clone() };
        let to = Peer::Replica(call.target);
        self.calls(who).insert(number, call);
        self.send(who, to, ask, 0);
        let timeout = S + self.dice.below(2 * S);
        self.queue.push(self.now + timeout, Event::CallTimeout { who, call: number });
    }

    fn calls(&mut self, who: Peer) -> &mut std::collections::BTreeMap<u64, Call> {
        match who {
            Peer::Agent(agent) => &mut self.agents[agent].calls,
            Peer::Client(client) => &mut self.clients[client].calls,
            Peer::Replica(replica) => &mut self.hosts[replica].calls,
        }
    }

    /// A call was answered.
    pub(crate) fn told(&mut self, who: Peer, number: u64, told: Told, hint: Option<usize>) {
        if let Peer::Agent(agent) = who
            && self.agents[agent].is_paused(self.now)
        {
            let (to, from) = (who, Peer::Replica(0));
            let packet = Packet::Told { call: number, told, hint };
            self.agents[agent].inbox.push(Event::Arrive { from, to, packet });
            return;
        }
        let Some(call) = self.calls(who).remove(&number) else { return };
        match told {
            Told::Done(effects) => self.call_done(who, call, Ok(effects)),
            Told::Rejected(rejection) => self.call_done(who, call, Err(rejection)),
            Told::NotLeader => {
                let target = hint.unwrap_or((call.target + 1) % self.hosts.len());
                self.set_target(who, target);
                self.call_later(who, Call { target, ..call });
            }
            Told::Unknown => self.call_later(who, call),
        }
    }

    fn set_target(&mut self, who: Peer, target: usize) {
        match who {
            Peer::Agent(agent) => self.agents[agent].target = target,
            Peer::Client(client) => self.clients[client].target = target,
            Peer::Replica(replica) => self.hosts[replica].target = target,
        }
    }

    fn call_later(&mut self, who: Peer, call: Call) {
        self.number += 1;
        let number = self.number;
        self.calls(who).insert(number, call);
        let pause = 20 * MS + self.dice.below(300 * MS);
        self.queue.push(self.now + pause, Event::CallAgain { who, call: number });
    }

    pub(crate) fn call_again(&mut self, who: Peer, number: u64) {
        if let Some(call) = self.calls(who).remove(&number) {
            self.call_or_give_up(who, call);
        }
    }

    /// No answer came: another replica may know.
    pub(crate) fn call_timeout(&mut self, who: Peer, number: u64) {
        if let Some(call) = self.calls(who).remove(&number) {
            let target = (call.target + 1) % self.hosts.len();
            self.set_target(who, target);
            self.call_or_give_up(who, Call { target, ..call });
        }
    }

    fn call_or_give_up(&mut self, who: Peer, call: Call) {
        if self.now <= call.until {
            return self.call(who, call);
        }
        match (who, call.purpose) {
            (Peer::Agent(agent), Purpose::Release(lease)) => self.let_go(agent, lease),
            (Peer::Agent(agent), Purpose::HandBack(leases)) => self.handed_back(agent, leases),
            _ => (),
        }
    }

    fn call_done(&mut self, who: Peer, call: Call, answer: Answered) {
        match who {
            Peer::Agent(agent) => self.agent_answered(agent, call, answer),
            Peer::Client(client) => self.client_answered(client, call, answer),
            Peer::Replica(replica) => self.replica_answered(replica, call, answer),
        }
    }
}
