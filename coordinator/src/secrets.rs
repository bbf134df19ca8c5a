//! Secrets at rest: AES-256-GCM under a key that never leaves the machine.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use aws_lc_rs::hmac;

/// Says what the bytes are, and binds a ciphertext to this use of the key.
const MAGIC: &[u8] = b"steading-sealed-1";
/// AES-256.
const KEY_LEN: usize = 32;

/// Why secrets cannot be sealed or opened.
#[derive(Debug, thiserror::Error)]
pub enum SecretsError {
    #[error("cannot read or make the key `{path}`")]
    Key {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("`{path}` is no key: want {KEY_LEN} bytes; restore it from a backup")]
    KeyLength { path: PathBuf },
    #[error("`{path}` can be read by others (mode {mode:o}); run `chmod 600` on it")]
    KeyMode { path: PathBuf, mode: u32 },
    #[error("`{path}` is another key than the group's; begin with an empty directory")]
    KeyDiffers { path: PathBuf },
    #[error("cannot encrypt")]
    Seal,
    #[error("secrets were sealed with another key, or are damaged")]
    Open,
}

/// The key that seals secrets.
pub(crate) struct Sealer {
    bytes: [u8; KEY_LEN],
    key: RandomizedNonceKey,
    mac: hmac::Key,
}

impl std::fmt::Debug for Sealer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sealer")
    }
}

impl Sealer {
    /// Reads the key file, or makes it where there is none.
    pub(crate) fn open(path: &Path) -> Result<Self, SecretsError> {
        let key = match read_key(path) {
            Err(SecretsError::Key { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                make_key(path).map_err(|source| SecretsError::Key { path: path.into(), source })?
            }
            other => other?,
        };
        // One key, one use: what authenticates request bodies is derived.
        let derive = hmac::Key::new(hmac::HMAC_SHA256, &key);
        let mac = hmac::sign(&derive, b"steading request body 1");
        Ok(Self {
            bytes: key,
            key: RandomizedNonceKey::new(&AES_256_GCM, &key).map_err(|_| SecretsError::Seal)?,
            mac: hmac::Key::new(hmac::HMAC_SHA256, mac.as_ref()),
        })
    }

    /// For another replica of the group: what one sealed all must open.
    pub(crate) const fn key(&self) -> &[u8; KEY_LEN] {
        &self.bytes
    }

    /// Encrypts names and values.
    pub(crate) fn seal(&self, secrets: &BTreeMap<String, String>) -> Result<Vec<u8>, SecretsError> {
        let mut body = serde_json::to_vec(secrets).map_err(|_| SecretsError::Seal)?;
        let nonce = self
            .key
            .seal_in_place_append_tag(Aad::from(MAGIC), &mut body)
            .map_err(|_| SecretsError::Seal)?;
        let mut out = Vec::with_capacity(MAGIC.len() + NONCE_LEN + body.len());
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(nonce.as_ref());
        out.extend_from_slice(&body);
        Ok(out)
    }

    /// Decrypts what [`Sealer::seal`] made.
    pub(crate) fn open_sealed(
        &self,
        sealed: &[u8],
    ) -> Result<BTreeMap<String, String>, SecretsError> {
        let rest = sealed.strip_prefix(MAGIC).ok_or(SecretsError::Open)?;
        let (nonce, body) = rest.split_first_chunk::<NONCE_LEN>().ok_or(SecretsError::Open)?;
        let mut body = body.to_vec();
        let plain = self
            .key
            .open_in_place(Nonce::from(nonce), Aad::from(MAGIC), &mut body)
            .map_err(|_| SecretsError::Open)?;
        serde_json::from_slice(plain).map_err(|_| SecretsError::Open)
    }

    /// Names a request's body that may hold secrets. Keyed, since the name is
    /// replicated and a plain hash would let its reader guess short secrets.
    pub(crate) fn body_name(&self, parts: &[&[u8]]) -> [u8; 32] {
        let mut context = hmac::Context::with_key(&self.mac);
        for part in parts {
            context.update(&(part.len() as u64).to_be_bytes());
            context.update(part);
        }
        let mut out = [0; 32];
        out.copy_from_slice(context.sign().as_ref());
        out
    }
}

fn read_key(path: &Path) -> Result<[u8; KEY_LEN], SecretsError> {
    let key_error = |source| SecretsError::Key { path: path.into(), source };
    let file = File::open(path).map_err(key_error)?;
    let mode = file.metadata().map_err(key_error)?.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(SecretsError::KeyMode { path: path.into(), mode });
    }
    let mut bytes = Vec::new();
    file.take(KEY_LEN as u64 + 1).read_to_end(&mut bytes).map_err(key_error)?;
    bytes.try_into().map_err(|_| SecretsError::KeyLength { path: path.into() })
}

/// Stores the key that the group gave. One that is there already must be the same.
pub(crate) fn store_key(path: &Path, key: &[u8]) -> Result<(), SecretsError> {
    let key: [u8; KEY_LEN] =
        key.try_into().map_err(|_| SecretsError::KeyLength { path: path.into() })?;
    match read_key(path) {
        Ok(there) if there == key => Ok(()),
        Ok(_) => Err(SecretsError::KeyDiffers { path: path.into() }),
        Err(SecretsError::Key { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            write_key(path, &key).map_err(|source| SecretsError::Key { path: path.into(), source })
        }
        Err(other) => Err(other),
    }
}

fn make_key(path: &Path) -> io::Result<[u8; KEY_LEN]> {
    let mut key = [0; KEY_LEN];
    aws_lc_rs::rand::fill(&mut key).map_err(|_| io::Error::other("no randomness"))?;
    write_key(path, &key)?;
    Ok(key)
}

/// Writes the key under another name first: half a key must never be found.
fn write_key(path: &Path, key: &[u8; KEY_LEN]) -> io::Result<()> {
    let new = path.with_extension("key.new");
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    file.write_all(key)?;
    file.sync_all()?;
    std::fs::rename(&new, path)?;
    if let Some(dir) = path.parent() {
        File::open(dir)?.sync_all()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sealed_secrets_open_with_the_same_key_file_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("seal.key");
        let secrets = BTreeMap::from([("TOKEN".to_owned(), "hunter2".to_owned())]);
        let sealed = Sealer::open(&path).unwrap().seal(&secrets).unwrap();
        assert!(!sealed.windows(7).any(|window| window == b"hunter2"));

        let again = Sealer::open(&path).unwrap();
        assert_eq!(again.open_sealed(&sealed).unwrap(), secrets);

        let other = Sealer::open(&dir.path().join("other.key")).unwrap();
        assert!(matches!(other.open_sealed(&sealed), Err(SecretsError::Open)));
    }

    #[test]
    fn the_key_of_the_group_is_stored_once() {
        let dir = tempfile::tempdir().unwrap();
        let (here, there) = (dir.path().join("here.key"), dir.path().join("there.key"));
        let sealer = Sealer::open(&there).unwrap();
        for _ in 0..2 {
            store_key(&here, sealer.key()).unwrap();
        }
        let sealed = sealer.seal(&BTreeMap::new()).unwrap();
        Sealer::open(&here).unwrap().open_sealed(&sealed).unwrap();
        let other = store_key(&here, &[7; KEY_LEN]);
        assert!(matches!(other, Err(SecretsError::KeyDiffers { .. })));
        assert!(matches!(store_key(&here, &[]), Err(SecretsError::KeyLength { .. })));
    }

    #[test]
    fn a_changed_byte_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let sealer = Sealer::open(&dir.path().join("seal.key")).unwrap();
        let sealed = sealer.seal(&BTreeMap::new()).unwrap();
        for at in 0..sealed.len() {
            let mut bad = sealed.clone();
            bad[at] ^= 1;
            assert!(sealer.open_sealed(&bad).is_err(), "byte {at}");
            assert!(sealer.open_sealed(&sealed[..at]).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn a_key_that_others_can_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("seal.key");
        Sealer::open(&path).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(Sealer::open(&path), Err(SecretsError::KeyMode { mode: 0o644, .. })));
    }
}
