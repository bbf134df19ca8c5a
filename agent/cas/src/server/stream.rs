//! The `ByteStream` service: blobs of any size, in pieces.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write as _};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};

use steading_model::{Digest, DigestFunction};
use steading_proto::bytestream::byte_stream_server::ByteStream;
use steading_proto::bytestream::{
    QueryWriteStatusRequest, QueryWriteStatusResponse, ReadRequest, ReadResponse, WriteRequest,
    WriteResponse,
};
use tokio_stream::Stream;
use tonic::{Request, Response, Status, Streaming};

use super::name::Resource;
use super::{check_instance, not_found};
use crate::blobs::off_thread;
use crate::front::Front;
use crate::hash::Hasher;
use crate::store::{BlobWriter, Store, StoreError, read_at};

/// Bytes of one message of a read.
const CHUNK_BYTES: usize = 1 << 20;

/// Uploads that broke off and may be resumed. Each holds a file open.
const PARTIAL_UPLOADS_MAX: usize = 64;

/// How hard zstd tries: streams are bound by the network or the disk, not by it.
const ZSTD_LEVEL: i32 = 1;

type Answers = Pin<Box<dyn Stream<Item = Result<ReadResponse, Status>> + Send>>;

/// Blobs in streams.
#[derive(Clone, Debug)]
pub struct ByteStreamService {
    front: Front,
    /// Uploads that broke off, by resource name, the oldest first.
    partial: Arc<Mutex<VecDeque<(String, BlobWriter)>>>,
}

impl ByteStreamService {
    pub(super) fn new(front: Front) -> Self {
        Self { front, partial: Arc::default() }
    }

    /// Whether the blob is durable: then there is no need to send it.
    async fn holds(&self, resource: &Resource) -> Result<bool, Status> {
        Ok(self.front.publish(resource.function, vec![resource.digest]).await?.is_empty())
    }

    fn keep(&self, name: String, writer: BlobWriter) {
        let mut partial = self.partial.lock().unwrap_or_else(PoisonError::into_inner);
        if partial.len() >= PARTIAL_UPLOADS_MAX {
            partial.pop_front();
        }
        partial.push_back((name, writer));
    }

    fn take(&self, name: &str) -> Option<BlobWriter> {
        let mut partial = self.partial.lock().unwrap_or_else(PoisonError::into_inner);
        let at = partial.iter().position(|(known, _)| known == name)?;
        partial.remove(at).map(|(_, writer)| writer)
    }
}

#[tonic::async_trait]
impl ByteStream for ByteStreamService {
    type ReadStream = Answers;

    #[tracing::instrument(name = "stream.read", skip_all)]
    async fn read(
        &self,
        request: Request<ReadRequest>,
    ) -> Result<Response<Self::ReadStream>, Status> {
        let request = request.into_inner();
        let resource = Resource::parse_read(&request.resource_name)?;
        check_instance(&resource.instance)?;
        let span = Span::of(&request, &resource)?;
        let (digest, function) = (resource.digest, resource.function);
        let _pin = self.front.bring(function, &[digest]).await?;
        let store = self.front.store().clone();
        let at = store.clone();
        let file = off_thread(move || at.open_blob(function, &digest)).await?;
        let file = file.ok_or_else(|| not_found(&digest))?;
        let whole = span.from == 0 && span.until == digest.size;
        let zstd = match resource.zstd {
            true => Some(encoder().map_err(broken)?),
            false => None,
        };
        let reading = Reading {
            store,
            file,
            function,
            digest,
            offset: span.from,
            until: span.until,
            hasher: whole.then(|| Hasher::new(function)),
            zstd,
        };
        let stream = futures_util::stream::unfold(Some(reading), |reading| async move {
            let reading = reading?;
            match off_thread(move || reading.step()).await {
                Ok((data, rest)) if data.is_empty() && rest.is_none() => None,
                Ok((data, rest)) => Some((Ok(ReadResponse { data }), rest)),
                Err(status) => Some((Err(status), None)),
            }
        });
        Ok(Response::new(Box::pin(stream)))
    }

    #[tracing::instrument(name = "stream.write", skip_all)]
    async fn write(
        &self,
        request: Request<Streaming<WriteRequest>>,
    ) -> Result<Response<WriteResponse>, Status> {
        let mut messages = request.into_inner();
        let first = messages.message().await?;
        let first = first.ok_or_else(|| Status::invalid_argument("the stream is empty"))?;
        let name = first.resource_name.clone();
        let resource = Resource::parse_write(&name)?;
        check_instance(&resource.instance)?;
        if self.holds(&resource).await? {
            // Somebody else was faster: there is no need to go on.
            let committed_size = if resource.zstd { -1 } else { resource.digest.size as i64 };
            return Ok(Response::new(WriteResponse { committed_size }));
        }
        let max = self.front.store().bytes_max();
        if resource.digest.size > max {
            return Err(Status::invalid_argument(format!(
                "the blob has {} bytes, and the whole store has room for {max}",
                resource.digest.size
            )));
        }
        let mut upload = self.start(&name, &resource, first.write_offset).await?;
        let mut message = first;
        loop {
            if !message.resource_name.is_empty() && message.resource_name != name {
                return Err(Status::invalid_argument("the resource name changes in mid-stream"));
            }
            if u64::try_from(message.write_offset) != Ok(upload.received) {
                return Err(wrong_offset(message.write_offset, upload.received));
            }
            let finish = message.finish_write;
            upload = off_thread(move || upload.push(&message.data)).await?;
            if finish {
                break;
            }
            message = match messages.message().await {
                Ok(Some(message)) => message,
                Ok(None) => {
                    let committed_size = upload.received as i64;
                    upload.suspend(self, name);
                    return Ok(Response::new(WriteResponse { committed_size }));
                }
                Err(status) => {
                    upload.suspend(self, name);
                    return Err(status);
                }
            };
        }
        let committed_size = upload.received as i64;
        off_thread(move || upload.commit()).await?;
        if self.front.origin().is_some() && !self.holds(&resource).await? {
            return Err(Status::unavailable(
                "the blob went away before it was durable: send it again",
            ));
        }
        Ok(Response::new(WriteResponse { committed_size }))
    }

    async fn query_write_status(
        &self,
        request: Request<QueryWriteStatusRequest>,
    ) -> Result<Response<QueryWriteStatusResponse>, Status> {
        let name = request.into_inner().resource_name;
        let resource = Resource::parse_write(&name)?;
        check_instance(&resource.instance)?;
        if self.holds(&resource).await? {
            let committed_size = if resource.zstd { -1 } else { resource.digest.size as i64 };
            return Ok(Response::new(QueryWriteStatusResponse { committed_size, complete: true }));
        }
        let partial = self.partial.lock().unwrap_or_else(PoisonError::into_inner);
        let written = partial.iter().find(|(known, _)| *known == name);
        // Nothing is known of an upload that never started, or whose rest was dropped:
        // it starts at the beginning.
        let committed_size = written.map_or(0, |(_, writer)| writer.written() as i64);
        Ok(Response::new(QueryWriteStatusResponse { committed_size, complete: false }))
    }
}

impl ByteStreamService {
    async fn start(&self, name: &str, resource: &Resource, offset: i64) -> Result<Upload, Status> {
        let store = self.front.store().clone();
        let (function, digest) = (resource.function, resource.digest);
        if !resource.zstd
            && let Some(writer) = self.take(name)
        {
            if u64::try_from(offset) == Ok(writer.written()) {
                return Ok(Upload { received: writer.written(), sink: Sink::Plain(writer) });
            }
            if offset != 0 {
                let written = writer.written();
                self.keep(name.to_owned(), writer);
                return Err(wrong_offset(offset, written));
            }
        }
        let writer = off_thread(move || store.writer(function, Some(digest))).await?;
        let sink = match resource.zstd {
            true => Sink::Zstd(zstd::stream::write::Decoder::new(writer).map_err(broken)?),
            false => Sink::Plain(writer),
        };
        Ok(Upload { received: 0, sink })
    }
}

fn wrong_offset(offset: i64, received: u64) -> Status {
    Status::invalid_argument(format!(
        "`write_offset` is {offset}, but {received} bytes are here: ask QueryWriteStatus"
    ))
}

fn broken(error: io::Error) -> Status {
    tracing::error!(%error, "cannot set up zstd");
    Status::internal("the server cannot set up zstd: see its log")
}

fn encoder() -> io::Result<zstd::stream::write::Encoder<'static, Vec<u8>>> {
    zstd::stream::write::Encoder::new(Vec::new(), ZSTD_LEVEL)
}

/// Which bytes of a blob a read wants.
struct Span {
    from: u64,
    until: u64,
}

impl Span {
    fn of(request: &ReadRequest, resource: &Resource) -> Result<Self, Status> {
        let size = resource.digest.size;
        let from = u64::try_from(request.read_offset)
            .map_err(|_| Status::out_of_range("`read_offset` is negative"))?;
        let limit = u64::try_from(request.read_limit)
            .map_err(|_| Status::invalid_argument("`read_limit` is negative"))?;
        if resource.zstd && limit != 0 {
            return Err(Status::invalid_argument("a compressed read has no `read_limit`"));
        }
        if from > size {
            return Err(Status::out_of_range(format!(
                "`read_offset` is {from}, but the blob has {size} bytes"
            )));
        }
        let until = if limit == 0 { size } else { size.min(from.saturating_add(limit)) };
        Ok(Self { from, until })
    }
}

struct Reading {
    store: Store,
    file: File,
    function: DigestFunction,
    digest: Digest,
    offset: u64,
    until: u64,
    /// Of a read from end to end: what was sent is checked.
    hasher: Option<Hasher>,
    zstd: Option<zstd::stream::write::Encoder<'static, Vec<u8>>>,
}

impl Reading {
    /// The next message, and what is left to send.
    fn step(mut self) -> Result<(Vec<u8>, Option<Self>), Status> {
        let failed = |error: io::Error| {
            tracing::error!(%error, "cannot read a blob");
            Status::internal("the server cannot read the blob: see its log")
        };
        let want = (self.until - self.offset).min(CHUNK_BYTES as u64) as usize;
        let mut data = vec![0; want];
        let count = read_at(&self.file, &mut data, self.offset).map_err(failed)?;
        data.truncate(count);
        self.offset += count as u64;
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&data);
        }
        let done = count < want || self.offset >= self.until;
        if done && self.hasher.take().is_some_and(|hasher| hasher.finish() != self.digest) {
            self.store.discard(self.function, &self.digest);
            return Err(Status::data_loss(format!(
                "blob `{}` was corrupt, and is gone",
                self.digest
            )));
        }
        let Some(mut zstd) = self.zstd.take() else {
            return Ok((data, (!done).then_some(self)));
        };
        zstd.write_all(&data).map_err(failed)?;
        if done {
            return Ok((zstd.finish().map_err(failed)?, None));
        }
        zstd.flush().map_err(failed)?;
        let data = std::mem::take(zstd.get_mut());
        self.zstd = Some(zstd);
        Ok((data, Some(self)))
    }
}

struct Upload {
    /// Bytes of the stream, compressed if it is.
    received: u64,
    sink: Sink,
}

enum Sink {
    Plain(BlobWriter),
    Zstd(zstd::stream::write::Decoder<'static, BlobWriter>),
}

impl Upload {
    fn push(mut self, data: &[u8]) -> Result<Self, Status> {
        match &mut self.sink {
            Sink::Plain(writer) => writer.push(data)?,
            Sink::Zstd(decoder) => decoder.write_all(data).map_err(not_zstd)?,
        }
        self.received += data.len() as u64;
        Ok(self)
    }

    fn commit(self) -> Result<(), Status> {
        let writer = match self.sink {
            Sink::Plain(writer) => writer,
            Sink::Zstd(mut decoder) => {
                decoder.flush().map_err(not_zstd)?;
                decoder.into_inner()
            }
        };
        writer.commit()?;
        Ok(())
    }

    /// Keeps what came for a client that comes back. A compressed stream starts again:
    /// its offsets count other bytes than the blob's.
    fn suspend(self, service: &ByteStreamService, name: String) {
        if let Sink::Plain(writer) = self.sink
            && writer.written() > 0
        {
            service.keep(name, writer);
        }
    }
}

fn not_zstd(error: io::Error) -> Status {
    match error.downcast::<StoreError>() {
        Ok(error) => error.into(),
        Err(error) => Status::invalid_argument(format!("the stream is not zstd: {error}")),
    }
}
