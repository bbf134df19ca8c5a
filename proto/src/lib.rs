//! What is said on the wire: generated types of our protos, and the only
//! conversions between them, REAPI's types and the model's.

mod convert;
pub mod leader;
pub mod tls;

pub use convert::{
    ConvertError, blob_digest, digest_function, reapi_digest, reapi_digest_function,
};

/// `steading.v1`: our own services.
#[allow(
    unreachable_pub,
    unused_qualifications,
    missing_debug_implementations,
    clippy::all,
    clippy::pedantic
)]
pub mod v1 {
    tonic::include_proto!("steading.v1");
}

/// The Remote Execution API, as published.
pub use bazel_remote_apis::build::bazel::remote::execution::v2 as reapi;
/// ByteStream, as published.
pub use bazel_remote_apis::google::bytestream;
pub use bazel_remote_apis::google::rpc as google_rpc;

/// Our file descriptors, for the reflection service.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/steading.bin"));
