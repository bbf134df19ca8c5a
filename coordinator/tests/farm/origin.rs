//! A coordinator in front of an origin that outlives it.

use std::path::Path;

use steading_cas::Front;
use steading_coordinator::{Config, Coordinator, ObjectStore};
use steading_model::DigestFunction;
use steading_proto::v1;
use steading_proto::v1::Conclusion::Success;

use crate::CHAIN;
use crate::support::{Agent, Farm, config, ended};

#[tokio::test]
async fn a_run_goes_on_when_the_coordinators_own_blobs_are_lost() {
    let (dir, origin) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let farm = Farm::start_with(at(dir.path(), Some(origin.path()))).await;
    let mut agent = Agent::join(&farm, "a").await;
    let run = farm.submit("r1", CHAIN).await;
    agent.work(&farm, &[("answer", "42")]).await;
    farm.stop().await;

    std::fs::remove_dir_all(dir.path().join("cas")).unwrap();
    let farm = Farm::start_with(at(dir.path(), Some(origin.path()))).await;
    let mut agent = Agent::join(&farm, "a").await;
    assert_eq!(agent.work(&farm, &[]).await.key, "second");
    farm.watch(run, 0).await;
    assert_eq!(ended(&farm.run(run).await).1, Success);
    farm.stop().await;
}

#[tokio::test]
async fn a_coordinator_that_was_alone_takes_its_blobs_along_to_an_origin() {
    let (dir, origin) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let farm = Farm::start_with(at(dir.path(), None)).await;
    let run = farm.submit("r1", CHAIN).await;
    farm.stop().await;

    Farm::start_with(at(dir.path(), Some(origin.path()))).await.stop().await;
    std::fs::remove_dir_all(dir.path().join("cas")).unwrap();
    let farm = Farm::start_with(at(dir.path(), Some(origin.path()))).await;
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
    Farm::start_with(at(dir.path(), Some(origin.path()))).await.stop().await;
    // As a directory that is not mounted looks.
    let other = tempfile::tempdir().unwrap();
    let refused = Coordinator::start(at(dir.path(), Some(other.path()))).await;
    let why = format!("{:#}", refused.map(drop).unwrap_err());
    assert!(why.contains("does not know cluster"), "{why}");
    assert!(why.contains("mounted"), "{why}");
    Farm::start_with(at(dir.path(), Some(origin.path()))).await.stop().await;
}

#[tokio::test]
async fn a_store_that_is_the_origin_loses_nothing_that_an_open_run_needs() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = at(dir.path(), None);
    config.store_bytes_max = 64 << 20;
    let farm = Farm::start_with(config).await;
    let store = farm.coordinator.store();
    store.wait_scanned();
    let source = tempfile::tempdir().unwrap();
    std::fs::write(source.path().join("main.c"), "int main(void) { return 0; }\n").unwrap();
    let memo = dir.path().join("memo");
    let source = steading_cas::source::snapshot(&store, source.path(), &memo).unwrap().root;
    let request =
        v1::SubmitRequest { source_digest: source.to_string(), ..farm.request("r1", CHAIN) };
    let run = farm.pipelines().submit(request).await.unwrap().into_inner().run_id;
    let mut agent = Agent::join(&farm, "a").await;
    agent.work(&farm, &[("answer", "42")]).await;

    // What the sources are cannot be read for a while: the file of a blob is never a link.
    let (hex, aside) = (source.hash_hex(), dir.path().join("aside"));
    let root = format!("cas/blobs/blake3/{}/{hex}-{}", &hex[..2], source.size);
    let root = dir.path().join(root);
    std::fs::rename(&root, &aside).unwrap();
    std::os::unix::fs::symlink(&aside, &root).unwrap();

    // Others put more than fits, all of it later than what the run needs.
    let others = store.clone();
    let (old, young) = tokio::task::spawn_blocking(move || {
        let put = |byte: u8| others.put(DigestFunction::Blake3, &vec![byte; 4 << 20]).unwrap();
        let put: Vec<_> = (1..=24).map(put).collect();
        (put[0], put[23])
    })
    .await
    .unwrap();
    // Nobody could tell what must stay, so nothing went.
    assert!(store.bytes() > 96 << 20, "{}", store.bytes());
    std::fs::rename(&aside, &root).unwrap();
    let (evicting, front) =
        (store.clone(), Front::new(store.clone(), farm.coordinator.actions(), None));
    tokio::task::spawn_blocking(move || evicting.evict()).await.unwrap();
    let needed = front.tree_blobs(DigestFunction::Blake3, &source).unwrap();
    assert_eq!(needed.len(), 2);
    assert_eq!(store.missing(DigestFunction::Blake3, &needed), []);
    assert_eq!(store.missing(DigestFunction::Blake3, &[old, young]), [old]);
    // The first job's result is read once more, to plan the second.
    agent.work(&farm, &[]).await;
    farm.watch(run, 0).await;
    assert_eq!(ended(&farm.run(run).await).1, Success);
    farm.stop().await;
}

fn at(dir: &Path, origin: Option<&Path>) -> Config {
    let mut config = config(dir);
    config.object_store =
        origin.map(|dir| ObjectStore { directory: Some(dir.into()), ..<_>::default() });
    config
}
