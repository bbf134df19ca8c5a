//! `concurrency:` of a pipeline or a job.

use super::allowed::Allowed;
use super::reader::Reader;
use super::yaml::{Kind, Node};
use crate::expression::Value;
use crate::pipeline::Concurrency;

/// Reads `concurrency:`: a group's name, or a mapping.
pub(super) fn read(reader: &mut Reader<'_>, node: &Node, allowed: Allowed) -> Option<Concurrency> {
    let Kind::Mapping(_) = node.kind else {
        let group = reader.full_text(node, "`concurrency`", allowed)?;
        return Some(Concurrency { group, ..Concurrency::default() });
    };
    let known = ["group", "cancel-in-progress", "queue"];
    let fields = reader.fields(node, "`concurrency`", &known, &[])?;
    let Some(group) = fields.get("group") else {
        let hint = "`group: NAME` says who waits for whom";
        reader.error_with(node.place, "`group` is missing in `concurrency`", hint);
        return None;
    };
    let group = reader.full_text(group, "`group`", allowed)?;
    let cancels = fields.get("cancel-in-progress");
    let cancel_in_progress =
        cancels.and_then(|node| reader.bool_text(node, "`cancel-in-progress`", allowed));
    let mut queue_all = false;
    if let Some(node) = fields.get("queue") {
        match node.text().as_deref() {
            Some("single") => {}
            Some("max") => queue_all = true,
            _ => reader.wanted(node, "`queue`", "`single` or `max`"),
        }
        let always =
            |node: &Node| matches!(node.kind, Kind::Scalar { value: Value::Bool(true), .. });
        if queue_all && cancels.is_some_and(always) {
            reader.error_with(
                node.place,
                "`queue: max` contradicts `cancel-in-progress: true`",
                "where everybody goes on in turn, nobody is cancelled",
            );
        }
    }
    Some(Concurrency { group, cancel_in_progress, queue_all })
}
