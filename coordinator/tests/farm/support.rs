//! A coordinator over memory, and an agent that does what the story says.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::path::Path;

use steading_coordinator::{Config, Coordinator};
use steading_model::DigestFunction;
use steading_pipeline::job::{JobResult, JobSpec};
use steading_proto::v1;
use steading_proto::v1::pipelines_client::PipelinesClient;
use tonic::transport::Channel;

pub(crate) use crate::agent::Agent;
use crate::memory::Served;
pub(crate) use crate::memory::soon;

pub(crate) struct Farm {
    served: Served,
}

impl Deref for Farm {
    type Target = Served;

    fn deref(&self) -> &Served {
        &self.served
    }
}

/// Takes work however full the disk is that tests run on.
pub(crate) fn config(dir: &Path) -> Config {
    let mut config = Config::new(dir);
    (config.disk_low_bytes, config.ballast_bytes) = (Some(0), 0);
    config
}

impl Farm {
    pub(crate) async fn start(dir: &Path) -> Self {
        Self::start_with(config(dir)).await
    }

    pub(crate) async fn start_with(mut config: Config) -> Self {
        config.segment_bytes = 4 << 20;
        Self { served: Served::new(Coordinator::start(config).await.unwrap()) }
    }

    /// Stops as a signal would make it; clients see their connections end.
    pub(crate) async fn stop(self) {
        self.served.stop().await;
    }

    pub(crate) fn pipelines(&self) -> PipelinesClient<Channel> {
        PipelinesClient::new(self.channel())
    }

    /// A request that is admitted; the source is an empty tree.
    pub(crate) fn request(&self, id: &str, pipeline: &str) -> v1::SubmitRequest {
        let source = self.coordinator.store().put(DigestFunction::Blake3, b"").unwrap();
        v1::SubmitRequest {
            request_id: id.into(),
            file: "ci.yml".into(),
            pipeline: pipeline.as_bytes().to_vec().into(),
            source_digest: source.to_string(),
            event_name: "push".into(),
            ..Default::default()
        }
    }

    pub(crate) async fn submit(&self, id: &str, pipeline: &str) -> u64 {
        let request = self.request(id, pipeline);
        self.pipelines().submit(request).await.unwrap().into_inner().run_id
    }

    pub(crate) async fn run(&self, run_id: u64) -> v1::Run {
        let request = v1::GetRunRequest { run_id };
        self.pipelines().get_run(request).await.unwrap().into_inner()
    }

    /// Watches from the token until the end, and returns all events.
    pub(crate) async fn watch(&self, run_id: u64, token: u64) -> Vec<v1::WatchRunEvent> {
        let request = v1::WatchRunRequest { run_id, token };
        let mut events = self.pipelines().watch_run(request).await.unwrap().into_inner();
        let mut seen = Vec::new();
        while let Some(event) = soon("an event", events.message()).await.unwrap() {
            seen.push(event);
        }
        seen
    }

    /// Puts a result with these outputs, and returns its name.
    pub(crate) fn put_result(&self, outputs: &[(&str, &str)]) -> String {
        let outputs = outputs.iter().map(|(name, value)| (name.to_string(), value.to_string()));
        let result = JobResult { outputs: outputs.collect(), ..Default::default() };
        let bytes = serde_json::to_vec(&result).unwrap();
        self.coordinator.store().put(DigestFunction::Blake3, &bytes).unwrap().to_string()
    }
}

impl From<&Farm> for Channel {
    fn from(farm: &Farm) -> Self {
        farm.channel()
    }
}

impl Agent {
    /// Takes the next offer and reports success with these outputs.
    pub(crate) async fn work(&mut self, farm: &Farm, outputs: &[(&str, &str)]) -> JobSpec {
        let offer = self.offer().await;
        let lease = self.accept(&offer).await;
        self.complete(lease, farm.put_result(outputs)).await.unwrap();
        spec(&offer)
    }
}

pub(crate) fn spec(offer: &v1::Offer) -> JobSpec {
    serde_json::from_slice(&offer.spec).unwrap()
}

/// The conclusions of a run's jobs by name, and its own.
pub(crate) fn ended(run: &v1::Run) -> (BTreeMap<String, v1::Conclusion>, v1::Conclusion) {
    let jobs = run.jobs.iter().map(|job| (job.name.clone(), job.conclusion()));
    (jobs.collect(), run.conclusion())
}
