//! What a job may use of the machine, and what holds it to that.
//!
//! Every slot has a control group where the machine lets the agent make some, of either
//! version. The slot's supervisor joins it once, and all that it starts is born there: a
//! step costs nothing more. Before each job the agent writes its limits: memory and CPU
//! that it asks for; where it asks for none, the slot's share of the memory, and the whole
//! machine's CPU, of which slots that compete get equal parts. What the kernel killed for
//! want of memory is counted by the group, so that an end by it is told from others.
//!
//! Where there are no groups, processes are bounded by a resource limit of the slot's user,
//! and the agent says once what is not limited.

mod groups;

use steading_model::Resources;

pub use groups::{Groups, SlotGroup};

/// Processes of one job, threads too, unless told otherwise.
pub const PROCESSES_DEFAULT: u32 = 4_096;

/// What the jobs of an agent are held to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setting {
    /// Processes and threads of one job.
    pub processes: u32,
}

impl Default for Setting {
    fn default() -> Self {
        Self { processes: PROCESSES_DEFAULT }
    }
}

/// What one job may use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Share {
    /// 0: as much as there is.
    pub memory_mib: u32,
    /// 0: as much as there is.
    pub cpu_milli: u32,
    pub processes: u32,
}

impl Share {
    /// Of a job that asks for so much, on one of so many slots of a machine that has
    /// `machine`.
    pub fn new(setting: Setting, asked: Resources, machine: Resources, slots: u32) -> Self {
        let part = machine.memory_mib / slots.max(1);
        Self {
            memory_mib: if asked.memory_mib > 0 { asked.memory_mib } else { part },
            cpu_milli: asked.cpu_milli,
            processes: setting.processes,
        }
    }
}

/// What a supervisor and all that it starts is held by.
#[derive(Clone, Debug, Default)]
pub struct Confinement {
    /// Nothing may gain privileges.
    pub restrict: bool,
    /// The control group that it joins.
    pub group: Option<SlotGroup>,
    /// Most processes of the user that its processes run as; also, they leave no core
    /// files. None: as the agent itself.
    pub processes: Option<u32>,
}

/// The limits of a running agent.
#[derive(Debug)]
pub(crate) struct Limits {
    setting: Option<Setting>,
    groups: Option<Groups>,
}

impl Limits {
    /// Makes a group for each slot where that can be done, and says what is not limited.
    /// `own_user`: jobs run as the agent's own user. Blocks.
    pub(crate) fn take(
        setting: Option<Setting>,
        slots: u32,
        own_user: bool,
        program: &[String],
    ) -> Self {
        let groups = setting.and_then(|_| match Groups::take(slots, program) {
            Ok(groups) => Some(groups),
            Err(why) => {
                let processes = if own_user { "not limited either" } else { "limited by user" };
                tracing::warn!(
                    why,
                    processes,
                    "memory and CPU of jobs are not limited: the agent may not make control groups"
                );
                None
            }
        });
        if let Some(missing) = groups.as_ref().and_then(Groups::missing) {
            tracing::warn!(missing, "not limited: this machine has no control groups for it");
        }
        Self { setting, groups }
    }

    /// The group of a slot.
    pub(crate) fn group(&self, slot: u32) -> Option<&SlotGroup> {
        self.groups.as_ref().and_then(|groups| groups.slot(slot))
    }

    /// What holds the supervisor of a slot. `own_user`: as in [`Limits::take`].
    pub(crate) fn confinement(&self, slot: u32, own_user: bool) -> Confinement {
        Confinement {
            restrict: !own_user,
            group: self.group(slot).cloned(),
            // The number counts for all processes of a user, so one that others have too
            // cannot be held to it.
            processes: self.setting.filter(|_| !own_user).map(|setting| setting.processes),
        }
    }

    /// Holds the next job of a slot to its share.
    pub(crate) fn set(&self, slot: u32, asked: Resources, machine: Resources, slots: u32) {
        let (Some(setting), Some(group)) = (self.setting, self.group(slot)) else { return };
        if let Err(error) = group.set(Share::new(setting, asked, machine, slots)) {
            tracing::error!(%error, slot, "a job's limits cannot be set");
        }
    }

    /// Removes the groups. Nothing runs in them any more.
    pub(crate) fn leave(&self) {
        if let Some(groups) = &self.groups {
            groups.remove();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_gets_what_it_asks_for_and_else_its_slots_part() {
        let setting = Setting { processes: 7 };
        let machine = Resources { cpu_milli: 4_000, memory_mib: 8_000 };
        let share = |cpu_milli, memory_mib| {
            let share = Share::new(setting, Resources { cpu_milli, memory_mib }, machine, 4);
            (share.cpu_milli, share.memory_mib, share.processes)
        };
        assert_eq!(share(0, 0), (0, 2_000, 7));
        assert_eq!(share(500, 100), (500, 100, 7));
        assert_eq!(share(0, 6_000), (0, 6_000, 7));
    }
}
