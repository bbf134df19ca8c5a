//! The canonical form of folders as messages.

use std::collections::HashMap;

use bazel_remote_apis::google::protobuf::UInt32Value;
use prost::Message as _;
use steading_model::{Digest, DigestFunction};
use steading_proto::reapi;
use steading_proto::{blob_digest, reapi_digest};

use super::{
    DEPTH_MAX, ENTRIES_MAX, Entry, FileEntry, Folder, NAME_BYTES_MAX, TARGET_BYTES_MAX, TreeError,
};
use crate::store::Store;

/// One folder as a canonical message: names in byte order, the messages below by digest.
pub fn encode_directory(
    folder: &Folder,
    digest_of_folder: &mut dyn FnMut(&str, &Folder) -> Result<Digest, TreeError>,
) -> Result<Vec<u8>, TreeError> {
    let mut message =
        reapi::Directory { node_properties: properties(folder.mode), ..<_>::default() };
    // A BTreeMap of strings is in byte order already.
    for (name, entry) in &folder.entries {
        match entry {
            Entry::File(file) => message.files.push(reapi::FileNode {
                name: name.clone(),
                digest: Some(reapi_digest(&file.digest)),
                is_executable: file.executable,
                node_properties: properties(file.mode),
            }),
            Entry::Symlink { target } => message.symlinks.push(reapi::SymlinkNode {
                name: name.clone(),
                target: target.clone(),
                node_properties: None,
            }),
            Entry::Folder(below) => message.directories.push(reapi::DirectoryNode {
                name: name.clone(),
                digest: Some(reapi_digest(&digest_of_folder(name, below)?)),
            }),
        }
    }
    Ok(message.encode_to_vec())
}

fn properties(mode: Option<u32>) -> Option<reapi::NodeProperties> {
    let unix_mode = Some(UInt32Value { value: mode? });
    Some(reapi::NodeProperties { unix_mode, ..<_>::default() })
}

/// Reads and checks one message.
///
/// # Errors
///
/// [`TreeError::Malformed`] for what is not a `Directory`, and for names that are empty,
/// `.`, `..`, too long, hold `/` or NUL, repeat, or are out of order.
pub fn decode_directory(digest: &Digest, bytes: &[u8]) -> Result<reapi::Directory, TreeError> {
    let malformed = |why: String| TreeError::Malformed { digest: *digest, why };
    let message = reapi::Directory::decode(bytes).map_err(|error| malformed(error.to_string()))?;
    check_directory(&message).map_err(malformed)?;
    Ok(message)
}

/// Checks a message that came by other ways than the store.
pub(crate) fn check_directory(message: &reapi::Directory) -> Result<(), String> {
    let files: Vec<&str> = message.files.iter().map(|node| node.name.as_str()).collect();
    let folders: Vec<&str> = message.directories.iter().map(|node| node.name.as_str()).collect();
    let links: Vec<&str> = message.symlinks.iter().map(|node| node.name.as_str()).collect();
    for names in [&files, &folders, &links] {
        for name in names {
            check_name(name)?;
        }
        if let Some(pair) = names.windows(2).find(|pair| pair[0] >= pair[1]) {
            return Err(format!("`{}` does not stand after `{}`", pair[1], pair[0]));
        }
    }
    let mut all: Vec<&str> = files.into_iter().chain(folders).chain(links).collect();
    all.sort_unstable();
    if let Some(pair) = all.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(format!("`{}` stands there twice", pair[0]));
    }
    for node in &message.files {
        wire_digest(node.digest.as_ref()).map_err(|why| format!("file `{}`: {why}", node.name))?;
    }
    for node in &message.directories {
        wire_digest(node.digest.as_ref())
            .map_err(|why| format!("folder `{}`: {why}", node.name))?;
    }
    for node in &message.symlinks {
        let target = &node.target;
        if target.is_empty() || target.len() > TARGET_BYTES_MAX || target.contains('\0') {
            return Err(format!("the link `{}` has no usable target", node.name));
        }
    }
    Ok(())
}

pub(super) fn check_name(name: &str) -> Result<(), String> {
    match name {
        "" => Err("a name is empty".to_owned()),
        "." | ".." => Err(format!("`{name}` is not a name")),
        _ if name.contains(['/', '\0']) => Err(format!("{name:?} holds a `/` or a NUL")),
        _ if name.len() > NAME_BYTES_MAX => {
            Err(format!("a name has {} bytes, at most {NAME_BYTES_MAX} are allowed", name.len()))
        }
        _ => Ok(()),
    }
}

pub(crate) fn wire_digest(digest: Option<&reapi::Digest>) -> Result<Digest, String> {
    let digest = digest.ok_or("it has no digest")?;
    blob_digest("digest", digest).map_err(|error| error.to_string())
}

pub(super) fn unix_mode(properties: Option<&reapi::NodeProperties>) -> Option<u32> {
    Some(properties?.unix_mode.as_ref()?.value & 0o777)
}

/// A checked file node as an entry, in canonical form.
pub(super) fn file_entry(node: &reapi::FileNode) -> Result<FileEntry, String> {
    let digest = wire_digest(node.digest.as_ref())?;
    Ok(match unix_mode(node.node_properties.as_ref()) {
        Some(mode) => {
            let mode = if node.is_executable { mode | 0o100 } else { mode };
            FileEntry::with_mode(digest, mode)
        }
        None => FileEntry { digest, executable: node.is_executable, mode: None },
    })
}

/// The REAPI `Tree` of a root: what an `OutputDirectory` names. Children come in the
/// order in which they are first met, each once.
///
/// # Errors
///
/// [`TreeError::Missing`] and [`TreeError::Malformed`] as the store has it.
pub fn tree_message(store: &Store, root: &Digest) -> Result<reapi::Tree, TreeError> {
    let mut reader = Reader::new(store, DigestFunction::Blake3);
    let root_message = reader.read(root)?;
    let mut tree = reapi::Tree { root: Some(root_message.clone()), children: Vec::new() };
    let mut seen = std::collections::HashSet::new();
    let mut level = vec![root_message];
    for _ in 0..DEPTH_MAX {
        let mut below = Vec::new();
        for node in level.iter().flat_map(|message| &message.directories) {
            let digest = wire_digest(node.digest.as_ref())
                .map_err(|why| TreeError::Malformed { digest: *root, why })?;
            if seen.insert(digest) {
                below.push(reader.read(&digest)?);
            }
        }
        if below.is_empty() {
            return Ok(tree);
        }
        tree.children.extend(below.iter().cloned());
        level = below;
    }
    Err(TreeError::TooDeep { path: root.to_string() })
}

/// Reads folders of one tree, each once, within the bounds on a tree's size.
#[derive(Debug)]
pub(crate) struct Reader<'a> {
    store: &'a Store,
    function: DigestFunction,
    known: HashMap<Digest, reapi::Directory>,
    entries: usize,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(store: &'a Store, function: DigestFunction) -> Self {
        Self { store, function, known: HashMap::new(), entries: 0 }
    }

    /// One folder, counted against the tree's bound each time it is named.
    pub(crate) fn read(&mut self, digest: &Digest) -> Result<reapi::Directory, TreeError> {
        let message = match self.known.get(digest) {
            Some(message) => message.clone(),
            None => {
                let bytes =
                    self.store.get(self.function, digest)?.ok_or(TreeError::Missing(*digest))?;
                let message = decode_directory(digest, &bytes)?;
                self.known.insert(*digest, message.clone());
                message
            }
        };
        self.entries += message.files.len() + message.directories.len() + message.symlinks.len();
        if self.entries > ENTRIES_MAX {
            return Err(TreeError::TooLarge);
        }
        Ok(message)
    }
}

/// Every blob of a tree: its messages, the root's among them, and its files.
pub(crate) fn blobs_below(
    store: &Store,
    function: DigestFunction,
    root: &Digest,
) -> Result<Vec<Digest>, TreeError> {
    let mut reader = Reader::new(store, function);
    let mut blobs = std::collections::HashSet::from([*root]);
    let mut level = vec![*root];
    for _ in 0..=DEPTH_MAX {
        let mut below = Vec::new();
        for digest in &level {
            let message = reader.read(digest)?;
            let malformed = |why| TreeError::Malformed { digest: *digest, why };
            for node in &message.files {
                blobs.insert(wire_digest(node.digest.as_ref()).map_err(malformed)?);
            }
            for node in &message.directories {
                let digest = wire_digest(node.digest.as_ref()).map_err(malformed)?;
                // A folder that stands in several places is read once.
                if blobs.insert(digest) {
                    below.push(digest);
                }
            }
        }
        if below.is_empty() {
            return Ok(blobs.into_iter().collect());
        }
        level = below;
    }
    Err(TreeError::TooDeep { path: root.to_string() })
}
