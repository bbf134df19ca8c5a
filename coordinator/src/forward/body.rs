//! Bodies on their way: one that can be had back as long as nobody has read of it, and
//! one that ends when there is nobody to fill it.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http::{HeaderMap, header};

/// The body of a request that may have to be made again.
pub(super) struct Lent(Arc<Mutex<Slot>>);

struct Slot {
    body: Option<Body>,
    touched: bool,
}

struct Borrowed(Arc<Mutex<Slot>>);

impl Lent {
    pub(super) fn new(body: Body) -> Self {
        Self(Arc::new(Mutex::new(Slot { body: Some(body), touched: false })))
    }

    /// The body, for one attempt.
    pub(super) fn borrow(&self) -> Body {
        Body::new(Borrowed(Arc::clone(&self.0)))
    }

    /// The body as it came, unless something of it was read.
    pub(super) fn take_back(self) -> Option<Body> {
        let mut slot = lock(&self.0);
        if slot.touched { None } else { slot.body.take() }
    }
}

fn lock(slot: &Mutex<Slot>) -> MutexGuard<'_, Slot> {
    slot.lock().unwrap_or_else(PoisonError::into_inner)
}

impl HttpBody for Borrowed {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let mut slot = lock(&self.0);
        slot.touched = true;
        match &mut slot.body {
            Some(body) => Pin::new(body).poll_frame(context),
            // Taken back: what still holds this attempt is on its way out.
            None => Poll::Ready(Some(Err(Status::cancelled("the request goes elsewhere")))),
        }
    }

    fn is_end_stream(&self) -> bool {
        lock(&self.0).body.as_ref().is_some_and(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        lock(&self.0).body.as_ref().map(HttpBody::size_hint).unwrap_or_default()
    }
}

/// The future that ends a body, with what it says.
type End = Pin<Box<dyn Future<Output = Status> + Send>>;

/// The body of an answer that ends before its time where its sender is lost.
pub(super) struct Until {
    body: Body,
    end: Option<End>,
}

impl Until {
    pub(super) fn new(body: Body, end: End) -> Self {
        Self { body, end: Some(end) }
    }
}

impl HttpBody for Until {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        // What has arrived is passed on first: it is true whoever leads by now.
        match Pin::new(&mut self.body).poll_frame(context) {
            Poll::Pending => (),
            Poll::Ready(Some(Err(error))) => {
                self.end = None;
                tracing::debug!(%error, "an answer of the leader broke off");
                let lost = Status::unavailable("the leader was lost; try again");
                return Poll::Ready(Some(Ok(trailers(lost))));
            }
            ready @ Poll::Ready(_) => return ready,
        }
        let Some(end) = &mut self.end else {
            return Poll::Ready(None);
        };
        match end.as_mut().poll(context) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(status) => {
                self.end = None;
                self.body = Body::empty();
                Poll::Ready(Some(Ok(trailers(status))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        // It may end at any time.
        SizeHint::default()
    }
}

fn trailers(status: Status) -> Frame<Bytes> {
    let mut headers: HeaderMap = status.into_http::<Body>().into_parts().0.headers;
    headers.remove(header::CONTENT_TYPE);
    Frame::trailers(headers)
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    #[tokio::test]
    async fn a_body_comes_back_as_long_as_nobody_read_of_it() {
        let lent = Lent::new(body("whole"));
        drop(lent.borrow());
        let body = lent.take_back().unwrap();
        let lent = Lent::new(body);
        let mut borrowed = lent.borrow();
        assert_eq!(frame(&mut borrowed).await.unwrap().into_data().unwrap(), "whole");
        assert!(lent.take_back().is_none());
    }

    #[tokio::test]
    async fn an_answer_ends_with_its_sender_and_what_came_before_is_passed_on() {
        let status = Status::unavailable("lost");
        let mut body = Until::new(body("one"), Box::pin(async { status }));
        assert_eq!(frame(&mut body).await.unwrap().into_data().unwrap(), "one");
        let mut body =
            Until::new(Body::new(Silent), Box::pin(async { Status::unavailable("lost") }));
        let trailers = frame(&mut body).await.unwrap().into_trailers().unwrap();
        assert_eq!(trailers.get("grpc-status").unwrap(), "14");
        assert!(frame(&mut body).await.is_none());
    }

    #[tokio::test]
    async fn an_answer_that_breaks_off_says_so_as_grpc_does() {
        let mut body = Until::new(Body::new(Broken), Box::pin(std::future::pending()));
        let trailers = frame(&mut body).await.unwrap().into_trailers().unwrap();
        assert_eq!(trailers.get("grpc-status").unwrap(), "14");
    }

    /// Sends nothing, and does not end.
    struct Silent;

    impl HttpBody for Silent {
        type Data = Bytes;
        type Error = Status;

        fn poll_frame(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
            Poll::Pending
        }
    }

    struct Broken;

    impl HttpBody for Broken {
        type Data = Bytes;
        type Error = Status;

        fn poll_frame(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
            Poll::Ready(Some(Err(Status::unknown("h2 protocol error"))))
        }
    }

    fn body(text: &'static str) -> Body {
        Body::new(Text(Some(text.into())))
    }

    /// One frame.
    struct Text(Option<Bytes>);

    impl HttpBody for Text {
        type Data = Bytes;
        type Error = Status;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
            Poll::Ready(self.0.take().map(|text| Ok(Frame::data(text))))
        }
    }

    async fn frame<B>(body: &mut B) -> Option<Frame<Bytes>>
    where
        B: HttpBody<Data = Bytes, Error = Status> + Unpin,
    {
        poll_fn(|context| Pin::new(&mut *body).poll_frame(context)).await.map(Result::unwrap)
    }
}
