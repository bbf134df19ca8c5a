//! The `ContentAddressableStorage` service.

use std::pin::Pin;

use bytes::Bytes;
use prost::Message as _;
use steading_model::limits::BATCH_BYTES_MAX;
use steading_model::{Digest, DigestFunction};
use steading_proto::google_rpc;
use steading_proto::reapi;
use steading_proto::reapi::content_addressable_storage_server::ContentAddressableStorage;
use steading_proto::{blob_digest, reapi_digest};
use tokio_stream::Stream;
use tonic::{Code, Request, Response, Status, Streaming};

use super::{check_instance, function_of, required};
use crate::blobs::off_thread;
use crate::front::Front;
use crate::hash::digest_of;
use crate::store::Store;
use crate::tree::{self, TreeReader};

/// Folders of one page of a tree, unless the client asks for fewer.
const TREE_PAGE_FOLDERS: usize = 1_000;

/// Bytes of one page of a tree, unless one folder alone is larger.
const TREE_PAGE_BYTES: usize = 2 << 20;

/// What a batch may exceed the advertised bound by, bytes: clients reckon differently.
const BATCH_SLACK_BYTES: u64 = 1 << 20;

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Blobs in batches.
#[derive(Clone, Debug)]
pub struct CasService {
    front: Front,
}

impl CasService {
    pub(super) fn new(front: Front) -> Self {
        Self { front }
    }
}

#[tonic::async_trait]
impl ContentAddressableStorage for CasService {
    #[tracing::instrument(name = "blobs.find_missing", skip_all)]
    async fn find_missing_blobs(
        &self,
        request: Request<reapi::FindMissingBlobsRequest>,
    ) -> Result<Response<reapi::FindMissingBlobsResponse>, Status> {
        let request = request.into_inner();
        check_instance(&request.instance_name)?;
        let function = function_of(request.digest_function)?;
        let digests = request
            .blob_digests
            .iter()
            .map(|digest| blob_digest("blob_digests", digest))
            .collect::<Result<Vec<Digest>, _>>()?;
        let missing = self.front.missing(function, digests).await?;
        let missing_blob_digests = missing.iter().map(reapi_digest).collect();
        Ok(Response::new(reapi::FindMissingBlobsResponse { missing_blob_digests }))
    }

    #[tracing::instrument(name = "blobs.update", skip_all)]
    async fn batch_update_blobs(
        &self,
        request: Request<reapi::BatchUpdateBlobsRequest>,
    ) -> Result<Response<reapi::BatchUpdateBlobsResponse>, Status> {
        let request = request.into_inner();
        check_instance(&request.instance_name)?;
        let function = function_of(request.digest_function)?;
        let bytes: u64 = request.requests.iter().map(|blob| blob.data.len() as u64).sum();
        check_batch(bytes)?;
        let checked = off_thread(move || check_blobs(function, request.requests));
        let (responses, fine) = checked.await;
        self.front.put_hashed(function, fine).await?;
        Ok(Response::new(reapi::BatchUpdateBlobsResponse { responses }))
    }

    #[tracing::instrument(name = "blobs.read", skip_all)]
    async fn batch_read_blobs(
        &self,
        request: Request<reapi::BatchReadBlobsRequest>,
    ) -> Result<Response<reapi::BatchReadBlobsResponse>, Status> {
        let request = request.into_inner();
        check_instance(&request.instance_name)?;
        let function = function_of(request.digest_function)?;
        let digests = request
            .digests
            .iter()
            .map(|digest| blob_digest("digests", digest))
            .collect::<Result<Vec<Digest>, _>>()?;
        // A client may name a size that no blob has: the sum must not overflow.
        check_batch(digests.iter().fold(0, |sum: u64, digest| sum.saturating_add(digest.size)))?;
        let _pin = self.front.bring(function, &digests).await?;
        let store = self.front.store().clone();
        let responses = off_thread(move || read(&store, function, &digests)).await;
        Ok(Response::new(reapi::BatchReadBlobsResponse { responses }))
    }

    type GetTreeStream = Answers<reapi::GetTreeResponse>;

    #[tracing::instrument(name = "tree.get", skip_all)]
    async fn get_tree(
        &self,
        request: Request<reapi::GetTreeRequest>,
    ) -> Result<Response<Self::GetTreeStream>, Status> {
        let request = request.into_inner();
        check_instance(&request.instance_name)?;
        let function = function_of(request.digest_function)?;
        let root = required("root_digest", request.root_digest.as_ref())?;
        let skip = page_token(&request.page_token)?;
        let page = match usize::try_from(request.page_size) {
            Ok(0) => TREE_PAGE_FOLDERS,
            Ok(size) => size.min(TREE_PAGE_FOLDERS),
            Err(_) => return Err(Status::invalid_argument("`page_size` is negative")),
        };
        let _pins = self.front.bring_folders(function, &root).await?;
        let store = self.front.store().clone();
        let folders = off_thread(move || tree_folders(&store, function, &root)).await?;
        let pages = pages(folders, skip, page)?;
        Ok(Response::new(Box::pin(tokio_stream::iter(pages.into_iter().map(Ok)))))
    }

    async fn split_blob(
        &self,
        _request: Request<reapi::SplitBlobRequest>,
    ) -> Result<Response<reapi::SplitBlobResponse>, Status> {
        Err(Status::unimplemented("blobs are not split here"))
    }

    async fn splice_blob(
        &self,
        _request: Request<reapi::SpliceBlobRequest>,
    ) -> Result<Response<reapi::SpliceBlobResponse>, Status> {
        Err(Status::unimplemented("blobs are not spliced here"))
    }

    async fn register_chunk_mapping(
        &self,
        _request: Request<Streaming<reapi::RegisterChunkMappingRequest>>,
    ) -> Result<Response<reapi::RegisterChunkMappingResponse>, Status> {
        Err(Status::unimplemented("blobs are not spliced here"))
    }

    type GetChunkMappingStream = Answers<reapi::GetChunkMappingResponse>;

    async fn get_chunk_mapping(
        &self,
        _request: Request<reapi::GetChunkMappingRequest>,
    ) -> Result<Response<Self::GetChunkMappingStream>, Status> {
        Err(Status::unimplemented("blobs are not split here"))
    }
}

fn check_batch(bytes: u64) -> Result<(), Status> {
    let max = BATCH_BYTES_MAX as u64;
    if bytes > max + BATCH_SLACK_BYTES {
        return Err(Status::invalid_argument(format!(
            "the batch has {bytes} bytes, at most {max} are allowed: stream larger blobs"
        )));
    }
    Ok(())
}

/// What to answer, and the blobs that are what they say.
fn check_blobs(
    function: DigestFunction,
    requests: Vec<reapi::batch_update_blobs_request::Request>,
) -> (Vec<reapi::batch_update_blobs_response::Response>, Vec<(Digest, Bytes)>) {
    let mut responses = Vec::with_capacity(requests.len());
    let mut fine = Vec::with_capacity(requests.len());
    for request in requests {
        let status = match check_blob(function, &request) {
            Ok(digest) => {
                fine.push((digest, Bytes::from(request.data)));
                google_rpc::Status::default()
            }
            Err(status) => rpc_status(&status),
        };
        responses.push(reapi::batch_update_blobs_response::Response {
            digest: request.digest,
            status: Some(status),
        });
    }
    (responses, fine)
}

fn check_blob(
    function: DigestFunction,
    request: &reapi::batch_update_blobs_request::Request,
) -> Result<Digest, Status> {
    if request.compressor != reapi::compressor::Value::Identity as i32 {
        return Err(Status::invalid_argument("blobs of a batch are not compressed here"));
    }
    let digest = required("digest", request.digest.as_ref())?;
    let actual = digest_of(function, &request.data);
    if actual != digest {
        let why = format!("the bytes are those of `{actual}`, not of `{digest}`");
        return Err(Status::invalid_argument(why));
    }
    Ok(digest)
}

fn read(
    store: &Store,
    function: DigestFunction,
    digests: &[Digest],
) -> Vec<reapi::batch_read_blobs_response::Response> {
    let answer = |digest: &Digest| {
        let (data, status) = match store.get(function, digest) {
            Ok(Some(bytes)) => (Vec::from(bytes), google_rpc::Status::default()),
            Ok(None) => (Vec::new(), rpc_status(&super::not_found(digest))),
            Err(error) => (Vec::new(), rpc_status(&error.into())),
        };
        let digest = Some(reapi_digest(digest));
        reapi::batch_read_blobs_response::Response {
            digest,
            data,
            compressor: reapi::compressor::Value::Identity as i32,
            status: Some(status),
        }
    };
    digests.iter().map(answer).collect()
}

fn rpc_status(status: &Status) -> google_rpc::Status {
    let code = if status.code() == Code::Ok { 0 } else { status.code() as i32 };
    google_rpc::Status { code, message: status.message().to_owned(), details: Vec::new() }
}

/// The folders of a tree, the root first, each once, level by level. Those that are not
/// here are left out, as the API has it; only the root has to be.
fn tree_folders(
    store: &Store,
    function: DigestFunction,
    root: &Digest,
) -> Result<Vec<reapi::Directory>, Status> {
    let mut reader = TreeReader::new(store, function);
    let mut folders = vec![reader.read(root)?];
    let mut seen = std::collections::HashSet::from([*root]);
    let mut next = 0;
    while next < folders.len() {
        let mut below = Vec::new();
        for node in &folders[next].directories {
            let digest =
                tree::wire_digest(node.digest.as_ref()).map_err(Status::invalid_argument)?;
            if seen.insert(digest) {
                below.push(digest);
            }
        }
        for digest in below {
            match reader.read(&digest) {
                Ok(folder) => folders.push(folder),
                Err(tree::TreeError::Missing(_)) => (),
                Err(error) => return Err(error.into()),
            }
        }
        next += 1;
    }
    Ok(folders)
}

/// A page token is the number of folders before the page.
fn page_token(token: &str) -> Result<usize, Status> {
    if token.is_empty() {
        return Ok(0);
    }
    token.parse().map_err(|_| Status::invalid_argument("`page_token` is not one of this server's"))
}

fn pages(
    folders: Vec<reapi::Directory>,
    skip: usize,
    page: usize,
) -> Result<Vec<reapi::GetTreeResponse>, Status> {
    let total = folders.len();
    if skip > 0 && skip >= total {
        return Err(Status::invalid_argument("`page_token` is beyond the end of the tree"));
    }
    let mut pages: Vec<reapi::GetTreeResponse> = vec![reapi::GetTreeResponse::default()];
    let (mut bytes, mut sent) = (0, skip);
    for folder in folders.into_iter().skip(skip) {
        let size = folder.encoded_len();
        let last = pages.len() - 1;
        let full = pages[last].directories.len() >= page || bytes + size > TREE_PAGE_BYTES;
        if full && !pages[last].directories.is_empty() {
            // Where to go on if the stream breaks after this page.
            pages[last].next_page_token = sent.to_string();
            pages.push(reapi::GetTreeResponse::default());
            bytes = 0;
        }
        bytes += size;
        sent += 1;
        let last = pages.len() - 1;
        pages[last].directories.push(folder);
    }
    Ok(pages)
}
