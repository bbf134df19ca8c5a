//! The clock that leases are counted on.

use nix::time::{ClockId, clock_gettime};

/// Milliseconds on CLOCK_BOOTTIME: never set back, and goes on while the
/// machine sleeps, so that a machine that was suspended does not wake up inside
/// a lease that has ended elsewhere.
pub fn boottime_ms() -> u64 {
    let now =
        clock_gettime(ClockId::CLOCK_BOOTTIME).expect("Linux has had this clock since 2.6.39");
    now.tv_sec() as u64 * 1000 + now.tv_nsec() as u64 / 1_000_000
}
