// SPDX-License-Identifier: GPL-2.0

//! Which vTPMs need a worker, by xenstore: a thread with a connection of its own, since libxenstore has no
//! timeouts. Nothing that xenstored does or fails to do ends it or holds up the manager; it reconnects.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::mpsc::{channel, sync_channel, Receiver, Sender, SyncSender};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use rustix::event::{eventfd, poll, EventfdFlags, PollFd, PollFlags};

use crate::measure::for_driver_domain::{on_change, LIBXL};
use crate::xen::{self, Store};
use crate::xenbus::{self, Id, NodeError, Paths};

/// The tokens of the watches: for vTPMs of this domain's, and of driver domains'.
const TOKEN: &str = "vtpm";
const ELSEWHERE: &str = "elsewhere";

/// The node that says how far a backend is, and the value for "over".
const STATE: &str = "state";
const CLOSED: &str = "6";

/// How many watch events are looked at in one turn.
const EVENTS_PER_TURN: usize = 4096;

/// How many messages may wait for the manager; the thread waits then.
const MESSAGES: usize = 1024;

/// How often the connection is looked at when nothing happens, and a read that failed is tried again.
const CHECK_MS: i32 = 2000;
const RETRY_MS: i32 = 500;

/// The pauses between attempts to connect.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LAST_PAUSE: Duration = Duration::from_secs(5);

/// What the manager is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// Whether this vTPM needs a worker.
    Vtpm {
        /// Which.
        id: Id,
        /// It has a `state` that is not Closed, or it had any when the manager started.
        needed: bool,
    },
    /// Everything that was there has been told.
    Scanned,
}

/// The manager's end.
#[derive(Debug)]
pub struct Discovery {
    messages: Receiver<Message>,
    wake: Arc<OwnedFd>,
    questions: Sender<Id>,
    asked: Arc<OwnedFd>,
}

/// The source's end: the thread's, or a test's.
#[derive(Debug)]
pub struct Source {
    messages: SyncSender<Message>,
    wake: Arc<OwnedFd>,
    questions: Receiver<Id>,
    asked: Arc<OwnedFd>,
}

/// What went wrong with a connection.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Xen(#[from] xen::Error),
    #[error(transparent)]
    Node(#[from] NodeError),
    #[error("waiting for xenstored: {0}")]
    Wait(#[from] io::Error),
    /// The manager ends.
    #[error("the manager ends")]
    Over,
}

fn event() -> io::Result<Arc<OwnedFd>> {
    let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
    Ok(Arc::new(eventfd(0, flags)?))
}

fn raise(event: &OwnedFd) {
    // It fails only when it is raised 2^64 times over.
    let _ = rustix::io::write(event, &1u64.to_ne_bytes());
}

fn lower(event: &OwnedFd) {
    // It fails when it is not raised, which is as good.
    let _ = rustix::io::read(event, &mut [0; 8]);
}

/// Both ends of a discovery.
pub fn pair() -> io::Result<(Discovery, Source)> {
    let (sender, messages) = sync_channel(MESSAGES);
    let (questions, receiver) = channel();
    let (wake, asked) = (event()?, event()?);

    let discovery = Discovery {
        messages,
        wake: wake.clone(),
        questions,
        asked: asked.clone(),
    };
    let source = Source {
        messages: sender,
        wake,
        questions: receiver,
        asked,
    };
    Ok((discovery, source))
}

impl AsFd for Discovery {
    /// Readable when [`take`](Discovery::take) has something.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}

impl Discovery {
    /// Takes at most `limit` messages. What is left makes the descriptor readable again.
    pub fn take(&self, limit: usize) -> Vec<Message> {
        lower(&self.wake);
        let taken: Vec<_> = self.messages.try_iter().take(limit).collect();
        if taken.len() == limit {
            raise(&self.wake);
        }
        taken
    }

    /// Asks about one vTPM; the response comes as a [`Message`].
    pub fn ask(&self, id: Id) {
        // The thread lives as long as the process.
        let _ = self.questions.send(id);
        raise(&self.asked);
    }
}

impl Source {
    /// Tells the manager. False when that is gone.
    pub fn tell(&self, message: Message) -> bool {
        let told = self.messages.send(message).is_ok();
        raise(&self.wake);
        told
    }

    /// What the manager asks about.
    pub fn asked(&self) -> BTreeSet<Id> {
        lower(&self.asked);
        self.questions.try_iter().collect()
    }
}

/// Starts the thread.
pub fn spawn(source: Source, run_dir: PathBuf) -> io::Result<()> {
    let follow = move || {
        let mut follower = Follower {
            source,
            run_dir,
            known: BTreeSet::new(),
            retry: BTreeSet::new(),
            silent: false,
            first: true,
        };
        follower.run();
    };
    thread::Builder::new()
        .name("xenstore".into())
        .spawn(follow)?;
    Ok(())
}

/// What changed, as far as one turn saw.
#[derive(Debug, Default, PartialEq, Eq)]
struct Changes {
    vtpms: BTreeSet<Id>,
    /// Guests whose directory of vTPMs came or went.
    guests: BTreeSet<u16>,
    /// All may have come or gone.
    all: bool,
}

impl Changes {
    /// Takes in the path of a watch event. It costs the same however many vTPMs there are.
    fn add(&mut self, base: &str, path: &str) {
        let Some(rest) = path.strip_prefix(base) else {
            return;
        };
        let mut names = rest.strip_prefix('/').unwrap_or("").split('/');
        let (domid, devid) = (names.next(), names.next());
        match (domid, devid, (names.next(), names.next())) {
            (None | Some(""), _, _) => self.all = true,
            (Some(domid), None, _) => {
                // A number with another number after it is as good as any to judge the name.
                self.guests
                    .extend(Id::from_names(domid, "0").map(|id| id.domid));
            }
            (Some(domid), Some(devid), (None | Some(STATE), None)) => {
                self.vtpms.extend(Id::from_names(domid, devid));
            }
            // Whatever else is written there is the worker's business.
            _ => (),
        }
    }
}

struct Follower {
    source: Source,
    /// Where digests are remembered.
    run_dir: PathBuf,
    /// Those that the manager was told to be needed.
    known: BTreeSet<Id>,
    /// Those whose node could not be read.
    retry: BTreeSet<Id>,
    /// A failure was logged, and nothing has succeeded since.
    silent: bool,
    /// Nothing was told yet. A vTPM that a former manager closed may have to be opened again: its worker
    /// knows.
    first: bool,
}

impl Follower {
    fn run(&mut self) {
        let mut pause = FIRST_PAUSE;
        loop {
            match self.session(&mut pause) {
                Ok(()) | Err(Error::Over) => return,
                Err(e) => {
                    self.complain(&e);
                    thread::sleep(pause);
                    pause = (pause * 2).min(LAST_PAUSE);
                }
            }
        }
    }

    /// Logs the first of several failures in a row.
    fn complain(&mut self, e: &Error) {
        match self.silent {
            false => log::error!("xenstore: {e}; trying again until it works"),
            true => log::debug!("xenstore: {e}"),
        }
        self.silent = true;
    }

    /// One connection, as long as it lasts.
    fn session(&mut self, pause: &mut Duration) -> Result<(), Error> {
        let store = Store::open()?;
        let own_domid = xenbus::own_domid(&store)?;
        let base = Paths::base(own_domid);
        // One event comes at once, and has us look at what is there.
        store.watch(&base, TOKEN)?;
        if own_domid == 0 {
            store.watch(LIBXL, ELSEWHERE)?;
        }
        log::info!("backend for vTPMs in domain {own_domid}");
        *pause = FIRST_PAUSE;

        loop {
            let mut changes = Changes::default();
            for _ in 0..EVENTS_PER_TURN {
                match store.next_event()? {
                    Some(event) if event.token == ELSEWHERE => {
                        on_change(&store, &self.run_dir, &event.path)?;
                    }
                    Some(event) => changes.add(&base, &event.path),
                    None => break,
                }
            }
            // Kept until they have been read: also over the end of this connection.
            self.retry.extend(self.source.asked());
            self.look(&store, &base, changes)?;

            let timeout = match self.retry.is_empty() {
                true => CHECK_MS,
                false => RETRY_MS,
            };
            let mut fds = [
                PollFd::new(&store, PollFlags::IN),
                PollFd::new(&*self.source.asked, PollFlags::IN),
            ];
            // The end of xenstored shows nowhere but in the next call: hence the timeout.
            match poll(&mut fds, timeout) {
                Ok(_) | Err(rustix::io::Errno::INTR) => (),
                Err(e) => return Err(io::Error::from(e).into()),
            }
        }
    }

    /// Looks at what changed, and tells the manager.
    fn look(&mut self, store: &Store, base: &str, mut changes: Changes) -> Result<(), Error> {
        let mut domains: Vec<String> = changes.guests.iter().map(u16::to_string).collect();

        if changes.all {
            domains = store.list(base)?;
            changes.vtpms.extend(&self.known);
        }
        for guest in &changes.guests {
            let first = Id {
                domid: *guest,
                devid: 0,
            };
            let last = Id {
                devid: u32::MAX,
                ..first
            };
            changes.vtpms.extend(self.known.range(first..=last));
        }
        for domid in domains {
            for devid in store.list(&format!("{base}/{domid}"))? {
                match Id::from_names(&domid, &devid) {
                    Some(id) => drop(changes.vtpms.insert(id)),
                    None => log::debug!("{base}/{domid}/{devid} is not a vTPM's name"),
                }
            }
        }
        changes.vtpms.append(&mut self.retry);
        for id in changes.vtpms {
            match store.read(&format!("{base}/{id}/{STATE}")) {
                Ok(state) => {
                    self.silent = false;
                    let needed = state.is_some_and(|state| state != CLOSED || self.first);
                    match needed {
                        true => self.known.insert(id),
                        false => self.known.remove(&id),
                    };
                    self.tell(Message::Vtpm { id, needed })?;
                }
                // Not known is not "no": the worker stays, and the node is read again.
                Err(e) => {
                    self.complain(&e.into());
                    self.retry.insert(id);
                }
            }
        }
        if changes.all {
            self.first = false;
            self.tell(Message::Scanned)?;
        }
        Ok(())
    }

    fn tell(&self, message: Message) -> Result<(), Error> {
        match self.source.tell(message) {
            true => Ok(()),
            false => Err(Error::Over),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: &str = "/local/domain/0/backend/vtpm";

    fn changes(paths: &[&str]) -> Changes {
        let mut changes = Changes::default();
        for path in paths {
            changes.add(BASE, &format!("{BASE}{path}"));
        }
        changes
    }

    #[test]
    fn whom_a_path_is_about() {
        let id = Id { domid: 7, devid: 1 };
        assert!(changes(&[""]).all);
        assert_eq!(changes(&["/7"]).guests, BTreeSet::from([7]));
        for path in ["/7/1", "/7/1/state"] {
            assert_eq!(changes(&[path]).vtpms, BTreeSet::from([id]), "{path}");
        }
        // Nodes that others write as often as they like, and names that are none.
        let nothing = ["/7/1/error", "/7/1/state/x", "/x", "/07", "/7/01", "/7/x"];
        assert_eq!(changes(&nothing), Changes::default());
        let mut other = Changes::default();
        other.add(BASE, "/local/domain/0/backend/vbd/7/1/state");
        assert_eq!(other, Changes::default());
    }

    #[test]
    fn messages_wake_the_manager_and_are_bounded() {
        let (discovery, source) = pair().unwrap();
        let readable = || {
            let mut fds = [PollFd::new(&discovery, PollFlags::IN)];
            poll(&mut fds, 0).unwrap() == 1
        };

        assert!(!readable());
        for devid in 0..5 {
            let id = Id { domid: 1, devid };
            assert!(source.tell(Message::Vtpm { id, needed: true }));
        }
        assert!(readable());
        assert_eq!(discovery.take(3).len(), 3);
        assert!(readable(), "two are left");
        assert_eq!(discovery.take(3).len(), 2);
        assert!(!readable());

        discovery.ask(Id { domid: 1, devid: 2 });
        discovery.ask(Id { domid: 1, devid: 2 });
        assert_eq!(source.asked().len(), 1);
        drop(discovery);
        assert!(!source.tell(Message::Scanned));
    }
}
