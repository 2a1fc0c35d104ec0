// SPDX-License-Identifier: GPL-2.0

//! The broker, `xen-vtpmd broker`: does for its worker what that cannot do itself any more once it is confined.
//! Which vTPM, which domain, user and state it is about is on its command line, and no request can change that.
//!
//! It is the worker's child and ends with it; the I/O processes are its children and end with it. It reads
//! nothing but the worker's requests.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;
use std::{fs::File, io};

use clap::Args;
use rustix::net::{
    recvmsg, sendmsg, socketpair, AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage,
    RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};
use rustix::process::{pidfd_open, Pid, PidfdFlags, Signal};
use serde::{Deserialize, Serialize};

use crate::config::{Config, Sandbox, Uuid};
use crate::migrate::depart;
use crate::record::RunDir;
use crate::state::State;
use crate::swtpm::client::wait_readable;
use crate::swtpm::{Process, Version};
use crate::sys::{inherited, spawn_with};
use crate::xen::{Domain, Domains};
use crate::xenbus::{Id, RingParams};

/// The longest message.
const MAX_MESSAGE: usize = 4096;

/// What an I/O process inherits: its end of the link to the worker, swtpm's data socket, the journal, the
/// descriptor of changes, and where its messages go.
const FDS: usize = 5;

/// How long the broker may take for a request.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Which vTPM it is for.
#[derive(Clone, Debug, Args)]
#[group(skip)]
pub struct Broker {
    /// The guest's domain
    #[arg(long)]
    domid: u16,
    /// The state's uuid
    #[arg(long)]
    uuid: Uuid,
    /// The state directory
    #[arg(long)]
    state: PathBuf,
    /// The vTPM's run directory
    #[arg(long)]
    run: PathBuf,
    /// The version of the TPM
    #[arg(long)]
    version: Version,
    /// The user of its swtpm and I/O processes
    #[arg(long)]
    uid: Option<u32>,
    /// The localities that commands may come from, a bit each
    #[arg(long)]
    localities: u8,
    /// Refuse an I/O process without all of its sandbox
    #[arg(long)]
    sandbox_required: bool,
    /// The program to start
    #[arg(long)]
    launcher: PathBuf,
    /// The socket to the worker
    #[arg(long)]
    worker: RawFd,
}

/// What a worker can have done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Request {
    /// Start an I/O process for this grant and this port of the domain's.
    Connect {
        ring_ref: u32,
        port: u32,
        resumed: bool,
    },
    /// How did this I/O process end?
    Ended { pid: u32 },
    /// What became of the domain?
    Guest,
    /// Mark the state as that of a guest that was saved.
    Saved { vm: Option<String> },
    /// Pack the TPM for another host, and mark it as sent.
    Pack {
        vm: Option<String>,
        migration: String,
        peer: String,
    },
    /// Is it in doubt who has a TPM that was sent?
    InDoubt,
}

/// What the broker says to that.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Response {
    Started { pid: u32 },
    Ended { how: String },
    Guest(Domain),
    InDoubt(bool),
    Done,
    Failed(String),
}

/// Serves the worker until that ends.
pub fn run(broker: &Broker) -> ExitCode {
    if rustix::process::set_parent_process_death_signal(Some(Signal::Kill)).is_err() {
        return ExitCode::FAILURE;
    }
    let Some(worker) = inherited(broker.worker) else {
        return ExitCode::FAILURE;
    };
    let mut children = Vec::new();
    loop {
        let Ok(Some((request, fds))) = receive(worker.as_fd()) else {
            return ExitCode::SUCCESS;
        };
        let (response, fd) = match serde_json::from_slice(&request) {
            Ok(request) => broker.carry_out(request, fds, &mut children),
            Err(e) => (Response::Failed(e.to_string()), None),
        };
        let fd = fd.as_ref().map(AsFd::as_fd);
        if send(worker.as_fd(), &response, fd.as_slice()).is_err() {
            return ExitCode::FAILURE;
        }
    }
}

impl Broker {
    fn carry_out(
        &self,
        request: Request,
        fds: Vec<OwnedFd>,
        children: &mut Vec<Child>,
    ) -> (Response, Option<OwnedFd>) {
        let done = match request {
            Request::Connect {
                ring_ref,
                port,
                resumed,
            } => {
                // Those before it have ended, or do soon.
                children.retain_mut(|child| matches!(child.try_wait(), Ok(None)));
                match self.start(RingParams { ring_ref, port }, resumed, fds) {
                    Ok((child, pidfd)) => {
                        let pid = child.id();
                        children.push(child);
                        return (Response::Started { pid }, Some(pidfd));
                    }
                    Err(e) => Err(e.to_string()),
                }
            }
            Request::Ended { pid } => {
                let child = children.iter_mut().find(|child| child.id() == pid);
                let status = child.and_then(|child| child.try_wait().transpose());
                Ok(Response::Ended {
                    how: match status {
                        None => "hung up".into(),
                        Some(Ok(status)) => format!("ended ({status})"),
                        Some(Err(e)) => e.to_string(),
                    },
                })
            }
            Request::Guest => Domains::open()
                .and_then(|domains| domains.state(self.domid))
                .map(Response::Guest)
                .map_err(|e| e.to_string()),
            Request::Saved { vm } => {
                let marked = self.state().mark_saved(vm.as_deref());
                marked.map(|()| Response::Done).map_err(|e| e.to_string())
            }
            Request::Pack {
                vm,
                migration,
                peer,
            } => {
                let file = RunDir::at(self.run.clone()).departing();
                let packed = depart::pack(&self.state(), vm.as_deref(), &migration, &peer, &file);
                packed.map(|()| Response::Done)
            }
            Request::InDoubt => {
                depart::is_in_doubt(&self.state(), self.domid).map(Response::InDoubt)
            }
        };
        (done.unwrap_or_else(Response::Failed), None)
    }

    fn state(&self) -> State {
        State {
            uuid: self.uuid.clone(),
            path: self.state.clone(),
            version: self.version,
            exists: true,
        }
    }

    fn start(
        &self,
        params: RingParams,
        resumed: bool,
        fds: Vec<OwnedFd>,
    ) -> io::Result<(Child, OwnedFd)> {
        let Ok([link, data, shared, changes, messages]) = <[OwnedFd; FDS]>::try_from(fds) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let mut command = Command::new(&self.launcher);
        command.arg0("xen-vtpmd");
        command
            .arg("io")
            .args(["--domid", &self.domid.to_string()])
            .args(["--ring-ref", &params.ring_ref.to_string()])
            .args(["--port", &params.port.to_string()])
            .args(["--version", &self.version.to_string()])
            .args(["--localities", &self.localities.to_string()])
            .args(["--worker", &link.as_raw_fd().to_string()])
            .args(["--data", &data.as_raw_fd().to_string()])
            .args(["--shared", &shared.as_raw_fd().to_string()])
            .args(["--changes", &changes.as_raw_fd().to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::from(messages));
        if let Some(uid) = self.uid {
            command.args(["--uid", &uid.to_string()]);
        }
        for (is, option) in [
            (resumed, "--resumed"),
            (self.sandbox_required, "--sandbox-required"),
        ] {
            if is {
                command.arg(option);
            }
        }
        let inherited = [&link, &data, &shared, &changes].map(AsFd::as_fd);
        let mut child = spawn_with(&mut command, &inherited)?;
        match pidfd_open(Pid::from_child(&child), PidfdFlags::empty()) {
            Ok(pidfd) => Ok((child, pidfd)),
            Err(e) => {
                child.kill()?;
                child.wait()?;
                Err(e.into())
            }
        }
    }
}

/// The worker's side.
#[derive(Debug)]
pub struct Client {
    link: OwnedFd,
    process: Process,
}

impl Client {
    /// Starts a broker for this vTPM. It and its I/O processes inherit the worker's lock: the next worker begins
    /// when all of them have ended, so that no two I/O processes have the guest's page.
    pub fn start(
        config: &Config,
        id: Id,
        state: &State,
        uid: Option<u32>,
        lock: BorrowedFd<'_>,
    ) -> io::Result<Self> {
        let (link, peer) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?;
        let localities = config.policy(&state.uuid).localities;
        let mut command = Command::new(&config.launcher);
        command.arg0("xen-vtpmd");
        command
            .arg("broker")
            .args(["--domid", &id.domid.to_string()])
            .args(["--uuid", &state.uuid.to_string()])
            .arg("--state")
            .arg(&state.path)
            .arg("--run")
            .arg(RunDir::path(&config.run_dir, id))
            .args(["--version", &state.version.to_string()])
            .args(["--localities", &localities.to_string()])
            .arg("--launcher")
            .arg(&config.launcher)
            .args(["--worker", &peer.as_raw_fd().to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        if let Some(uid) = uid {
            command.args(["--uid", &uid.to_string()]);
        }
        if config.sandbox == Sandbox::Required {
            command.arg("--sandbox-required");
        }
        Ok(Self {
            link,
            process: Process::spawn(&mut command, &[peer.as_fd(), lock])?,
        })
    }

    /// Starts an I/O process that inherits these descriptors.
    pub fn connect(
        &self,
        params: RingParams,
        resumed: bool,
        fds: [BorrowedFd<'_>; FDS],
    ) -> Result<Process, String> {
        let RingParams { ring_ref, port } = params;
        let request = Request::Connect {
            ring_ref,
            port,
            resumed,
        };
        match self.ask(&request, &fds)? {
            (Response::Started { pid }, Some(pidfd)) => Ok(Process::adopt(pid, pidfd)),
            (other, _) => Err(unexpected(other)),
        }
    }

    /// How an I/O process ended.
    pub fn ended(&self, pid: u32) -> String {
        match self.ask(&Request::Ended { pid }, &[]) {
            Ok((Response::Ended { how }, _)) => how,
            Ok((other, _)) => unexpected(other),
            Err(e) => e,
        }
    }

    /// What became of the guest.
    pub fn guest(&self) -> Result<Domain, String> {
        match self.ask(&Request::Guest, &[])? {
            (Response::Guest(domain), _) => Ok(domain),
            (other, _) => Err(unexpected(other)),
        }
    }

    /// Marks the state as that of a guest that was saved, durably.
    pub fn mark_saved(&self, vm: Option<&str>) -> Result<(), String> {
        let vm = vm.map(str::to_owned);
        match self.ask(&Request::Saved { vm }, &[])? {
            (Response::Done, _) => Ok(()),
            (other, _) => Err(unexpected(other)),
        }
    }

    /// Packs the TPM for another host, and marks it as sent.
    pub fn pack(&self, vm: Option<&str>, migration: &str, peer: &str) -> Result<(), String> {
        let request = Request::Pack {
            vm: vm.map(str::to_owned),
            migration: migration.to_owned(),
            peer: peer.to_owned(),
        };
        match self.ask(&request, &[])? {
            (Response::Done, _) => Ok(()),
            (other, _) => Err(unexpected(other)),
        }
    }

    /// Whether it is in doubt who has a TPM that was sent.
    pub fn is_in_doubt(&self) -> Result<bool, String> {
        match self.ask(&Request::InDoubt, &[])? {
            (Response::InDoubt(is), _) => Ok(is),
            (other, _) => Err(unexpected(other)),
        }
    }

    fn ask(
        &self,
        request: &Request,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(Response, Option<OwnedFd>), String> {
        let failed = |e: io::Error| format!("broker: {e}");
        let link = self.link.as_fd();
        send(link, request, fds).map_err(failed)?;
        if !wait_readable(link, TIMEOUT).map_err(failed)? {
            // What it says later would be taken for the response to another request.
            let _ = self.process.signal(Signal::Kill);
            return Err("the broker does not respond".into());
        }
        let received = receive(link).map_err(failed)?;
        let (message, mut fds) = received.ok_or("the broker has ended")?;
        let response = serde_json::from_slice(&message);
        Ok((response.map_err(|e| failed(e.into()))?, fds.pop()))
    }
}

impl Drop for Client {
    /// The broker is gone before the worker is: with that the vTPM's cgroup is to be empty.
    fn drop(&mut self) {
        if let Err(e) = self.process.kill(TIMEOUT) {
            log::warn!("broker {}: {e}", self.process.id());
        }
    }
}

impl AsFd for Client {
    /// Readable when the broker has ended.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.link.as_fd()
    }
}

fn unexpected(response: Response) -> String {
    match response {
        Response::Failed(e) => e,
        other => format!("the broker says {other:?}"),
    }
}

fn send(link: BorrowedFd<'_>, message: &impl Serialize, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let message = serde_json::to_vec(message)?;
    if message.len() > MAX_MESSAGE {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut space = [0; rustix::cmsg_space!(ScmRights(FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(fds));
    }
    let flags = SendFlags::NOSIGNAL;
    sendmsg(link, &[IoSlice::new(&message)], &mut control, flags)?;
    Ok(())
}

/// The next message, with the descriptors that came with it; `None` if there is nobody any more.
fn receive(link: BorrowedFd<'_>) -> io::Result<Option<(Vec<u8>, Vec<OwnedFd>)>> {
    let mut message = vec![0; MAX_MESSAGE];
    let mut space = [0; rustix::cmsg_space!(ScmRights(FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC;
    let received = loop {
        match recvmsg(
            link,
            &mut [IoSliceMut::new(&mut message)],
            &mut control,
            flags,
        ) {
            Err(rustix::io::Errno::INTR) => continue,
            Err(rustix::io::Errno::CONNRESET) => return Ok(None),
            received => break received?,
        }
    };
    let mut fds = Vec::new();
    for part in control.drain() {
        if let RecvAncillaryMessage::ScmRights(more) = part {
            fds.extend(more);
        }
    }
    message.truncate(received.bytes);
    Ok((!message.is_empty()).then_some((message, fds)))
}
