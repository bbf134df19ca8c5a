//! The client's end of the cache services: blobs of a coordinator, or of anyone who
//! speaks the Remote Execution API.

use std::collections::HashMap;
use std::fs::File;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures_util::StreamExt as _;
use steading_model::limits::BATCH_BYTES_MAX;
use steading_model::{Digest, DigestFunction};
use steading_proto::bytestream::byte_stream_client::ByteStreamClient;
use steading_proto::bytestream::{ReadRequest, WriteRequest};
use steading_proto::reapi;
use steading_proto::reapi::content_addressable_storage_client::ContentAddressableStorageClient;
use steading_proto::{blob_digest, reapi_digest, reapi_digest_function};
use tokio::sync::watch;
use tonic::body::Body;
use tonic::codegen::http;
use tower::Service;
use tower::util::BoxCloneSyncService;

use crate::blobs::{BlobsError, blocking};
use crate::hash::digest_of;
use crate::store::{Store, StoreError, read_at};

/// What the farm's own programs name blobs by.
pub(crate) const FUNCTION: DigestFunction = DigestFunction::Blake3;

/// Largest message either way, bytes. Batches stay well below it.
pub const MESSAGE_BYTES_MAX: usize = 16 << 20;

/// Digests of one existence question; a digest takes about 80 bytes.
const FIND_DIGESTS_MAX: usize = 20_000;

/// Blobs of one batch, so that a batch of tiny blobs is not all overhead.
const BATCH_BLOBS_MAX: usize = 4_000;

/// Bytes that a blob adds to a batch besides its own.
const BLOB_OVERHEAD_BYTES: u64 = 128;

/// Bytes of one message of a stream.
const CHUNK_BYTES: usize = 1 << 20;

/// Requests under way at once for one caller.
const CONCURRENT_REQUESTS: usize = 4;

/// How often blobs that somebody else was fetching are looked for again.
const FETCH_ROUNDS_MAX: usize = 16;

/// How a server is reached: a channel, or what chooses among several.
pub(crate) type Way =
    BoxCloneSyncService<http::Request<Body>, http::Response<Body>, tonic::transport::Error>;

/// The blobs of a server. Clones share it.
#[derive(Clone, Debug)]
pub struct RemoteBlobs(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    cas: ContentAddressableStorageClient<Way>,
    streams: ByteStreamClient<Way>,
    instance: String,
    /// Blobs that somebody is fetching; the sender is dropped when they are done.
    flights: Mutex<HashMap<Digest, watch::Receiver<()>>>,
}

impl RemoteBlobs {
    /// The blobs behind this channel (or what chooses one), in this REAPI instance.
    pub fn new<S>(service: S, instance: String) -> Self
    where
        S: Service<
                http::Request<Body>,
                Response = http::Response<Body>,
                Error = tonic::transport::Error,
                Future: Send + 'static,
            > + Clone
            + Send
            + Sync
            + 'static,
    {
        let way = Way::new(service);
        let cas = ContentAddressableStorageClient::new(way.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        let streams = ByteStreamClient::new(way)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        Self(Arc::new(Inner { cas, streams, instance, flights: Mutex::default() }))
    }

    /// Those of the digests that the server lacks.
    ///
    /// # Errors
    ///
    /// [`BlobsError::Remote`] as the server or the connection says.
    pub async fn missing(&self, digests: &[Digest]) -> Result<Vec<Digest>, BlobsError> {
        let mut missing = Vec::new();
        for part in digests.chunks(FIND_DIGESTS_MAX) {
            let request = reapi::FindMissingBlobsRequest {
                instance_name: self.0.instance.clone(),
                blob_digests: part.iter().map(reapi_digest).collect(),
                digest_function: reapi_digest_function(FUNCTION),
            };
            let response = self.0.cas.clone().find_missing_blobs(request).await?.into_inner();
            for digest in &response.missing_blob_digests {
                missing.push(blob_digest("missing_blob_digests", digest)?);
            }
        }
        Ok(missing)
    }

    /// A blob in memory, verified; none where the server lacks it.
    ///
    /// # Errors
    ///
    /// [`BlobsError::Remote`], and [`BlobsError::Corrupt`] where the bytes are others.
    pub async fn get(&self, digest: &Digest) -> Result<Option<Bytes>, BlobsError> {
        if digest.size <= BATCH_BYTES_MAX as u64 {
            let mut got = self.read_batch(&[*digest]).await?;
            return Ok(got.pop().and_then(|(_, bytes)| bytes));
        }
        let mut bytes = Vec::new();
        let Some(mut stream) = self.read_stream(digest).await? else { return Ok(None) };
        while let Some(message) = stream.message().await? {
            if bytes.len() as u64 + message.data.len() as u64 > digest.size {
                return Err(BlobsError::Corrupt(*digest));
            }
            bytes.extend_from_slice(&message.data);
        }
        let digest = *digest;
        blocking(move || match digest_of(FUNCTION, &bytes) == digest {
            true => Ok(Some(Bytes::from(bytes))),
            false => Err(BlobsError::Corrupt(digest)),
        })
        .await
    }

    /// Sends blobs that the server lacks; the digests are those of these very bytes.
    pub(crate) async fn put(&self, blobs: Vec<(Digest, Bytes)>) -> Result<(), BlobsError> {
        let digests: Vec<Digest> = blobs.iter().map(|(digest, _)| *digest).collect();
        let missing: std::collections::HashSet<Digest> =
            self.missing(&digests).await?.into_iter().collect();
        let (mut small, mut large) = (Vec::new(), Vec::new());
        for (digest, bytes) in blobs.into_iter().filter(|(digest, _)| missing.contains(digest)) {
            match digest.size <= BATCH_BYTES_MAX as u64 {
                true => small.push((digest, bytes)),
                false => large.push((digest, bytes)),
            }
        }
        self.write_batches(small).await?;
        for (digest, bytes) in large {
            self.write_stream(&digest, Source::Memory(bytes)).await?;
        }
        Ok(())
    }

    /// Sends blobs out of the store that the server lacks.
    pub(crate) async fn upload(&self, store: &Store, digests: &[Digest]) -> Result<(), BlobsError> {
        let missing = self.missing(digests).await?;
        let (small, large): (Vec<Digest>, Vec<Digest>) =
            missing.into_iter().partition(|digest| digest.size <= BATCH_BYTES_MAX as u64);
        for batch in batches(small) {
            let store = store.clone();
            let blobs = blocking(move || read_all(&store, batch)).await?;
            self.write_batches(blobs).await?;
        }
        for digest in large {
            let store = store.clone();
            let file = blocking(move || Ok(store.open_blob(FUNCTION, &digest)?)).await?;
            let file = file.ok_or(BlobsError::Missing(vec![digest]))?;
            self.write_stream(&digest, Source::File(Arc::new(file))).await?;
        }
        Ok(())
    }

    /// Fetches into the store what it lacks of these blobs, each once however many ask.
    ///
    /// # Errors
    ///
    /// [`BlobsError::Missing`] names all that the server lacks.
    pub(crate) async fn fetch(&self, store: &Store, digests: &[Digest]) -> Result<(), BlobsError> {
        let mut wanted = digests.to_vec();
        for _ in 0..FETCH_ROUNDS_MAX {
            let (asked, at) = (wanted, store.clone());
            wanted = blocking(move || Ok(at.missing(FUNCTION, &asked))).await?;
            if wanted.is_empty() {
                return Ok(());
            }
            let (flight, others) = self.take_off(&wanted);
            let fetched = self.fetch_mine(store, &flight.digests).await;
            // Landed before waiting for others, who may wait for these.
            drop(flight);
            fetched?;
            for mut other in others {
                // Closed, whether they got it or not: the next round tells.
                let _ = other.changed().await;
            }
        }
        Err(BlobsError::Missing(wanted))
    }

    /// Takes those of the blobs that nobody is fetching; of the others, their end.
    fn take_off(&self, wanted: &[Digest]) -> (Flight, Vec<watch::Receiver<()>>) {
        let (sender, receiver) = watch::channel(());
        let mut flights = self.0.flights.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut mine, mut others) = (Vec::new(), Vec::new());
        for digest in wanted {
            match flights.get(digest) {
                Some(other) => others.push(other.clone()),
                None => {
                    flights.insert(*digest, receiver.clone());
                    mine.push(*digest);
                }
            }
        }
        (Flight { inner: Arc::clone(&self.0), digests: mine, _sender: sender }, others)
    }

    async fn fetch_mine(&self, store: &Store, digests: &[Digest]) -> Result<(), BlobsError> {
        let (small, large): (Vec<Digest>, Vec<Digest>) =
            digests.iter().partition(|digest| digest.size <= BATCH_BYTES_MAX as u64);
        let mut missing = Vec::new();
        let mut requests = futures_util::stream::iter(batches(small))
            .map(|batch| async move { self.read_batch(&batch).await })
            .buffer_unordered(CONCURRENT_REQUESTS);
        while let Some(got) = requests.next().await {
            let (store, got) = (store.clone(), got?);
            missing.extend(blocking(move || put_all(&store, got)).await?);
        }
        drop(requests);
        for digest in large {
            if !self.fetch_stream(store, &digest).await? {
                missing.push(digest);
            }
        }
        if missing.is_empty() { Ok(()) } else { Err(BlobsError::Missing(missing)) }
    }

    async fn fetch_stream(&self, store: &Store, digest: &Digest) -> Result<bool, BlobsError> {
        let Some(mut stream) = self.read_stream(digest).await? else { return Ok(false) };
        let (at, expected) = (store.clone(), *digest);
        let mut writer = blocking(move || Ok(at.writer(FUNCTION, Some(expected))?)).await?;
        while let Some(message) = stream.message().await? {
            writer = blocking(move || {
                writer.push(&message.data)?;
                Ok(writer)
            })
            .await?;
        }
        let committed = blocking(move || Ok(writer.commit()?)).await;
        match committed {
            Ok(_) => Ok(true),
            Err(BlobsError::Store(StoreError::Mismatch { .. } | StoreError::TooLong { .. })) => {
                Err(BlobsError::Corrupt(expected))
            }
            Err(error) => Err(error),
        }
    }

    async fn read_stream(
        &self,
        digest: &Digest,
    ) -> Result<Option<tonic::Streaming<steading_proto::bytestream::ReadResponse>>, BlobsError>
    {
        let resource_name = self.resource("blobs", digest);
        let request = ReadRequest { resource_name, read_offset: 0, read_limit: 0 };
        match self.0.streams.clone().read(request).await {
            Ok(response) => Ok(Some(response.into_inner())),
            Err(status) if status.code() == tonic::Code::NotFound => Ok(None),
            Err(status) => Err(status.into()),
        }
    }

    /// Verified blobs; none for those that the server lacks.
    async fn read_batch(
        &self,
        digests: &[Digest],
    ) -> Result<Vec<(Digest, Option<Bytes>)>, BlobsError> {
        let request = reapi::BatchReadBlobsRequest {
            instance_name: self.0.instance.clone(),
            digests: digests.iter().map(reapi_digest).collect(),
            acceptable_compressors: Vec::new(),
            digest_function: reapi_digest_function(FUNCTION),
        };
        let response = self.0.cas.clone().batch_read_blobs(request).await?.into_inner();
        let mut got: HashMap<Digest, Option<Bytes>> = HashMap::with_capacity(digests.len());
        for blob in response.responses {
            let digest = blob.digest.as_ref().ok_or(BlobsError::Answer("a blob has no digest"))?;
            let digest = blob_digest("digest", digest)?;
            match blob.status.map_or(0, |status| status.code) {
                0 if digest_of(FUNCTION, &blob.data) == digest => {
                    got.insert(digest, Some(Bytes::from(blob.data)));
                }
                0 => return Err(BlobsError::Corrupt(digest)),
                code if code == tonic::Code::NotFound as i32 => {
                    got.insert(digest, None);
                }
                code => {
                    let status = tonic::Status::new(tonic::Code::from(code), "a blob of a batch");
                    return Err(status.into());
                }
            }
        }
        digests
            .iter()
            .map(|digest| match got.get(digest) {
                Some(bytes) => Ok((*digest, bytes.clone())),
                None => Err(BlobsError::Answer("a batch lacks a blob that was asked for")),
            })
            .collect()
    }

    async fn write_batches(&self, blobs: Vec<(Digest, Bytes)>) -> Result<(), BlobsError> {
        let mut bytes: HashMap<Digest, Bytes> = blobs.iter().cloned().collect();
        let batches = batches(blobs.into_iter().map(|(digest, _)| digest).collect());
        let requests: Vec<_> = batches
            .into_iter()
            .map(|batch| {
                let requests = batch.iter().filter_map(|digest| {
                    let data = bytes.remove(digest)?.into();
                    let digest = Some(reapi_digest(digest));
                    Some(reapi::batch_update_blobs_request::Request { digest, data, compressor: 0 })
                });
                reapi::BatchUpdateBlobsRequest {
                    instance_name: self.0.instance.clone(),
                    requests: requests.collect(),
                    digest_function: reapi_digest_function(FUNCTION),
                }
            })
            .collect();
        let mut answers = futures_util::stream::iter(requests)
            .map(|request| async move { self.0.cas.clone().batch_update_blobs(request).await })
            .buffer_unordered(CONCURRENT_REQUESTS);
        while let Some(answer) = answers.next().await {
            for blob in answer?.into_inner().responses {
                if let Some(status) = blob.status.filter(|status| status.code != 0) {
                    let code = tonic::Code::from(status.code);
                    return Err(tonic::Status::new(code, status.message).into());
                }
            }
        }
        Ok(())
    }

    async fn write_stream(&self, digest: &Digest, source: Source) -> Result<(), BlobsError> {
        let upload = format!("uploads/{}/blobs", upload_id());
        let resource_name = self.resource(&upload, digest);
        let (size, digest) = (digest.size, *digest);
        let failure = Arc::new(Mutex::new(None));
        let seen = Arc::clone(&failure);
        let chunks = futures_util::stream::unfold(Some(0_u64), move |offset| {
            let (source, seen, name) = (source.clone(), Arc::clone(&seen), resource_name.clone());
            async move {
                let offset = offset?;
                let data = match source.chunk(offset).await {
                    Ok(data) => data,
                    Err(error) => {
                        // The stream ends early; the server will not take the blob for whole.
                        *seen.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                        return None;
                    }
                };
                let end = offset + data.len() as u64;
                let finish_write = end >= size || data.is_empty();
                let write_offset = offset as i64;
                let resource_name = if offset == 0 { name } else { String::new() };
                let request = WriteRequest { resource_name, write_offset, finish_write, data };
                Some((request, (!finish_write).then_some(end)))
            }
        });
        let answer = self.0.streams.clone().write(chunks).await;
        if let Some(error) = failure.lock().unwrap_or_else(PoisonError::into_inner).take() {
            return Err(error);
        }
        let committed = answer?.into_inner().committed_size;
        if u64::try_from(committed) != Ok(digest.size) {
            return Err(BlobsError::Answer("the server took fewer bytes than the blob has"));
        }
        Ok(())
    }

    fn resource(&self, kind: &str, digest: &Digest) -> String {
        let slash = if self.0.instance.is_empty() { "" } else { "/" };
        format!("{}{slash}{kind}/{}/{digest}", self.0.instance, FUNCTION.as_str())
    }
}

/// Blobs that this caller is fetching. However it ends, those who wait for it go on.
struct Flight {
    inner: Arc<Inner>,
    digests: Vec<Digest>,
    _sender: watch::Sender<()>,
}

impl Drop for Flight {
    fn drop(&mut self) {
        let mut flights = self.inner.flights.lock().unwrap_or_else(PoisonError::into_inner);
        for digest in &self.digests {
            flights.remove(digest);
        }
    }
}

/// Where an upload's bytes come from.
#[derive(Clone)]
enum Source {
    Memory(Bytes),
    File(Arc<File>),
}

impl Source {
    async fn chunk(&self, offset: u64) -> Result<Vec<u8>, BlobsError> {
        match self {
            Self::Memory(bytes) => {
                let from = bytes.len().min(offset as usize);
                Ok(bytes[from..bytes.len().min(from + CHUNK_BYTES)].to_vec())
            }
            Self::File(file) => {
                let file = Arc::clone(file);
                blocking(move || {
                    let mut data = vec![0; CHUNK_BYTES];
                    let count = read_at(&file, &mut data, offset).map_err(BlobsError::Read)?;
                    data.truncate(count);
                    Ok(data)
                })
                .await
            }
        }
    }
}

/// Cuts blobs into batches that fit one message.
fn batches(digests: Vec<Digest>) -> Vec<Vec<Digest>> {
    let mut batches: Vec<Vec<Digest>> = Vec::new();
    let mut bytes = 0;
    for digest in digests {
        bytes += digest.size + BLOB_OVERHEAD_BYTES;
        match batches.last_mut() {
            Some(batch) if bytes <= BATCH_BYTES_MAX as u64 && batch.len() < BATCH_BLOBS_MAX => {
                batch.push(digest);
            }
            _ => {
                bytes = digest.size + BLOB_OVERHEAD_BYTES;
                batches.push(vec![digest]);
            }
        }
    }
    batches
}

fn read_all(store: &Store, digests: Vec<Digest>) -> Result<Vec<(Digest, Bytes)>, BlobsError> {
    let mut blobs = Vec::with_capacity(digests.len());
    for digest in digests {
        let bytes = store.get(FUNCTION, &digest)?.ok_or(BlobsError::Missing(vec![digest]))?;
        blobs.push((digest, bytes));
    }
    Ok(blobs)
}

/// Puts verified blobs; gives back those that the server lacked.
fn put_all(store: &Store, got: Vec<(Digest, Option<Bytes>)>) -> Result<Vec<Digest>, BlobsError> {
    let blobs = got.iter().filter_map(|(digest, bytes)| Some((*digest, &bytes.as_ref()?[..])));
    store.put_hashed(FUNCTION, blobs)?;
    Ok(got.iter().filter(|(_, bytes)| bytes.is_none()).map(|(digest, _)| *digest).collect())
}

/// Unique enough that two uploads of one process, or of two, are not taken for one.
fn upload_id() -> String {
    use std::sync::atomic::{AtomicU64, Ordering};
    static LAST: AtomicU64 = AtomicU64::new(0);
    let now = std::time::SystemTime::now()
        .duration_since(std::time::SystemTime::UNIX_EPOCH)
        .map_or(0, |since| since.as_nanos());
    let (process, count) = (std::process::id(), LAST.fetch_add(1, Ordering::Relaxed));
    let hash = blake3::hash(format!("{now}/{process}/{count}").as_bytes());
    let hex = hash.to_hex();
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..32])
}
