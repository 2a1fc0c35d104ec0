// SPDX-License-Identifier: GPL-2.0

//! What a worker waits for, descriptors and points in time, and who looks after each.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::event::{poll, PollFd, PollFlags};
use rustix::io::Errno;

use super::{control, tpm, Outcome, Power, Worker, SETUP_TIMEOUT};
use crate::lifecycle::Stage;

/// Something to look after.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ready {
    Broker,
    Store,
    Signal,
    Messages,
    Process,
    Link,
    Io,
    Left,
    Control(control::Source),
}

impl Worker {
    /// Waits for anything.
    pub(super) fn wait(&self) -> Vec<Ready> {
        // With the broker its I/O process ends: that is the worker's end, and not that of a connection.
        let broker = self.broker.iter();
        let mut watched: Vec<_> = broker.map(|it| (Ready::Broker, it.as_fd())).collect();
        watched.extend([
            (Ready::Store, self.store.as_fd()),
            (Ready::Signal, self.signals.as_fd()),
            (Ready::Messages, self.messages.as_fd()),
        ]);
        match &self.power {
            Power::Off | Power::Blocked(_) => (),
            Power::Setup(setup, _) => watched.push((Ready::Process, setup.as_fd())),
            Power::On(tpm) => watched.push((Ready::Process, tpm.as_fd())),
        }
        if let Some(connection) = &self.connection {
            watched.push((Ready::Link, connection.link()));
            watched.push((Ready::Io, connection.process()));
        }
        if let Some((connection, _)) = &self.leaving {
            watched.push((Ready::Left, connection.process()));
        }
        watched.extend(
            self.control
                .sources()
                .map(|(source, fd)| (Ready::Control(source), fd)),
        );
        let timeout = self.next_deadline().map_or(-1, |deadline| {
            let left = deadline.saturating_duration_since(Instant::now());
            i32::try_from(left.as_millis()).map_or(i32::MAX, |ms| ms.saturating_add(1))
        });
        let mut fds: Vec<_> = watched
            .iter()
            .map(|(_, fd)| PollFd::from_borrowed_fd(*fd, PollFlags::IN))
            .collect();
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::INTR) => (),
            Err(e) => {
                log::error!("poll: {e}");
                std::thread::sleep(Duration::from_secs(1));
            }
        }
        let ready = fds.iter().map(|fd| !fd.revents().is_empty());
        let all = watched.iter().zip(ready);
        all.filter_map(|((ready, _), is)| is.then_some(*ready))
            .collect()
    }

    fn next_deadline(&self) -> Option<Instant> {
        let power = match &self.power {
            Power::Setup(_, deadline) => Some(*deadline),
            Power::Blocked(blocked) => Some(blocked.next),
            Power::Off | Power::On(_) => None,
        };
        let left = self.leaving.as_ref().map(|(_, deadline)| *deadline);
        [self.deadline, self.retry_at, self.departed, power, left]
            .into_iter()
            .flatten()
            .min()
    }

    pub(super) fn on_ready(&mut self, ready: Ready) -> Option<Outcome> {
        match ready {
            Ready::Broker => {
                log::error!("the broker has ended");
                Some(self.hand_over())
            }
            Ready::Store => {
                // The paths do not matter: everything is looked at. What is queued is bounded by xenstored.
                for _ in 0..64 {
                    match self.store.next_event() {
                        Ok(Some(_)) => (),
                        Ok(None) => break,
                        Err(e) => return self.store_failed(&e.into()),
                    }
                }
                None
            }
            Ready::Signal => Some(self.hand_over()),
            Ready::Messages => {
                for line in self.messages.take() {
                    log::info!("{line}");
                }
                None
            }
            Ready::Process => self.on_process(),
            Ready::Link => self.on_link(),
            Ready::Io => {
                // What it said last comes first.
                match &self.connection {
                    Some(connection) if !connection.has_message() => self.connection_lost(None),
                    _ => None,
                }
            }
            Ready::Left => {
                self.leaving = None;
                self.settle()
            }
            Ready::Control(source) => {
                let request = self.control.on_ready(source);
                self.on_request(request?)
            }
        }
    }

    pub(super) fn on_time(&mut self, now: Instant) -> Option<Outcome> {
        if self.retry_at.is_some_and(|at| at <= now) {
            self.retry_at = None;
        }
        if self.departed.is_some_and(|at| at <= now) {
            self.watch_departed(now);
        }
        match &mut self.power {
            Power::Setup(setup, deadline) if *deadline <= now => {
                setup.kill();
                self.power = Power::Off;
                let text = format!("not done after {} s", SETUP_TIMEOUT.as_secs());
                return self.fail(&tpm::Error::Setup(text).into());
            }
            Power::Blocked(blocked) if blocked.next <= now => {
                if let Some(outcome) = self.hold_again(now) {
                    return Some(outcome);
                }
            }
            _ => (),
        }
        if self.leaving.as_ref().is_some_and(|(_, at)| *at <= now) {
            log::warn!("a command of a former connection does not end");
            self.leaving = None;
            if let Some(outcome) = self.settle() {
                return Some(outcome);
            }
        }
        if self.deadline.is_some_and(|deadline| deadline <= now) {
            self.deadline = None;
            return match self.stage {
                Stage::Failing => self.close_lost(),
                Stage::Leaving => self.close(),
                Stage::Closed => self.start_again(),
                _ => None,
            };
        }
        None
    }
}
