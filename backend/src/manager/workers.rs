// SPDX-License-Identifier: GPL-2.0

//! How the manager starts workers, connects to them, and notices that they ended.

use super::*;

impl Manager {
    /// Starts a worker unless one is found alive.
    pub(super) fn start(&mut self, id: Id) {
        if self.stop.is_some() || self.connect(id) {
            return;
        }
        let now = Instant::now();
        let spawned = self.spawn(id);
        let Some(worker) = self.workers.get_mut(&id) else {
            return;
        };
        worker.since = now;
        match spawned {
            Ok(process) => {
                log::debug!(vtpm:% = id; "worker {} is started", process.child.id());
                worker.process = Some(process);
                worker.connect_pause = CONNECT_PAUSE;
                self.totals.worker_starts += 1;
                self.connect_later(id);
            }
            Err(e) => {
                self.complain(id, format!("a worker cannot be started: {e}"));
                self.retry(id, now);
            }
        }
        self.tell_systemd(false);
    }

    /// Tries again after a pause, which grows.
    pub(super) fn retry(&mut self, id: Id, now: Instant) {
        if let Some(worker) = self.workers.get_mut(&id) {
            let due = now + worker.next_pause(now);
            self.set_timer(id, Some(due));
        }
    }

    /// Logs an error about a vTPM, but not the same one again and again.
    pub(super) fn complain(&mut self, id: Id, what: String) {
        if let Some(worker) = self.workers.get_mut(&id) {
            if worker.complaint != what {
                log::error!(vtpm:% = id; "{what}");
                worker.complaint = what;
            }
        }
    }

    pub(super) fn spawn(&mut self, id: Id) -> io::Result<Process> {
        let mut command = Command::new(&self.config.launcher);
        command
            .arg0("xen-vtpmd")
            .arg("--config")
            .arg(accepted_config(&self.config.run_dir))
            .arg("serve")
            .args(["--domid", &id.domid.to_string()])
            .args(["--devid", &id.devid.to_string()])
            .args(["--log-level", &log::max_level().to_string().to_lowercase()]);
        if let Ok(cgroups) = &self.cgroups {
            match cgroups.prepare(id, &self.config.limits) {
                Ok(group) => drop(command.arg("--cgroup").arg(group)),
                // Resource limits hold all the same, and a guest without TPM helps nobody.
                Err(e) => self.complain(id, format!("no cgroup for the worker: {e}")),
            }
        }
        let mut child = command
            .env_remove("NOTIFY_SOCKET")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()?;
        let watched = watch_process(&self.events, id, &child);
        match watched {
            Ok(pidfd) => Ok(Process { child, pidfd }),
            Err(e) => {
                let _ = child.kill();
                let _ = child.wait();
                Err(e)
            }
        }
    }

    /// After an upgrade: has a worker that another program is hand over to one of ours, one after the other. What
    /// its guest notices is a pause.
    pub(super) fn hand_over_if_former(&mut self, id: Id) {
        let program = self.program;
        let Some(worker) = self.workers.get_mut(&id) else {
            return;
        };
        let (Some(connection), None) = (&worker.connection, &worker.process) else {
            return;
        };
        let hand_over = || -> io::Result<bool> {
            let pid = get_socket_peercred(&connection.stream)?.pid;
            let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
            // Looked at while the process is held: it is this one that has the number.
            let data = fs::metadata(format!("/proc/{}/exe", pid.as_raw_nonzero()))?;
            let other = program.is_some_and(|program| program != (data.dev(), data.ino()));
            if other {
                pidfd_send_signal(&pidfd, Signal::Term)?;
            }
            Ok(other)
        };
        match hand_over() {
            Ok(other) => worker.hands_over = other,
            Err(e) => log::warn!(vtpm:% = id; "the worker stays as it is: {e}"),
        }
    }

    pub(super) fn connect_later(&mut self, id: Id) {
        if let Some(worker) = self.workers.get_mut(&id) {
            let due = Instant::now() + worker.connect_pause;
            worker.connect_pause = (worker.connect_pause * 2).min(CONNECT_LAST_PAUSE);
            self.set_timer(id, Some(due));
        }
    }

    /// Connects to a worker. True if it is there, even if it is too busy for that.
    pub(super) fn connect(&mut self, id: Id) -> bool {
        let opened = Connection::open(&self.config.run_dir, id);
        let Some(worker) = self.workers.get_mut(&id) else {
            return false;
        };
        match opened {
            Ok(None) => false,
            Ok(Some(connection)) => {
                let token = Token::Connection(id);
                if let Err(e) = self.events.add(token, &connection.stream) {
                    log::error!(vtpm:% = id; "worker: {e}");
                    return false;
                }
                worker.connection = Some(connection);
                self.set_timer(id, None);
                true
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                let due = Instant::now() + CONNECT_LAST_PAUSE;
                self.set_timer(id, Some(due));
                true
            }
            Err(e) => {
                self.complain(id, format!("connecting to the worker: {e}"));
                false
            }
        }
    }

    // What workers say, and their ends.

    pub(super) fn on_connection(&mut self, id: Id) {
        let Some(worker) = self.workers.get_mut(&id) else {
            return;
        };
        let Some(connection) = &mut worker.connection else {
            return;
        };
        let (lines, end) = connection.receive();
        for line in lines {
            self.on_line(id, &line);
        }
        if let Err(e) = end {
            log::debug!(vtpm:% = id; "worker hung up: {e}");
            self.drop_connection(id);
            let owned = self.workers.get(&id).is_some_and(|w| w.process.is_some());
            match owned {
                // Its process tells when it ends.
                true => self.connect_later(id),
                false => self.ended(id, None),
            }
        }
    }

    pub(super) fn on_line(&mut self, id: Id, line: &[u8]) {
        match Line::parse(line) {
            Ok(Line::Event(event)) => {
                self.totals.count(&event);
                if let Some(hooks) = self.hooks.as_ref().filter(|_| event.is_for_hooks()) {
                    hooks.tell(id, &event);
                }
            }
            Ok(Line::Status(mut status)) => {
                // Who it is about is known here.
                (status.domid, status.devid) = (id.domid, id.devid);
                if let Some(worker) = self.workers.get_mut(&id) {
                    worker.status = Some(*status);
                    worker.asked = false;
                }
                self.answered(id);
            }
            Ok(Line::Other) => (),
            Err(e) => self.complain(id, format!("the worker sends nonsense: {e}")),
        }
    }

    pub(super) fn drop_connection(&mut self, id: Id) {
        if let Some(worker) = self.workers.get_mut(&id) {
            if let Some(connection) = worker.connection.take() {
                self.events.remove(&connection.stream);
            }
            worker.asked = false;
        }
        self.answered(id);
    }

    pub(super) fn on_process(&mut self, id: Id) {
        let Some(worker) = self.workers.get_mut(&id) else {
            return;
        };
        let Some(process) = &mut worker.process else {
            return;
        };
        let status = match process.child.try_wait() {
            Ok(None) => return,
            Ok(Some(status)) => Some(status),
            Err(e) => {
                log::error!(vtpm:% = id; "waiting for the worker: {e}");
                None
            }
        };
        if let Some(process) = worker.process.take() {
            self.events.remove(&process.pidfd);
        }
        // Its last words.
        while let Some(connection) = self
            .workers
            .get_mut(&id)
            .and_then(|w| w.connection.as_mut())
        {
            let (lines, end) = connection.receive();
            let over = end.is_err() || lines.is_empty();
            lines.iter().for_each(|line| self.on_line(id, line));
            if over {
                break;
            }
        }
        self.drop_connection(id);
        self.ended(id, status);
    }

    /// A worker has ended: with which status, if that is known.
    pub(super) fn ended(&mut self, id: Id, status: Option<ExitStatus>) {
        let now = Instant::now();
        let Some(worker) = self.workers.get_mut(&id) else {
            return;
        };
        worker.status = None;
        let hands_over = std::mem::take(&mut worker.hands_over);
        worker.next_pause(now);
        if hands_over {
            worker.pause = Duration::ZERO;
        }
        self.set_timer(id, None);
        match status {
            Some(status) if status.success() => {
                // The vTPM is over, unless xenstore has one of this name again.
                log::debug!(vtpm:% = id; "worker has ended");
                if let Some(worker) = self.workers.get_mut(&id) {
                    worker.needed = false;
                    worker.checking = true;
                }
                self.discovery.ask(id);
            }
            _ if hands_over => {
                log::info!(vtpm:% = id; "the worker of another version has handed over");
                self.start_if_wanted(id);
            }
            _ => {
                let how = status.map_or("hung up".to_owned(), |status| status.to_string());
                if self.stop.is_none() {
                    log::warn!(vtpm:% = id; "worker ended ({how}): another one follows if it is needed");
                }
                if let Some(worker) = self.workers.get_mut(&id) {
                    worker.restarts += 1;
                }
                self.totals.worker_restarts += 1;
                self.start_if_wanted(id);
            }
        }
    }

    // Status.
}
