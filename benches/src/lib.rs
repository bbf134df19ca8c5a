//! Macro benchmarks: figures beside what the disk, the wire or a peer gives in the same run.
