//! Groups on disks that are nearly full.

use raft::eraftpb::ConfChangeType;

use super::{Story, changes};
use crate::replica::Bar;

/// What is patience enough, and an election or two.
const TICKS_MAX: u32 = 120;

/// All lost their leader in the same tick, and all are as patient: nobody must wait for the
/// others for ever, nor stand whenever they do.
#[test]
fn somebody_leads_also_where_all_disks_are_full() {
    for seed in 1..=20 {
        let mut story = Story::begin(seed);
        story.calm = true;
        story.until("the founder to lead", |story| story.leads(1));
        let join = changes(&[(2, ConfChangeType::AddNode), (3, ConfChangeType::AddNode)]);
        story.propose_change(1, join);
        story.until("three voters", |story| {
            story.end_change(1);
            story.all_have(&[1, 2, 3], |group| group.voters.len() == 3 && !group.is_joint())
        });
        for id in 1..=3 {
            story.with(id, |node, _| node.bar(Bar::Disk, true));
        }
        let lost = story.voters().into_iter().find(|id| story.leads(*id)).expect("a leader");
        story.members.get_mut(&lost).expect("a member").live = None;
        let mut ticks = 0;
        while !(1..=3).any(|id| id != lost && story.leads(id)) {
            story.in_step();
            ticks += 1;
            assert!(ticks < TICKS_MAX, "seed {seed}: nobody leads after {ticks} ticks");
        }
    }
}

impl Story {
    /// Time passes for all, and what all say arrives in that order.
    fn in_step(&mut self) {
        self.tick();
        while !self.network.is_empty() {
            let message = self.network.remove(0);
            self.with(message.to, |node, _| node.step(message));
        }
    }
}
