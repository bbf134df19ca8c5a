//! A coordinator in front of an origin that outlives it.

use std::path::Path;

use steading_coordinator::{Config, Coordinator, ObjectStore};
use steading_proto::v1::Conclusion::Success;

use crate::CHAIN;
use crate::support::{Agent, Farm, ended};

#[tokio::test]
async fn a_run_goes_on_when_the_coordinators_own_blobs_are_lost() {
    let (dir, origin) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let farm = Farm::start_with(config(dir.path(), Some(origin.path()))).await;
    let mut agent = Agent::join(&farm, "a").await;
    let run = farm.submit("r1", CHAIN).await;
    agent.work(&farm, &[("answer", "42")]).await;
    farm.stop().await;

    std::fs::remove_dir_all(dir.path().join("cas")).unwrap();
    let farm = Farm::start_with(config(dir.path(), Some(origin.path()))).await;
    let mut agent = Agent::join(&farm, "a").await;
    assert_eq!(agent.work(&farm, &[]).await.key, "second");
    farm.watch(run, 0).await;
    assert_eq!(ended(&farm.run(run).await).1, Success);
    farm.stop().await;
}

#[tokio::test]
async fn a_coordinator_that_was_alone_takes_its_blobs_along_to_an_origin() {
    let (dir, origin) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let farm = Farm::start_with(config(dir.path(), None)).await;
    let run = farm.submit("r1", CHAIN).await;
    farm.stop().await;

    Farm::start_with(config(dir.path(), Some(origin.path()))).await.stop().await;
    std::fs::remove_dir_all(dir.path().join("cas")).unwrap();
    let farm = Farm::start_with(config(dir.path(), Some(origin.path()))).await;
    let mut agent = Agent::join(&farm, "a").await;
    agent.work(&farm, &[("answer", "42")]).await;
    agent.work(&farm, &[]).await;
    farm.watch(run, 0).await;
    assert_eq!(ended(&farm.run(run).await).1, Success);
    farm.stop().await;
}

#[tokio::test]
async fn a_coordinator_starts_with_no_other_origin_than_its_groups() {
    let (dir, origin) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    Farm::start_with(config(dir.path(), Some(origin.path()))).await.stop().await;
    // As a directory that is not mounted looks.
    let other = tempfile::tempdir().unwrap();
    let refused = Coordinator::start(config(dir.path(), Some(other.path()))).await;
    let why = format!("{:#}", refused.map(drop).unwrap_err());
    assert!(why.contains("does not know cluster"), "{why}");
    assert!(why.contains("mounted"), "{why}");
    Farm::start_with(config(dir.path(), Some(origin.path()))).await.stop().await;
}

fn config(dir: &Path, origin: Option<&Path>) -> Config {
    let mut config = Config::new(dir);
    config.object_store =
        origin.map(|dir| ObjectStore { directory: Some(dir.into()), ..<_>::default() });
    config
}
