// SPDX-License-Identifier: GPL-2.0

//! Where a model's choices come from: all there are, one after the other, or the bytes of a
//! fuzzer's input.

/// Something that decides.
pub trait Choices {
    /// One of `n` ways, counted from 0, which is the quiet one: a world in which every choice is 0
    /// comes to rest. `n` is at most 256.
    fn choose(&mut self, n: usize) -> usize;
}

/// A fuzzer's input: a byte a choice. When it is used up, the rest is quiet.
#[derive(Debug)]
pub struct Bytes<'a>(pub &'a [u8]);

impl Choices for Bytes<'_> {
    fn choose(&mut self, n: usize) -> usize {
        match self.0.split_first() {
            Some((first, rest)) if n > 1 => {
                self.0 = rest;
                usize::from(*first) % n
            }
            _ => 0,
        }
    }
}

/// Goes through all sequences of choices, depth first.
#[derive(Debug)]
struct Path {
    /// Which way was taken, and of how many.
    taken: Vec<(usize, usize)>,
    at: usize,
}

impl Choices for Path {
    fn choose(&mut self, n: usize) -> usize {
        let at = self.at;

        if n < 2 {
            return 0;
        }
        self.at += 1;
        if let Some((way, ways)) = self.taken.get(at) {
            assert_eq!(*ways, n, "the model is not deterministic");
            return *way;
        }
        self.taken.push((0, n));
        0
    }
}

impl Path {
    /// Goes on to the next sequence, if there is one.
    fn next(&mut self) -> bool {
        self.at = 0;
        while let Some((way, ways)) = self.taken.pop() {
            if way + 1 < ways {
                self.taken.push((way + 1, ways));
                return true;
            }
        }
        false
    }
}

/// Calls `run` with every sequence of choices that it can make, which is a finite one. Returns how
/// many there were.
pub fn explore(mut run: impl FnMut(&mut dyn Choices)) -> u64 {
    let mut runs = 0;
    let mut path = Path {
        taken: Vec::new(),
        at: 0,
    };

    loop {
        run(&mut path);
        runs += 1;
        if !path.next() {
            return runs;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sequence_once() {
        let mut seen = Vec::new();
        let runs = explore(|choices| {
            let first = choices.choose(2);
            let rest = (0..=first).map(|_| choices.choose(3)).collect::<Vec<_>>();
            seen.push((first, rest));
        });

        assert_eq!(runs, 3 + 9);
        seen.sort();
        seen.dedup();
        assert_eq!(seen.len(), 12);
    }
}
