//! One action, wanted by several: who executes it and who waits.

use super::*;

#[tokio::test]
async fn an_action_is_executed_once_and_everyone_gets_its_result() {
    let dir = tempfile::tempdir().unwrap();
    let farm = Farm::start(dir.path()).await;
    let (mut a, mut b) = (Agent::join(&farm, "a").await, Agent::join(&farm, "b").await);
    farm.submit("r1", ONE).await;
    farm.submit("r2", ONE).await;
    // Placement spreads them: one each.
    let (offer_a, offer_b) = (a.offer().await, b.offer().await);
    let (lease_a, lease_b) = (a.accept(&offer_a).await, b.accept(&offer_b).await);

    for (name, resolution, want) in [
        ("published", published(), Decision::Published(Default::default())),
        (
            "abandoned",
            Resolution::Abandoned(Default::default()),
            Decision::Build(Default::default()),
        ),
    ] {
        let action = farm.coordinator.store().put(DigestFunction::Blake3, name.as_bytes()).unwrap();
        let action = action.to_string();
        let claim =
            |lease| v1::ClaimActionRequest { lease: Some(lease), action_digest: action.clone() };
        let granted = a.client.claim_action(claim(lease_a)).await.unwrap().into_inner();
        assert_eq!(granted.decision, Some(Decision::Build(Default::default())), "{name}");
        let mut other = b.client.clone();
        let waiting = other.claim_action(claim(lease_b));
        let resolve = v1::ResolveClaimRequest {
            lease: Some(lease_a),
            action_digest: action.clone(),
            resolution: Some(resolution),
        };
        let resolving = async {
            // The wait may begin before or after this: it must not matter.
            a.client.resolve_claim(resolve.clone()).await.unwrap();
            // Repeated after a lost answer.
            a.client.resolve_claim(resolve.clone()).await.unwrap();
        };
        let (decided, ()) = soon("the decision", async { tokio::join!(waiting, resolving) }).await;
        let decided = decided.unwrap().into_inner().decision;
        let build = Some(Decision::Build(Default::default()));
        assert!(decided == Some(want) || decided == build, "{name}: {decided:?}");
    }
    farm.stop().await;
}

#[tokio::test]
async fn who_waits_takes_over_when_the_claimant_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let farm = Farm::start(dir.path()).await;
    let (mut a, mut b) = (Agent::join(&farm, "a").await, Agent::join(&farm, "b").await);
    farm.submit("r1", ONE).await;
    farm.submit("r2", ONE).await;
    let (offer_a, offer_b) = (a.offer().await, b.offer().await);
    let (lease_a, lease_b) = (a.accept(&offer_a).await, b.accept(&offer_b).await);
    let claim = |lease| v1::ClaimActionRequest {
        lease: Some(lease),
        action_digest: format!("{}/7", "a".repeat(64)),
    };
    a.client.claim_action(claim(lease_a)).await.unwrap();
    let mut waiter = b.client.clone();
    let lost = async {
        Agent::register(&farm, "a").await;
    };
    let waiting = waiter.claim_action(claim(lease_b));
    let (decided, ()) = soon("the takeover", async { tokio::join!(waiting, lost) }).await;
    assert_eq!(decided.unwrap().into_inner().decision, Some(Decision::Build(Default::default())));
    // The lost one learns it from its own claim.
    let refused = a.client.claim_action(claim(lease_a)).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    farm.stop().await;
}

fn published() -> Resolution {
    Resolution::Published(Default::default())
}
