//! Passes on to the leader what clients ask a replica that does not lead.
//!
//! The protocol: a request goes on as it is, headers, body and trailers, with two
//! headers more. [`HOP`] says that it was passed on once, and is not passed on again:
//! two confused replicas send a request in no circle, the second one answers with the
//! hint. [`ON_BEHALF_OF`] says who asked; the leader believes it from coordinators only,
//! and what a client says there itself is thrown away here.
//!
//! What can go wrong: without a leader the request waits for one, for a while. A
//! leader that cannot be reached is asked for again, as long as nothing of the request
//! has been read. One that is lost later ends the answer with UNAVAILABLE, even if it is
//! still there (stopped, or cut off from all but this replica); whether the request was
//! heard is then as unknown as to a client whose own connection broke, and it asks again
//! under the same request id, watch token or log offset.

mod body;
mod layer;

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};

use steading_proto::leader::not_leader;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http::{HeaderValue, Request, Response, Version};
use tonic::transport::Channel;
use tower::Service as _;

use crate::auth::{Caller, ON_BEHALF_OF};
use crate::leadership::{LEADER_WAIT, Leader, Leadership};
use body::{Lent, Until};
pub(crate) use layer::ForwardLayer;

/// Header of a request that was passed on.
pub(crate) const HOP: &str = "steading-hop";
/// Our own services.
const OURS: &str = "/steading.v1.";
/// Of them, those in which every replica speaks for itself.
const ANSWERED_HERE: [&str; 3] = ["Agents", "Replication", "Join"];
/// And methods that are served from what every replica has.
const SERVED_HERE: [&str; 1] = ["/steading.v1.Pipelines/WatchRun"];

/// Makes channels to other replicas.
pub(crate) type Dial = Arc<dyn Fn(&str) -> anyhow::Result<Channel> + Send + Sync>;

/// The way to the leader, whoever it is.
#[derive(Clone)]
pub(crate) struct Forward {
    leadership: Leadership,
    dial: Dial,
    /// By endpoint; those of replicas that no longer are go when the next is made.
    channels: Arc<Mutex<BTreeMap<String, Channel>>>,
    /// Ends what is being passed on.
    stop: CancellationToken,
}

impl fmt::Debug for Forward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Forward").field("leadership", &self.leadership).finish_non_exhaustive()
    }
}

/// As the gate in front of this found out.
fn who_asked(request: &Request<Body>) -> Option<HeaderValue> {
    request.extensions().get::<Caller>()?.to_string().parse().ok()
}

/// Where a request is answered.
enum Place {
    Here,
    There(Leader),
}

impl Forward {
    pub(crate) fn new(leadership: Leadership, dial: Dial, stop: CancellationToken) -> Self {
        Self { leadership, dial, channels: Arc::default(), stop }
    }

    /// Answers the request at the leader; `Err` gives it back, for this replica leads.
    async fn answer(&self, request: Request<Body>) -> Result<Response<Body>, Request<Body>> {
        let hopped = request.headers().contains_key(HOP);
        let Some(asked) = who_asked(&request) else {
            return Ok(Status::unauthenticated("it is not known who asks").into_http());
        };
        let (mut parts, mut body) = request.into_parts();
        let patience = tokio::time::Instant::now() + LEADER_WAIT;
        let status = loop {
            let leader = match self.place(hopped, patience).await {
                Ok(Place::Here) => return Err(Request::from_parts(parts, body)),
                Ok(Place::There(leader)) => leader,
                Err(status) => break status,
            };
            parts.headers.insert(ON_BEHALF_OF, asked.clone());
            let lent = Lent::new(body);
            match self.send(&leader, &parts, lent.borrow()).await {
                Ok(response) => return Ok(response),
                Err(status) => match lent.take_back() {
                    // Nobody heard of it: the next leader may.
                    Some(untouched) => body = untouched,
                    None => break status,
                },
            }
            if !self.left(&leader, patience).await {
                break not_leader(None);
            }
        };
        Ok(status.into_http())
    }

    async fn place(&self, hopped: bool, patience: tokio::time::Instant) -> Result<Place, Status> {
        let settled = self.leadership.clone().settled();
        match tokio::time::timeout_at(patience, settled).await {
            Ok(None) => Ok(Place::Here),
            Ok(Some(leader)) if hopped => Err(not_leader(Some(&leader.endpoint))),
            Ok(Some(leader)) => Ok(Place::There(leader)),
            Err(_) => Err(self.leadership.refusal()),
        }
    }

    /// Waits until another one leads. False: none did in time.
    async fn left(&self, leader: &Leader, patience: tokio::time::Instant) -> bool {
        tokio::time::timeout_at(patience, self.leadership.clone().left(leader.id)).await.is_ok()
    }

    async fn send(
        &self,
        leader: &Leader,
        parts: &tonic::codegen::http::request::Parts,
        body: Body,
    ) -> Result<Response<Body>, Status> {
        let mut channel = self.channel(&leader.endpoint)?;
        let mut request = Request::new(body);
        *request.method_mut() = parts.method.clone();
        *request.uri_mut() = parts.uri.clone();
        *request.version_mut() = Version::HTTP_2;
        *request.headers_mut() = parts.headers.clone();
        request.headers_mut().insert(HOP, HeaderValue::from_static("1"));
        let ended = self.ended(leader.id);
        let answered = async {
            std::future::poll_fn(|context| channel.poll_ready(context)).await?;
            channel.call(request).await
        };
        tokio::pin!(ended);
        let response = tokio::select! {
            answered = answered => answered.map_err(|error| {
                let message = format!("the leader does not answer: {error}; try again");
                Status::unavailable(message)
            })?,
            status = &mut ended => return Err(status),
        };
        let until = self.ended(leader.id);
        Ok(response.map(|body| Body::new(Until::new(body, Box::pin(until)))))
    }

    /// Resolves once this replica leads no longer to this leader, or is to stop: what
    /// to tell those whose requests were passed on.
    fn ended(&self, leader: u64) -> impl Future<Output = Status> + Send + use<> {
        let (leadership, stop) = (self.leadership.clone(), self.stop.clone());
        async move {
            tokio::select! {
                () = leadership.clone().left(leader) => leadership.refusal(),
                () = stop.cancelled() => Status::unavailable("the coordinator stops"),
            }
        }
    }

    /// A channel to the replica there, shared by all who ask.
    pub(crate) fn channel(&self, endpoint: &str) -> Result<Channel, Status> {
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(channel) = channels.get(endpoint) {
            return Ok(channel.clone());
        }
        let channel = (self.dial)(endpoint).map_err(|error| {
            tracing::error!(endpoint, error = format!("{error:#}"), "the leader cannot be dialled");
            not_leader(Some(endpoint))
        })?;
        let known = self.leadership.endpoints();
        channels.retain(|endpoint, _| known.contains(endpoint));
        channels.insert(endpoint.to_owned(), channel.clone());
        Ok(channel)
    }
}

/// Whether only the leader can answer this method.
fn is_the_leaders(path: &str) -> bool {
    let Some(rest) = path.strip_prefix(OURS) else {
        return false;
    };
    let service = rest.split('/').next().unwrap_or_default();
    !ANSWERED_HERE.contains(&service) && !SERVED_HERE.contains(&path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_methods_are_the_leaders_but_for_watches() {
        for theirs in ["Pipelines/Submit", "Pipelines/ReadLog", "Cluster/RemoveReplica"] {
            assert!(is_the_leaders(&format!("/steading.v1.{theirs}")), "{theirs}");
        }
        for here in [
            "/steading.v1.Agents/Session",
            "/steading.v1.Replication/Send",
            "/steading.v1.Pipelines/WatchRun",
            "/grpc.health.v1.Health/Check",
            "/build.bazel.remote.execution.v2.ContentAddressableStorage/FindMissingBlobs",
            "/",
        ] {
            assert!(!is_the_leaders(here), "{here}");
        }
    }
}
