//! Durable proposals per second through one replica in this process.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::json;
use steading_coordinator::replica::{Options, Replica, Started};
use steading_core::{NewAgent, Proposal};
use steading_model::{Provisioning, Resources};

use crate::disk::Disk;
use crate::report;

/// How long each number of clients is measured.
const PERIOD: Duration = Duration::from_secs(3);

/// Prints proposals per second and latency with 1, 16 and 256 clients.
pub(crate) fn proposals(scratch: &Path, disk: &Disk) -> anyhow::Result<()> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    for clients in [1, 16, 256] {
        let dir = scratch.join(format!("replica-{clients}"));
        let Started { replica, thread, mut notices, .. } = Replica::start(Options::server(dir))?;
        let mut samples = runtime.block_on(async {
            let mut drain = tokio::task::JoinSet::new();
            drain.spawn(async move { while notices.recv().await.is_some() {} });
            let deadline = Instant::now() + PERIOD;
            let mut set = tokio::task::JoinSet::new();
            for client in 0..clients {
                set.spawn(propose_until(replica.clone(), client, deadline));
            }
            set.join_all().await.concat()
        });
        replica.stop();
        thread.join()?;
        let p50 = report::percentile(&mut samples, 0.5);
        report::print(
            "durable_proposals",
            &json!({
                "clients": clients,
                "per_s": report::rounded(samples.len() as f64 / PERIOD.as_secs_f64()),
                "p50_ms": report::ms(p50),
                "p99_ms": report::ms(report::percentile(&mut samples, 0.99)),
                "p50_over_fdatasync": report::rounded(p50.as_secs_f64() / disk.overwrite_p50.as_secs_f64()),
                "budget_over_fdatasync_one_client": 1.5,
            }),
        );
    }
    Ok(())
}

async fn propose_until(replica: Replica, client: usize, deadline: Instant) -> Vec<Duration> {
    let mut samples = Vec::new();
    while Instant::now() < deadline {
        let proposal = register(client);
        let start = Instant::now();
        replica.propose(proposal).await.expect("an agent may always register");
        samples.push(start.elapsed());
    }
    samples
}

/// One more start of an agent: a small proposal that leaves the state no larger.
fn register(client: usize) -> Proposal {
    Proposal::RegisterAgent {
        agent: NewAgent {
            name: format!("agent-{client}"),
            pool: "bench".into(),
            provisioning: Provisioning::OnDemand,
            labels: vec!["linux".into()],
            slots: 1,
            resources: Resources::default(),
            cache_endpoint: String::new(),
            start: 0,
            properties: BTreeMap::new(),
        },
    }
}
