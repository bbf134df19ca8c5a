//! The state of a group outlives the group.

use std::path::{Path, PathBuf};

use steading_coordinator::backup;
use steading_coordinator::recovery::{self, Restore};
use steading_coordinator::{Coordinator, ObjectStore};
use steading_proto::v1;
use steading_proto::v1::Conclusion::Success;
use steading_proto::v1::agents_client::AgentsClient;
use steading_proto::v1::backups_client::BackupsClient;
use tokio::task::JoinSet;
use tonic::Code;

use crate::support::{self, Agent, Farm, ended, soon};
use crate::{CHAIN, ONE};

#[tokio::test]
async fn a_backup_under_load_comes_back_with_every_run_and_no_agent_of_the_old_group() {
    let (old, new, origin) = (dir(), dir(), dir());
    let setting = ObjectStore { directory: Some(origin.path().into()), ..<_>::default() };
    let config = |dir: &Path| {
        let mut config = support::config(dir);
        config.object_store = Some(setting.clone());
        config
    };
    let farm = Farm::start_with(config(old.path())).await;
    let mut agent = Agent::join(&farm, "a").await;
    let run = farm.submit("r1", CHAIN).await;
    let offer = agent.offer().await;
    let lease = agent.accept(&offer).await;
    let mut load = JoinSet::new();
    for number in 0..20 {
        let request = farm.request(&format!("load-{number}"), ONE);
        let mut client = farm.pipelines();
        load.spawn(async move { client.submit(request).await.unwrap() });
    }
    let file = old.path().join("backup");
    let key = take(&farm, &file).await;
    while let Some(submitted) = load.join_next().await {
        submitted.unwrap();
    }
    farm.stop().await;
    let (manifest, state) = backup::read(&file).unwrap();
    assert!(state.runs_len() >= 1);
    let keys = old.path().join("keys");
    std::fs::write(&keys, key).unwrap();

    // Not over somebody's directory, and not with an origin that knows nothing of it.
    let mut restore = Restore {
        file,
        data_dir: old.path().into(),
        object_store: Some(setting.clone()),
        keys: Some(keys),
    };
    let refused = format!("{:#}", recovery::restore(restore.clone()).await.unwrap_err());
    assert!(refused.contains("a coordinator's already"), "{refused}");
    restore.data_dir = new.path().join("data");
    let other = dir();
    let elsewhere = ObjectStore { directory: Some(other.path().into()), ..<_>::default() };
    let lost = Restore { object_store: Some(elsewhere), ..restore.clone() };
    let refused = format!("{:#}", recovery::restore(lost).await.unwrap_err());
    assert!(refused.contains("does not know cluster"), "{refused}");

    let (of, group) = recovery::restore(restore.clone()).await.unwrap();
    assert_eq!((&of, group.open_runs), (&manifest, state.open_runs().count()));
    assert_ne!(group.cluster_id, manifest.cluster_id);
    let farm = Farm::start_with(config(&restore.data_dir)).await;
    // What the old group's agent holds, and who it is there, is nothing here.
    agent.client = AgentsClient::new(farm.channel());
    let refused = agent.complete(lease, farm.put_result(&[])).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    assert_eq!(agent.try_connect(&farm, &[]).await.unwrap_err().code(), Code::AlreadyExists);
    let mut agent = Agent::join(&farm, "a").await;
    let mut done = 0;
    while !matches!(farm.run(run).await.conclusion(), Success) {
        agent.work(&farm, &[("answer", "42")]).await;
        done += 1;
        assert!(done <= 30, "the run does not end");
    }
    let newer = farm.submit("r2", ONE).await;
    assert!(newer > run + 1_000_000, "ids of the old group's future are not given again: {newer}");
    farm.stop().await;
}

#[tokio::test]
async fn a_survivor_of_a_lost_majority_goes_on_alone() {
    let dir = dir();
    let farm = Farm::start(dir.path()).await;
    let mut agent = Agent::join(&farm, "a").await;
    let run = farm.submit("r1", CHAIN).await;
    agent.work(&farm, &[("answer", "42")]).await;
    let running = agent.offer().await;
    let lease = agent.accept(&running).await;
    let busy = recovery::standpoint(dir.path()).unwrap_err();
    assert!(format!("{busy:#}").contains("stop the coordinator first"), "{busy:#}");
    farm.stop().await;

    let before = recovery::standpoint(dir.path()).unwrap();
    assert_eq!(recovery::standpoint(dir.path()).unwrap(), before, "showing changes nothing");
    assert!(before.term > 0 && before.index > 3 && before.open_runs == 1, "{before:?}");
    for of_old in ["ca", "identity"] {
        std::fs::create_dir(dir.path().join(of_old)).unwrap();
    }
    let group = recovery::recover(dir.path()).unwrap();
    assert!(!dir.path().join("ca").exists() && dir.path().join("ca.bad.1").exists());
    assert!(!dir.path().join("identity").exists());
    assert_ne!(group.cluster_id, before.cluster_id);
    assert!(group.set_aside.is_some_and(|dir| dir.join("node.json").exists()));

    let farm = Farm::start(dir.path()).await;
    agent.client = AgentsClient::new(farm.channel());
    let refused = agent.complete(lease, farm.put_result(&[])).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    let mut agent = Agent::join(&farm, "a").await;
    assert_eq!(agent.work(&farm, &[]).await.key, "second");
    farm.watch(run, 0).await;
    assert_eq!(ended(&farm.run(run).await).1, Success);
    farm.stop().await;
    let after = recovery::standpoint(dir.path()).unwrap();
    assert!((after.term, after.index) > (before.term, before.index), "{after:?}");
}

#[tokio::test]
async fn only_a_coordinators_directory_is_recovered() {
    let empty = dir();
    let refused = recovery::recover(empty.path()).unwrap_err();
    assert!(format!("{refused:#}").contains("holds no coordinator"), "{refused:#}");
    assert_eq!(std::fs::read_dir(empty.path()).unwrap().count(), 0);
    let farm = Coordinator::start(support::config(empty.path())).await.unwrap();
    farm.stop().await.unwrap();
}

/// Takes a backup with its key.
async fn take(farm: &Farm, file: &PathBuf) -> Vec<u8> {
    let request = v1::BackupRequest { include_keys: true };
    let mut parts = BackupsClient::new(farm.channel()).backup(request).await.unwrap().into_inner();
    let (mut bytes, mut key) = (Vec::new(), Vec::new());
    while let Some(part) = soon("a part", parts.message()).await.unwrap() {
        bytes.extend_from_slice(&part.data);
        key.extend_from_slice(&part.seal_key);
    }
    std::fs::write(file, bytes).unwrap();
    key
}

fn dir() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}
