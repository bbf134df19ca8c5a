//! The content-addressed layer cache: the local store, trees, source snapshots, and
//! both ends of the Remote Execution API's cache services.

pub mod hash;
mod memo;
mod store;
mod sys;
pub mod tree;

pub use store::{BlobWriter, Pin, STREAM_BYTES_MIN, Store, StoreError, StoreOptions};
