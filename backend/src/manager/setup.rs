// SPDX-License-Identifier: GPL-2.0

//! What the manager needs before it can begin, and the way to stop workers without it.

use super::*;
use crate::files::create_private;

pub(super) fn system(what: &'static str) -> impl Fn(io::Error) -> Error {
    move |e| Error::System(what, e)
}

/// Makes the run directory and takes the manager's lock, for life.
pub(super) fn prepare(run_dir: &Path) -> Result<File, Error> {
    let at = |path: &Path| {
        let path = path.to_owned();
        move |source| Error::RunDir { path, source }
    };
    control::make_dir(run_dir, 0o711).map_err(at(run_dir))?;
    let workers = workers_dir(run_dir);
    control::make_dir(&workers, 0o700).map_err(at(&workers))?;
    let path = run_dir.join("manager.lock");
    let mut options = OpenOptions::new();
    let lock = options
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(at(&path))?;
    let deadline = Instant::now() + LOCK_TIMEOUT;
    loop {
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(lock),
            Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < deadline => {
                std::thread::sleep(LOCK_PAUSE);
            }
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(Error::Running(path)),
            Err(e) => return Err(at(&path)(e.into())),
        }
    }
}

/// The configuration as it was accepted: what workers read, whatever the administrator is writing.
pub fn accepted_config(run_dir: &Path) -> PathBuf {
    run_dir.join("config.toml")
}

pub(super) fn accept_config(run_dir: &Path, text: &str) -> Result<(), Error> {
    let path = accepted_config(run_dir);
    let new = path.with_extension("new");
    let write = || {
        create_private(&new)?.write_all(text.as_bytes())?;
        fs::rename(&new, &path)
    };
    write().map_err(|source| Error::RunDir { path, source })
}

/// A socket that is readable after a signal, and whether one was a SIGHUP.
pub(super) fn signals(events: &EventLoop) -> io::Result<(UnixStream, Arc<AtomicBool>)> {
    let (signals, sender) = UnixStream::pair()?;
    let reload = Arc::new(AtomicBool::new(false));

    signals.set_nonblocking(true)?;
    // First the flag, then what wakes: they act in this order.
    signal_hook::flag::register(SIGHUP, reload.clone())?;
    for signal in [SIGHUP, SIGTERM, SIGINT] {
        signal_hook::low_level::pipe::register(signal, sender.try_clone()?)?;
    }
    events.add(Token::Signal, &signals)?;
    Ok((signals, reload))
}

pub(super) fn watch_process(events: &EventLoop, id: Id, child: &Child) -> io::Result<OwnedFd> {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let pid = pid.ok_or(io::ErrorKind::InvalidData)?;
    // It has not been waited for: the number is still the child's.
    let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
    events.add(Token::Process(id), &pidfd)?;
    Ok(pidfd)
}

/// Two descriptors for each worker: as many as the system allows, not as a shell has by default.
pub(super) fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    if let Err(e) = setrlimit(Resource::Nofile, raised) {
        log::warn!("the limit of open files stays: {e}");
    }
}

/// Tells systemd, if it is there.
pub(super) fn notify(state: &[NotifyState<'_>]) {
    if let Err(e) = sd_notify::notify(false, state) {
        log::debug!("systemd was not told: {e}");
    }
}

/// Stops the workers that a manager has left which is gone. Returns those that did not end.
pub fn stop_without_manager(run_dir: &Path) -> Result<Vec<Id>, Error> {
    let at = |path: &Path| {
        let path = path.to_owned();
        move |source| Error::RunDir { path, source }
    };
    if !run_dir.exists() {
        return Ok(Vec::new());
    }
    let _lock = prepare(run_dir)?;
    let dir = workers_dir(run_dir);
    let mut connections = Vec::new();
    for entry in fs::read_dir(&dir).map_err(at(&dir))? {
        let name = entry.map_err(at(&dir))?.file_name();
        let names = name.to_str().and_then(|name| name.split_once('-'));
        let Some(id) = names.and_then(|(domid, devid)| Id::from_names(domid, devid)) else {
            continue;
        };
        match Connection::open(run_dir, id) {
            Ok(Some(connection)) => match connection.send(ASK_STOP) {
                Ok(()) => connections.push((id, connection)),
                Err(e) => log::warn!(vtpm:% = id; "stopping the worker: {e}"),
            },
            Ok(None) => (),
            Err(e) => log::warn!(vtpm:% = id; "connecting to the worker: {e}"),
        }
    }
    let deadline = Instant::now() + STOP_TIMEOUT;
    connections.retain_mut(|(_, connection)| !hangs_up(connection, deadline));
    Ok(connections.into_iter().map(|(id, _)| id).collect())
}

/// Waits for the other end to go.
pub(super) fn hangs_up(connection: &mut Connection, deadline: Instant) -> bool {
    let nonblocking = connection.stream.set_nonblocking(false);
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() || nonblocking.is_err() {
            return false;
        }
        // A zero timeout would mean none at all; there is some left.
        let _ = connection.stream.set_read_timeout(Some(left));
        if connection.receive().1.is_err() {
            return true;
        }
        connection.input.clear();
    }
}
