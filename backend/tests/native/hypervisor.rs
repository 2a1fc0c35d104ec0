// SPDX-License-Identifier: GPL-2.0

//! The hypervisor's part: event channels behind the stand-in for libxenevtchn, granted pages, and
//! what is known of a domain. Events are as Xen's and the evtchn device's: one bit, masked from its
//! delivery until it is unmasked, and pending from the start.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{
    accept, bind_unix, listen, recv, send, socket, AddressFamily, RecvFlags, SendFlags,
    SocketAddrUnix, SocketType,
};

/// The virtual interrupt that tells xenstored of domains that ended.
const VIRQ_DOM_EXC: u32 = 3;

/// What standins/evtchn.c asks for.
const BIND: u32 = 0;
const UNBIND: u32 = 1;
const NOTIFY: u32 = 2;
const VIRQ: u32 = 3;
const RESTRICT: u32 = 4;
const REQUEUE: u32 = 5;

/// Why a domain has shut down: `SHUTDOWN_*` of xen/sched.h.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    Poweroff = 0,
    Reboot = 1,
    Suspend = 2,
    Crash = 3,
}

/// What the hypervisor knows of a domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Domain {
    /// It has not run yet: its kernel is about to start, or it goes on where it was saved.
    Booted,
    Restored,
    Running,
    Shutdown(Reason),
    Dying,
    Gone,
}

/// A handle's end of a port.
struct Bound {
    domid: u32,
    /// The other domain's port, or the number of a virtual interrupt.
    remote: u32,
    virq: bool,
    masked: bool,
    pending: bool,
}

/// One open handle of the stand-in.
struct Handle {
    socket: Arc<OwnedFd>,
    restricted: Option<u32>,
    ports: BTreeMap<u32, Bound>,
}

impl Handle {
    /// An event is there: delivered now, or when it is unmasked.
    fn raise(&mut self, local: u32) {
        let Some(bound) = self.ports.get_mut(&local) else {
            return;
        };
        match bound.masked {
            true => bound.pending = true,
            false => {
                (bound.masked, bound.pending) = (true, false);
                // One that is gone needs no event.
                let _ = send(&*self.socket, &local.to_ne_bytes(), SendFlags::NOSIGNAL);
            }
        }
    }

    fn unmask(&mut self, local: u32) {
        if let Some(bound) = self.ports.get_mut(&local) {
            bound.masked = false;
            if bound.pending {
                self.raise(local);
            }
        }
    }
}

#[derive(Default)]
struct State {
    handles: BTreeMap<u64, Handle>,
    last_handle: u64,
    last_port: u32,
    /// The guests' ports, and whether an event is pending there.
    guests: BTreeMap<(u32, u32), bool>,
}

impl State {
    fn raise_where(&mut self, wanted: impl Fn(&Bound) -> bool) {
        for handle in self.handles.values_mut() {
            let ports: Vec<u32> = handle
                .ports
                .iter()
                .filter(|(_, b)| wanted(b))
                .map(|(p, _)| *p)
                .collect();
            for port in ports {
                handle.raise(port);
            }
        }
    }

    fn bind(&mut self, id: u64, domid: u32, remote: u32, virq: bool) -> Result<u32, Errno> {
        let taken = self
            .handles
            .values()
            .flat_map(|handle| handle.ports.values());
        let taken = taken.filter(|bound| {
            !virq && (bound.domid, bound.remote, bound.virq) == (domid, remote, false)
        });
        if taken.count() > 0 || !(virq || self.guests.contains_key(&(domid, remote))) {
            return Err(Errno::INVAL);
        }
        let local = self.last_port + 1;
        let handle = self.handles.get_mut(&id).unwrap();
        if handle.restricted.is_some_and(|only| only != domid) {
            return Err(Errno::ACCESS);
        }
        self.last_port = local;
        let bound = Bound {
            domid,
            remote,
            virq,
            masked: false,
            pending: false,
        };
        handle.ports.insert(local, bound);
        Ok(local)
    }

    /// What a handle asks for; the reply, if it gets one.
    fn request(&mut self, id: u64, what: u32, domid: u32, port: u32) -> Option<Result<u32, Errno>> {
        let handle = self.handles.get_mut(&id).unwrap();
        match what {
            BIND => return Some(self.bind(id, domid, port, false)),
            VIRQ => return Some(self.bind(id, 0, port, true)),
            RESTRICT => {
                handle.restricted = Some(domid);
                return Some(Ok(0));
            }
            UNBIND => drop(handle.ports.remove(&port)),
            REQUEUE => {
                if let Some(bound) = handle.ports.get_mut(&port) {
                    bound.masked = false;
                }
                handle.raise(port);
            }
            NOTIFY => {
                if let Some(bound) = handle.ports.get(&port) {
                    let guest = (bound.domid, bound.remote);
                    self.guests
                        .entry(guest)
                        .and_modify(|pending| *pending = true);
                }
            }
            other => panic!("request {other} of the stand-in for libxenevtchn"),
        }
        None
    }
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn serve(&self, id: u64, socket: &OwnedFd) {
        let mut message = [0; 12];
        while let Ok(n @ 1..) = recv(socket, &mut message, RecvFlags::empty()) {
            let number = |at: usize| u32::from_ne_bytes(message[at..at + 4].try_into().unwrap());
            let mut state = self.state();
            if n == 4 {
                state.handles.get_mut(&id).unwrap().unmask(number(0));
                continue;
            }
            let (what, port) = (number(0), number(8));
            if let Some(result) = state.request(id, what, number(4), port) {
                let value = result.map_or_else(|e| -i64::from(e.raw_os_error()), i64::from);
                let _ = send(socket, &value.to_ne_bytes(), SendFlags::NOSIGNAL);
                if let (BIND, Ok(local)) = (what, result) {
                    state.handles.get_mut(&id).unwrap().raise(local);
                }
            }
            self.changed.notify_all();
        }
        self.state().handles.remove(&id);
        self.changed.notify_all();
    }
}

/// The hypervisor of one [`Host`](crate::host::Host).
#[derive(Clone)]
pub(crate) struct Hypervisor {
    directory: PathBuf,
    shared: Arc<Shared>,
}

impl Hypervisor {
    /// Listens in the directory, which the stand-ins are told by their environment.
    pub(crate) fn new(directory: &Path) -> Self {
        let shared = Arc::<Shared>::default();
        let listener = socket(AddressFamily::UNIX, SocketType::SEQPACKET, None).unwrap();
        let address = SocketAddrUnix::new(directory.join("evtchn")).unwrap();

        fs::create_dir_all(directory.join("domains")).unwrap();
        fs::create_dir_all(directory.join("grants")).unwrap();
        rustix::io::fcntl_setfd(&listener, rustix::io::FdFlags::CLOEXEC).unwrap();
        bind_unix(&listener, &address).unwrap();
        listen(&listener, 1_000).unwrap();
        let this = Self {
            directory: directory.to_owned(),
            shared,
        };
        this.set_domain(0, Domain::Running);
        let shared = this.shared.clone();
        thread::spawn(move || accept_all(&listener, &shared));
        this
    }

    /// What Xen says of the domain from now on.
    pub(crate) fn set_domain(&self, domid: u16, domain: Domain) {
        let file = self.directory.join("domains").join(domid.to_string());
        let text = match domain {
            Domain::Booted => "booted".to_owned(),
            Domain::Restored => "restored".to_owned(),
            Domain::Running => "running".to_owned(),
            Domain::Shutdown(reason) => format!("shutdown {}", reason as u32),
            Domain::Dying => "dying".to_owned(),
            Domain::Gone => {
                let _ = fs::remove_file(file);
                return self.tell_xenstored();
            }
        };
        // Read at any time, so it is replaced rather than written.
        let new = file.with_extension("new");
        fs::write(&new, text).unwrap();
        fs::rename(new, file).unwrap();
        if !matches!(domain, Domain::Running | Domain::Booted | Domain::Restored) {
            self.tell_xenstored();
        }
    }

    fn tell_xenstored(&self) {
        let mut state = self.shared.state();
        state.raise_where(|bound| bound.virq && bound.remote == VIRQ_DOM_EXC);
    }

    /// A page that the domain grants.
    pub(crate) fn grant(&self, domid: u16, reference: u32) -> File {
        let directory = self.directory.join("grants").join(domid.to_string());
        fs::create_dir_all(&directory).unwrap();
        let page = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(directory.join(reference.to_string()))
            .unwrap();
        page.set_len(4096).unwrap();
        page
    }

    /// A port of the domain's, for a backend to bind.
    pub(crate) fn port(&self, domid: u16, port: u32) -> Port {
        let key = (u32::from(domid), port);
        self.shared.state().guests.insert(key, false);
        Port {
            hypervisor: self.clone(),
            key,
        }
    }

    /// The domains that the handle bound to this port is restricted to; `None` if nobody is bound.
    pub(crate) fn restricted_to(&self, domid: u16, port: u32) -> Option<Option<u32>> {
        let state = self.shared.state();
        let is_it = |bound: &Bound| (bound.domid, bound.remote) == (u32::from(domid), port);
        let handle = state
            .handles
            .values()
            .find(|handle| handle.ports.values().any(is_it));
        handle.map(|handle| handle.restricted)
    }

    /// The calls of libxengnttab so far, such as "map 7 8 PID" and "open 0 0 PID".
    pub(crate) fn grant_log(&self) -> Vec<String> {
        let text = fs::read_to_string(self.directory.join("grants.log")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }
}

fn accept_all(listener: &OwnedFd, shared: &Arc<Shared>) {
    while let Ok(socket) = accept(listener) {
        rustix::io::fcntl_setfd(&socket, rustix::io::FdFlags::CLOEXEC).unwrap();
        let socket = Arc::new(socket);
        let handle = Handle {
            socket: socket.clone(),
            restricted: None,
            ports: BTreeMap::new(),
        };
        let mut state = shared.state();
        state.last_handle += 1;
        let id = state.last_handle;
        state.handles.insert(id, handle);
        let shared = shared.clone();
        let small = thread::Builder::new().stack_size(64 << 10);
        small.spawn(move || shared.serve(id, &socket)).unwrap();
    }
}

/// A guest's port.
pub(crate) struct Port {
    hypervisor: Hypervisor,
    key: (u32, u32),
}

impl Port {
    /// Its number.
    pub(crate) fn number(&self) -> u32 {
        self.key.1
    }

    /// Sends an event to the backend.
    pub(crate) fn notify(&self) {
        let mut state = self.hypervisor.shared.state();
        let key = self.key;
        state.raise_where(|bound| !bound.virq && (bound.domid, bound.remote) == key);
    }

    /// Waits for an event from the backend, and takes it. False after the timeout.
    pub(crate) fn wait(&self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        let shared = &self.hypervisor.shared;
        let mut state = shared.state();
        loop {
            if std::mem::take(state.guests.entry(self.key).or_default()) {
                return true;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            state = shared.changed.wait_timeout(state, left).unwrap().0;
        }
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        self.hypervisor.shared.state().guests.remove(&self.key);
    }
}
