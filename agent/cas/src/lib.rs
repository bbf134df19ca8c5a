//! The content-addressed layer cache: the local store, trees, source snapshots, and
//! both ends of the Remote Execution API's cache services.

mod actions;
mod blobs;
pub mod client;
mod dir;
mod front;
pub mod hash;
mod memo;
mod origin;
mod remote;
pub mod server;
pub mod source;
mod store;
mod sys;
pub mod tree;

pub use actions::{ActionCache, ActionCacheError, ActionEntry, RESULT_BYTES_MAX};
pub use blobs::{Blobs, BlobsError, FetchedTree, held_tree};
pub use dir::{Dir, Kind, remove_tree};
pub use front::Front;
pub use origin::{Origin, OriginError};
pub use remote::{MESSAGE_BYTES_MAX, RemoteBlobs};
pub use store::{BlobWriter, Named, Pin, STREAM_BYTES_MIN, Store, StoreError, StoreOptions};
