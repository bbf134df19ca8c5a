//! One write of the log: a checksummed frame of records.
//!
//! ```text
//!  0  mark   u32   four bytes of the log's id, never zero
//!  4  crc    u32   CRC-32C of the log's id and everything below, the padding too
//!  8  len    u32   bytes of payload
//! 12  kind   u32   1; anything else is a later format
//! 16  seq    u64   counted from 1, without gaps
//! 24  synced u64   the frame up to which all was on the disk when this was written
//! 32  payload, zeros up to a multiple of 8
//! ```
//! All little-endian. The log's id is random and goes into the checksum, so that
//! neither another log's frames nor bytes that a client chose pass for a frame.

use bytes::Bytes;
use steading_model::codec::{Decode, DecodeError, Encode, Reader};

/// Bytes before the payload.
pub(crate) const HEADER: usize = 32;

/// Frames begin at multiples of this, bytes.
pub(crate) const ALIGN: usize = 8;

/// The one format there is. An intact frame of another one is refused, never wiped.
pub(crate) const KIND: u32 = 1;

/// The last kind of entry: 0 normal, 1 and 2 changes of membership.
pub(crate) const ENTRY_KIND_MAX: u8 = 2;

/// Names a log; random, from the replica's `node.json`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogId(pub [u8; 16]);

impl LogId {
    /// Where frames begin, bytes 0 to 4.
    fn mark(self) -> u32 {
        let [a, b, c, d, ..] = self.0;
        // Zero is what an unused segment holds.
        u32::from_le_bytes([a, b, c, d | 1])
    }
}

/// An index of the log and the term of what is there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position {
    pub index: u64,
    pub term: u64,
}

/// What Raft must not forget besides entries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Promise {
    pub term: u64,
    pub vote: u64,
    pub commit: u64,
}

/// What a frame holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// First of a segment: where the log stands.
    Segment { number: u64, size: u64, last: Position, promise: Promise },
    /// The entry behind the last one.
    Entry { at: Position, kind: u8, context: Bytes, data: Bytes },
    /// What was promised, from here on.
    Promise(Promise),
    /// What follows this position is void: another leader says otherwise.
    Cut(Position),
    /// Everything before is void; the log goes on behind this position (a snapshot's).
    Restart(Position),
}

/// A frame that was read.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Frame<'a> {
    pub kind: u32,
    pub seq: u64,
    pub synced: u64,
    pub payload: &'a [u8],
    /// Bytes of the whole frame.
    pub size: usize,
}

/// Appends a frame to `out`, which must end where a frame may begin.
pub(crate) fn write(
    out: &mut Vec<u8>,
    id: LogId,
    seq: u64,
    synced: u64,
    payload: impl FnOnce(&mut Vec<u8>),
) {
    let start = out.len();
    out.resize(start + HEADER, 0);
    payload(out);
    let len = out.len() - start - HEADER;
    out.resize(start + size_of(len), 0);
    let frame = &mut out[start..];
    frame[0..4].copy_from_slice(&id.mark().to_le_bytes());
    // The caller splits writes far below 4 GiB.
    frame[8..12].copy_from_slice(&(len as u32).to_le_bytes());
    frame[12..16].copy_from_slice(&KIND.to_le_bytes());
    frame[16..24].copy_from_slice(&seq.to_le_bytes());
    frame[24..32].copy_from_slice(&synced.to_le_bytes());
    let crc = checksum(id, &frame[8..]);
    frame[4..8].copy_from_slice(&crc.to_le_bytes());
}

/// Bytes of a frame with `payload` bytes of payload.
pub(crate) const fn size_of(payload: usize) -> usize {
    HEADER + payload.next_multiple_of(ALIGN)
}

/// Reads the frame that begins with `bytes`, if one does.
pub(crate) fn read(id: LogId, bytes: &[u8]) -> Option<Frame<'_>> {
    let word = |at: usize| Some(u32::from_le_bytes(*bytes.get(at..at + 4)?.first_chunk()?));
    let long = |at: usize| Some(u64::from_le_bytes(*bytes.get(at..at + 8)?.first_chunk()?));
    if word(0)? != id.mark() {
        return None;
    }
    let len = usize::try_from(word(8)?).ok()?;
    let size = HEADER.checked_add(len.checked_next_multiple_of(ALIGN)?)?;
    let frame = bytes.get(..size)?;
    if word(4)? != checksum(id, &frame[8..]) {
        return None;
    }
    Some(Frame {
        kind: word(12)?,
        seq: long(16)?,
        synced: long(24)?,
        payload: &frame[HEADER..HEADER + len],
        size,
    })
}

/// The highest `synced` of any frame in `bytes`, wherever it begins.
pub(crate) fn highest_synced(id: LogId, bytes: &[u8]) -> Option<u64> {
    let mark = id.mark().to_le_bytes();
    let mut highest = None;
    let mut at = 0;
    while at + HEADER <= bytes.len() {
        let block = &bytes[at..bytes.len().min(at + BLOCK)];
        if at % BLOCK == 0 && is_zero(block) {
            at += BLOCK;
            continue;
        }
        if bytes[at..].starts_with(&mark)
            && let Some(frame) = read(id, &bytes[at..])
        {
            highest = highest.max(Some(frame.synced));
            at += frame.size;
            continue;
        }
        at += ALIGN;
    }
    highest
}

/// How much is compared with zeros at once, bytes.
const BLOCK: usize = 4096;

/// Whether all bytes are zero. By comparison of blocks, which is fast in every build.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    static ZEROS: [u8; BLOCK] = [0; BLOCK];
    bytes.chunks(BLOCK).all(|block| *block == ZEROS[..block.len()])
}

/// How many bytes there are up to the last one that is not zero.
pub(crate) fn used(bytes: &[u8]) -> usize {
    let mut end = bytes.len();
    while end > 0 {
        let from = (end - 1) / BLOCK * BLOCK;
        if let Some(last) = bytes[from..end].iter().rposition(|byte| *byte != 0) {
            return from + last + 1;
        }
        end = from;
    }
    0
}

fn checksum(id: LogId, bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&id.0), bytes)
}

impl Encode for Position {
    fn encode(&self, out: &mut Vec<u8>) {
        self.index.encode(out);
        self.term.encode(out);
    }
}

impl Decode for Position {
    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self { index: u64::decode(reader)?, term: u64::decode(reader)? })
    }
}

impl Encode for Promise {
    fn encode(&self, out: &mut Vec<u8>) {
        self.term.encode(out);
        self.vote.encode(out);
        self.commit.encode(out);
    }
}

impl Decode for Promise {
    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            term: u64::decode(reader)?,
            vote: u64::decode(reader)?,
            commit: u64::decode(reader)?,
        })
    }
}

impl Encode for Record {
    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Segment { number, size, last, promise } => {
                out.push(1);
                number.encode(out);
                size.encode(out);
                last.encode(out);
                promise.encode(out);
            }
            Self::Entry { at, kind, context, data } => {
                out.push(2);
                at.encode(out);
                out.push(*kind);
                encode_bytes(out, context);
                encode_bytes(out, data);
            }
            Self::Promise(promise) => {
                out.push(3);
                promise.encode(out);
            }
            Self::Cut(after) => {
                out.push(4);
                after.encode(out);
            }
            Self::Restart(at) => {
                out.push(5);
                at.encode(out);
            }
        }
    }
}

impl Decode for Record {
    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let [kind] = reader.array()?;
        Ok(match kind {
            1 => Self::Segment {
                number: u64::decode(reader)?,
                size: u64::decode(reader)?,
                last: Position::decode(reader)?,
                promise: Promise::decode(reader)?,
            },
            2 => Self::Entry {
                at: Position::decode(reader)?,
                kind: reader.array::<1>()?[0],
                context: decode_bytes(reader)?,
                data: decode_bytes(reader)?,
            },
            3 => Self::Promise(Promise::decode(reader)?),
            4 => Self::Cut(Position::decode(reader)?),
            5 => Self::Restart(Position::decode(reader)?),
            number => {
                return Err(DecodeError::Variant { name: "Record", number: u64::from(number) });
            }
        })
    }
}

fn encode_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    (bytes.len() as u64).encode(out);
    out.extend_from_slice(bytes);
}

fn decode_bytes(reader: &mut Reader<'_>) -> Result<Bytes, DecodeError> {
    let len = usize::try_from(u64::decode(reader)?).map_err(|_| DecodeError::Truncated)?;
    reader.take(len).map(Bytes::copy_from_slice)
}

/// The records of a payload.
///
/// # Errors
///
/// Any [`DecodeError`]; never for a payload that [`write`] made.
pub(crate) fn records(payload: &[u8]) -> Result<Vec<Record>, DecodeError> {
    let mut reader = Reader::new(payload);
    let mut records = Vec::new();
    while !reader.is_empty() {
        records.push(Record::decode(&mut reader)?);
    }
    Ok(records)
}
