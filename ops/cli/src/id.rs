//! Randomness from the kernel.

use std::io::Read as _;

/// A random (version 4) UUID: the id under which a request has one effect, however
/// often it is sent.
///
/// # Errors
///
/// What `/dev/urandom` says.
pub fn request_id() -> std::io::Result<String> {
    let mut bytes = [0_u8; 16];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok([&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-"))
}

/// Jitter; where the kernel gives none, none is needed.
pub fn random_byte() -> u8 {
    let mut byte = [0_u8];
    let read = std::fs::File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut byte));
    if read.is_ok() { byte[0] } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_id_is_a_random_uuid() {
        let (one, other) = (request_id().unwrap(), request_id().unwrap());
        assert_ne!(one, other);
        assert_eq!(one.len(), 36);
        assert_eq!(one.as_bytes()[14], b'4');
        assert!(matches!(one.as_bytes()[19], b'8' | b'9' | b'a' | b'b'));
    }
}
