//! How an agent leaves, and how it becomes empty.

use super::*;

#[tokio::test]
async fn after_a_notice_what_was_not_started_goes_back_first_and_what_ends_in_time_ends() {
    let mut farm = Farm::start().await;
    farm.hello(&[]).await;
    farm.run(1, &["echo on >> MARK; while [ ! -e GO ]; do sleep 0.01; done"]).await;
    farm.until_marked().await;
    // There is one slot: this one waits.
    farm.run(2, &["true"]).await;
    std::fs::write(farm.dir.path().join("notice"), "").unwrap();
    let back = farm.handed_back().await;
    assert_eq!(back.unstarted, [lease(2)]);
    assert!(back.preempted && back.window_ms == Some(30_000));
    // Nothing more is taken.
    farm.offer(3, &["true"]).await;
    let Event::Said(Said::Decline(declined)) =
        farm.event(|event| matches!(event, Event::Said(Said::Decline(_)))).await
    else {
        unreachable!()
    };
    assert_eq!(declined.lease, Some(lease(3)));
    std::fs::write(farm.dir.path().join("go"), "").unwrap();
    assert_eq!(farm.completed().await.lease, Some(lease(1)));
    farm.ended().await;
}

#[tokio::test]
async fn what_does_not_end_in_the_window_is_stopped_and_given_back() {
    let mut farm = Farm::start_with(RunAs::SelfUser, 200).await;
    farm.hello(&[]).await;
    farm.run(1, &["echo $$ >> MARK; sleep 1000"]).await;
    let pid = farm.until_marked().await;
    farm.leave.cancel();
    assert!(farm.handed_back().await.unstarted.is_empty());
    let release = farm.released().await;
    assert_eq!(release.failure_class(), v1::FailureClass::Preempted);
    assert!(release.started);
    assert!(!PathBuf::from(format!("/proc/{pid}")).exists(), "gone before the lease is");
    farm.ended().await;
}

#[tokio::test]
async fn an_agent_that_is_to_be_empty_stays_and_works_again_when_it_may() {
    let mut farm = Farm::start().await;
    farm.hello(&[]).await;
    farm.run(1, &["echo on >> MARK; sleep 1000"]).await;
    farm.until_marked().await;
    farm.run(2, &["true"]).await;
    farm.say(Say::Empty(v1::Empty { wanted: true, left_ms: Some(0) })).await;
    let back = farm.handed_back().await;
    assert_eq!((back.unstarted, back.window_ms, back.preempted), (vec![lease(2)], None, false));
    assert_eq!(farm.released().await.lease, Some(lease(1)));
    farm.say(Say::Empty(v1::Empty { wanted: false, left_ms: None })).await;
    farm.run(3, &["true"]).await;
    assert_eq!(farm.completed().await.lease, Some(lease(3)));
    farm.stop().await;
}
