//! For tests: a replica without threads, on any file system.
