// SPDX-License-Identifier: GPL-2.0

//! What the manager is asked for: the status, a stop, a new configuration; and what it tells systemd.

use super::*;

/// How often systemd wants to hear of the manager.
#[derive(Debug)]
pub(super) struct Watchdog {
    pub(super) period: Duration,
    pub(super) next: Instant,
}

impl Watchdog {
    pub(super) fn of_service() -> Option<Self> {
        let mut us = 0;
        // Not for the workers: they are not what systemd started.
        sd_notify::watchdog_enabled(true, &mut us).then(|| Self {
            period: Duration::from_micros(us / 3),
            next: Instant::now(),
        })
    }
}

impl Manager {
    pub(super) fn query(&mut self, client: u32) {
        let mut waiting = BTreeSet::new();
        for (id, worker) in &mut self.workers {
            let Some(connection) = &worker.connection else {
                continue;
            };
            // One that still owes a response gives it to this client too.
            if !worker.asked {
                match connection.send(ASK_STATUS) {
                    Ok(()) => worker.asked = true,
                    Err(e) => {
                        log::debug!(vtpm:% = id; "asking the worker: {e}");
                        continue;
                    }
                }
            }
            waiting.insert(*id);
        }
        let query = Query {
            client,
            waiting,
            deadline: Instant::now() + RESPONSE_TIMEOUT,
        };
        match query.waiting.is_empty() {
            true => self.respond(query),
            false => self.queries.push(query),
        }
    }

    /// A worker has responded, or will not.
    pub(super) fn answered(&mut self, id: Id) {
        let mut i = 0;
        while let Some(query) = self.queries.get_mut(i) {
            query.waiting.remove(&id);
            match query.waiting.is_empty() {
                true => {
                    let query = self.queries.swap_remove(i);
                    self.respond(query);
                }
                false => i += 1,
            }
        }
    }

    pub(super) fn respond(&mut self, query: Query) {
        let report = self.report(&query.waiting);
        if let Some(server) = &mut self.server {
            server.respond(&self.events, query.client, &report);
        }
    }

    pub(super) fn report(&self, silent: &BTreeSet<Id>) -> Report {
        let vtpm = |(id, worker): (&Id, &Worker)| {
            let blank = |state: &str| status::Vtpm {
                domid: id.domid,
                devid: id.devid,
                state: state.to_owned(),
                ..status::Vtpm::default()
            };
            let mut vtpm = match &worker.status {
                _ if silent.contains(id) => blank("does not respond"),
                Some(status) if worker.connection.is_some() => status.clone(),
                _ if worker.is_alive() => blank("starting"),
                _ => blank("no worker"),
            };
            vtpm.worker_restarts = worker.restarts;
            if vtpm.last_error.is_none() && !worker.complaint.is_empty() {
                vtpm.last_error = Some(status::LastError::now(worker.complaint.clone()));
            }
            vtpm
        };
        Report {
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            used_us: crate::counters::used_by_daemon().as_secs_f64() * 1e6,
            cgroup: match &self.cgroups {
                Ok(cgroups) => format!("cgroup v2 limits: {}", cgroups.controllers()),
                Err(reason) => format!("no cgroup limits: {reason}"),
            },
            totals: self.totals.clone(),
            vtpms: self.workers.iter().map(vtpm).collect(),
        }
    }

    // The end.

    pub(super) fn begin_stop(&mut self, client: u32) {
        log::info!("stopping, with {} vTPMs", self.workers.len());
        notify(&[NotifyState::Stopping]);
        self.stop = Some(Stop {
            client,
            deadline: Instant::now() + STOP_TIMEOUT,
        });
        for id in self.workers.keys().copied().collect::<Vec<_>>() {
            if self.workers[&id].connection.is_none() {
                self.connect(id);
            }
            let Some(worker) = self.workers.get(&id) else {
                continue;
            };
            match worker.connection.as_ref().map(|c| c.send(ASK_STOP)) {
                Some(Ok(())) => (),
                Some(Err(e)) => log::warn!(vtpm:% = id; "stopping the worker: {e}"),
                None if worker.is_alive() => {
                    log::warn!(vtpm:% = id; "the worker does not listen");
                }
                None => (),
            }
        }
    }

    pub(super) fn is_stopped(&self) -> bool {
        let late = |stop: &Stop| stop.deadline <= Instant::now();
        self.stop.as_ref().is_some_and(late) || !self.workers.values().any(Worker::is_alive)
    }

    pub(super) fn finish_stop(mut self) {
        let left: Vec<String> = self
            .workers
            .iter()
            .filter(|(_, worker)| worker.is_alive())
            .map(|(id, _)| id.to_string())
            .collect();
        let response = match left.is_empty() {
            true => serde_json::json!({ "stopped": true }),
            false => {
                let error = format!("these vTPMs did not end: {}", left.join(", "));
                log::error!("{error}");
                serde_json::json!({ "error": error })
            }
        };
        if let (Some(stop), Some(mut server)) = (self.stop.take(), self.server.take()) {
            server.respond(&self.events, stop.client, &response);
            server.finish();
        }
        log::info!("stopped");
    }

    /// Leaves everything to the next manager.
    pub(super) fn leave(self) {
        log::info!(
            "ending; {} workers stay for the next manager",
            self.workers.len()
        );
        notify(&[NotifyState::Stopping]);
    }

    pub(super) fn on_signal(&mut self) -> Turn {
        let mut bytes = [0; 16];
        // Emptied: it only says that there was a signal.
        while (&self.signals).read(&mut bytes).is_ok_and(|n| n > 0) {}
        match self.reload.swap(false, Ordering::Relaxed) {
            true => {
                self.reload_config();
                Turn::Next
            }
            false => Turn::Leave,
        }
    }

    /// Reads the configuration again, for workers to come. A broken one changes nothing.
    pub(super) fn reload_config(&mut self) {
        let accepted = self
            .file
            .load()
            .map_err(Error::from)
            .and_then(|(new, text)| {
                let gid = new.status_gid()?;
                accept_config(&self.config.run_dir, &text)?;
                Ok((new, gid))
            });
        match accepted {
            Ok((new, gid)) => {
                log::set_max_level(new.log_level);
                self.config = Config {
                    run_dir: self.config.run_dir.clone(),
                    launcher: self.config.launcher.clone(),
                    ..new
                };
                if let Some(server) = &mut self.server {
                    if let Err(e) = server.rebind(&self.config.run_dir, gid, &self.events) {
                        log::error!("{e}");
                    }
                }
                log::info!("the configuration is read again, for vTPMs that start from now on");
            }
            Err(e) => log::error!("the configuration stays as it was: {e}"),
        }
    }

    /// Tells systemd how many vTPMs there are if that has changed, and that the service is ready.
    pub(super) fn tell_systemd(&mut self, ready: bool) {
        let vtpms = self.workers.len();
        let first = ready && !self.ready;
        if !first && (!self.ready || self.told == Some(vtpms)) {
            return;
        }
        let status = match (vtpms, self.scanned) {
            (_, false) => "waiting for xenstored".to_owned(),
            (1, _) => "1 vTPM".to_owned(),
            _ => format!("{vtpms} vTPMs"),
        };
        let mut state = vec![NotifyState::Status(&status)];
        if first {
            self.ready = true;
            state.push(NotifyState::Ready);
        }
        self.told = self.scanned.then_some(vtpms);
        notify(&state);
    }
}
