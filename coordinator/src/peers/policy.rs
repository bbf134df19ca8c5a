//! Which change of the group is due, if any: what the leader's membership task proposes.
//!
//! Pure, so that every leader decides the same on the same rows, and a table can test
//! it. One change at a time; whoever leads in the middle of one finishes it. Voters
//! change in a joint configuration only, which is left by a change of its own, so that no
//! majority is lost between two simple changes. A leader that is to leave hands over first.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use crate::replica::Membership;

/// Entries that a learner may be behind the commit and still become a voter. A voter
/// that is behind counts for the majority, and commits wait for it.
pub(crate) const CATCH_UP_ENTRIES_MAX: u64 = 1024;

/// Most voters. More make every commit slower and the group no safer.
pub(crate) const VOTERS_MAX: usize = 7;

/// What the leader knows.
#[derive(Clone, Debug, Default)]
pub(crate) struct Group {
    pub(crate) leader: u64,
    pub(crate) commit: u64,
    pub(crate) membership: Membership,
    /// By id: everybody who has a row or is in Raft's configuration.
    pub(crate) members: BTreeMap<u64, Member>,
}

/// What the leader knows of a member.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Member {
    /// It has a row. Who has none was there before rows were, and stays.
    pub(crate) known: bool,
    /// Asked to leave.
    pub(crate) removed: bool,
    /// It leaves even where the number of voters becomes even.
    pub(crate) forced: bool,
    /// The last entry that it is known to have.
    pub(crate) matched: u64,
    /// It answers.
    pub(crate) active: bool,
    /// Its clock is too far off the others' for it to lead.
    pub(crate) clock_is_off: bool,
    /// How often this leader has offered it the lead, and was left with it.
    pub(crate) declined: u32,
}

/// What is to be proposed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    AddLearner(u64),
    RemoveLearner(u64),
    /// In one joint configuration.
    Voters {
        add: Vec<u64>,
        remove: Vec<u64>,
    },
    /// Ends the joint configuration.
    LeaveJoint,
    /// Somebody else has to lead first.
    Transfer(u64),
}

/// The next change, or none.
pub(crate) fn due(group: &Group) -> Option<Change> {
    let membership = &group.membership;
    if membership.is_joint() {
        // Elected in the middle by the older majority: who is no voter afterwards must not
        // be the one who ends it.
        return match membership.votes(group.leader) {
            true => Some(Change::LeaveJoint),
            false => group.successor().map(Change::Transfer),
        };
    }
    if group.member(group.leader).clock_is_off
        && let Some(to) = group.successor()
    {
        return Some(Change::Transfer(to));
    }
    let learners = || membership.learners.iter().copied();
    if let Some(id) = learners().find(|id| group.member(*id).removed) {
        return Some(Change::RemoveLearner(id));
    }
    let unknown_to_raft = |(id, member): (&u64, &Member)| {
        let there = membership.voters.contains(id) || membership.learners.contains(id);
        (!there && member.known && !member.removed).then_some(*id)
    };
    if let Some(id) = group.members.iter().find_map(unknown_to_raft) {
        return Some(Change::AddLearner(id));
    }
    let (add, mut remove) = group.voters_wanted()?;
    if remove.contains(&group.leader) {
        if let Some(to) = group.successor() {
            return Some(Change::Transfer(to));
        }
        // Its successor has to become a voter first.
        remove.clear();
    }
    (!add.is_empty() || !remove.is_empty()).then_some(Change::Voters { add, remove })
}

/// Whether `replica`, a voter, could leave now without `force`.
pub(crate) fn may_leave(group: &Group, replica: u64) -> bool {
    let mut group = group.clone();
    group.members.entry(replica).or_default().removed = true;
    let votes = group.membership.voters.contains(&replica);
    !votes || group.voters_wanted().is_some_and(|(_, remove)| remove.contains(&replica))
}

impl Group {
    fn member(&self, id: u64) -> Member {
        self.members.get(&id).copied().unwrap_or_default()
    }

    /// Who should become a voter, and which voters should leave.
    fn voters_wanted(&self) -> Option<(Vec<u64>, Vec<u64>)> {
        let voters = &self.membership.voters;
        let (leaving, staying): (Vec<u64>, Vec<u64>) =
            voters.iter().partition(|id| self.member(**id).removed);
        let ready: Vec<u64> =
            self.membership.learners.iter().copied().filter(|id| self.is_ready(*id)).collect();
        let room = VOTERS_MAX.saturating_sub(staying.len()).min(ready.len());
        let odd = (0..=room).rev().find(|more| (staying.len() + more) % 2 == 1);
        let forced = leaving.iter().any(|id| self.member(*id).forced);
        let add = match odd {
            Some(more) => more,
            None if forced && staying.len() + room > 0 => room,
            None => return None,
        };
        let add = ready[..add].to_vec();
        if add.is_empty() && leaving.is_empty() {
            return None;
        }
        // The new majority has to be there, or nothing is ever committed again.
        let wanted: BTreeSet<u64> = staying.iter().chain(&add).copied().collect();
        let there = wanted.iter().filter(|id| self.is_there(**id)).count();
        (there > wanted.len() / 2).then_some((add, leaving))
    }

    fn is_there(&self, id: u64) -> bool {
        id == self.leader || self.member(id).active
    }

    fn is_ready(&self, id: u64) -> bool {
        let member = self.member(id);
        let behind = self.commit.saturating_sub(member.matched);
        member.active && !member.removed && behind <= CATCH_UP_ENTRIES_MAX
    }

    /// Who should lead next: the voter that is furthest, of those that may and answer, and
    /// have declined least often: one on a full disk does not say so.
    pub(crate) fn successor(&self) -> Option<u64> {
        let may = |id: &u64| {
            let member = self.member(*id);
            *id != self.leader && member.active && !member.removed && !member.clock_is_off
        };
        let voters = self.membership.voters.iter().copied().filter(may);
        voters.max_by_key(|id| {
            let member = self.member(*id);
            (Reverse(member.declined), member.matched, Reverse(*id))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // `V`: voter, `L`: learner, `O`: leaves the joint configuration, `-`: in none; then the
    // id. Behind it `*`: leads, `!`: removed, `f`: forced, `z`: does not answer, `s`: far
    // behind, `c`: its clock is off, `d`: has declined, `?`: has no row.

    #[test]
    fn a_group_grows_by_learners_and_becomes_odd() {
        check("V1*", "nothing");
        check("V1*?", "nothing");
        check("V1* -2", "learner 2");
        check("V1* L2", "nothing");
        check("V1* L2 -3", "learner 3");
        check("V1* L2 L3", "voters +2 +3");
        check("V1* L2 L3s", "nothing");
        check("V1* L2 L3z", "nothing");
        check("V1* L2 L3 L4", "voters +2 +3");
        check("V1* V2 V3 L4", "nothing");
        check("V1* V2 V3 L4 L5", "voters +4 +5");
        check("V1* V2z V3z L4 L5", "voters +4 +5");
        check("V1* V2 V3 V4 V5 V6 V7 L8 L9", "nothing");
        check("V1* V2 L3", "voters +3");
    }

    #[test]
    fn a_voter_that_leaves_is_replaced_in_one_change() {
        check("V1* V2 V3!", "nothing");
        check("V1* V2 V3!f", "voters -3");
        check("V1* V2 V3! L4", "voters +4 -3");
        check("V1* V2 V3!z L4", "voters +4 -3");
        check("V1* V2z V3!z L4", "voters +4 -3");
        check("V1* V2z V3!z L4s", "nothing");
        check("V1* V2 V3! L4 L5", "voters +4 -3");
        check("V1* V2! V3!", "voters -2 -3");
        check("V1* V2!", "voters -2");
        check("V1*! L2", "voters +2");
        check("V1*! V2", "transfer 2");
        check("V1! V2*", "voters -1");
        check("V1*! V2 V3 L4", "transfer 2");
        check("V1*! V2z V3 L4", "transfer 3");
        check("V1*! V2 V3", "nothing");
        check("V1*!f", "nothing");
        check("V1* V2z V3z V4! V5!", "nothing");
    }

    #[test]
    fn learners_that_leave_go_first() {
        check("V1* L2! L3", "no learner 2");
        check("V1* V2 V3! L4!", "no learner 4");
        check("V1* -2!", "nothing");
    }

    #[test]
    fn a_change_that_was_begun_is_finished_by_whoever_leads() {
        check("V1* V2 V3 O1 -4", "leave");
        check("V2* V3 V4 O1 O2 O3", "leave");
        check("O1*! V2 V3 V4", "transfer 2");
        check("O1*! V2z V3", "transfer 3");
        check("O1*! V2z", "nothing");
    }

    #[test]
    fn who_has_a_wrong_clock_does_not_lead() {
        check("V1*c V2 V3", "transfer 2");
        check("V1*c V2c V3", "transfer 3");
        check("V1*c", "nothing");
        check("V1*c V2d V3", "transfer 3");
        check("V1*c V2d V3ds", "transfer 2");
        check("V1*c V2d V3dd", "transfer 2");
        check("V1*c V2d V3z", "transfer 2");
    }

    #[test]
    fn a_removal_that_would_leave_an_even_number_is_known_before() {
        for (story, replica, want) in [
            ("V1* V2 V3", 3, false),
            ("V1* V2 V3 L4", 3, true),
            ("V1* V2 V3 L4s", 3, false),
            ("V1* V2 V3 L4", 4, true),
            ("V1* V2 V3!", 2, true),
            ("V1* V2 V3 -4", 4, true),
            ("V1* V2 V3", 1, false),
            ("V1* V2 V3 L4", 1, true),
            ("V1* L2", 1, true),
        ] {
            assert_eq!(may_leave(&group(story), replica), want, "{replica} of {story}");
        }
    }

    fn check(story: &str, want: &str) {
        let got = match due(&group(story)) {
            None => "nothing".to_owned(),
            Some(Change::AddLearner(id)) => format!("learner {id}"),
            Some(Change::RemoveLearner(id)) => format!("no learner {id}"),
            Some(Change::LeaveJoint) => "leave".to_owned(),
            Some(Change::Transfer(to)) => format!("transfer {to}"),
            Some(Change::Voters { add, remove }) => {
                let add = add.iter().map(|id| format!(" +{id}"));
                let remove = remove.iter().map(|id| format!(" -{id}"));
                format!("voters{}", add.chain(remove).collect::<String>())
            }
        };
        assert_eq!(got, want, "{story}");
    }

    fn group(story: &str) -> Group {
        let mut group = Group { commit: 10_000, ..Group::default() };
        for word in story.split(' ') {
            let (role, rest) = word.split_at(1);
            let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
            let (id, flags) = rest.split_at(end);
            let id: u64 = id.parse().expect("a number behind the role");
            match role {
                "V" => group.membership.voters.push(id),
                "L" => group.membership.learners.push(id),
                "O" => group.membership.voters_outgoing.push(id),
                _ => (),
            }
            if flags.contains('*') {
                group.leader = id;
            }
            let member = Member {
                known: !flags.contains('?'),
                removed: flags.contains('!'),
                forced: flags.contains('f'),
                matched: if flags.contains('s') { 10 } else { 9_999 },
                active: !flags.contains('z'),
                clock_is_off: flags.contains('c'),
                declined: flags.matches('d').count() as u32,
            };
            group.members.entry(id).or_insert(member);
        }
        group
    }
}
