//! The lines about agents that come and go.

use std::collections::BTreeMap;

use steading_model::{AgentId, Incarnation, Provisioning, Resources};

use super::{Options, Stage};
use crate::{NewAgent, Proposal};

pub(super) fn proposal(
    stage: &Stage,
    verb: &str,
    words: &[&str],
    options: &Options<'_>,
) -> Proposal {
    match verb {
        "agent" => Proposal::RegisterAgent { agent: agent(options) },
        "retire-agent" => Proposal::RetireAgent {
            agent: super::id(words[0]),
            incarnation: Incarnation::from_counter(options.number("incarnation", 1)),
        },
        "hand-back" => Proposal::HandBack {
            agent: super::id(words[0]),
            incarnation: Incarnation::from_counter(options.number("incarnation", 1)),
            leases: options.plain[1..].iter().map(|word| stage.lease(word)).collect(),
            window_ms: options.named.get("window").map(|text| super::duration_ms(text)),
            preempted: options.named.contains_key("window"),
        },
        "cordon" => Proposal::CordonAgent { name: words[0].into(), cordoned: true },
        "uncordon" => Proposal::CordonAgent { name: words[0].into(), cordoned: false },
        "drain" => Proposal::DrainAgent {
            name: words[0].into(),
            request: super::name(words[1]),
            deadline_ms: options.named.get("within").map(|text| super::duration_ms(text)),
        },
        "remove-agent" => Proposal::RemoveAgent { name: words[0].into() },
        other => panic!("no verb `{other}`"),
    }
}

/// What the agent is told about being empty.
pub(super) fn render(stage: &Stage, agent: AgentId) -> String {
    let row = stage.state.agent(agent);
    let wanted = row.is_some_and(|row| row.drain.is_some() || row.removed);
    format!("{} {agent}", if wanted { "empty" } else { "keep" })
}

fn agent(options: &Options<'_>) -> NewAgent {
    let labels = options.text("on", "").split('+').filter(|label| !label.is_empty());
    NewAgent {
        name: options.plain[0].into(),
        pool: options.text("pool", "pool").into(),
        provisioning: match options.flag("spot") {
            true => Provisioning::Spot,
            false => Provisioning::OnDemand,
        },
        labels: labels.map(str::to_owned).collect(),
        slots: options.number("slots", 1) as u32,
        resources: Resources {
            cpu_milli: options.number("cpu", 1_000_000) as u32,
            memory_mib: options.number("mem", 1_000_000) as u32,
        },
        cache_endpoint: String::new(),
        start: options.number("start", 0),
        properties: BTreeMap::new(),
    }
}
