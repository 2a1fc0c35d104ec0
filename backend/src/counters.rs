// SPDX-License-Identifier: GPL-2.0

//! What is counted for each vTPM. Times are taken of every 16th command only, since reading the clock is
//! slow under Xen.

use std::time::{Duration, Instant};

use rustix::time::{clock_gettime, ClockId};

/// Of how many commands one is timed.
const SAMPLE: u64 = 16;

/// How often things happened, in powers of two of microseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Histogram([u64; Histogram::BUCKETS]);

impl Histogram {
    /// The last one takes whatever is too long for the others: more than half an hour.
    const BUCKETS: usize = 32;

    /// Counts a duration: the bucket n has those from 2^(n-1) to under 2^n microseconds.
    pub fn count(&mut self, time: Duration) {
        let us = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let bucket = (u64::BITS - us.leading_zeros()) as usize;

        self.0[bucket.min(Self::BUCKETS - 1)] += 1;
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

/// A moment: the time, and the processor time that the daemon's one thread has used until then. The
/// second stands still while swtpm runs in its place, as it may on a machine with few processors.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    time: Instant,
    used: Duration,
}

impl Moment {
    /// Now.
    pub fn now() -> Self {
        Self {
            time: Instant::now(),
            used: clock(ClockId::ThreadCPUTime),
        }
    }
}

/// How far a timed command has come.
#[derive(Clone, Copy, Debug)]
struct Sample {
    woke: Moment,
    submitted: Moment,
}

/// The counters of one vTPM.
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
    /// Bytes of answers.
    pub bytes_out: u64,
    /// Timed commands, from the guest's event to its answer.
    pub latency: Histogram,
    /// How many commands were timed.
    pub samples: u64,
    /// The processor time that the daemon used for them: from its wake-up to handing over, and from swtpm's
    /// answer until that is in the page. Sending the event is not in it: the guest may run in our place
    /// there, and the kernel would count that as ours.
    pub own: Duration,
    /// All the rest of their time: swtpm's, and waiting for a processor.
    pub tpm: Duration,
    sample: Option<Sample>,
}

impl Counters {
    /// The time, if the next command is one to be timed.
    pub fn woke(&self) -> Option<Moment> {
        (self.commands % SAMPLE == 0 && self.sample.is_none()).then(Moment::now)
    }

    /// A command of so many bytes was handed over. `woke` is the time at which it was noticed.
    pub fn submitted(&mut self, len: usize, woke: Option<Moment>) {
        self.commands += 1;
        self.bytes_in += len as u64;
        self.sample = woke.map(|woke| Sample {
            woke,
            submitted: Moment::now(),
        });
    }

    /// The time, if the running command is timed.
    pub fn readable(&self) -> Option<Moment> {
        self.sample.is_some().then(Moment::now)
    }

    /// The running command's answer is in the page. `readable` is the time at which it was noticed.
    pub fn delivered(&mut self, len: usize, readable: Option<Moment>) {
        self.bytes_out += len as u64;
        if let (Some(sample), Some(readable)) = (self.sample.take(), readable) {
            self.add(sample, readable, Moment::now());
        }
    }

    /// The running command has no answer.
    pub fn dropped(&mut self) {
        self.sample = None;
    }

    fn add(&mut self, Sample { woke, submitted }: Sample, readable: Moment, end: Moment) {
        let all = end.time - woke.time;
        let own = (submitted.used - woke.used) + (end.used - readable.used);

        self.samples += 1;
        self.own += own;
        self.tpm += all.saturating_sub(own);
        self.latency.count(all);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn one_in_sixteen_is_timed() {
        let mut counters = Counters::default();
        for number in 0..64 {
            let woke = counters.woke();
            assert_eq!(woke.is_some(), number % 16 == 0);
            counters.submitted(12, woke);
            let readable = counters.readable();
            assert_eq!(readable.is_some(), woke.is_some());
            if number == 16 {
                counters.dropped();
            } else {
                counters.delivered(10, readable);
            }
        }
        assert_eq!((counters.commands, counters.samples), (64, 3));
        assert_eq!((counters.bytes_in, counters.bytes_out), (64 * 12, 63 * 10));
        assert_eq!(counters.latency.buckets().iter().sum::<u64>(), 3);
    }

    #[test]
    fn whose_time_it_was() {
        let (mut counters, start) = (Counters::default(), Instant::now());
        let at = |time: u32, used: u32| Moment {
            time: start + time * US,
            used: used * US,
        };
        let sample = Sample {
            woke: at(0, 1000),
            // swtpm ran before we were through with handing over.
            submitted: at(200, 1010),
        };

        counters.add(sample, at(300, 1050), at(305, 1055));
        assert_eq!((counters.own, counters.tpm), (15 * US, 290 * US));
        assert!(counters.latency.median().unwrap() >= 256 * US);
    }

    #[test]
    fn processor_time_is_that_of_work() {
        let before = (Moment::now(), used_by_daemon());
        std::thread::sleep(Duration::from_millis(50));
        let slept = Moment::now();
        while Moment::now().used < slept.used + Duration::from_millis(20) {}
        let after = (Moment::now(), used_by_daemon());

        assert!(slept.time - before.0.time >= Duration::from_millis(50));
        assert!(slept.used - before.0.used < Duration::from_millis(40));
        assert!(after.1 - before.1 >= Duration::from_millis(20));
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
