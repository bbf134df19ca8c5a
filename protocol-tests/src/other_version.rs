//! The other side of a connection, of another version: an agent that says only what the
//! first one said, and a coordinator that says more than this one does.

use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use http_body::{Body as HttpBody, Frame, SizeHint};
use steading_proto::v1;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tonic::body::Body;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::codegen::http::{Request, Response, header};
use tonic::transport::{Channel, Server};
use tonic::{Status, Streaming};
use tonic_prost::ProstCodec;
use tower::{Layer, Service, ServiceExt as _};

/// Messages on the way to the coordinator.
const SENT_MAX: usize = 16;

/// Longest wait for a message. Far beyond what is expected, for the machine may be busy.
const SILENCE_MAX: Duration = Duration::from_secs(90);

/// What agents of the first version send and take, where that has changed since.
pub mod first {
    use std::collections::HashMap;

    use steading_proto::v1;

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct RegisterRequest {
        #[prost(string, tag = "1")]
        pub name: String,
        #[prost(string, tag = "2")]
        pub pool: String,
        #[prost(bool, tag = "3")]
        pub spot: bool,
        #[prost(string, repeated, tag = "4")]
        pub labels: Vec<String>,
        #[prost(uint32, tag = "5")]
        pub slots: u32,
        #[prost(uint32, tag = "6")]
        pub cpu_milli: u32,
        #[prost(uint32, tag = "7")]
        pub memory_mib: u32,
        #[prost(map = "string, string", tag = "8")]
        pub properties: HashMap<String, String>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Hello {
        #[prost(uint64, tag = "1")]
        pub agent_id: u64,
        #[prost(uint64, tag = "2")]
        pub incarnation: u64,
        #[prost(message, repeated, tag = "3")]
        pub running: Vec<v1::Lease>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct AgentMessage {
        #[prost(oneof = "Say", tags = "1, 2, 3")]
        pub message: Option<Say>,
    }

    #[derive(Clone, PartialEq, prost::Oneof)]
    pub enum Say {
        #[prost(message, tag = "1")]
        Hello(Hello),
        #[prost(message, tag = "2")]
        Renew(v1::Renew),
        #[prost(message, tag = "3")]
        Accept(v1::Accept),
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Welcome {
        #[prost(message, repeated, tag = "1")]
        pub leases: Vec<v1::Lease>,
        #[prost(message, repeated, tag = "2")]
        pub cancelling: Vec<v1::Lease>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct CoordinatorMessage {
        #[prost(oneof = "Hear", tags = "1, 2, 3, 4, 5")]
        pub message: Option<Hear>,
    }

    #[derive(Clone, PartialEq, prost::Oneof)]
    pub enum Hear {
        #[prost(message, tag = "1")]
        Welcome(Welcome),
        #[prost(message, tag = "2")]
        Offer(v1::Offer),
        #[prost(message, tag = "3")]
        Renewed(v1::Renewed),
        #[prost(message, tag = "4")]
        Revoke(v1::Revoke),
        #[prost(message, tag = "5")]
        Cancel(v1::Cancel),
    }
}

/// An agent of the first version, by a script.
#[derive(Debug)]
pub struct FirstAgent {
    channel: Channel,
    id: u64,
    incarnation: u64,
    sequence: u64,
    session: Option<(mpsc::Sender<first::AgentMessage>, Streaming<first::CoordinatorMessage>)>,
}

impl FirstAgent {
    /// Registers and opens a session, over which it says that it runs these.
    pub async fn connect(channel: Channel, name: &str, running: Vec<v1::Lease>) -> Self {
        let request = first::RegisterRequest {
            name: name.into(),
            pool: "default".into(),
            labels: vec!["ubuntu-latest".into()],
            slots: 1,
            cpu_milli: 1000,
            memory_mib: 1024,
            ..first::RegisterRequest::default()
        };
        let mut grpc = Grpc::new(channel.clone());
        grpc.ready().await.expect("a connection");
        let codec = ProstCodec::<first::RegisterRequest, v1::RegisterResponse>::default();
        let path = PathAndQuery::from_static("/steading.v1.Agents/Register");
        let answer = grpc.unary(tonic::Request::new(request), path, codec).await;
        let v1::RegisterResponse { agent_id: id, incarnation } =
            answer.expect("registered").into_inner();
        let mut agent = Self { channel, id, incarnation, sequence: 0, session: None };
        agent.open(running).await;
        agent
    }

    /// Opens a session, again if there was one.
    pub async fn open(&mut self, running: Vec<v1::Lease>) {
        let (sender, receiver) = mpsc::channel(SENT_MAX);
        let (agent_id, incarnation) = (self.id, self.incarnation);
        let hello =
            first::Say::Hello(first::Hello { agent_id, incarnation, running: running.clone() });
        sender.send(first::AgentMessage { message: Some(hello) }).await.expect("room");
        let mut grpc = Grpc::new(self.channel.clone());
        grpc.ready().await.expect("a connection");
        let codec = ProstCodec::<first::AgentMessage, first::CoordinatorMessage>::default();
        let path = PathAndQuery::from_static("/steading.v1.Agents/Session");
        let request = tonic::Request::new(ReceiverStream::new(receiver));
        let session = grpc.streaming(request, path, codec).await.expect("a session");
        self.session = Some((sender, session.into_inner()));
        match self.hear().await {
            // What it was granted meanwhile may be among them: that is offered next.
            first::Hear::Welcome(welcome) => {
                assert!(running.iter().all(|lease| welcome.leases.contains(lease)));
            }
            other => panic!("want a welcome, got {other:?}"),
        }
    }

    /// Takes the next offer; its lease, once that is acknowledged.
    pub async fn take_offer(&mut self) -> v1::Lease {
        let lease = match self.hear().await {
            first::Hear::Offer(offer) => offer.lease.expect("a lease"),
            other => panic!("want an offer, got {other:?}"),
        };
        self.sequence += 1;
        let accept = v1::Accept { sequence: self.sequence, lease: Some(lease) };
        self.say(first::Say::Accept(accept)).await;
        assert_eq!(self.acknowledged().await, [lease]);
        lease
    }

    /// Renews a lease; whether it is still held.
    pub async fn renew(&mut self, lease: v1::Lease) -> bool {
        self.sequence += 1;
        let renew = v1::Renew { sequence: self.sequence, leases: vec![lease] };
        self.say(first::Say::Renew(renew)).await;
        self.acknowledged().await == [lease]
    }

    async fn acknowledged(&mut self) -> Vec<v1::Lease> {
        loop {
            match self.hear().await {
                first::Hear::Renewed(renewed) if renewed.sequence == self.sequence => {
                    return renewed.leases;
                }
                first::Hear::Renewed(_) => (),
                other => panic!("want an acknowledgement, got {other:?}"),
            }
        }
    }

    async fn say(&self, say: first::Say) {
        let (sender, _) = self.session.as_ref().expect("a session");
        sender.send(first::AgentMessage { message: Some(say) }).await.expect("the session goes on");
    }

    async fn hear(&mut self) -> first::Hear {
        let (_, session) = self.session.as_mut().expect("a session");
        loop {
            let message = tokio::time::timeout(SILENCE_MAX, session.message()).await;
            let message = message.expect("a message in time").expect("the session goes on");
            // Of a later version: what it says is not for this one.
            if let Some(message) = message.expect("the session goes on").message {
                return message;
            }
        }
    }
}

/// A coordinator of a later version: everything is answered by this version's, and what
/// that says in a session is said with more in it.
#[derive(Clone, Debug)]
pub struct Later {
    coordinator: Channel,
    /// Sessions that were opened.
    pub sessions: Arc<AtomicUsize>,
    /// Offers that were sent with more in them.
    pub offers: Arc<AtomicUsize>,
}

impl Later {
    /// In front of this coordinator.
    pub fn new(coordinator: Channel) -> Self {
        Self { coordinator, sessions: Arc::default(), offers: Arc::default() }
    }

    /// Serves there until it is dropped.
    pub async fn serve(self, path: &Path) {
        let listener = tokio::net::UnixListener::bind(path).expect("listen");
        Server::builder()
            .layer(self)
            .add_routes(tonic::service::Routes::default())
            .serve_with_incoming(UnixListenerStream::new(listener))
            .await
            .expect("serve");
    }
}

impl<S> Layer<S> for Later {
    type Service = Self;

    fn layer(&self, _: S) -> Self {
        self.clone()
    }
}

impl Service<Request<Body>> for Later {
    type Response = Response<Body>;
    type Error = std::convert::Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let session = request.uri().path() == "/steading.v1.Agents/Session";
        let later = self.clone();
        Box::pin(async move {
            let response = match later.coordinator.clone().oneshot(request).await {
                Ok(response) => response,
                Err(error) => return Ok(Status::unavailable(error.to_string()).into_http()),
            };
            if !session {
                return Ok(response);
            }
            later.sessions.fetch_add(1, Ordering::Relaxed);
            let (mut head, body) = response.into_parts();
            head.headers.remove(header::CONTENT_LENGTH);
            let (raw, offers) = (BytesMut::new(), later.offers);
            Ok(Response::from_parts(head, Body::new(SaysMore { body, raw, offers })))
        })
    }
}

/// Messages of a session with more in each, and more of them.
struct SaysMore {
    body: Body,
    /// What came of a message that is not whole yet.
    raw: BytesMut,
    offers: Arc<AtomicUsize>,
}

impl SaysMore {
    /// The whole messages that came.
    fn more(&mut self) -> Bytes {
        const HEAD: usize = 5;
        let mut out = Vec::new();
        let frame = |message: &[u8], out: &mut Vec<u8>| {
            out.push(0);
            out.extend_from_slice(&(message.len() as u32).to_be_bytes());
            out.extend_from_slice(message);
        };
        while self.raw.len() >= HEAD {
            assert_eq!(self.raw[0], 0, "sessions are not compressed");
            let len = u32::from_be_bytes([self.raw[1], self.raw[2], self.raw[3], self.raw[4]]);
            if self.raw.len() < HEAD + len as usize {
                break;
            }
            self.raw.advance(HEAD);
            let mut message = self.raw.split_to(len as usize).to_vec();
            // A field 2 of the message, `Offer`: what follows of it is merged. Field 99 in it.
            if message.first() == Some(&0x12) {
                self.offers.fetch_add(1, Ordering::Relaxed);
                message.extend([0x12, 3, 0x98, 0x06, 1]);
            }
            // Fields 98 of the message itself, a number and what may be a message.
            message.extend([0x90, 0x06, 1, 0x92, 0x06, 2, 0x08, 1]);
            frame(&message, &mut out);
            // A message of a kind that is not known: field 99.
            frame(&[0x9a, 0x06, 2, 0x08, 1], &mut out);
        }
        out.into()
    }
}

impl HttpBody for SaysMore {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        loop {
            let frame = match ready!(Pin::new(&mut self.body).poll_frame(context)) {
                Some(Ok(frame)) => frame,
                end => return Poll::Ready(end),
            };
            match frame.into_data() {
                Ok(data) => {
                    self.raw.extend_from_slice(&data);
                    let more = self.more();
                    if !more.is_empty() {
                        return Poll::Ready(Some(Ok(Frame::data(more))));
                    }
                }
                Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}
