//! What an agent does on its session, and when its session breaks.

use super::*;

#[tokio::test]
async fn nothing_starts_before_the_accept_is_acknowledged() {
    let mut farm = Farm::start().await;
    farm.hello(&[]).await;
    farm.offer(1, &["echo started >> MARK; echo output"]).await;
    let accept = farm.accepted(1).await;
    assert!(!farm.mark().exists());
    farm.acknowledge(accept, &[1]).await;
    let report = farm.completed().await;
    assert!(farm.mark().exists());
    assert_eq!(report.conclusion(), v1::Conclusion::Success);
    assert_eq!((report.lease, report.steps_executed), (Some(lease(1)), 1));
    assert_eq!(farm.log(1), "output\n");
    let result = farm.result(&report);
    assert_eq!(farm.blob(&result.logs[&0]), b"output\n");
    farm.stop().await;
}

#[tokio::test]
async fn a_cancelled_job_is_reported_as_cancelled() {
    let mut farm = Farm::start().await;
    farm.hello(&[]).await;
    farm.run(1, &["echo on >> MARK; sleep 1000"]).await;
    farm.until_marked().await;
    farm.say(Say::Cancel(v1::Cancel { lease: Some(lease(1)) })).await;
    let report = farm.completed().await;
    assert_eq!(report.conclusion(), v1::Conclusion::Cancelled);
    assert_eq!(report.failure_class(), v1::FailureClass::Cancelled);
    farm.stop().await;
}

#[tokio::test]
async fn a_refused_lease_ends_in_silence_and_its_slot_is_free_again() {
    let mut farm = Farm::start().await;
    farm.hello(&[]).await;
    farm.run(1, &["trap '' TERM; echo $$ >> MARK; sleep 1000"]).await;
    let pid = farm.until_marked().await;
    farm.say(Say::Revoke(v1::Revoke { leases: vec![lease(1)] })).await;
    farm.run(2, &["true"]).await;
    let report = farm.completed().await;
    assert_eq!(report.lease, Some(lease(2)), "of the first, nothing is told");
    assert!(!PathBuf::from(format!("/proc/{pid}")).exists());
    farm.stop().await;
}

#[tokio::test]
async fn a_job_goes_on_while_the_session_is_broken_and_is_told_of_again() {
    let mut farm = Farm::start().await;
    farm.hello(&[]).await;
    farm.run(1, &["echo on >> MARK; while [ ! -e GO ]; do sleep 0.01; done; echo done"]).await;
    farm.until_marked().await;
    farm.break_session();
    farm.hello(&[1]).await;
    std::fs::write(farm.dir.path().join("go"), "").unwrap();
    let report = farm.completed().await;
    assert_eq!(report.conclusion(), v1::Conclusion::Success);
    assert_eq!(farm.log(1), "done\n");
    farm.stop().await;
}

#[tokio::test]
async fn what_a_new_session_does_not_know_is_stopped() {
    let mut farm = Farm::start().await;
    farm.hello(&[]).await;
    farm.run(1, &["echo $$ >> MARK; sleep 1000"]).await;
    let pid = farm.until_marked().await;
    farm.break_session();
    assert_eq!(farm.said_hello().await, [lease(1)]);
    farm.say(Say::Welcome(v1::Welcome::default())).await;
    farm.run(2, &["true"]).await;
    assert_eq!(farm.completed().await.lease, Some(lease(2)));
    assert!(!PathBuf::from(format!("/proc/{pid}")).exists());
    farm.stop().await;
}

#[tokio::test]
async fn an_agent_that_leaves_gives_back_what_it_runs() {
    let mut farm = Farm::start().await;
    farm.hello(&[]).await;
    farm.run(1, &["echo $$ >> MARK; sleep 1000"]).await;
    let pid = farm.until_marked().await;
    farm.shutdown.cancel();
    let Event::Released(release) = farm.event(|e| matches!(e, Event::Released(_))).await else {
        unreachable!()
    };
    assert_eq!(release.failure_class(), v1::FailureClass::Preempted);
    assert!(release.started);
    assert!(!PathBuf::from(format!("/proc/{pid}")).exists(), "gone before the lease is");
    farm.stop().await;
}

#[tokio::test]
async fn artifacts_go_from_job_to_job() {
    let mut farm = Farm::start().await;
    farm.hello(&[]).await;
    let upload = uses("actions/upload-artifact@v4", &[("name", "out"), ("path", "dist")]);
    let make = run_step("mkdir -p dist/sub; echo one > dist/a; echo two > dist/sub/b");
    farm.run_steps(1, vec![make, upload]).await;
    assert_eq!(farm.completed().await.conclusion(), v1::Conclusion::Success);

    let download = uses("actions/download-artifact@v4", &[("name", "out"), ("path", "in")]);
    farm.run_steps(2, vec![download, run_step("cat in/a in/sub/b")]).await;
    assert_eq!(farm.completed().await.conclusion(), v1::Conclusion::Success);
    assert_eq!(farm.log_of(2, 1), "one\ntwo\n");

    let missing = uses("actions/download-artifact@v4", &[("name", "none")]);
    farm.run_steps(3, vec![missing]).await;
    let report = farm.completed().await;
    assert!(report.message.contains("no artifact `none`"), "{}", report.message);
    farm.stop().await;
}

#[tokio::test]
async fn a_second_agent_on_the_same_folder_is_refused() {
    let farm = Farm::start().await;
    let second = steading_agent::run(farm.config(), farm.cluster(), CancellationToken::new());
    let ended = Box::pin(second).await;
    assert!(ended.unwrap_err().to_string().contains("another agent"));
    farm.stop().await;
}

#[tokio::test]
async fn a_job_of_another_user_owns_its_workspace_and_nothing_of_the_agents() {
    if !nix::unistd::geteuid().is_root() {
        let required = std::env::var("STEADING_REQUIRE").unwrap_or_default();
        assert!(!required.split(',').any(|name| name == "root"), "root is required");
        println!("skipped: only root can run a job as another user");
        return;
    }
    let mut farm = Farm::start_as(RunAs::PerSlotUid { base: 61_000 }).await;
    farm.hello(&[]).await;
    let script = "id -u; cd $GITHUB_WORKSPACE && touch mine $RUNNER_TEMP/t $HOME/h; echo o=1 >> $GITHUB_OUTPUT
        ls $DATA $DATA/work $DATA/work/logs $DATA/../cas 2>/dev/null || echo hidden
        cat $DATA/work/LOCK 2>/dev/null || echo closed; ln -sf $DATA/../secret $GITHUB_OUTPUT 2>/dev/null || echo kept
        grep NoNewPrivs /proc/self/status | cut -f2";
    std::fs::write(farm.dir.path().join("secret"), "leak=yes").unwrap();
    let script = script.replace("$DATA", &farm.dir.path().join("agent").display().to_string());
    farm.run(1, &[&script]).await;
    let report = farm.completed().await;
    assert_eq!(report.conclusion(), v1::Conclusion::Success, "{}\n{}", report.message, farm.log(1));
    assert_eq!(farm.log(1), "61000\nhidden\nclosed\nkept\n1\n");
    farm.stop().await;
}
