//! Cached steps: hermetic commands whose results are kept under the digest of
//! all that they depend on.
