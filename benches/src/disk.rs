//! What the disk gives: the yardstick of every durable figure.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::report;

/// Writes of one probe: enough for a p99.
const SAMPLES: usize = 2_000;
const BLOCK: usize = 4 << 10;

#[derive(Debug)]
pub(crate) struct Disk {
    pub overwrite_p50: Duration,
    pub overwrite_p99: Duration,
    pub append_p50: Duration,
}

impl Disk {
    pub(crate) fn to_json(&self) -> Value {
        json!({
            "fdatasync_overwrite_p50_ms": report::ms(self.overwrite_p50),
            "fdatasync_overwrite_p99_ms": report::ms(self.overwrite_p99),
            "fdatasync_append_p50_ms": report::ms(self.append_p50),
        })
    }
}

/// Times a 4 KiB write with its fdatasync: overwriting a preallocated file, and appending.
pub(crate) fn measure(dir: &Path) -> anyhow::Result<Disk> {
    let mut overwrites = samples(dir, true)?;
    let mut appends = samples(dir, false)?;
    Ok(Disk {
        overwrite_p50: report::percentile(&mut overwrites, 0.5),
        overwrite_p99: report::percentile(&mut overwrites, 0.99),
        append_p50: report::percentile(&mut appends, 0.5),
    })
}

fn samples(dir: &Path, preallocated: bool) -> anyhow::Result<Vec<Duration>> {
    let path = dir.join("probe");
    let file = OpenOptions::new().create(true).truncate(true).write(true).open(&path)?;
    let block = vec![0x5a; BLOCK];
    if preallocated {
        file.write_all_at(&vec![0; BLOCK * SAMPLES], 0)?;
        file.sync_all()?;
    }
    let mut samples = Vec::with_capacity(SAMPLES);
    for index in 0..SAMPLES {
        let start = Instant::now();
        file.write_all_at(&block, (index * BLOCK) as u64)?;
        file.sync_data()?;
        samples.push(start.elapsed());
    }
    std::fs::remove_file(path)?;
    Ok(samples)
}
