//! Logs whose coordinator is followed by one that has none of them.

use steading_coordinator::ObjectStore;
use steading_model::DigestFunction;
use steading_model::limits::JOB_LOG_STREAM;
use steading_pipeline::job::JobResult;
use steading_proto::v1;
use steading_proto::v1::agents_client::AgentsClient;
use tonic::Code;

use crate::support::{Agent, Farm, config, soon};
use crate::{ONE, append};

#[tokio::test]
async fn a_reader_sees_each_byte_once_though_a_new_leader_has_none_of_them() {
    let dir = tempfile::tempdir().unwrap();
    let farm = Farm::start(dir.path()).await;
    let mut agent = Agent::join(&farm, "a").await;
    let run = farm.submit("r1", ONE).await;
    let offer = agent.offer().await;
    let lease = agent.accept(&offer).await;
    append(&mut agent, &[(lease, 0, "one ")]).await;
    let job = append_job(&mut agent, lease, 0, "job ").await;
    assert_eq!(job, 4);
    let mut reader = Reader::new(run, lease.job_id);
    reader.read_until(&farm, &[(0, 4), (JOB_LOG_STREAM, 4)]).await;
    farm.stop().await;

    // As another leader's disk is.
    std::fs::remove_dir_all(dir.path().join("logs")).unwrap();
    let farm = Farm::start(dir.path()).await;
    let mut following = reader.follow(&farm).await;
    agent.connect(&farm, &[lease]).await;
    agent.client = AgentsClient::new(farm.channel());
    // Too far for the new leader, which says where it stands; then all of it and more.
    let appends = [(lease, 4, ""), (lease, 4, "two"), (lease, 0, "one two ")];
    assert_eq!(append(&mut agent, &appends).await, [(false, 0), (false, 0), (false, 8)]);
    assert_eq!(append_job(&mut agent, lease, 0, "job more").await, 8);
    reader.take(&mut following, &[(0, 8), (JOB_LOG_STREAM, 8)]).await;

    // What never came as an append is in the result's blobs.
    let put = |text: &str| {
        farm.coordinator.store().put(DigestFunction::Blake3, text.as_bytes()).unwrap().to_string()
    };
    let logs = [(0, put("one two three")), (JOB_LOG_STREAM, put("job more end"))];
    let result = JobResult { logs: logs.into(), ..Default::default() };
    let digest = put(&serde_json::to_string(&result).unwrap());
    agent.complete(lease, digest).await.unwrap();
    while let Some(chunk) = soon("the rest", following.message()).await.unwrap() {
        reader.push(chunk);
    }
    assert_eq!(reader.text(0), "one two three");
    assert_eq!(reader.text(JOB_LOG_STREAM), "job more end");
    farm.stop().await;
}

#[tokio::test]
async fn what_a_lost_attempt_printed_is_found_by_a_coordinator_that_never_had_it() {
    let (dir, origin) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let start = async || {
        let mut config = config(dir.path());
        let directory = Some(origin.path().into());
        config.object_store = Some(ObjectStore { directory, ..Default::default() });
        Farm::start_with(config).await
    };
    let farm = start().await;
    let mut agent = Agent::join(&farm, "a").await;
    let run = farm.submit("r1", ONE).await;
    let offer = agent.offer().await;
    let lease = agent.accept(&offer).await;
    append(&mut agent, &[(lease, 0, "the last words")]).await;
    // Another start of it: the attempt is over, and has no result.
    let mut agent = Agent::join(&farm, "a").await;
    let again = agent.offer().await;
    let second = agent.accept(&again).await;
    assert_eq!(second.job_id, lease.job_id);
    let cluster = cluster_id(dir.path());
    let logs = origin.path().join("logs");
    let kept = logs.join(format!("{cluster}.{run}"));
    let index = kept.join(format!("{}-1", lease.job_id));
    let mut looks = tokio::time::interval(std::time::Duration::from_millis(10));
    soon("what is kept of the log", async {
        while !index.exists() {
            looks.tick().await;
        }
    })
    .await;
    farm.stop().await;

    // As another leader's disk is.
    for own in ["logs", "cas"] {
        std::fs::remove_dir_all(dir.path().join(own)).unwrap();
    }
    let farm = start().await;
    let read = async || {
        let request =
            v1::ReadLogRequest { run_id: run, job_id: lease.job_id, attempt: 1, ..<_>::default() };
        let mut chunks = farm.pipelines().read_log(request).await.unwrap().into_inner();
        soon("a chunk", chunks.message()).await.unwrap().unwrap()
    };
    let chunk = read().await;
    assert_eq!((&chunk.data[..], chunk.attempt), (&b"the last words"[..], 1));
    // A cluster that goes on from another one finds what that one kept. Others have runs of
    // the same number.
    let earlier = logs.join(format!("earlier.{run}"));
    std::fs::rename(&kept, &earlier).unwrap();
    assert!(read().await.data.is_empty(), "another cluster's");
    std::fs::create_dir_all(logs.join(&cluster)).unwrap();
    std::fs::write(logs.join(&cluster).join("earlier"), "earlier").unwrap();
    assert_eq!(&read().await.data[..], b"the last words");
    // And if nobody had it any more, that is said.
    std::fs::remove_dir_all(earlier).unwrap();
    let chunk = read().await;
    assert!(chunk.data.is_empty() && chunk.notice.contains("nothing of its log is left"));
    farm.stop().await;
}

fn cluster_id(dir: &std::path::Path) -> String {
    let names = std::fs::read(dir.join("replica/node.json")).unwrap();
    let names: serde_json::Value = serde_json::from_slice(&names).unwrap();
    names["cluster_id"].as_str().unwrap().to_owned()
}

/// Appends to the job's own stream, and returns how far that goes.
async fn append_job(agent: &mut Agent, lease: v1::Lease, offset: u64, text: &str) -> u64 {
    let append = v1::LogAppend {
        lease: Some(lease),
        stream: JOB_LOG_STREAM,
        offset,
        data: text.as_bytes().to_vec().into(),
        last: false,
    };
    let sent = tokio_stream::iter([append]);
    let mut acks = agent.client.append_log(sent).await.unwrap().into_inner();
    soon("the job's ack", acks.message()).await.unwrap().unwrap().durable
}

/// A client that remembers what it has, and goes on behind it.
struct Reader {
    request: v1::ReadLogRequest,
    seen: std::collections::BTreeMap<u32, Vec<u8>>,
}

impl Reader {
    fn new(run_id: u64, job_id: u64) -> Self {
        let request = v1::ReadLogRequest { run_id, job_id, follow: true, ..Default::default() };
        Self { request, seen: Default::default() }
    }

    async fn follow(&self, farm: &Farm) -> tonic::Streaming<v1::LogChunk> {
        let mut request = self.request.clone();
        request.offsets =
            self.seen.iter().map(|(stream, log)| (*stream, log.len() as u64)).collect();
        farm.pipelines().read_log(request).await.unwrap().into_inner()
    }

    async fn read_until(&mut self, farm: &Farm, want: &[(u32, usize)]) {
        let mut following = self.follow(farm).await;
        self.take(&mut following, want).await;
    }

    async fn take(
        &mut self,
        following: &mut tonic::Streaming<v1::LogChunk>,
        want: &[(u32, usize)],
    ) {
        let len = |reader: &Self, stream| reader.seen.get(&stream).map_or(0, Vec::len);
        while want.iter().any(|(stream, end)| len(self, *stream) < *end) {
            match soon("a chunk", following.message()).await {
                Ok(Some(chunk)) => self.push(chunk),
                Ok(None) => panic!("the log ends before its job does"),
                Err(status) => assert_eq!(status.code(), Code::Unavailable, "{status}"),
            }
        }
    }

    fn push(&mut self, chunk: v1::LogChunk) {
        let log = self.seen.entry(chunk.stream).or_default();
        assert_eq!(chunk.offset, log.len() as u64, "no gap and no repetition");
        log.extend_from_slice(&chunk.data);
    }

    fn text(&self, stream: u32) -> String {
        String::from_utf8(self.seen[&stream].clone()).unwrap()
    }
}
