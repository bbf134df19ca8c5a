//! Leaders that are taken out of their group.

use raft::eraftpb::ConfChangeType;

use super::{Story, changes};
use crate::replica::membership::Membership;

/// Whoever is elected in the middle of a change may be none of the voters behind it, and has
/// in its log what ends it. Raft itself would go on to lead a group that it is not in.
#[test]
fn a_leader_that_is_out_of_the_group_steps_down() {
    let mut story = Story::begin(1);
    story.calm = true;
    story.until("the founder to lead", |story| story.leads(1));
    story.propose_change(1, changes(&[(2, ConfChangeType::AddNode), (3, ConfChangeType::AddNode)]));
    story.until("three voters", |story| {
        story.end_change(1);
        story.all_have(&[1, 2, 3], |group| group.voters.len() == 3 && !group.is_joint())
    });
    story.propose_change(1, changes(&[(2, ConfChangeType::RemoveNode)]));
    story.until("all to be in the middle of it", |story| {
        story.all_have(&[1, 2, 3], Membership::is_joint)
    });
    story.with(1, |node, _| node.transfer(Some(2)));
    story.until("the one that leaves to lead", |story| story.leads(2));
    story.end_change(2);
    story.until("another to lead", |story| !story.leads(2) && (story.leads(1) || story.leads(3)));
    assert!(story.all_have(&[1, 3], |group| group.voters.len() == 2 && !group.is_joint()));
}

impl Story {
    /// Lets time pass, and everything arrive, until this holds.
    pub(super) fn until(&mut self, what: &str, mut holds: impl FnMut(&mut Self) -> bool) {
        for _ in 0..3000 {
            if holds(self) {
                return;
            }
            self.tick();
            while !self.network.is_empty() {
                self.deliver();
            }
            (1..=4).for_each(|id| self.keep(id));
        }
        panic!("waited for {what}");
    }

    pub(super) fn leads(&self, id: u64) -> bool {
        let live = self.members[&id].live.as_ref();
        live.is_some_and(|(node, _)| node.standing().leads)
    }

    pub(super) fn all_have(&self, ids: &[u64], wanted: impl Fn(&Membership) -> bool) -> bool {
        let live = |id: &u64| self.members[id].live.as_ref();
        ids.iter().all(|id| live(id).is_some_and(|(node, _)| wanted(&node.membership())))
    }
}
