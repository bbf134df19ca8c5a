//! Masking: no secret leaves the agent, however it is cut or spelled.
//!
//! All places where any spelling of a secret occurs are found with one automaton
//! (Aho and Corasick's), overlapping ones too; each stretch that they cover becomes
//! `***`. What could still become a secret is held back, so the result does not
//! depend on how the bytes arrive.

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE_NO_PAD};

/// Shortest spelling that is masked, bytes: a single character would hide every
/// such character and tell the secret by that.
const SPELLING_BYTES_MIN: usize = 2;

/// Shortest spelling besides the secret itself, bytes: shorter ones occur by chance.
const ENCODED_BYTES_MIN: usize = 4;

/// Longest secret whose encodings are masked too, bytes. Longer ones are files, and
/// are masked line by line.
const ENCODED_SECRET_BYTES_MAX: usize = 16 << 10;

/// Most values that a job may mask besides its secrets.
const ADDED_MAX: usize = 1_000;

/// Above this, bytes in all spellings, a job may mask no more values. The automaton is
/// made again for every value between two texts, and takes some sixty times as much.
const ADDED_TO_BYTES_MAX: usize = 256 << 10;

const MASK: &[u8] = b"***";

/// A job masks more than it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a job may mask {ADDED_MAX} values and {} KiB in all, so the rest of its log is withheld",
    ADDED_TO_BYTES_MAX >> 10
)]
pub(super) struct TooManyMasks;

/// The secrets of one job. Cloned freely; all clones are the same set.
#[derive(Clone, Debug, Default)]
pub struct Secrets {
    shared: Arc<Mutex<Shared>>,
}

#[derive(Debug, Default)]
struct Shared {
    spellings: BTreeSet<Vec<u8>>,
    /// Of `spellings`; none: they changed.
    automaton: Option<Arc<Automaton>>,
    /// By the job itself: values, and bytes of their spellings.
    added: (usize, usize),
    /// Something is to be masked that is not known here.
    withheld: bool,
}

impl Secrets {
    /// Masks a value that the job itself found out.
    ///
    /// # Errors
    ///
    /// [`TooManyMasks`]: the value is not masked, so nothing more may be shown.
    pub(super) fn add(&self, value: &str) -> Result<(), TooManyMasks> {
        let mut shared = self.shared();
        let mut new = BTreeSet::new();
        spellings(value, &mut new);
        new.retain(|spelling| !shared.spellings.contains(spelling));
        if new.is_empty() {
            return Ok(());
        }
        let bytes = shared.added.1 + new.iter().map(Vec::len).sum::<usize>();
        if shared.withheld || shared.added.0 >= ADDED_MAX || bytes > ADDED_TO_BYTES_MAX {
            shared.withheld = true;
            return Err(TooManyMasks);
        }
        shared.added = (shared.added.0 + 1, bytes);
        shared.spellings.append(&mut new);
        shared.automaton = None;
        Ok(())
    }

    /// Masks all these values from now on: as a whole, line by line, and in the encodings
    /// that they usually travel in.
    pub fn add_all<'a>(&self, values: impl IntoIterator<Item = &'a str>) {
        let mut shared = self.shared();
        for value in values {
            spellings(value, &mut shared.spellings);
        }
        shared.automaton = None;
    }

    /// Whether nothing more of the job may be shown, because it masked too many values.
    pub(super) fn withhold(&self) -> bool {
        self.shared().withheld
    }

    /// The text with all secrets masked.
    pub fn mask(&self, text: &str) -> String {
        let mut out = Vec::with_capacity(text.len());
        let mut stream = MaskStream::new(self.clone());
        stream.push(text.as_bytes(), &mut out);
        stream.finish(&mut out);
        String::from_utf8_lossy(&out).into_owned()
    }

    /// Whether the text holds a secret.
    pub fn occur_in(&self, text: &str) -> bool {
        let automaton = self.automaton();
        let mut state = ROOT;
        text.bytes().any(|byte| {
            state = automaton.step(state, byte);
            automaton.nodes[state as usize].longest > 0
        })
    }

    fn automaton(&self) -> Arc<Automaton> {
        let mut shared = self.shared();
        let Shared { spellings, automaton, .. } = &mut *shared;
        // Not before it is asked for: a step may mask many values in a row.
        Arc::clone(automaton.get_or_insert_with(|| Arc::new(Automaton::new(spellings))))
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().expect("nothing panics while it holds the lock")
    }
}

/// Masks one stream of bytes.
#[derive(Debug)]
pub(super) struct MaskStream {
    secrets: Secrets,
    automaton: Arc<Automaton>,
    state: u32,
    /// The last bytes, which may be the beginning of a secret, and whether a secret
    /// that ended covers them.
    held: VecDeque<(u8, bool)>,
    /// The last byte that was let go was masked.
    masking: bool,
}

impl MaskStream {
    pub(super) fn new(secrets: Secrets) -> Self {
        let automaton = secrets.automaton();
        Self { secrets, automaton, state: ROOT, held: VecDeque::new(), masking: false }
    }

    /// Takes `bytes` and appends to `out` what is certain.
    pub(super) fn push(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        self.refresh();
        let mut rest = bytes;
        while let Some(&byte) = rest.first() {
            if self.state == ROOT && self.held.is_empty() {
                let plain = rest.iter().take_while(|&&byte| !self.automaton.begins(byte)).count();
                if plain > 0 {
                    out.extend_from_slice(&rest[..plain]);
                    self.masking = false;
                    rest = &rest[plain..];
                    continue;
                }
            }
            self.take(byte);
            self.let_go(out);
            rest = &rest[1..];
        }
    }

    /// Lets go what was held back: nothing follows.
    pub(super) fn finish(&mut self, out: &mut Vec<u8>) {
        self.state = ROOT;
        self.let_go(out);
        self.masking = false;
    }

    /// Secrets may have been added: what is held back is looked at again.
    fn refresh(&mut self) {
        let automaton = self.secrets.automaton();
        if Arc::ptr_eq(&automaton, &self.automaton) {
            return;
        }
        self.automaton = automaton;
        self.state = ROOT;
        for (byte, covered) in std::mem::take(&mut self.held) {
            self.take(byte);
            if covered && let Some(last) = self.held.back_mut() {
                last.1 = true;
            }
        }
    }

    fn take(&mut self, byte: u8) {
        self.state = self.automaton.step(self.state, byte);
        self.held.push_back((byte, false));
        let longest = self.automaton.nodes[self.state as usize].longest as usize;
        let first = self.held.len().saturating_sub(longest);
        self.held.range_mut(first..).for_each(|(_, covered)| *covered = true);
    }

    fn let_go(&mut self, out: &mut Vec<u8>) {
        let keep = self.automaton.nodes[self.state as usize].depth as usize;
        while self.held.len() > keep {
            match self.held.pop_front() {
                Some((_, true)) => {
                    if !self.masking {
                        out.extend_from_slice(MASK);
                    }
                    self.masking = true;
                }
                Some((byte, false)) => {
                    out.push(byte);
                    self.masking = false;
                }
                None => return,
            }
        }
    }
}

const ROOT: u32 = 0;

#[derive(Debug)]
struct Automaton {
    nodes: Vec<Node>,
}

#[derive(Debug, Default)]
struct Node {
    /// Sorted by byte.
    next: Vec<(u8, u32)>,
    /// Where the longest proper suffix is that is the beginning of a spelling.
    fail: u32,
    depth: u32,
    /// Length of the longest spelling that ends here, 0 where none does.
    longest: u32,
}

impl Default for Automaton {
    fn default() -> Self {
        Self { nodes: vec![Node::default()] }
    }
}

impl Automaton {
    fn new(spellings: &BTreeSet<Vec<u8>>) -> Self {
        let mut automaton = Self::default();
        for spelling in spellings {
            automaton.insert(spelling);
        }
        automaton.link();
        automaton
    }

    fn insert(&mut self, spelling: &[u8]) {
        let mut at = ROOT;
        for &byte in spelling {
            at = match self.child(at, byte) {
                Some(next) => next,
                None => {
                    let new = self.nodes.len() as u32;
                    let depth = self.nodes[at as usize].depth + 1;
                    self.nodes.push(Node { depth, ..Node::default() });
                    let next = &mut self.nodes[at as usize].next;
                    let place = next.partition_point(|(other, _)| *other < byte);
                    next.insert(place, (byte, new));
                    new
                }
            };
        }
        let node = &mut self.nodes[at as usize];
        node.longest = node.depth;
    }

    /// Sets the failure links, breadth first: a node's link is shallower than it.
    fn link(&mut self) {
        let mut queue: VecDeque<u32> = self.nodes[0].next.iter().map(|(_, node)| *node).collect();
        while let Some(at) = queue.pop_front() {
            for (byte, child) in self.nodes[at as usize].next.clone() {
                let fail = self.step(self.nodes[at as usize].fail, byte);
                let longest = self.nodes[fail as usize].longest;
                let node = &mut self.nodes[child as usize];
                node.fail = fail;
                node.longest = node.longest.max(longest);
                queue.push_back(child);
            }
        }
    }

    fn begins(&self, byte: u8) -> bool {
        self.child(ROOT, byte).is_some()
    }

    fn child(&self, at: u32, byte: u8) -> Option<u32> {
        let next = &self.nodes[at as usize].next;
        next.binary_search_by_key(&byte, |(byte, _)| *byte).ok().map(|place| next[place].1)
    }

    fn step(&self, mut state: u32, byte: u8) -> u32 {
        loop {
            match self.child(state, byte) {
                Some(next) => return next,
                None if state == ROOT => return ROOT,
                None => state = self.nodes[state as usize].fail,
            }
        }
    }
}

/// All spellings of a secret.
fn spellings(value: &str, out: &mut BTreeSet<Vec<u8>>) {
    let value = value.trim_end_matches(['\r', '\n']);
    if value.trim().is_empty() {
        return;
    }
    add_spelling(value.as_bytes(), SPELLING_BYTES_MIN, out);
    for line in value.lines().map(str::trim).filter(|line| line.len() >= ENCODED_BYTES_MIN) {
        add_spelling(line.as_bytes(), ENCODED_BYTES_MIN, out);
    }
    if value.len() <= ENCODED_SECRET_BYTES_MAX {
        let trimmed = value.trim_matches('"');
        let escaped = [
            uri(value, false),
            uri(value, true),
            json(value),
            xml(value),
            value.replace('\'', "''"),
            value.replace('"', "\\\""),
            trimmed.to_owned(),
        ];
        for spelling in escaped {
            add_spelling(spelling.as_bytes(), ENCODED_BYTES_MIN, out);
        }
        base64_spellings(value.as_bytes(), out);
    }
}

fn add_spelling(spelling: &[u8], min: usize, out: &mut BTreeSet<Vec<u8>>) {
    if spelling.len() >= min {
        out.insert(spelling.to_vec());
    }
}

/// In base64 a secret is spelled in three ways, by where in a group of three bytes it
/// begins. Groups that it shares with its neighbours differ and are left out.
fn base64_spellings(value: &[u8], out: &mut BTreeSet<Vec<u8>>) {
    for engine in [&STANDARD, &STANDARD_NO_PAD, &URL_SAFE_NO_PAD] {
        add_spelling(engine.encode(value).as_bytes(), ENCODED_BYTES_MIN, out);
        for shift in 0..3 {
            let whole = value.get(shift..).unwrap_or_default();
            let whole = &whole[..whole.len() - whole.len() % 3];
            // One group alone is four characters, which occur by chance.
            if whole.len() > 3 {
                out.insert(engine.encode(whole).into_bytes());
            }
        }
    }
}

fn uri(value: &str, lower: bool) -> String {
    let mut out = String::with_capacity(value.len());
    for byte in value.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                out.push(byte as char);
            }
            _ if lower => out.push_str(&format!("%{byte:02x}")),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

fn json(value: &str) -> String {
    let quoted = serde_json::Value::from(value).to_string();
    quoted[1..quoted.len() - 1].to_owned()
}

fn xml(value: &str) -> String {
    value
        .replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
        .replace('\'', "&apos;")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn secrets_are_masked_in_every_spelling() {
        let secret = "p@ss \"word\"<1>";
        let secrets = secrets(&[secret]);
        for (spelling, want) in [
            (secret.to_owned(), "a *** z"),
            (STANDARD.encode(secret), "a *** z"),
            ("p%40ss%20%22word%22%3C1%3E".to_owned(), "a *** z"),
            ("p@ss \\\"word\\\"<1>".to_owned(), "a *** z"),
            ("p@ss &quot;word&quot;&lt;1&gt;".to_owned(), "a *** z"),
        ] {
            assert_eq!(secrets.mask(&format!("a {spelling} z")), want);
        }
    }

    #[test]
    fn a_secret_inside_a_longer_base64_text_is_masked_at_any_shift() {
        let secrets = secrets(&["correct horse battery"]);
        for prefix in ["", "x", "xy", "user:"] {
            let text = STANDARD.encode(format!("{prefix}correct horse battery staple"));
            let masked = secrets.mask(&text);
            assert!(masked.contains("***") && masked.len() < text.len() - 10, "{masked}");
        }
    }

    #[test]
    fn masks_follow_a_table() {
        for (values, text, want) in [
            (&["abc", "abcdef"][..], "abcdef", "***"),
            (&["abc", "abcdef"], "abcde", "***de"),
            (&["abcX", "Xyz"], "abcXyz!", "***!"),
            (&["secret"], "secretsecret", "***"),
            (&["secret"], "sec secret ret", "sec *** ret"),
            (&["x"], "xxx", "xxx"),
            (&["", "  ", "\n"], "a  b\n", "a  b\n"),
            (&["line one\nline two\n"], "say line two", "say ***"),
            (&[], "anything", "anything"),
        ] {
            assert_eq!(secrets(values).mask(text), want, "{values:?} in {text:?}");
        }
    }

    #[test]
    fn a_secret_added_on_the_way_is_masked_from_there_on() {
        let secrets = secrets(&["first"]);
        let mut stream = MaskStream::new(secrets.clone());
        let mut out = Vec::new();
        stream.push(b"second fir", &mut out);
        secrets.add("second").unwrap();
        stream.push(b"st second", &mut out);
        stream.finish(&mut out);
        assert_eq!(String::from_utf8(out).unwrap(), "second *** ***");
    }

    proptest! {
        #[test]
        fn masking_does_not_depend_on_how_bytes_arrive(
            values in proptest::collection::vec("[ab]{2,5}", 1..4),
            text in "[abc]{0,60}",
            cuts in proptest::collection::vec(1_usize..7, 1..40),
        ) {
            let secrets = secrets(&values.iter().map(String::as_str).collect::<Vec<_>>());
            let whole = secrets.mask(&text);
            let (mut out, mut stream) = (Vec::new(), MaskStream::new(secrets));
            let (mut rest, mut cuts) = (text.as_bytes(), cuts.iter().cycle());
            while !rest.is_empty() {
                let cut = (*cuts.next().unwrap()).min(rest.len());
                stream.push(&rest[..cut], &mut out);
                rest = &rest[cut..];
            }
            stream.finish(&mut out);
            prop_assert_eq!(&String::from_utf8(out).unwrap(), &whole);
            for value in &values {
                prop_assert!(!whole.contains(value.as_str()), "{} in {}", value, whole);
            }
        }
    }

    fn secrets(values: &[&str]) -> Secrets {
        let secrets = Secrets::default();
        secrets.add_all(values.iter().copied());
        secrets
    }
}
