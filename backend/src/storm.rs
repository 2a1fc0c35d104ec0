// SPDX-License-Identifier: GPL-2.0

//! What to do about a guest that sends events for nothing: its event channel stays masked for a while,
//! longer each time, so that it takes little time from the others. Pure.

use std::time::Duration;

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
}
