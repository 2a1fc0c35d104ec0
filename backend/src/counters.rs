// SPDX-License-Identifier: GPL-2.0

//! What is counted for each vTPM. Pure. Times are taken of every 16th command only, since reading the
//! clock is slow under Xen.

use std::time::{Duration, Instant};

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

/// How far a timed command has come.
#[derive(Clone, Copy, Debug)]
struct Sample {
    woke: Instant,
    submitted: Instant,
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
    /// Their time in the daemon: from its wake-up to handing over, and from swtpm's answer to the
    /// guest's event.
    pub own: Duration,
    /// Their time with swtpm.
    pub tpm: Duration,
    sample: Option<Sample>,
}

impl Counters {
    /// The time, if the next command is one to be timed.
    pub fn woke(&self) -> Option<Instant> {
        (self.commands % SAMPLE == 0 && self.sample.is_none()).then(Instant::now)
    }

    /// A command of so many bytes was handed over. `woke` is the time at which it was noticed.
    pub fn submitted(&mut self, len: usize, woke: Option<Instant>) {
        self.commands += 1;
        self.bytes_in += len as u64;
        self.sample = woke.map(|woke| Sample {
            woke,
            submitted: Instant::now(),
        });
    }

    /// The time, if the running command is timed.
    pub fn readable(&self) -> Option<Instant> {
        self.sample.is_some().then(Instant::now)
    }

    /// The running command's answer was delivered. `readable` is the time at which it was noticed.
    pub fn delivered(&mut self, len: usize, readable: Option<Instant>) {
        self.bytes_out += len as u64;
        if let (Some(sample), Some(readable)) = (self.sample.take(), readable) {
            self.add(sample, readable, Instant::now());
        }
    }

    /// The running command has no answer.
    pub fn dropped(&mut self) {
        self.sample = None;
    }

    fn add(&mut self, Sample { woke, submitted }: Sample, readable: Instant, end: Instant) {
        self.samples += 1;
        self.own += (submitted - woke) + (end - readable);
        self.tpm += readable - submitted;
        self.latency.count(end - woke);
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
        let (mut counters, woke) = (Counters::default(), Instant::now());
        let sample = Sample {
            woke,
            submitted: woke + 10 * US,
        };

        counters.add(sample, woke + 300 * US, woke + 305 * US);
        assert_eq!((counters.own, counters.tpm), (15 * US, 290 * US));
        assert!(counters.latency.median().unwrap() >= 256 * US);
    }
}
