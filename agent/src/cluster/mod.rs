//! The coordinators, as one: whoever calls them speaks to the one that leads.
//!
//! A connection to every replica is kept open, on which it says who leads. When the
//! leader dies, the connection to it breaks, the others elect, and the first of them to
//! tell moves every call and the session, without a connection to be made first. Where
//! none tells, the agent asks one after the other, and follows what each says.

mod book;
mod warm;

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use steading_proto::leader::{is_not_leader, leader_of};
use steading_proto::{tls, v1};
use tokio::sync::watch;
use tonic::body::Body;
use tonic::codegen::http;
use tonic::transport::{Channel, Error};
use tonic::{Code, Status};
use tower::Service;

use crate::connect::EndpointError;
use book::Book;

/// Makes a channel that connects when it is first used.
pub type Dial = Arc<dyn Fn(&str) -> Result<Channel, EndpointError> + Send + Sync>;

/// Name of the only endpoint of a coordinator that is reached by one channel alone.
const ONLY: &str = "the coordinator";

/// Endpoints that are told of, at most, when strangers listen there.
const STRANGERS_MAX: usize = 64;

/// The farm's coordinators. Clones are the same; as a service it calls the leader.
#[derive(Clone)]
pub struct Cluster {
    shared: Arc<Shared>,
}

struct Shared {
    /// None: there is one channel, and nothing else to be reached.
    dial: Option<Dial>,
    inner: Mutex<Inner>,
    /// Who is asked, and how often another try became worth making at once.
    place: watch::Sender<Place>,
    /// Counts changes of the set of endpoints.
    endpoints: watch::Sender<u64>,
    /// Endpoints of which was told that another farm listens there.
    strangers: Mutex<BTreeSet<String>>,
}

struct Inner {
    book: Book,
    channels: BTreeMap<String, Channel>,
}

/// Who is asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) endpoint: String,
    /// Counts the times that another try became worth making at once.
    pub(crate) tries: u64,
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cluster").field("book", &self.lock().book).finish_non_exhaustive()
    }
}

impl Cluster {
    /// The coordinators at these endpoints, and those that they know.
    ///
    /// # Errors
    ///
    /// [`EndpointError`] where one of them is none that may be spoken to, or there is none.
    pub fn new(endpoints: Vec<String>, dial: Dial) -> Result<Self, EndpointError> {
        let book = Book::new(endpoints);
        let mut channels = BTreeMap::new();
        for endpoint in book.endpoints() {
            channels.insert(endpoint.clone(), dial(endpoint)?);
        }
        if channels.is_empty() {
            return Err(EndpointError::Spelling(String::new()));
        }
        Ok(Self::of(book, channels, Some(dial)))
    }

    /// One coordinator, which leads, and is reached so only.
    pub fn single(channel: Channel) -> Self {
        let book = Book::new(vec![ONLY.to_owned()]);
        Self::of(book, BTreeMap::from([(ONLY.to_owned(), channel)]), None)
    }

    fn of(book: Book, channels: BTreeMap<String, Channel>, dial: Option<Dial>) -> Self {
        let place = Place { endpoint: book.current().to_owned(), tries: 0 };
        let shared = Shared {
            dial,
            inner: Mutex::new(Inner { book, channels }),
            place: watch::Sender::new(place),
            endpoints: watch::Sender::new(0),
            strangers: Mutex::default(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Who is asked now.
    pub(crate) fn place(&self) -> Place {
        self.shared.place.borrow().clone()
    }

    /// Waits until another one is asked.
    pub(crate) async fn left(&self, endpoint: &str) {
        let mut place = self.shared.place.subscribe();
        // The sender is in `self`, so waiting cannot fail.
        let _ = place.wait_for(|place| place.endpoint != endpoint).await;
    }

    /// Waits until another try is worth making at once.
    pub(crate) async fn worth_a_try(&self, seen: u64) {
        let mut place = self.shared.place.subscribe();
        let _ = place.wait_for(|place| place.tries > seen).await;
    }

    /// A session with `endpoint` ended so: who is asked next depends on it.
    pub(crate) fn session_ended(&self, endpoint: &str, status: &Status) {
        // What it refuses is refused by all.
        if crate::agents::is_transient(status) {
            self.update(|book| book.sent_on(endpoint, leader_of(status)));
        }
    }

    /// A session with `endpoint` was welcomed there.
    pub(crate) fn welcomed(&self, endpoint: &str, endpoints: &[String]) {
        self.update(|book| {
            book.answered(endpoint);
            false
        });
        self.learn(endpoints);
    }

    /// For blobs, which every replica has: one that is connected, chosen by `number`, so
    /// that not all agents ask the leader.
    pub fn any(&self, number: u64) -> Any {
        Any { cluster: self.clone(), number }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.shared.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the book, and tells those who wait.
    fn update(&self, change: impl FnOnce(&mut Book) -> bool) {
        let mut inner = self.lock();
        let at_once = change(&mut inner.book);
        let current = inner.book.current().to_owned();
        // Within the lock, so that the last change is the last one told.
        self.shared.place.send_if_modified(|place| {
            let moved = place.endpoint != current;
            if moved {
                tracing::info!(endpoint = current, "another coordinator is asked");
                place.endpoint = current;
            }
            place.tries += u64::from(at_once);
            moved || at_once
        });
    }

    fn learn(&self, endpoints: &[String]) {
        if self.shared.dial.is_none() || endpoints.is_empty() {
            return;
        }
        let mut changed = false;
        self.update(|book| {
            let before: Vec<String> = book.endpoints().cloned().collect();
            book.learn(endpoints);
            changed = !book.endpoints().eq(&before);
            false
        });
        if changed {
            let mut inner = self.lock();
            let Inner { book, channels } = &mut *inner;
            channels.retain(|endpoint, _| book.knows(endpoint));
            drop(inner);
            self.shared.endpoints.send_modify(|count| *count += 1);
        }
    }

    /// The channel to this endpoint.
    fn channel(&self, endpoint: &str) -> Result<Channel, EndpointError> {
        let mut inner = self.lock();
        if let Some(channel) = inner.channels.get(endpoint) {
            return Ok(channel.clone());
        }
        let Some(dial) = &self.shared.dial else {
            return Err(EndpointError::Spelling(endpoint.to_owned()));
        };
        let channel = dial(endpoint)?;
        inner.channels.insert(endpoint.to_owned(), channel.clone());
        Ok(channel)
    }

    /// `endpoint` says who leads.
    fn told(&self, endpoint: &str, said: &v1::Leadership) {
        self.learn(&said.endpoints);
        self.update(|book| {
            book.connected(endpoint, true);
            // By the name under which it was reached: what it calls itself may not be
            // reachable from here.
            match said.here {
                _ if self.shared.dial.is_none() => false,
                true => book.leads(said.term, endpoint),
                false => book.led_by(said.term, &said.leader),
            }
        });
    }

    /// Says once of each endpoint that somebody else listens there.
    fn tell_of_stranger(&self, endpoint: &str, error: &Error) {
        if !tls::is_stranger(error) {
            return;
        }
        let mut strangers = self.shared.strangers.lock().unwrap_or_else(PoisonError::into_inner);
        if strangers.len() < STRANGERS_MAX && strangers.insert(endpoint.to_owned()) {
            tracing::error!(
                endpoint,
                "whoever listens there is no coordinator of this agent's farm: if that was made \
                 anew, let the agent join it with --join TOKEN"
            );
        }
    }

    /// Makes the call there. Ends early where another one is asked meanwhile: the answer
    /// of one that no longer leads may never come.
    async fn call_at(
        self,
        endpoint: String,
        steady: bool,
        request: http::Request<Body>,
    ) -> Result<http::Response<Body>, Error> {
        let mut channel = match self.channel(&endpoint) {
            Ok(channel) => channel,
            Err(error) => {
                tracing::warn!(%error, "a coordinator cannot be spoken to");
                self.update(|book| book.failed(&endpoint));
                return Ok(unavailable(error.to_string()));
            }
        };
        let call = async {
            std::future::poll_fn(|context| channel.poll_ready(context)).await?;
            channel.call(request).await
        };
        let answer = tokio::select! {
            answer = call => answer,
            () = self.left(&endpoint), if !steady => {
                return Ok(unavailable("another coordinator leads"));
            }
        };
        match &answer {
            Ok(response) => match Status::from_header_map(response.headers()) {
                Some(status) if is_not_leader(&status) => {
                    self.update(|book| book.sent_on(&endpoint, leader_of(&status)));
                }
                Some(status) if status.code() != Code::Ok => (),
                _ => self.update(|book| {
                    book.answered(&endpoint);
                    false
                }),
            },
            Err(error) => {
                self.tell_of_stranger(&endpoint, error);
                self.update(|book| book.failed(&endpoint));
            }
        }
        answer
    }
}

fn unavailable(message: impl Into<String>) -> http::Response<Body> {
    Status::unavailable(message).into_http()
}

type Answer = Pin<Box<dyn Future<Output = Result<http::Response<Body>, Error>> + Send>>;

impl Service<http::Request<Body>> for Cluster {
    type Response = http::Response<Body>;
    type Error = Error;
    type Future = Answer;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Answer {
        let endpoint = self.place().endpoint;
        Box::pin(self.clone().call_at(endpoint, false, request))
    }
}

/// Any of the coordinators.
#[derive(Clone, Debug)]
pub struct Any {
    cluster: Cluster,
    number: u64,
}

impl Service<http::Request<Body>> for Any {
    type Response = http::Response<Body>;
    type Error = Error;
    type Future = Answer;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Answer {
        let endpoint = self.cluster.lock().book.any(self.number).to_owned();
        Box::pin(self.cluster.clone().call_at(endpoint, true, request))
    }
}
