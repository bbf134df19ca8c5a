//! Log bytes into lines that name their job.

use std::collections::HashMap;

/// Longest line that is held back for its end, bytes: a job that never ends a line
/// still shows what it prints.
const LINE_BYTES_MAX: usize = 64 << 10;

/// The unfinished lines of the streams of all jobs.
#[derive(Debug, Default)]
pub struct Lines {
    unfinished: HashMap<(u64, u32), Vec<u8>>,
}

impl Lines {
    /// Takes bytes in, and answers the lines that they finish, each with its prefix.
    pub fn push(&mut self, prefix: &str, job: u64, stream: u32, data: &[u8]) -> Vec<u8> {
        let held = self.unfinished.entry((job, stream)).or_default();
        let mut out = Vec::with_capacity(data.len() + prefix.len() + 4);
        let mut rest = data;
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            held.extend_from_slice(&rest[..end]);
            write_line(&mut out, prefix, held);
            held.clear();
            rest = &rest[end + 1..];
        }
        held.extend_from_slice(rest);
        if held.len() > LINE_BYTES_MAX {
            write_line(&mut out, prefix, held);
            held.clear();
        }
        out
    }

    /// What is left of the job's streams, as lines.
    pub fn finish(&mut self, prefix: &str, job: u64) -> Vec<u8> {
        let mut streams: Vec<u32> = self
            .unfinished
            .keys()
            .filter(|(of, _)| *of == job)
            .map(|(_, stream)| *stream)
            .collect();
        streams.sort_unstable();
        let mut out = Vec::new();
        for stream in streams {
            let held = self.unfinished.remove(&(job, stream)).unwrap_or_default();
            if !held.is_empty() {
                write_line(&mut out, prefix, &held);
            }
        }
        out
    }
}

fn write_line(out: &mut Vec<u8>, prefix: &str, line: &[u8]) {
    out.extend_from_slice(prefix.as_bytes());
    out.extend_from_slice(b" | ");
    out.extend_from_slice(line.strip_suffix(b"\r").unwrap_or(line));
    out.push(b'\n');
}

/// The last `lines_max` lines of what was read, and whether something came before them.
/// `whole`: the bytes begin where the log does.
pub fn tail(bytes: &[u8], lines_max: usize, whole: bool) -> (String, bool) {
    let text = String::from_utf8_lossy(bytes);
    // The first line of a part is the end of one.
    let text = if whole { &text } else { text.split_once('\n').map_or("", |(_, rest)| rest) };
    let lines: Vec<&str> = text.lines().collect();
    let from = lines.len().saturating_sub(lines_max);
    let mut out = lines[from..].join("\n");
    if !out.is_empty() {
        out.push('\n');
    }
    (out, from > 0 || !whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_two_jobs_never_mix() {
        let mut lines = Lines::default();
        assert_eq!(lines.push("a", 1, 0, b"one\r\ntw"), b"a | one\n");
        assert_eq!(lines.push("b", 2, 0, b"x\ny"), b"b | x\n");
        assert_eq!(lines.push("a", 1, 0, b"o\n\n"), b"a | two\na | \n");
        assert_eq!(lines.finish("a", 1), b"");
        assert_eq!(lines.finish("b", 2), b"b | y\n");
    }

    #[test]
    fn a_line_without_end_is_shown_in_parts() {
        let mut lines = Lines::default();
        let part = vec![b'x'; LINE_BYTES_MAX + 1];
        assert_eq!(lines.push("a", 1, 0, &part).len(), part.len() + 5);
        assert_eq!(lines.finish("a", 1), b"");
    }

    #[test]
    fn a_tail_is_the_last_whole_lines() {
        assert_eq!(tail(b"a\nb\nc\n", 2, true), ("b\nc\n".to_owned(), true));
        assert_eq!(tail(b"a\nb", 2, true), ("a\nb\n".to_owned(), false));
        assert_eq!(tail(b"alf\nb\n", 2, false), ("b\n".to_owned(), true));
        assert_eq!(tail(b"", 2, true), (String::new(), false));
    }
}
