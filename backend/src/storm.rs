// SPDX-License-Identifier: GPL-2.0

//! How long to wait before the next try of what fails, or brings nothing: longer each time. Pure.

use std::time::{Duration, Instant};

/// So many events in a row may bring nothing. A frontend that behaves sends one for each command.
const PATIENCE: u32 = 32;

/// The first and the longest delay.
const FIRST: Duration = Duration::from_millis(1);
const LONGEST: Duration = Duration::from_millis(50);

/// How many events in a row have brought nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Storm(u32);

impl Storm {
    /// An event has brought nothing: how long to wait before the next can come.
    pub fn spurious(&mut self) -> Option<Duration> {
        self.0 = self.0.saturating_add(1);
        let over = self.0.checked_sub(PATIENCE + 1)?;

        Some((FIRST * (1 << over.min(16))).min(LONGEST))
    }

    /// An event has brought a command.
    pub fn calm(&mut self) {
        self.0 = 0;
    }
}

/// What is tried again, at growing distances: a few times at once, then later and later. Some time without a
/// try, and all is forgotten.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    tries: u32,
    last: Option<Instant>,
}

impl Backoff {
    /// Begins with the first of two delays, and ends with the second.
    pub fn new((first, longest): (Duration, Duration)) -> Self {
        Self {
            first,
            longest,
            tries: 0,
            last: None,
        }
    }

    /// Goes on after so many tries, the last of which was just now.
    pub fn resumed(delays: (Duration, Duration), tries: u32) -> Self {
        Self {
            tries,
            last: (tries > 0).then(Instant::now),
            ..Self::new(delays)
        }
    }

    /// The delay before the next try, which is counted.
    pub fn failed(&mut self) -> Duration {
        self.tries = self.tries.saturating_add(1);
        self.delay()
    }

    /// It went well.
    pub fn calm(&mut self) {
        self.tries = 0;
    }

    /// How often it was tried.
    pub fn tries(&self) -> u32 {
        self.tries
    }

    /// It is tried now.
    pub fn tried(&mut self, now: Instant) {
        let rest = self.last.map_or(Duration::MAX, |last| now - last);
        if rest > self.longest * 2 {
            self.tries = 0;
        }
        self.tries = self.tries.saturating_add(1);
        self.last = Some(now);
    }

    /// When the next try may be, if not now.
    pub fn not_before(&self, now: Instant) -> Option<Instant> {
        let at = self.last? + self.delay();
        (at > now).then_some(at)
    }

    fn delay(&self) -> Duration {
        let power = self.tries.saturating_sub(1).min(16);
        (self.first * (1 << power)).min(self.longest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_then_longer_and_longer() {
        let mut storm = Storm::default();
        let ms = |n| Some(Duration::from_millis(n));

        for _ in 0..2 {
            for _ in 0..PATIENCE {
                assert_eq!(storm.spurious(), None);
            }
            for expected in [1, 2, 4, 8, 16, 32, 50, 50] {
                assert_eq!(storm.spurious(), ms(expected));
            }
            for _ in 0..100_000 {
                assert_eq!(storm.spurious(), ms(50));
            }
            storm.calm();
        }
    }

    #[test]
    fn later_and_later_and_forgotten() {
        let ms = Duration::from_millis;
        let start = Instant::now();
        let mut backoff = Backoff::new((ms(100), ms(1000)));

        assert_eq!(backoff.not_before(start), None);
        let mut now = start;
        for expected in [100, 200, 400, 800, 1000, 1000] {
            backoff.tried(now);
            assert_eq!(backoff.not_before(now), Some(now + ms(expected)));
            now += ms(expected);
            assert_eq!(backoff.not_before(now), None);
        }
        now += ms(2001);
        backoff.tried(now);
        assert_eq!(backoff.not_before(now), Some(now + ms(100)));

        let mut backoff = Backoff::new((ms(100), ms(1000)));
        let delays = [(); 5].map(|()| backoff.failed());
        assert_eq!(delays, [100, 200, 400, 800, 1000].map(ms));
        backoff.calm();
        assert_eq!(backoff.failed(), ms(100));
    }
}
