//! ByteStream resource names, as the Remote Execution API spells them.

use steading_model::{Digest, DigestFunction};
use tonic::Status;

/// What a resource name says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Resource {
    pub(super) instance: String,
    /// Of an upload.
    pub(super) upload: Option<String>,
    pub(super) function: DigestFunction,
    /// Of the blob itself, not of its compressed form.
    pub(super) digest: Digest,
    /// The stream carries zstd.
    pub(super) zstd: bool,
}

impl Resource {
    /// Reads `{instance/}blobs/{function/}HASH/SIZE` and
    /// `{instance/}compressed-blobs/zstd/{function/}HASH/SIZE`.
    ///
    /// # Errors
    ///
    /// INVALID_ARGUMENT for anything else.
    pub(super) fn parse_read(name: &str) -> Result<Self, Status> {
        let wrong = || bad(name, "{instance}/blobs/{function}/{hash}/{size}");
        let parts: Vec<&str> = name.split('/').collect();
        let (instance, blob) = split(&parts, false).ok_or_else(wrong)?;
        if !blob.rest.is_empty() {
            return Err(wrong());
        }
        Ok(blob.into_resource(instance))
    }

    /// Reads `{instance/}uploads/UUID/blobs/{function/}HASH/SIZE{/anything}` and its
    /// compressed form.
    ///
    /// # Errors
    ///
    /// INVALID_ARGUMENT for anything else.
    pub(super) fn parse_write(name: &str) -> Result<Self, Status> {
        let wrong = || bad(name, "{instance}/uploads/{uuid}/blobs/{function}/{hash}/{size}");
        let parts: Vec<&str> = name.split('/').collect();
        let (instance, blob) = split(&parts, true).ok_or_else(wrong)?;
        Ok(blob.into_resource(instance))
    }
}

fn bad(name: &str, want: &str) -> Status {
    let name: String = name.chars().take(300).collect();
    Status::invalid_argument(format!("`{name}` is not a resource name: want `{want}`"))
}

struct Blob<'a> {
    upload: Option<&'a str>,
    function: DigestFunction,
    digest: Digest,
    zstd: bool,
    rest: &'a [&'a str],
}

impl Blob<'_> {
    fn into_resource(self, instance: String) -> Resource {
        let Blob { upload, function, digest, zstd, .. } = self;
        Resource { instance, upload: upload.map(str::to_owned), function, digest, zstd }
    }
}

/// Finds the last place where a blob's name can start: what is before it is the
/// instance, whose parts may be called as they like as long as they are not reserved.
fn split<'a>(parts: &'a [&'a str], upload: bool) -> Option<(String, Blob<'a>)> {
    for at in (0..parts.len()).rev() {
        let Some(mut blob) = blob_at(&parts[at..]) else { continue };
        let instance = if upload {
            let [instance @ .., "uploads", id] = &parts[..at] else { continue };
            blob.upload = Some(*id).filter(|id| !id.is_empty());
            blob.upload?;
            instance
        } else {
            &parts[..at]
        };
        let fine = |part: &&str| !part.is_empty() && !RESERVED.contains(part);
        return instance.iter().all(fine).then(|| (instance.join("/"), blob));
    }
    None
}

/// What no part of an instance name may be called.
const RESERVED: [&str; 7] = [
    "blobs",
    "uploads",
    "actions",
    "actionResults",
    "operations",
    "capabilities",
    "compressed-blobs",
];

fn blob_at<'a>(parts: &'a [&'a str]) -> Option<Blob<'a>> {
    let (zstd, parts) = match parts {
        ["blobs", rest @ ..] => (false, rest),
        ["compressed-blobs", "zstd", rest @ ..] => (true, rest),
        _ => return None,
    };
    let (function, parts) = match parts {
        ["blake3", rest @ ..] => (DigestFunction::Blake3, rest),
        // Not canonical for SHA-256, but there are clients that write it.
        ["sha256", rest @ ..] => (DigestFunction::Sha256, rest),
        _ => (DigestFunction::Sha256, parts),
    };
    let [hash, size, rest @ ..] = parts else { return None };
    // As `digest` would have it: no sign, no leading zeros.
    let digest: Digest = format!("{hash}/{size}").parse().ok()?;
    Some(Blob { upload: None, function, digest, zstd, rest })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: &str = "abababababababababababababababababababababababababababababababab";

    fn read(name: &str) -> Option<(String, DigestFunction, u64, bool)> {
        let name = name.replace("HASH", HASH);
        let resource = Resource::parse_read(&name).ok()?;
        assert_eq!(resource.digest.hash, [0xab; 32]);
        Some((resource.instance, resource.function, resource.digest.size, resource.zstd))
    }

    fn write(name: &str) -> Option<(String, String, DigestFunction, bool)> {
        let resource = Resource::parse_write(&name.replace("HASH", HASH)).ok()?;
        Some((resource.instance, resource.upload?, resource.function, resource.zstd))
    }

    #[test]
    fn names_are_read_from_the_right() {
        use DigestFunction::{Blake3, Sha256};
        let instance = |name: &str| name.to_owned();
        assert_eq!(read("blobs/HASH/7"), Some((instance(""), Sha256, 7, false)));
        assert_eq!(read("a/b/blobs/blake3/HASH/7"), Some((instance("a/b"), Blake3, 7, false)));
        assert_eq!(
            read("a/compressed-blobs/zstd/blake3/HASH/0"),
            Some((instance("a"), Blake3, 0, true))
        );
        assert_eq!(
            write("a/b/uploads/u-1/blobs/HASH/7/foo.c/blobs"),
            Some((instance("a/b"), instance("u-1"), Sha256, false))
        );
        assert_eq!(
            write("uploads/u/compressed-blobs/zstd/blake3/HASH/7"),
            Some((instance(""), instance("u"), Blake3, true))
        );
    }

    #[test]
    fn other_names_are_refused() {
        for name in [
            "",
            "blobs",
            "/blobs/HASH/7",
            "a//blobs/HASH/7",
            "blobs/HASH",
            "blobs/HASH/7/",
            "blobs/HASH/7/x",
            "blobs/HASH/-7",
            "blobs/HASH/+7",
            "blobs/HASH/07",
            "blobs/hash/7",
            "blobs/md5/HASH/7",
            "actions/blobs/HASH/7",
            "compressed-blobs/deflate/HASH/7",
            "uploads/u/blobs/HASH/7",
        ] {
            assert_eq!(read(name), None, "{name}");
        }
        for name in ["blobs/HASH/7", "uploads/blobs/HASH/7", "uploads//blobs/HASH/7"] {
            assert_eq!(write(name), None, "{name}");
        }
    }
}
