// SPDX-License-Identifier: GPL-2.0

//! A guest's frontend: the project's own half of the protocol, over a page that is a file.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use xen_tpm_protocol::frontend::{Cancelling, Completed, Idle, Submitted};
use xen_tpm_protocol::layout::{
    FEATURE_VALUE, LENGTH, LOCALITY, MAX_PACKET, NODE_EVENT_CHANNEL, NODE_FEATURE, NODE_RING_REF,
    NR_EXTRA_PAGES, PAD, PAGE_SIZE, STATE,
};
use xen_tpm_protocol::packet::Request;
use xen_tpm_protocol::{HeaderField, OutOfBounds, Page};

use crate::host::{wait_for, Host, LIMIT};
use crate::hypervisor::{Hypervisor, Port};
use crate::toolstack::{backend, frontend};
use crate::xenstore::Xenstore;

/// The page, by calls on its file: the backend has it mapped.
pub(crate) struct FilePage(File);

impl FilePage {
    fn get<const N: usize>(&self, at: usize) -> [u8; N] {
        let mut bytes = [0; N];
        self.0.read_exact_at(&mut bytes, at as u64).unwrap();
        bytes
    }

    fn put(&self, at: usize, bytes: &[u8]) {
        self.0.write_all_at(bytes, at as u64).unwrap();
    }
}

fn at(field: HeaderField) -> usize {
    match field {
        HeaderField::Locality => LOCALITY,
        HeaderField::Pad => PAD,
        HeaderField::NrExtraPages => NR_EXTRA_PAGES,
    }
}

impl Page for FilePage {
    fn state(&self) -> u8 {
        u8::from_le_bytes(self.get(STATE))
    }

    fn set_state(&self, value: u8) {
        self.put(STATE, &[value]);
    }

    fn byte(&self, field: HeaderField) -> u8 {
        u8::from_le_bytes(self.get(at(field)))
    }

    fn set_byte(&self, field: HeaderField, value: u8) {
        self.put(at(field), &[value]);
    }

    fn length(&self) -> u32 {
        u32::from_le_bytes(self.get(LENGTH))
    }

    fn set_length(&self, value: u32) {
        self.put(LENGTH, &value.to_le_bytes());
    }

    fn read(&self, offset: usize, into: &mut [u8]) -> Result<(), OutOfBounds> {
        self.0
            .read_exact_at(into, offset as u64)
            .map_err(|_| OutOfBounds)
    }

    fn write(&self, offset: usize, from: &[u8]) -> Result<(), OutOfBounds> {
        match offset + from.len() <= PAGE_SIZE {
            true => self.put(offset, from),
            false => return Err(OutOfBounds),
        }
        Ok(())
    }

    fn wipe(&self, offset: usize) -> Result<(), OutOfBounds> {
        let len = PAGE_SIZE.checked_sub(offset).ok_or(OutOfBounds)?;
        self.put(offset, &vec![0; len]);
        Ok(())
    }
}

/// Whose the page is.
enum Token {
    Ready(Idle),
    Running(Submitted),
    Cancelling(Cancelling),
}

/// How a command ended.
#[derive(Debug, PartialEq)]
pub(crate) enum Outcome {
    Response(Vec<u8>),
    /// IDLE: the backend abandoned it.
    Abandoned,
    /// Nothing came yet.
    Timeout,
}

/// What a frontend has of a connection.
struct Connection {
    page: FilePage,
    port: Port,
    token: Option<Token>,
}

/// A guest with one vTPM.
pub(crate) struct Guest {
    pub(crate) domid: u16,
    store: Xenstore,
    hypervisor: Hypervisor,
    connection: Option<Connection>,
    /// Grants and ports are numbered from here on, so that no two connections share one.
    last: u32,
    pub(crate) locality: u8,
}

impl Guest {
    /// Not connected yet.
    pub(crate) fn new(host: &Host, domid: u16) -> Self {
        Self {
            domid,
            store: host.connect(),
            hypervisor: host.hypervisor.clone(),
            connection: None,
            last: 8,
            locality: 0,
        }
    }

    /// Writes the frontend's state.
    pub(crate) fn show(&self, state: &str) {
        self.store.write(&self.node("state"), state);
    }

    /// A node of the frontend's.
    pub(crate) fn node(&self, name: &str) -> String {
        format!("{}/{name}", frontend(self.domid))
    }

    fn backend_state(&self) -> String {
        let node = format!("{}/state", backend(self.domid));
        self.store.read(&node).unwrap_or_default()
    }

    /// Waits for a state of the backend's.
    pub(crate) fn await_backend(&self, state: &str) {
        assert!(
            wait_for(LIMIT, || self.backend_state() == state),
            "domain {}: the backend shows {} and not {state}",
            self.domid,
            self.backend_state()
        );
    }

    /// Publishes a page and a port, and goes to Initialised, as one change.
    pub(crate) fn offer(&mut self) {
        self.last += 1;
        let (grant, port) = (self.last, self.last + 1_000);
        let page = FilePage(self.hypervisor.grant(self.domid, grant));
        let port = self.hypervisor.port(self.domid, port);
        self.store.transaction(|t| {
            t.write(&self.node(NODE_RING_REF), grant.to_string());
            t.write(&self.node(NODE_EVENT_CHANNEL), port.number().to_string());
            t.write(&self.node(NODE_FEATURE), FEATURE_VALUE);
            t.write(&self.node("state"), "3");
        });
        let token = Some(Token::Ready(Idle::new()));
        self.connection = Some(Connection { page, port, token });
    }

    /// Connects to a backend that waits for it, or will.
    pub(crate) fn connect(&mut self) {
        self.await_backend("2");
        self.offer();
        self.await_backend("4");
        self.show("4");
    }

    /// Closes the connection and makes another, as the driver does.
    pub(crate) fn reconnect(&mut self) {
        if self.backend_state() == "4" {
            self.show("5");
            assert!(wait_for(LIMIT, || self.backend_state() != "4"));
        }
        self.show("6");
        self.connect();
    }

    fn connection(&mut self) -> &mut Connection {
        self.connection.as_mut().expect("a connection")
    }

    /// The port of the connection.
    pub(crate) fn port(&self) -> &Port {
        &self.connection.as_ref().expect("a connection").port
    }

    /// Submits a command without waiting for the response.
    pub(crate) fn submit(&mut self, command: &[u8]) {
        let locality = self.locality;
        let connection = self.connection();
        let Some(Token::Ready(ready)) = connection.token.take() else {
            panic!("the page is not the guest's");
        };
        let request = Request::new(command).unwrap();
        let running = ready.submit(&connection.page, &request, locality).unwrap();
        connection.token = Some(Token::Running(running));
        connection.port.notify();
    }

    /// Asks the backend to abandon the command.
    pub(crate) fn cancel(&mut self) {
        let connection = self.connection();
        let Some(Token::Running(running)) = connection.token.take() else {
            panic!("no command is under way");
        };
        connection.token = Some(Token::Cancelling(running.cancel(&connection.page)));
        connection.port.notify();
    }

    /// Waits for the end of the command.
    pub(crate) fn wait(&mut self, timeout: Duration) -> Outcome {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(outcome) = self.look() {
                return outcome;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Outcome::Timeout;
            }
            self.connection().port.wait(left);
        }
    }

    fn look(&mut self) -> Option<Outcome> {
        let connection = self.connection();
        let (page, token) = (&connection.page, connection.token.take());
        let looked = match token.expect("a command") {
            Token::Ready(_) => panic!("no command is under way"),
            Token::Running(running) => running.poll(page).map_err(Token::Running),
            Token::Cancelling(cancelling) => cancelling.poll(page).map_err(Token::Cancelling),
        };
        let (ready, outcome) = match looked {
            Err(token) => {
                connection.token = Some(token);
                return None;
            }
            Ok(Completed::Abandoned(ready)) => (ready, Outcome::Abandoned),
            Ok(Completed::Finished(finished)) => {
                let mut response = vec![0; MAX_PACKET];
                let (ready, n) = finished.response(page, &mut response);
                response.truncate(n.expect("a response that is well-formed"));
                (ready, Outcome::Response(response))
            }
        };
        connection.token = Some(Token::Ready(ready));
        Some(outcome)
    }

    /// Runs a command to its end, whichever that is.
    pub(crate) fn try_run(&mut self, command: &[u8]) -> Outcome {
        self.submit(command);
        self.wait(LIMIT)
    }

    /// Runs a command that is responded to.
    pub(crate) fn run(&mut self, command: &[u8]) -> Vec<u8> {
        match self.try_run(command) {
            Outcome::Response(response) => response,
            other => panic!("domain {}: {other:?} to {command:02x?}", self.domid),
        }
    }
}
