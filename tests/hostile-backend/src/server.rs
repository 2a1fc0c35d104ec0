// SPDX-License-Identifier: GPL-2.0

//! The loop: an honest backend, whose every move a behaviour can replace.

use std::collections::VecDeque;
use std::io::Write;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{poll, PollFd, PollFlags};
use xen_tpm_protocol::{Page, State};
use xen_vtpmd::xen::Store;
use xen_vtpmd::xenbus::{Paths, RingParams};

use crate::behaviour::{Behaviour, Step, HONEST};
use crate::bus::{Vtpm, Wish};
use crate::control::Ears;
use crate::line::Line;
use crate::tpm::Tpm;
use crate::{edits, table, Result};

/// How often xenstore is looked at without being told that something has changed.
const REST: Duration = Duration::from_millis(200);

/// So many pages of former connections are kept at most.
const KEPT: usize = 64;

/// Everything there is.
struct Server {
    store: Store,
    tpm: Tpm,
    behaviour: &'static Behaviour,
    vtpm: Option<Vtpm>,
    line: Option<Line>,
    /// Former connections, whose pages are still mapped.
    kept: Vec<Line>,
    /// The running command's steps that are left, and when the next is due.
    plan: VecDeque<Step>,
    due: Instant,
    /// A command was seen that has not ended; its cancel was seen.
    working: bool,
    cancelled: bool,
    request: Vec<u8>,
    answer: Vec<u8>,
    /// A response that the next command gets in place of its own.
    owed: Option<Vec<u8>>,
    /// Connections that the guest ended while a command of theirs ran.
    interrupted: usize,
    /// Commands since the behaviour began; connections, grants and turns of the loop since ever.
    commands: usize,
    connections: usize,
    grants: Vec<u32>,
    turns: u32,
}

/// Serves vTPMs, one after the other, until it is killed.
pub(crate) fn serve(socket: &str) -> Result<()> {
    let ears = Ears::open()?;
    let mut server = Server {
        store: Store::open()?,
        tpm: Tpm::open(socket)?,
        behaviour: &HONEST,
        vtpm: None,
        line: None,
        kept: Vec::new(),
        plan: VecDeque::new(),
        due: Instant::now(),
        working: false,
        cancelled: false,
        request: Vec::new(),
        answer: Vec::new(),
        owed: None,
        interrupted: 0,
        commands: 0,
        connections: 0,
        grants: Vec::new(),
        turns: 0,
    };
    server.store.watch(&Paths::base(0), "base")?;
    println!("ready");

    let mut rest = Instant::now();
    loop {
        if server.wait(&ears)? || Instant::now() >= rest {
            server.follow()?;
            rest = Instant::now() + REST;
        }
        if let Some((order, mut stream)) = ears.order()? {
            let answer = server
                .obey(&order)
                .unwrap_or_else(|e| format!("error: {e}"));
            println!("{order}: {answer}");
            // Whoever asked may have gone.
            let _ = writeln!(stream, "{answer}");
        }
        server.look();
        server.go_on();
        server.always();
    }
}

impl Server {
    /// Waits for something to do: true if xenstore has news.
    fn wait(&mut self, ears: &Ears) -> Result<bool> {
        let now = Instant::now();
        let limit = match () {
            () if !self.behaviour.always.is_empty() => Duration::ZERO,
            () if !self.plan.is_empty() => self.due.saturating_duration_since(now).min(REST),
            () => REST,
        };
        let mut fds = vec![
            PollFd::new(&self.store, PollFlags::IN),
            PollFd::new(ears, PollFlags::IN),
        ];
        if let Some(line) = &self.line {
            fds.push(PollFd::new(line.event(), PollFlags::IN));
        }
        poll(&mut fds, i32::try_from(limit.as_millis()).unwrap_or(0))?;
        let event = fds
            .get(2)
            .is_some_and(|fd| fd.revents().contains(PollFlags::IN));

        if let (true, Some(line)) = (event, &self.line) {
            line.event().wait()?;
            line.event().unmask()?;
        }
        let mut news = false;
        while self.store.next_event()?.is_some() {
            news = true;
        }
        Ok(news)
    }

    /// Does what the toolstack and the guest want, as far as xenstore says it.
    fn follow(&mut self) -> Result<()> {
        let Some(vtpm) = &mut self.vtpm else {
            self.vtpm = Vtpm::discover(&self.store)?;
            if let Some(vtpm) = &self.vtpm {
                println!("{}: found", vtpm.id());
            }
            return Ok(());
        };
        let grant = self.line.as_ref().map(Line::grant);
        match vtpm.wish(&self.store, grant, self.behaviour) {
            Wish::Nothing => {}
            Wish::Gone => {
                println!("{}: gone", vtpm.id());
                vtpm.leave(&self.store)?;
                self.vtpm = None;
                self.kept.clear();
                self.line = None;
            }
            Wish::Connect(particulars) => self.connect(particulars),
            Wish::Close => {
                vtpm.show(&self.store, "5")?;
            }
            Wish::Closed => {
                self.interrupted += usize::from(self.line.is_some() && self.working);
                self.part();
                self.bus("2");
            }
        }
        Ok(())
    }

    /// Shows a state.
    fn bus(&mut self, state: &'static str) {
        self.step(Step::Node("state", state), false);
    }

    /// Maps and binds.
    fn connect(&mut self, particulars: RingParams) {
        self.part();
        let Some(vtpm) = &self.vtpm else { return };
        match Line::open(vtpm.id(), particulars) {
            Ok(line) => {
                self.grants.push(line.grant());
                self.line = Some(line);
                self.connections += 1;
                for step in self
                    .behaviour
                    .connect
                    .iter()
                    .chain(self.behaviour.connected)
                {
                    self.step(*step, true);
                }
            }
            Err(e) => println!("{}: {e}", vtpm.id()),
        }
    }

    /// Gives the connection up.
    fn part(&mut self) {
        let line = self.line.take();
        if self.behaviour.keep && self.kept.len() < KEPT {
            self.kept.extend(line);
        }
        self.plan.clear();
        self.working = false;
        self.cancelled = false;
    }

    /// Carries out an order.
    fn obey(&mut self, order: &str) -> Result<String> {
        let (word, rest) = order.split_once(' ').unwrap_or((order, ""));
        match word {
            "behave" => {
                let known = table::all().find(|behaviour| behaviour.name == rest);
                self.behave(known.ok_or_else(|| format!("no behaviour {rest:?}"))?)?;
                Ok("ok".into())
            }
            // As a backend does that was started anew.
            "reconnect" => {
                self.bus("5");
                Ok("ok".into())
            }
            "find" => {
                // What the driver asks over the present connection by itself is not left there.
                let now = self.line.iter().map(|line| {
                    let (hits, bytes) = line.find(rest.as_bytes());
                    (hits, if line.is_busy() { 0 } else { bytes })
                });
                let kept = self.kept.iter().map(|line| line.find(rest.as_bytes()));
                let found = kept.chain(now);
                let (pages, hits, bytes) = found.fold((0, 0, 0), |sum, (hits, bytes)| {
                    (sum.0 + 1, sum.1 + hits, sum.2 + bytes)
                });
                Ok(format!("pages {pages} hits {hits} bytes {bytes}"))
            }
            "status" => {
                let grants: Vec<String> = self.grants.iter().map(u32::to_string).collect();
                Ok(format!(
                    "behaviour {} commands {} connections {} interrupted {} turns {} grants {}",
                    self.behaviour.name,
                    self.commands,
                    self.connections,
                    self.interrupted,
                    self.turns,
                    grants.join(",")
                ))
            }
            _ => Err("orders are: behave NAME, reconnect, find TEXT, status".into()),
        }
    }

    /// Begins a behaviour. A command that the last one left in the page is this one's.
    fn behave(&mut self, behaviour: &'static Behaviour) -> Result<()> {
        self.behaviour = behaviour;
        self.commands = 0;
        self.owed = None;
        self.kept.clear();
        self.plan.clear();
        self.working = false;
        self.cancelled = false;
        if let Some(vtpm) = &mut self.vtpm {
            vtpm.restore(&self.store)?;
        }
        for step in behaviour.start {
            self.step(*step, true);
        }
        Ok(())
    }

    /// Looks at the page.
    fn look(&mut self) {
        let state = self
            .line
            .as_ref()
            .map(|line| State::from_wire(line.page().state()));
        match state.flatten() {
            Some(State::Submit) if !self.working => {
                self.working = true;
                self.cancelled = false;
                self.begin(self.behaviour.steps(self.commands));
                self.commands += 1;
            }
            Some(State::Cancel) if !self.cancelled => {
                self.cancelled = true;
                if let Some(steps) = self.behaviour.cancel {
                    self.begin(steps);
                }
            }
            _ => {}
        }
    }

    fn begin(&mut self, steps: &'static [Step]) {
        self.plan = steps.iter().copied().collect();
        self.due = Instant::now();
    }

    /// Does the steps of the running command that are due.
    fn go_on(&mut self) {
        while Instant::now() >= self.due {
            match self.plan.pop_front() {
                Some(Step::Wait(ms)) => self.due = Instant::now() + Duration::from_millis(ms),
                Some(step) => self.step(step, false),
                None => return,
            }
        }
    }

    /// Does what the behaviour does all the time.
    fn always(&mut self) {
        self.turns = self.turns.wrapping_add(1);
        for step in self.behaviour.always {
            self.step(*step, true);
        }
    }

    /// Does a step. Not `inline` means that it is one of a running command's.
    fn step(&mut self, step: Step, inline: bool) {
        if let Err(e) = self.try_step(step, inline) {
            println!("{step:?}: {e}");
        }
    }

    fn try_step(&mut self, step: Step, inline: bool) -> Result<()> {
        if let (
            Step::Node(..) | Step::Remove(_) | Step::RemoveFolder | Step::HugeFeature,
            Some(vtpm),
        ) = (step, &mut self.vtpm)
        {
            return match step {
                Step::Node(node, text) => vtpm.write(&self.store, node, text),
                Step::Remove(node) => vtpm.remove(&self.store, node),
                Step::HugeFeature => {
                    vtpm.write(&self.store, "feature-protocol-v2", &"1".repeat(2000))
                }
                _ => vtpm.remove_folder(&self.store),
            };
        }
        match step {
            Step::Wait(ms) => thread::sleep(Duration::from_millis(ms)),
            Step::Repeat(times, steps) => {
                for _ in 0..times {
                    for step in steps {
                        self.step(*step, inline);
                    }
                }
            }
            Step::Edit(edit) => edit(&self.request, &mut self.answer),
            Step::Haunt => {
                let mut answer = Vec::new();
                edits::made_up(&self.request, &mut answer);
                for line in &self.kept {
                    line.put(&answer);
                    line.page().set_state(State::Finish as u8);
                    line.notify(1);
                }
            }
            Step::Vanish => self.line = None,
            _ => self.page_step(step, inline)?,
        }
        Ok(())
    }

    /// A step that needs the page. Without one there is nothing to do.
    fn page_step(&mut self, step: Step, inline: bool) -> Result<()> {
        let Some(line) = &self.line else {
            return Ok(());
        };
        let page = line.page();
        match step {
            Step::Run | Step::Owe => {
                self.request = line.request();
                let response = match (self.owed.take(), self.request.as_slice()) {
                    (Some(owed), _) => owed,
                    (None, []) => Vec::new(),
                    (None, request) => self.tpm.command(request)?,
                };
                match step {
                    Step::Owe => self.owed = Some(response),
                    _ => self.answer = response,
                }
            }
            Step::Put => line.put(&self.answer),
            Step::Length(length) => page.set_length(length),
            Step::Poke(field, value) => page.set_byte(field, value),
            Step::State(value) => {
                page.set_state(value);
                // Whatever the guest submits next is another command.
                if !inline && matches!(State::from_wire(value), Some(State::Idle | State::Finish)) {
                    self.working = false;
                    self.cancelled = false;
                }
            }
            Step::States(from, to) => {
                for value in from..=to {
                    page.set_state(value);
                    line.notify(1);
                }
            }
            Step::Notify(count) => line.notify(count),
            Step::ScribbleLength if page.state() == State::Finish as u8 => {
                let lengths = [
                    0,
                    12,
                    20,
                    22,
                    4088,
                    4089,
                    u32::MAX,
                    self.answer.len() as u32,
                ];
                page.set_length(lengths[self.turns as usize % lengths.len()]);
            }
            Step::ScribblePayload => line.scribble(self.turns),
            _ => {}
        }
        Ok(())
    }
}
