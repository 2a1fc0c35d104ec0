// SPDX-License-Identifier: GPL-2.0

//! What a backend cannot make the frontend do as often as it likes: connections that are of no use
//! are delayed, and so are commands that fail.

/// So many connections in a row are made at once, whatever becomes of them.
const FREE_ATTEMPTS: u32 = 3;

/// The first delay of a connection, which then doubles, and how often it does.
const DELAY_MS: u32 = 50;
const DOUBLINGS: u32 = 6;

/// So many commands in a row may fail at once.
const BURST: usize = 10;

/// The back-off of connections.
#[derive(Debug, Default)]
pub struct Backoff {
    /// Connections in a row that were of no use.
    attempts: u32,
}

impl Backoff {
    /// There was no connection yet.
    pub const fn new() -> Self {
        Self { attempts: 0 }
    }

    /// A connection is made.
    pub fn attempt(&mut self) {
        self.attempts = self.attempts.saturating_add(1);
    }

    /// A connection was of use.
    pub fn reset(&mut self) {
        self.attempts = 0;
    }

    /// The delay before the next connection, in milliseconds.
    pub fn delay_ms(&self) -> u32 {
        match self.attempts.checked_sub(FREE_ATTEMPTS) {
            None => 0,
            Some(doublings) => DELAY_MS << doublings.min(DOUBLINGS),
        }
    }
}

/// A command failed at the time `now`. `level` is the time at which the failures so far are made up
/// for, one in each `interval`. Returns the new level, and whether there are too many failures, so
/// that the command has to wait for an interval. The clock may wrap.
pub fn throttle(level: usize, now: usize, interval: usize) -> (usize, bool) {
    let ahead = level.wrapping_sub(now);
    // The level is in the past when no command failed for a while.
    let ahead = if ahead > 2 * BURST * interval {
        interval
    } else {
        ahead + interval
    };

    (now.wrapping_add(ahead), ahead > BURST * interval)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_delayed_until_one_is_of_use() {
        let mut backoff = Backoff::new();

        for delay in [0, 0, 0, 50, 100, 200, 400, 800, 1600, 3200, 3200, 3200] {
            assert_eq!(backoff.delay_ms(), delay);
            backoff.attempt();
        }
        backoff.reset();
        assert_eq!(backoff.delay_ms(), 0);
        backoff.attempts = u32::MAX;
        backoff.attempt();
        assert_eq!(backoff.delay_ms(), 3200);
    }

    #[test]
    fn a_storm_of_failures_is_one_an_interval() {
        const INTERVAL: usize = 250;

        for start in [0, 5, usize::MAX - 1000] {
            let (mut level, mut now) = (start, start);
            let mut waits = 0;

            for _ in 0..1000 {
                let (next, wait) = throttle(level, now, INTERVAL);

                level = next;
                if wait {
                    waits += 1;
                    now = now.wrapping_add(INTERVAL);
                }
            }
            assert_eq!(waits, 1000 - BURST);

            // After as many quiet intervals all is forgotten.
            now = now.wrapping_add((BURST + 1) * INTERVAL);
            for failure in 0..=BURST {
                let (next, wait) = throttle(level, now, INTERVAL);

                level = next;
                assert_eq!(wait, failure == BURST);
            }
        }
    }

    #[test]
    fn failures_that_take_long_do_not_wait() {
        let (mut level, mut now) = (0, 0);

        for _ in 0..100 {
            let (next, wait) = throttle(level, now, 250);

            level = next;
            assert!(!wait);
            now += 250;
        }
    }
}
