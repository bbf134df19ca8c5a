//! Concurrency groups: from the expressions of a pipeline to names.

use super::leg::Planner;
use crate::expression::{Contexts, Object, Value};
use crate::job::Text;
use crate::pipeline::Concurrency;

/// A concurrency group that a run or a job wants to be in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Group {
    /// In lower case: groups whose names differ in case are one.
    pub name: String,
    /// Who goes on is cancelled.
    pub cancel_in_progress: bool,
    /// All who wait stay in line, instead of the newest alone.
    pub queue_all: bool,
}

impl Planner<'_> {
    /// The group that `wants` names; none where the name comes to nothing.
    pub(super) fn group(
        &self,
        wants: &Concurrency,
        contexts: &Contexts,
    ) -> Result<Option<Group>, String> {
        let value = self.value("concurrency", &wants.group, contexts)?;
        let mut group = Group { queue_all: wants.queue_all, ..Group::default() };
        match &value {
            Value::Object(object) => self.computed(&wants.group, object, &mut group)?,
            other => group.name = other.to_text(),
        }
        if let Some(text) = &wants.cancel_in_progress {
            let cancels = self.boolean("cancel-in-progress", text, contexts)?;
            group.cancel_in_progress = cancels.unwrap_or(false);
        }
        group.name = group.name.trim().to_lowercase();
        Ok((!group.name.is_empty()).then_some(group))
    }

    /// `concurrency: ${{ fromJSON(…) }}`.
    fn computed(&self, at: &Text, object: &Object, group: &mut Group) -> Result<(), String> {
        let member = |name: &str| object.get(name).map(Value::to_text).unwrap_or_default();
        group.name = member("group");
        group.cancel_in_progress = match member("cancel-in-progress").as_str() {
            "" | "false" => false,
            "true" => true,
            other => {
                let place = super::leg::place(self.file(), at);
                return Err(format!(
                    "{place}: `cancel-in-progress` is `{other}`, want `true` or `false`"
                ));
            }
        };
        group.queue_all |= member("queue") == "max";
        Ok(())
    }
}
