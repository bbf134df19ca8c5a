use bytes::Bytes;
use prost::Message as _;
use steading_model::DigestFunction::{Blake3, Sha256};
use steading_proto::bytestream::byte_stream_client::ByteStreamClient;
use steading_proto::bytestream::{QueryWriteStatusRequest, ReadRequest, WriteRequest};
use steading_proto::reapi::capabilities_client::CapabilitiesClient;
use steading_proto::reapi::content_addressable_storage_client::ContentAddressableStorageClient;
use steading_proto::{reapi_digest, reapi_digest_function};
use tempfile::TempDir;
use tokio::task::JoinSet;
use tonic::Code;
use tonic::transport::Channel;

use super::*;
use crate::actions::ActionCache;
use crate::blobs::{Blobs, BlobsError};
use crate::client::Actions;
use crate::hash::digest_of;
use crate::remote::RemoteBlobs;
use crate::store::Store;
use crate::store::StoreOptions;
use crate::tree::{self, Entry, FileEntry, Folder, Patterns};

#[tokio::test]
async fn capabilities_say_what_is_there() {
    let farm = Farm::start().await;
    let request = reapi::GetCapabilitiesRequest::default();
    let answer = CapabilitiesClient::new(farm.channel.clone()).get_capabilities(request).await;
    let answer = answer.unwrap().into_inner();
    let cache = answer.cache_capabilities.unwrap();
    assert_eq!(cache.digest_functions, [1, 9]);
    assert_eq!(answer.low_api_version.unwrap().minor, 0);
    assert!(answer.high_api_version.unwrap().minor >= 3);
    assert!(cache.action_cache_update_capabilities.unwrap().update_enabled);
}

#[tokio::test]
async fn a_batch_says_of_each_blob_how_it_went() {
    let farm = Farm::start().await;
    let request = |digest: Digest, data: &[u8]| reapi::batch_update_blobs_request::Request {
        digest: Some(reapi_digest(&digest)),
        data: data.to_vec(),
        compressor: 0,
    };
    // A client that names no function means SHA-256.
    let (good, bad) = (digest_of(Sha256, b"good"), digest_of(Sha256, b"other"));
    let batch = reapi::BatchUpdateBlobsRequest {
        requests: vec![request(good, b"good"), request(bad, b"bad")],
        ..<_>::default()
    };
    let answer = farm.cas().batch_update_blobs(batch).await.unwrap().into_inner();
    let codes: Vec<i32> =
        answer.responses.iter().map(|blob| blob.status.as_ref().unwrap().code).collect();
    assert_eq!(codes, [0, Code::InvalidArgument as i32]);

    let digests = vec![reapi_digest(&good), reapi_digest(&bad)];
    let find = reapi::FindMissingBlobsRequest { blob_digests: digests.clone(), ..<_>::default() };
    let answer = farm.cas().find_missing_blobs(find).await.unwrap().into_inner();
    assert_eq!(answer.missing_blob_digests, [reapi_digest(&bad)]);

    let read = reapi::BatchReadBlobsRequest { digests, ..<_>::default() };
    let answer = farm.cas().batch_read_blobs(read).await.unwrap().into_inner();
    assert_eq!(answer.responses[0].data, b"good");
    assert_eq!(answer.responses[1].status.as_ref().unwrap().code, Code::NotFound as i32);
}

#[tokio::test]
async fn nonsense_is_refused_with_a_reason() {
    let farm = Farm::start().await;
    let digest = |hash: &str, size_bytes| reapi::Digest { hash: hash.to_owned(), size_bytes };
    let fine = "ab".repeat(32);
    for bad in [digest("", 0), digest("ab", 1), digest(&fine.to_uppercase(), 1), digest(&fine, -1)]
    {
        let find = reapi::FindMissingBlobsRequest { blob_digests: vec![bad], ..<_>::default() };
        let refused = farm.cas().find_missing_blobs(find).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
    }
    let md5 = reapi::FindMissingBlobsRequest { digest_function: 3, ..<_>::default() };
    assert_eq!(farm.cas().find_missing_blobs(md5).await.unwrap_err().code(), Code::InvalidArgument);
    for sizes in [vec![1 << 40], vec![i64::MAX, i64::MAX, i64::MAX]] {
        let digests = sizes.into_iter().map(|size| digest(&fine, size)).collect();
        let read = reapi::BatchReadBlobsRequest { digests, ..<_>::default() };
        let refused = farm.cas().batch_read_blobs(read).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
    }
}

#[tokio::test]
async fn a_stream_is_read_from_any_offset() {
    let farm = Farm::start().await;
    let content: Vec<u8> = (0..3_000_000_u32).map(|n| (n / 7) as u8).collect();
    let digest = farm.store.put(Blake3, &content).unwrap();
    let name = format!("some/instance/blobs/blake3/{digest}");
    let size = content.len();
    for (offset, limit, want) in [
        (0, 0, &content[..]),
        (1_000_001, 0, &content[1_000_001..]),
        (5, 10, &content[5..15]),
        (size - 1, 100, &content[size - 1..]),
        (size, 0, &[]),
    ] {
        let got = farm.read(&name, offset as i64, limit).await.unwrap();
        assert!(got == want, "{offset} {limit}");
    }
    let code =
        async |name: &str, offset, limit| farm.read(name, offset, limit).await.unwrap_err().code();
    assert_eq!(code(&name, size as i64 + 1, 0).await, Code::OutOfRange);
    assert_eq!(code(&name, -1, 0).await, Code::OutOfRange);
    assert_eq!(code(&name, 0, -1).await, Code::InvalidArgument);
    assert_eq!(code("blobs/x", 0, 0).await, Code::InvalidArgument);
    let gone = format!("blobs/blake3/{}", digest_of(Blake3, b"gone"));
    assert_eq!(code(&gone, 0, 0).await, Code::NotFound);
    let empty = format!("blobs/{}", digest_of(Sha256, b""));
    assert_eq!(farm.read(&empty, 0, 0).await.unwrap(), b"");
}

#[tokio::test]
async fn zstd_travels_both_ways() {
    let farm = Farm::start().await;
    let content = b"compress me ".repeat(200_000);
    let digest = digest_of(Blake3, &content);
    let packed = zstd::encode_all(&content[..], 3).unwrap();
    let name = format!("uploads/u/compressed-blobs/zstd/blake3/{digest}");
    assert_eq!(farm.write(&name, &packed, 0).await.unwrap(), packed.len() as i64);
    // There already: minus one says that whatever was sent is fine.
    assert_eq!(farm.write(&name, &packed, 0).await.unwrap(), -1);

    let name = format!("compressed-blobs/zstd/blake3/{digest}");
    let got = farm.read(&name, 0, 0).await.unwrap();
    assert!(got.len() < content.len() / 10);
    assert!(zstd::decode_all(&got[..]).unwrap() == content);
    // The offset counts the blob's bytes.
    let got = farm.read(&name, 12, 0).await.unwrap();
    assert!(zstd::decode_all(&got[..]).unwrap() == content[12..]);
    assert_eq!(farm.read(&name, 0, 5).await.unwrap_err().code(), Code::InvalidArgument);

    let other = digest_of(Blake3, b"other");
    let name = format!("uploads/u/compressed-blobs/zstd/blake3/{other}");
    for bad in [&packed[..], b"not zstd at all", &packed[..9]] {
        assert_eq!(farm.write(&name, bad, 0).await.unwrap_err().code(), Code::InvalidArgument);
    }
    assert!(!farm.store.contains(Blake3, &other));
}

#[tokio::test]
async fn an_upload_that_broke_off_goes_on_where_it_was() {
    let farm = Farm::start().await;
    let content: Vec<u8> = (0..2_500_000_u32).map(|n| (n / 3) as u8).collect();
    let digest = digest_of(Blake3, &content);
    let name = format!("inst/uploads/1-2-3/blobs/blake3/{digest}");
    assert_eq!(farm.status(&name).await, (0, false));

    let half = &content[..1_000_000];
    assert_eq!(farm.write_part(&name, half, 0, false).await.unwrap(), 1_000_000);
    assert_eq!(farm.status(&name).await, (1_000_000, false));
    let wrong = farm.write_part(&name, half, 7, true).await.unwrap_err();
    assert_eq!(wrong.code(), Code::InvalidArgument);
    assert_eq!(farm.status(&name).await, (1_000_000, false));

    let rest = &content[1_000_000..];
    assert_eq!(farm.write_part(&name, rest, 1_000_000, true).await.unwrap(), 2_500_000);
    assert_eq!(farm.status(&name).await, (2_500_000, true));
    assert!(farm.store.get(Blake3, &digest).unwrap().unwrap() == content);
    // There already: an upload ends at once.
    assert_eq!(farm.write_part(&name, b"what", 0, false).await.unwrap(), 2_500_000);
}

#[tokio::test]
async fn an_upload_of_other_bytes_leaves_nothing() {
    let farm = Farm::start().await;
    let digest = digest_of(Sha256, b"right");
    let name = format!("uploads/u/blobs/{digest}");
    for bad in [&b"wrong"[..], b"too long", b"sho"] {
        assert_eq!(farm.write(&name, bad, 0).await.unwrap_err().code(), Code::InvalidArgument);
    }
    assert_eq!(farm.status(&name).await, (0, false));
    assert_eq!(farm.write(&name, b"right", 0).await.unwrap(), 5);
    // Nobody fills the disk with what the store would never keep.
    let huge = Digest { size: STORE_BYTES + 1, ..digest };
    let name = format!("uploads/u/blobs/{huge}");
    let refused = farm.write_part(&name, b"begin", 0, false).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert_eq!(farm.status(&name).await, (0, false));
}

#[tokio::test]
async fn a_corrupt_blob_is_found_out_by_a_stream() {
    let farm = Farm::start().await;
    let content = vec![1; 100_000];
    let digest = farm.store.put(Blake3, &content).unwrap();
    let hex = digest.hash_hex();
    let file = format!("blobs/blake3/{}/{hex}-{}", &hex[..2], digest.size);
    let path = farm.store.dir().join(file);
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, vec![2; 100_000]).unwrap();
    let name = format!("blobs/blake3/{digest}");
    assert_eq!(farm.read(&name, 0, 0).await.unwrap_err().code(), Code::DataLoss);
    assert_eq!(farm.read(&name, 0, 0).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn a_tree_comes_in_pages() {
    let farm = Farm::start().await;
    let root = farm.some_tree(30);
    let get = |page_size, page_token: &str| reapi::GetTreeRequest {
        root_digest: Some(reapi_digest(&root)),
        page_size,
        page_token: page_token.to_owned(),
        digest_function: reapi_digest_function(Blake3),
        ..<_>::default()
    };
    let mut stream = farm.cas().get_tree(get(7, "")).await.unwrap().into_inner();
    let (mut folders, mut tokens) = (Vec::new(), Vec::new());
    while let Some(page) = stream.message().await.unwrap() {
        assert!(page.directories.len() <= 7);
        folders.extend(page.directories);
        tokens.push(page.next_page_token);
    }
    assert_eq!(folders.len(), 31);
    assert_eq!(folders[0].directories.len(), 30);
    assert_eq!(tokens, ["7", "14", "21", "28", ""]);

    let mut stream = farm.cas().get_tree(get(0, "21")).await.unwrap().into_inner();
    let rest = stream.message().await.unwrap().unwrap();
    assert_eq!(rest.directories, folders[21..]);
    for token in ["31", "x", "-1"] {
        let refused = farm.cas().get_tree(get(0, token)).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
    }
}

#[tokio::test]
async fn results_of_actions_are_kept_by_scope() {
    let farm = Farm::start().await;
    let actions = Actions::remote(farm.channel.clone());
    let action = digest_of(Blake3, b"action");
    let output = digest_of(Blake3, b"output");
    let result = reapi::ActionResult {
        output_files: vec![reapi::OutputFile {
            path: "out".to_owned(),
            digest: Some(reapi_digest(&output)),
            ..<_>::default()
        }],
        ..<_>::default()
    };
    assert_eq!(actions.get_action_result("a/b", &action).await.unwrap(), None);
    let early = actions.update_action_result("a/b", &action, result.clone()).await;
    assert!(early.unwrap_err().to_string().contains("upload them first"));
    farm.store.put(Blake3, b"output").unwrap();
    actions.update_action_result("a/b", &action, result.clone()).await.unwrap();
    assert_eq!(actions.get_action_result("a/b", &action).await.unwrap(), Some(result));
    assert_eq!(actions.get_action_result("a", &action).await.unwrap(), None);
}

#[tokio::test]
async fn tiered_blobs_go_to_the_server_and_come_back() {
    let farm = Farm::start().await;
    let (one, two) = (farm.agent(), farm.agent());
    let blobs: Vec<Bytes> =
        [0, 1, 100, 3 << 20, (3 << 20) + 1, 9 << 20].map(|size| vec![5; size].into()).to_vec();
    let digests = one.blobs.put_many(blobs.clone()).await.unwrap();
    assert_eq!(farm.store.missing(Blake3, &digests), []);
    assert_eq!(two.blobs.missing(&digests).await.unwrap(), []);
    let _pin = two.blobs.ensure_local(&digests).await.unwrap();
    assert_eq!(two.store.missing(Blake3, &digests), []);
    let remote = Blobs::Remote(RemoteBlobs::new(farm.channel.clone(), "inst".to_owned()));
    for (digest, blob) in digests.iter().zip(&blobs) {
        for blobs in [&one.blobs, &two.blobs, &remote] {
            assert!(blobs.get(digest).await.unwrap().as_ref() == Some(blob));
        }
    }
    let gone = digest_of(Blake3, b"gone");
    assert_eq!(remote.get(&gone).await.unwrap(), None);
    let missing = two.blobs.ensure_local(&[digests[0], gone]).await.unwrap_err();
    assert!(matches!(missing, BlobsError::Missing(digests) if digests == [gone]));
}

#[tokio::test]
async fn a_tree_travels_from_agent_to_agent() {
    let farm = Farm::start().await;
    let (one, two) = (farm.agent(), farm.agent());
    let dir = TempDir::new().unwrap();
    for n in 0..500 {
        let folder = dir.path().join(format!("d{}/deep", n % 13));
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join(n.to_string()), n.to_string()).unwrap();
    }
    std::fs::write(dir.path().join("large"), vec![3; 5 << 20]).unwrap();
    let patterns = Patterns::parse(&["**"]).unwrap();
    let tree = tree::snapshot_dir(&one.store, dir.path(), &patterns, None).unwrap();
    one.blobs.upload_tree(&tree.root).await.unwrap();
    let fetched = two.blobs.fetch_tree(&tree.root).await.unwrap();
    assert_eq!(fetched.summary, tree);
    let out = TempDir::new().unwrap();
    tree::materialize(&two.store, &tree.root, out.path(), &tree::Materialize::LOWER).unwrap();
    let again = tree::snapshot_dir(&two.store, out.path(), &patterns, None).unwrap();
    assert_eq!(again, tree);
}

#[tokio::test]
async fn many_who_want_one_blob_all_get_it() {
    let farm = Farm::start().await;
    let agent = farm.agent();
    let digests: Vec<Digest> =
        (0..50_u8).map(|n| farm.store.put(Blake3, &[n; 1000]).unwrap()).collect();
    let mut fetches = JoinSet::new();
    for n in 0..20 {
        let (blobs, mut wanted) = (agent.blobs.clone(), digests.clone());
        wanted.rotate_left(n);
        fetches.spawn(async move { blobs.ensure_local(&wanted).await.map(drop) });
    }
    while let Some(fetched) = fetches.join_next().await {
        fetched.unwrap().unwrap();
    }
    assert_eq!(agent.store.missing(Blake3, &digests), []);
}

#[tokio::test]
async fn a_server_that_is_gone_is_an_error_that_may_pass() {
    let mut farm = Farm::start().await;
    let agent = farm.agent();
    farm.server.shutdown().await;
    let error = agent.blobs.put(Bytes::from_static(b"x")).await.unwrap_err();
    assert!(error.is_transient(), "{error}");
}

/// Of the farm's store.
const STORE_BYTES: u64 = 1 << 30;

struct Farm {
    _dir: TempDir,
    store: Store,
    channel: Channel,
    server: JoinSet<()>,
}

#[derive(Debug)]
struct Anybody;

#[tonic::async_trait]
impl Writers for Anybody {
    async fn may_write(&self, _: &tonic::Extensions, _: &str) -> Result<(), Status> {
        Ok(())
    }
}

struct Agent {
    _dir: TempDir,
    store: Store,
    blobs: Blobs,
}

impl Farm {
    async fn start() -> Self {
        let dir = TempDir::new().unwrap();
        // Bounded later, as a coordinator's own store is where it is the origin.
        let options = StoreOptions { bytes_max: u64::MAX, durable: false };
        let store = Store::open(dir.path(), options).unwrap();
        store.bound(STORE_BYTES, Box::new(|| Some(Vec::new())));
        let actions = ActionCache::open(&store).unwrap();
        let services = services(Front::new(store.clone(), actions, None), Arc::new(Anybody));
        let (here, there) = tokio::io::duplex(1 << 20);
        let mut server = JoinSet::new();
        server.spawn(async move {
            let router = tonic::transport::Server::builder()
                .add_service(services.cas)
                .add_service(services.streams)
                .add_service(services.actions)
                .add_service(services.capabilities);
            let incoming = tokio_stream::iter([Ok::<_, std::io::Error>(there)]);
            // Ends with the runtime: one connection, and then no other.
            let incoming = tokio_stream::StreamExt::chain(incoming, tokio_stream::pending());
            router.serve_with_incoming(incoming).await.unwrap();
        });
        let mut here = Some(hyper_util::rt::TokioIo::new(here));
        let connector = tower::service_fn(move |_| {
            let io = here.take();
            async move { io.ok_or_else(|| std::io::Error::other("one connection only")) }
        });
        let endpoint = tonic::transport::Endpoint::from_static("http://in-memory");
        let channel = endpoint.connect_with_connector(connector).await.unwrap();
        Self { _dir: dir, store, channel, server }
    }

    fn agent(&self) -> Agent {
        let dir = TempDir::new().unwrap();
        let options = StoreOptions { bytes_max: u64::MAX, durable: false };
        let store = Store::open(dir.path(), options).unwrap();
        let remote = RemoteBlobs::new(self.channel.clone(), String::new());
        let blobs = Blobs::Tiered { local: store.clone(), remote };
        Agent { _dir: dir, store, blobs }
    }

    fn cas(&self) -> ContentAddressableStorageClient<Channel> {
        ContentAddressableStorageClient::new(self.channel.clone())
    }

    async fn read(&self, name: &str, offset: i64, limit: i64) -> Result<Vec<u8>, Status> {
        let request =
            ReadRequest { resource_name: name.to_owned(), read_offset: offset, read_limit: limit };
        let client = ByteStreamClient::new(self.channel.clone());
        let mut stream =
            client.max_decoding_message_size(1 << 24).read(request).await?.into_inner();
        let mut bytes = Vec::new();
        while let Some(message) = stream.message().await? {
            bytes.extend(message.data);
        }
        Ok(bytes)
    }

    async fn write(&self, name: &str, bytes: &[u8], offset: usize) -> Result<i64, Status> {
        self.write_part(name, bytes, offset, true).await
    }

    async fn write_part(
        &self,
        name: &str,
        bytes: &[u8],
        offset: usize,
        finish: bool,
    ) -> Result<i64, Status> {
        let chunks = bytes.chunks(300_000).enumerate();
        let count = bytes.len().div_ceil(300_000);
        let requests: Vec<WriteRequest> = chunks
            .map(|(at, data)| WriteRequest {
                resource_name: if at == 0 { name.to_owned() } else { String::new() },
                write_offset: (offset + at * 300_000) as i64,
                finish_write: finish && at + 1 == count,
                data: data.to_vec(),
            })
            .collect();
        let mut client = ByteStreamClient::new(self.channel.clone());
        Ok(client.write(tokio_stream::iter(requests)).await?.into_inner().committed_size)
    }

    async fn status(&self, name: &str) -> (i64, bool) {
        let request = QueryWriteStatusRequest { resource_name: name.to_owned() };
        let mut client = ByteStreamClient::new(self.channel.clone());
        let answer = client.query_write_status(request).await.unwrap().into_inner();
        (answer.committed_size, answer.complete)
    }

    /// A root with so many folders, no two alike.
    fn some_tree(&self, folders: usize) -> Digest {
        let mut root = Folder::default();
        for n in 0..folders {
            let digest = self.store.put(Blake3, n.to_string().as_bytes()).unwrap();
            let file = FileEntry { digest, executable: false, mode: None };
            root.insert(&format!("{n}/file"), Entry::File(file)).unwrap();
        }
        let root = tree::save(&self.store, &root).unwrap().root;
        let bytes = self.store.get(Blake3, &root).unwrap().unwrap();
        assert!(reapi::Directory::decode(bytes).is_ok());
        root
    }
}
