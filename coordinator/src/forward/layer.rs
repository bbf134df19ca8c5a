//! In front of the services: what only the leader can answer does not reach them on
//! another replica.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use tonic::body::Body;
use tonic::codegen::http::{Request, Response};
use tower::{Layer, Service};

use super::{Forward, is_the_leaders};

/// Puts a [`Forward`] in front of services.
#[derive(Clone, Debug)]
pub(crate) struct ForwardLayer(pub(crate) Forward);

impl<S> Layer<S> for ForwardLayer {
    type Service = Forwarding<S>;

    fn layer(&self, inner: S) -> Forwarding<S> {
        Forwarding { inner, forward: self.0.clone() }
    }
}

/// Services with a [`Forward`] in front of them.
#[derive(Clone, Debug)]
pub(crate) struct Forwarding<S> {
    inner: S,
    forward: Forward,
}

impl<S> Service<Request<Body>> for Forwarding<S>
where
    S: Service<Request<Body>, Response = Response<Body>> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        if !is_the_leaders(request.uri().path()) || self.forward.leadership.term().is_ok() {
            return Box::pin(self.inner.call(request));
        }
        // The one that is ready answers, its clone takes its place.
        let next = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, next);
        let forward = self.forward.clone();
        Box::pin(async move {
            match forward.answer(request).await {
                Ok(response) => Ok(response),
                Err(request) => inner.call(request).await,
            }
        })
    }
}
