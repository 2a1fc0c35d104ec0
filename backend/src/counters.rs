// SPDX-License-Identifier: GPL-2.0

//! What is counted for each vTPM. Times are taken of every 16th command only, since reading the clock is
//! slow under Xen. Pure, but for the processor time of processes.

use std::time::Duration;

use rustix::time::{clock_gettime, ClockId};

/// Of how many commands one is timed.
pub const SAMPLE: u64 = 16;

/// How often things happened, in powers of two of microseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Histogram([u64; Histogram::BUCKETS]);

impl Histogram {
    /// The last one takes whatever is too long for the others: more than half an hour.
    pub const BUCKETS: usize = 32;

    /// The bucket of a duration: the bucket n has those from 2^(n-1) to under 2^n microseconds.
    pub fn bucket(time: Duration) -> usize {
        let us = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let bucket = (u64::BITS - us.leading_zeros()) as usize;

        bucket.min(Self::BUCKETS - 1)
    }

    /// Counts a duration.
    pub fn count(&mut self, time: Duration) {
        self.0[Self::bucket(time)] += 1;
    }

    /// With what was counted elsewhere, which may be any numbers.
    pub fn from_buckets(buckets: [u64; Self::BUCKETS]) -> Self {
        // Their sum, and twice of it, have to be a number.
        Self(buckets.map(|count| count.min(u64::MAX >> 8)))
    }

    /// How many were counted.
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }

    /// The median, interpolated within its bucket; `None` if nothing was counted.
    pub fn median(&self) -> Option<Duration> {
        let total: u64 = self.0.iter().sum();
        let mut below = 0;

        for (bucket, count) in self.0.iter().enumerate() {
            if *count > 0 && 2 * (below + count) >= total {
                let from = if bucket == 0 {
                    0.0
                } else {
                    (1u64 << (bucket - 1)) as f64
                };
                let width = if bucket == 0 { 1.0 } else { from };
                let share = (total as f64 / 2.0 - below as f64) / *count as f64;
                return Some(Duration::from_secs_f64((from + width * share) / 1e6));
            }
            below += count;
        }
        None
    }

    /// The buckets up to the last one that is not empty.
    pub fn buckets(&self) -> &[u64] {
        let end = self.0.iter().rposition(|count| *count > 0);
        &self.0[..end.map_or(0, |last| last + 1)]
    }
}

/// What a clock of the kernel's shows.
fn clock(id: ClockId) -> Duration {
    let time = clock_gettime(id);
    // Processor time is never negative, and nanoseconds are fewer than 10^9.
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// The processor time that the daemon has used since its start.
pub fn used_by_daemon() -> Duration {
    clock(ClockId::ProcessCPUTime)
}

/// The processor time that a process with one thread, as swtpm is, has used since its start; `None` if the
/// kernel does not say.
pub fn used_by(pid: u32) -> Option<Duration> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/schedstat")).ok()?;
    let first = text.split_ascii_whitespace().next()?;
    first.parse().ok().map(Duration::from_nanos)
}

/// The counters of one vTPM, as they were at one moment.
#[derive(Clone, Debug, Default)]
pub struct Counters {
    /// Commands that were taken.
    pub commands: u64,
    /// Commands that the guest cancelled.
    pub cancels: u64,
    /// Requests that were turned down: malformed, or from a locality that is not allowed.
    pub refused: u64,
    /// Events that brought nothing.
    pub spurious: u64,
    /// TPMs that ended although they should not.
    pub deaths: u64,
    /// Connections to the guest.
    pub connections: u64,
    /// Bytes of commands.
    pub bytes_in: u64,
    /// Bytes of responses.
    pub bytes_out: u64,
    /// Starts of the TPM.
    pub starts: u64,
    /// Times that state was made durable before a response.
    pub syncs: u64,
    /// Volatile states that were stored.
    pub saves: u64,
    /// Volatile states that were taken up.
    pub restores: u64,
    /// Workers so far.
    pub workers: u64,
    /// How long the timed commands took together, in microseconds.
    pub timed_us: u64,
    /// Timed commands, from the guest's event to its response.
    pub latency: Histogram,
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::time::Instant;

    const US: Duration = Duration::from_micros(1);

    #[test]
    fn medians() {
        let mut histogram = Histogram::default();
        assert_eq!(histogram.median(), None);
        assert!(histogram.buckets().is_empty());

        histogram.count(Duration::ZERO);
        assert!(histogram.median().unwrap() < US);
        histogram = Histogram::default();
        for us in 64..128 {
            histogram.count(us * US);
        }
        assert_eq!(histogram.median(), Some(96 * US));
        assert_eq!(histogram.buckets(), [0, 0, 0, 0, 0, 0, 0, 64]);
        // As many again, much longer: the median is where the two meet.
        for _ in 0..64 {
            histogram.count(1000 * US);
        }
        assert_eq!(histogram.median(), Some(128 * US));
        histogram.count(1000 * US);
        assert!(histogram.median().unwrap() > 512 * US);
        histogram.count(Duration::MAX);
        assert_eq!(histogram.buckets().len(), 32);
    }

    #[test]
    fn processor_time_of_another_process() {
        let (mut sh, limit) = (std::process::Command::new("sh"), Duration::from_secs(30));
        // Before the spawn: the process may run a while before this thread does again.
        let (start, mut used) = (Instant::now(), Some(Duration::ZERO));
        let mut busy = sh.args(["-c", "while :; do :; done"]).spawn().unwrap();

        while used.is_some_and(|used| used < 20_000 * US) && start.elapsed() < limit {
            used = used_by(busy.id());
        }
        busy.kill().unwrap();
        busy.wait().unwrap();
        match used {
            Some(used) => assert!(used >= 20_000 * US && used <= start.elapsed()),
            None => eprintln!("SKIPPED: the kernel has no schedstat"),
        }
        assert_eq!(used_by(u32::MAX), None);
    }
}
