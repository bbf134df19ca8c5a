//! `stead cluster`: the coordinators of a farm.

use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::json;
use steading_proto::v1;
use steading_proto::v1::cluster_client::ClusterClient;
use steading_proto::v1::cluster_member::Role;
use tonic::Code;

use crate::args::Coordinated;
use crate::connect::{FIRST_ANSWER_MAX, failure};
use crate::exit::{Ended, Failure};
use crate::out;
use crate::reach::Reach;
use crate::text::{clean, count, duration, table};

/// How long a change of the group may take: it waits for another replica's disk.
const CHANGE_MAX: Duration = Duration::from_secs(60);

#[derive(Args, Debug)]
pub struct Cluster {
    #[command(subcommand)]
    pub verb: ClusterVerb,
}

#[derive(Debug, Subcommand)]
pub enum ClusterVerb {
    /// List the coordinators, as the one that leads sees them
    Status(ClusterStatus),
    /// Say what to run on a machine that shall be another coordinator
    Add(ClusterAdd),
    /// Take a coordinator out of the group
    Remove(ClusterRemove),
    /// Let another coordinator lead
    Transfer(ClusterTransfer),
}

#[derive(Args, Debug)]
pub struct ClusterStatus {
    #[command(flatten)]
    pub coordinated: Coordinated,
    /// One JSON object
    #[arg(long)]
    pub json: bool,
}

#[derive(Args, Debug)]
pub struct ClusterAdd {
    #[command(flatten)]
    pub coordinated: Coordinated,
    /// The same as one JSON object
    #[arg(long)]
    pub json: bool,
}

#[derive(Args, Debug)]
pub struct ClusterRemove {
    /// As `stead cluster status` lists it
    #[arg(value_name = "ID")]
    pub replica: u64,
    /// Also where no other can take its place, so that the number of voters becomes even
    #[arg(long)]
    pub force: bool,
    #[command(flatten)]
    pub coordinated: Coordinated,
}

#[derive(Args, Debug)]
pub struct ClusterTransfer {
    /// As `stead cluster status` lists it [default: whoever is most up to date]
    #[arg(value_name = "ID")]
    pub replica: Option<u64>,
    #[command(flatten)]
    pub coordinated: Coordinated,
}

/// Asks about the group, or changes it.
///
/// # Errors
///
/// [`Failure`] where the farm does not answer, or refuses.
pub async fn run(args: Cluster) -> Result<Ended, Failure> {
    match args.verb {
        ClusterVerb::Status(args) => {
            let status = ask(&args.coordinated).await?;
            if args.json {
                out::line(as_json(&status))?;
            } else {
                out::print(as_text(&status))?;
            }
        }
        ClusterVerb::Add(args) => {
            let line = line_to_join(&ask(&args.coordinated).await?);
            if args.json {
                out::line(json!({ "run": line }))?;
            } else {
                out::line(
                    "run this on the new machine, with a directory and an address of its own:",
                )?;
                out::line(line)?;
            }
        }
        ClusterVerb::Remove(args) => remove(&args).await?,
        ClusterVerb::Transfer(args) => transfer(&args).await?,
    }
    Ok(Ended::Success)
}

async fn ask(coordinated: &Coordinated) -> Result<v1::ClusterStatus, Failure> {
    let reach = Reach::new(coordinated).await?;
    let status = reach.coordinators.call_over(FIRST_ANSWER_MAX, |channel| async move {
        ClusterClient::new(channel).get_cluster_status(v1::GetClusterStatusRequest {}).await
    });
    let status = status.await;
    reach.stop().await?;
    status.map_err(|status| failure("ask for the coordinators", status))
}

async fn remove(args: &ClusterRemove) -> Result<(), Failure> {
    let reach = Reach::new(&args.coordinated).await?;
    let request = v1::RemoveReplicaRequest { replica_id: args.replica, force: args.force };
    let removed = reach.coordinators.call_over(CHANGE_MAX, |channel| async move {
        ClusterClient::new(channel).remove_replica(request).await
    });
    let removed = removed.await;
    reach.stop().await?;
    removed.map_err(|status| not_removed(status, args.force))?;
    out::line(format_args!(
        "coordinator {} is out of the group; its directory can go",
        args.replica
    ))?;
    Ok(())
}

/// Why a coordinator stays, with what would help: to force it was tried where it was said.
fn not_removed(status: tonic::Status, forced: bool) -> Failure {
    match (status.code(), forced) {
        (Code::FailedPrecondition, false) => Failure::usage(format!(
            "{}\n  hint: `stead cluster add` another one first, or say --force",
            status.message()
        )),
        (Code::FailedPrecondition, true) => Failure::usage(status.message()),
        _ => failure("remove the coordinator", status),
    }
}

async fn transfer(args: &ClusterTransfer) -> Result<(), Failure> {
    let reach = Reach::new(&args.coordinated).await?;
    let moved = ask_to_transfer(&reach, args.replica).await;
    reach.stop().await?;
    let leader = moved.map_err(|status| match status.code() {
        Code::FailedPrecondition => Failure::usage(status.message()),
        _ => failure("transfer the leadership", status),
    })?;
    out::line(format_args!("coordinator {leader} leads"))?;
    Ok(())
}

/// Who leads afterwards. The leader that hands over may be gone before its answer is
/// passed on, and to ask the next one again would move the leadership twice.
async fn ask_to_transfer(reach: &Reach, to: Option<u64>) -> Result<u64, tonic::Status> {
    let leads = async |channel| {
        let mut cluster = ClusterClient::new(channel);
        let status = cluster.get_cluster_status(v1::GetClusterStatusRequest {}).await?;
        let members = status.into_inner().members;
        let leader = members.iter().find(|member| member.leader);
        leader
            .map(|member| member.replica_id)
            .ok_or_else(|| tonic::Status::unavailable("no leader"))
    };
    let before = reach
        .coordinators
        .call_over(CHANGE_MAX, async |channel| Ok(tonic::Response::new(leads(channel).await?)));
    let before = before.await?;
    let request = v1::TransferLeadershipRequest { replica_id: to.unwrap_or(0) };
    let moved = reach.coordinators.call_over(CHANGE_MAX, async |channel| {
        let now = leads(channel.clone()).await?;
        if now != before && to.is_none_or(|to| to == now) {
            return Ok(tonic::Response::new(now));
        }
        let moved = ClusterClient::new(channel).transfer_leadership(request).await?;
        Ok(tonic::Response::new(moved.into_inner().replica_id))
    });
    moved.await
}

/// What another coordinator of this group is started with.
fn line_to_join(status: &v1::ClusterStatus) -> String {
    let staying = status.members.iter().filter(|member| !member.removed);
    // The leader first: it is asked first.
    let mut members: Vec<&v1::ClusterMember> = staying.collect();
    members.sort_by_key(|member| (!member.leader, member.replica_id));
    let endpoints: Vec<_> = members.iter().map(|member| clean(&member.endpoint)).collect();
    let join = endpoints.join(",");
    if !join.contains("https://") {
        return line_of_coordinator(&join, None);
    }
    // Made apart: it is a secret, and of use once.
    let line = line_of_coordinator(&join, Some("TOKEN"));
    format!("{line}  # of `stead token create --role coordinator`")
}

/// What a new coordinator is started with: it joins these, with the token that they want
/// where they talk over mTLS.
pub fn line_of_coordinator(join: &str, token: Option<&str>) -> String {
    let listen = match (token, join.contains("http://")) {
        (Some(_), _) => "https://HOST:PORT",
        (None, true) => "ADDRESS --insecure-loopback",
        (None, false) => "ADDRESS",
    };
    let token = token.map(|token| format!(" --token {token}")).unwrap_or_default();
    format!(
        "stead coordinator --data-dir DIR --listen {listen} --object-store DIR|URL --join {join}{token}"
    )
}

fn as_text(status: &v1::ClusterStatus) -> String {
    let head = ["ID", "ROLE", "ENDPOINT", "BEHIND", "ANSWERED", "CLOCK", "LEVEL"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for member in &status.members {
        rows.push(vec![
            member.replica_id.to_string(),
            role(member).to_owned(),
            clean(&member.endpoint).into_owned(),
            if member.leader { "-".to_owned() } else { member.lag.to_string() },
            match member.silent_ms {
                _ if member.leader => "-".to_owned(),
                ms => u64::try_from(ms)
                    .map_or("never".to_owned(), |ms| format!("{} ago", duration(ms))),
            },
            match member.clock_ahead_ms {
                _ if member.leader || member.silent_ms < 0 => "-".to_owned(),
                ms => format!("{ms:+}ms"),
            },
            member.feature_level.to_string(),
        ]);
    }
    let voters = status.members.iter().filter(|member| member.role() == Role::Voter).count();
    let joint = if status.joint { ", its members are being changed" } else { "" };
    format!(
        "cluster {}: {}, term {}, commit {}, feature level {}{joint}\n{}",
        clean(&status.cluster_id),
        count(voters as u64, "voter"),
        status.term,
        status.commit,
        status.feature_level,
        table(&rows)
    )
}

fn as_json(status: &v1::ClusterStatus) -> String {
    let members: Vec<_> = status
        .members
        .iter()
        .map(|member| {
            json!({
                "id": member.replica_id,
                "storage_id": member.storage_id,
                "endpoint": member.endpoint,
                "role": role(member),
                "leader": member.leader,
                "removed": member.removed,
                "matched": member.matched,
                "lag": member.lag,
                "active": member.active,
                "silent_ms": u64::try_from(member.silent_ms).ok(),
                "clock_ahead_ms": member.clock_ahead_ms,
                "feature_level": member.feature_level,
                "admitted_ms": member.admitted_ms,
            })
        })
        .collect();
    json!({
        "cluster_id": status.cluster_id,
        "term": status.term,
        "commit": status.commit,
        "joint": status.joint,
        "feature_level": status.feature_level,
        "members": members,
    })
    .to_string()
}

fn role(member: &v1::ClusterMember) -> &'static str {
    match (member.role(), member.leader, member.removed) {
        (Role::Voter, true, _) => "leader",
        (Role::Voter | Role::Learner, _, true) => "leaving",
        (Role::Voter, ..) => "voter",
        (Role::Learner, ..) => "learner",
        (Role::None | Role::Unspecified, _, true) => "removed",
        (Role::None | Role::Unspecified, ..) => "joining",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_group_is_a_table_for_people_and_an_object_for_programs() {
        let status = group();
        assert_eq!(
            as_text(&status),
            "cluster c0ffee: 2 voters, term 4, commit 900, feature level 1\n\
             ID  ROLE     ENDPOINT            BEHIND  ANSWERED  CLOCK  LEVEL\n\
             1   voter    http://127.0.0.1:1  1       12ms ago  -3ms   1\n\
             2   leader   http://127.0.0.1:2  -       -         -      1\n\
             3   removed  http://127.0.0.1:3  0       never     -      1\n"
        );
        let json: serde_json::Value = serde_json::from_str(&as_json(&status)).unwrap();
        assert_eq!(json["members"][1]["role"], "leader");
        assert_eq!(json["members"][2]["silent_ms"], serde_json::Value::Null);
    }

    #[test]
    fn to_force_is_proposed_to_whoever_did_not_say_it() {
        let refused = || tonic::Status::failed_precondition("it is the only voter");
        assert_eq!(not_removed(refused(), true).to_string(), "it is the only voter");
        assert!(not_removed(refused(), false).to_string().ends_with("or say --force"));
    }

    #[test]
    fn the_line_to_join_names_the_leader_first_and_nobody_who_left() {
        assert_eq!(
            line_to_join(&group()),
            "stead coordinator --data-dir DIR --listen ADDRESS --insecure-loopback \
             --object-store DIR|URL --join http://127.0.0.1:2,http://127.0.0.1:1"
        );
    }

    #[test]
    fn the_line_to_join_over_mtls_has_a_token() {
        let mut group = group();
        for member in &mut group.members {
            member.endpoint = format!("https://c{}:7000", member.replica_id);
        }
        assert_eq!(
            line_to_join(&group),
            "stead coordinator --data-dir DIR --listen https://HOST:PORT --object-store DIR|URL \
             --join https://c2:7000,https://c1:7000 --token TOKEN  \
             # of `stead token create --role coordinator`"
        );
    }

    fn group() -> v1::ClusterStatus {
        let member = |replica_id: u64| v1::ClusterMember {
            replica_id,
            endpoint: format!("http://127.0.0.1:{replica_id}"),
            role: Role::Voter.into(),
            feature_level: 1,
            ..v1::ClusterMember::default()
        };
        v1::ClusterStatus {
            cluster_id: "c0ffee".to_owned(),
            term: 4,
            commit: 900,
            joint: false,
            feature_level: 1,
            members: vec![
                v1::ClusterMember { lag: 1, silent_ms: 12, clock_ahead_ms: -3, ..member(1) },
                v1::ClusterMember { leader: true, ..member(2) },
                v1::ClusterMember {
                    removed: true,
                    role: Role::None.into(),
                    silent_ms: -1,
                    ..member(3)
                },
            ],
        }
    }
}
