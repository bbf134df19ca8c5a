//! `stead agents`, and the verbs of `stead agent` that tell a farm what to do with one.

use std::future::Future;
use std::time::Duration;

use steading_proto::v1;
use steading_proto::v1::agent_info::State;
use steading_proto::v1::fleet_client::FleetClient;
use tonic::transport::Channel;
use tonic::{Response, Status};

use crate::args::{self, AgentVerb};
use crate::connect::{FIRST_ANSWER_MAX, failure};
use crate::context::{self, Named};
use crate::coordinators::Coordinators;
use crate::exit::{Ended, Failure};
use crate::out;
use crate::text::{clean, date, table};

/// How often a drain that is watched is looked at.
const LOOK_PERIOD: Duration = Duration::from_millis(500);

/// Agents asked for at once.
const PAGE_SIZE: u32 = 1_000;

/// Does what the verb says.
///
/// # Errors
///
/// [`Failure`] where there is no such agent, or the farm does not answer.
pub async fn run(verb: AgentVerb) -> Result<Ended, Failure> {
    match verb {
        AgentVerb::Drain(args) => drain(args).await,
        AgentVerb::Cordon(args) => cordon(args, true).await,
        AgentVerb::Uncordon(args) => cordon(args, false).await,
        AgentVerb::Remove(args) => remove(args).await,
    }
}

/// Lists the agents.
///
/// # Errors
///
/// [`Failure`] where the farm does not answer.
pub async fn list(args: args::Agents) -> Result<Ended, Failure> {
    let Named { coordinators, .. } = context::require(&args.farm)?;
    let mut agents = Vec::new();
    let mut page_token = String::new();
    loop {
        let request =
            v1::ListAgentsRequest { page_size: PAGE_SIZE, page_token, name: String::new() };
        let page = call(&coordinators, |mut client| {
            let request = request.clone();
            async move { client.list_agents(request).await }
        });
        let page = page.await.map_err(|status| failure("list the agents", status))?;
        agents.extend(page.agents);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    if args.json {
        for agent in &agents {
            out::line(as_json(agent))?;
        }
    } else if agents.is_empty() {
        out::line("no agents yet")?;
    } else {
        out::print(as_table(&agents))?;
    }
    Ok(Ended::Success)
}

async fn cordon(args: args::AgentNamed, cordoned: bool) -> Result<Ended, Failure> {
    let Named { coordinators, .. } = context::require(&args.farm)?;
    let request = v1::CordonAgentRequest { name: args.name.clone(), cordoned };
    let done = call(&coordinators, |mut client| {
        let request = request.clone();
        async move { client.cordon_agent(request).await }
    });
    let what = if cordoned { "cordon the agent" } else { "uncordon the agent" };
    done.await.map_err(|status| failure(what, status))?;
    let now = if cordoned { "gets no more work" } else { "gets work" };
    out::line(format_args!("`{}` {now}", args.name))?;
    Ok(Ended::Success)
}

async fn remove(args: args::AgentNamed) -> Result<Ended, Failure> {
    let Named { coordinators, .. } = context::require(&args.farm)?;
    let request = v1::RemoveAgentRequest { name: args.name.clone() };
    let done = call(&coordinators, |mut client| {
        let request = request.clone();
        async move { client.remove_agent(request).await }
    });
    done.await.map_err(|status| failure("remove the agent", status))?;
    out::line(format_args!(
        "`{}` is removed: what it runs is stopped, and runs elsewhere",
        args.name
    ))?;
    Ok(Ended::Success)
}

async fn drain(args: args::Drain) -> Result<Ended, Failure> {
    let deadline_ms = match (args.force, args.deadline.as_str()) {
        (true, _) => Some(0),
        (false, "none") => None,
        (false, text) => Some(duration_ms(text).ok_or_else(|| {
            Failure::usage(format!("`{text}` is no time: write 90s, 30m, 2h, or none"))
        })?),
    };
    let Named { coordinators, .. } = context::require(&args.agent.farm)?;
    let name = args.agent.name;
    let request = v1::DrainAgentRequest {
        name: name.clone(),
        request_id: crate::id::request_id().map_err(anyhow::Error::from)?,
        deadline_ms,
    };
    let done = call(&coordinators, |mut client| {
        let request = request.clone();
        async move { client.drain_agent(request).await }
    });
    done.await.map_err(|status| failure("drain the agent", status))?;
    out::line(format_args!("`{name}` is drained: it gets no more work"))?;
    if args.monitor {
        monitor(&coordinators, &name).await?;
    }
    Ok(Ended::Success)
}

/// Says how many jobs are left, until there are none, or somebody ends the drain.
async fn monitor(coordinators: &Coordinators, name: &str) -> Result<(), Failure> {
    let mut told = None;
    loop {
        let request =
            v1::ListAgentsRequest { name: name.to_owned(), ..v1::ListAgentsRequest::default() };
        let page = call(coordinators, |mut client| {
            let request = request.clone();
            async move { client.list_agents(request).await }
        });
        let page = page.await.map_err(|status| failure("look at the agent", status))?;
        let Some(agent) = page.agents.first() else {
            return Ok(());
        };
        match agent.state() {
            State::Draining | State::Removed if agent.slots_used > 0 => {
                if told != Some(agent.slots_used) {
                    told = Some(agent.slots_used);
                    let left = crate::text::count(u64::from(agent.slots_used), "job");
                    out::line(format_args!("`{name}`: {left} left"))?;
                }
            }
            State::Draining | State::Drained | State::Removed | State::Gone => {
                out::line(format_args!("`{name}` is empty"))?;
                return Ok(());
            }
            _ => {
                return Err(Failure::Farm(anyhow::anyhow!("somebody ended the drain of `{name}`")));
            }
        }
        tokio::time::sleep(LOOK_PERIOD).await;
    }
}

/// Makes the call, again and again while no replica can answer.
async fn call<T, F>(
    coordinators: &Coordinators,
    mut call: impl FnMut(FleetClient<Channel>) -> F,
) -> Result<T, Status>
where
    F: Future<Output = Result<Response<T>, Status>>,
{
    coordinators.call_over(FIRST_ANSWER_MAX, |channel| call(FleetClient::new(channel))).await
}

/// `90s`, `30m`, `2h`.
fn duration_ms(text: &str) -> Option<u64> {
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let number: u64 = number.parse().ok()?;
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3_600,
        _ => return None,
    };
    number.checked_mul(seconds * 1_000)
}

fn word(state: State) -> &'static str {
    match state {
        State::Unspecified => "unknown",
        State::Ready => "ready",
        State::Cordoned => "cordoned",
        State::Draining => "draining",
        State::Drained => "drained",
        State::Leaving => "leaving",
        State::Gone => "gone",
        State::Removed => "removed",
    }
}

fn as_table(agents: &[v1::AgentInfo]) -> String {
    let head =
        ["AGENT", "STATE", "CONNECTED", "USED", "POOL", "KIND", "LABELS", "REGISTERED (UTC)"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for agent in agents {
        rows.push(vec![
            clean(&agent.name).into_owned(),
            word(agent.state()).to_owned(),
            if agent.connected { "yes" } else { "no" }.to_owned(),
            format!("{}/{}", agent.slots_used, agent.slots),
            clean(&agent.pool).into_owned(),
            kind(agent).to_owned(),
            clean(&agent.labels.join(",")).into_owned(),
            date(agent.registered_ms),
        ]);
    }
    table(&rows)
}

fn kind(agent: &v1::AgentInfo) -> &'static str {
    if agent.spot { "spot" } else { "on-demand" }
}

fn as_json(agent: &v1::AgentInfo) -> String {
    serde_json::json!({
        "name": agent.name,
        "state": word(agent.state()),
        "connected": agent.connected,
        "slots": agent.slots,
        "slots_used": agent.slots_used,
        "pool": agent.pool,
        "provisioning": kind(agent),
        "labels": agent.labels,
        "incarnation": agent.incarnation,
        "registered_ms": agent.registered_ms,
        "drain_deadline_ms": agent.drain_deadline_ms,
        "properties": agent.properties,
    })
    .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agents_are_a_table_for_people_and_objects_for_programs() {
        let agent = v1::AgentInfo {
            name: "a1".to_owned(),
            pool: "p".to_owned(),
            spot: true,
            labels: vec!["linux".to_owned(), "x64".to_owned()],
            slots: 4,
            slots_used: 1,
            state: State::Draining.into(),
            connected: true,
            registered_ms: 951_782_400_000,
            ..Default::default()
        };
        assert_eq!(
            as_table(std::slice::from_ref(&agent)),
            "AGENT  STATE     CONNECTED  USED  POOL  KIND  LABELS     REGISTERED (UTC)\n\
             a1     draining  yes        1/4   p     spot  linux,x64  2000-02-29 00:00:00\n"
        );
        let json: serde_json::Value = serde_json::from_str(&as_json(&agent)).unwrap();
        assert_eq!((&json["state"], &json["slots_used"]), (&"draining".into(), &1.into()));
    }

    #[test]
    fn times_follow_a_table() {
        let table = [
            ("90s", Some(90_000)),
            ("30m", Some(1_800_000)),
            ("2h", Some(7_200_000)),
            ("", None),
            ("h", None),
            ("5", None),
            ("1é", None),
            ("99999999999999999999s", None),
        ];
        for (text, want) in table {
            assert_eq!(duration_ms(text), want, "{text}");
        }
    }
}
