//! An identity directory: `key.pem`, `cert.pem`, `ca.pem`, `retired.pem`.
//!
//! The key is made once and stays, and the other files are replaced one by one by
//! renaming: whichever of them a power cut leaves, old or new, the directory can be read.
//! `cert.pem` is written last, so that a directory without it was never in use.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use super::certificate::SpkiHash;

/// The private key, PEM (PKCS #8). Mode 0600, never sent.
const KEY: &str = "key.pem";
/// The certificate, then those of the CAs above it.
const CERTIFICATE: &str = "cert.pem";
/// The cluster's CA certificates, each believed on its own.
const BUNDLE: &str = "ca.pem";
/// Those of CAs that are believed no more, also not by one above them. May be missing.
const RETIRED: &str = "retired.pem";

/// Longest file of the directory, bytes: the certificates of a hundred CAs.
const FILE_BYTES_MAX: u64 = 256 << 10;

const PRIVATE_MODE: u32 = 0o600;
const PUBLIC_MODE: u32 = 0o644;
const DIR_MODE: u32 = 0o700;

/// Why an identity directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    #[error("cannot {doing} `{}`", path.display())]
    Io {
        doing: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("`{}` can be read by other users: chmod 600 it", .0.display())]
    Open(PathBuf),
    #[error("`{}` is longer than {FILE_BYTES_MAX} bytes", .0.display())]
    TooLong(PathBuf),
}

/// What is in an identity directory, as PEM.
#[derive(Clone, Default)]
pub struct IdentityFiles {
    pub key: String,
    pub certificates: String,
    pub bundle: String,
    pub retired: String,
}

/// Without the key.
impl std::fmt::Debug for IdentityFiles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("IdentityFiles")
            .field("certificates", &self.certificates)
            .finish_non_exhaustive()
    }
}

impl IdentityFiles {
    /// Whether somebody joined with this directory.
    pub fn exist(dir: &Path) -> bool {
        dir.join(CERTIFICATE).exists()
    }

    /// Whether this is the key of one of the CAs that the directory believes.
    pub fn knows(&self, key: SpkiHash) -> bool {
        let certificates = CertificateDer::pem_slice_iter(self.bundle.as_bytes()).flatten();
        certificates.into_iter().any(|found| SpkiHash::of(&found) == Ok(key))
    }

    /// Reads them all.
    ///
    /// # Errors
    ///
    /// [`FilesError`]; also where others may read the key.
    pub fn read(dir: &Path) -> Result<Self, FilesError> {
        Ok(Self {
            key: read_key(dir)?,
            certificates: read(&dir.join(CERTIFICATE))?,
            bundle: read(&dir.join(BUNDLE))?,
            retired: match read(&dir.join(RETIRED)) {
                Err(FilesError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                    String::new()
                }
                read => read?,
            },
        })
    }

    /// The directory's key, or one that `make` makes, durable when this returns.
    ///
    /// # Errors
    ///
    /// [`FilesError`].
    pub fn key_or(dir: &Path, make: impl FnOnce() -> String) -> Result<String, FilesError> {
        match read_key(dir) {
            Err(FilesError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => (),
            read => return read,
        }
        make_dir(dir)?;
        let key = make();
        write(dir, KEY, &key, PRIVATE_MODE)?;
        Ok(key)
    }

    /// Replaces the certificates. The key stays: see the module.
    ///
    /// # Errors
    ///
    /// [`FilesError::Io`].
    pub fn replace(
        dir: &Path,
        certificates: &str,
        bundle: &str,
        retired: &str,
    ) -> Result<(), FilesError> {
        Self::replace_bundle(dir, bundle, retired)?;
        write(dir, CERTIFICATE, certificates, PUBLIC_MODE)
    }

    /// Replaces the CAs' certificates only.
    ///
    /// # Errors
    ///
    /// [`FilesError::Io`].
    pub fn replace_bundle(dir: &Path, bundle: &str, retired: &str) -> Result<(), FilesError> {
        // First, so that nobody who reads in between believes a CA that is to go.
        write(dir, RETIRED, retired, PUBLIC_MODE)?;
        write(dir, BUNDLE, bundle, PUBLIC_MODE)
    }

    /// Makes a directory of all of them.
    ///
    /// # Errors
    ///
    /// [`FilesError::Io`].
    pub fn create(&self, dir: &Path) -> Result<(), FilesError> {
        make_dir(dir)?;
        write(dir, KEY, &self.key, PRIVATE_MODE)?;
        Self::replace(dir, &self.certificates, &self.bundle, &self.retired)
    }
}

fn read_key(dir: &Path) -> Result<String, FilesError> {
    let path = dir.join(KEY);
    let key = read(&path)?;
    let meta = std::fs::metadata(&path).map_err(io_error("look at", &path))?;
    // The group may read, as where Kubernetes mounts secrets; others may not.
    if meta.mode() & 0o027 != 0 {
        return Err(FilesError::Open(path));
    }
    Ok(key)
}

fn read(path: &Path) -> Result<String, FilesError> {
    let file = File::open(path).map_err(io_error("open", path))?;
    let mut text = String::new();
    let mut bounded = io::Read::take(file, FILE_BYTES_MAX + 1);
    io::Read::read_to_string(&mut bounded, &mut text).map_err(io_error("read", path))?;
    match text.len() as u64 > FILE_BYTES_MAX {
        true => Err(FilesError::TooLong(path.to_owned())),
        false => Ok(text),
    }
}

fn make_dir(dir: &Path) -> Result<(), FilesError> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(DIR_MODE)
        .create(dir)
        .map_err(io_error("make", dir))
}

/// Durable when this returns; a reader sees all of the text, or what was there before.
fn write(dir: &Path, name: &str, text: &str, mode: u32) -> Result<(), FilesError> {
    let (path, tmp) = (dir.join(name), dir.join(format!("{name}.tmp")));
    // What a power cut left may have another mode.
    match std::fs::remove_file(&tmp) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(io_error("remove", &tmp)(error));
        }
        Ok(()) | Err(_) => (),
    }
    let opened = OpenOptions::new().write(true).create_new(true).mode(mode).open(&tmp);
    let mut file = opened.map_err(io_error("make", &tmp))?;
    file.write_all(text.as_bytes()).map_err(io_error("write", &tmp))?;
    file.sync_all().map_err(io_error("sync", &tmp))?;
    std::fs::rename(&tmp, &path).map_err(io_error("rename", &tmp))?;
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(io_error("sync", dir))
}

fn io_error(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FilesError {
    move |source| FilesError::Io { doing, path: path.to_owned(), source }
}
