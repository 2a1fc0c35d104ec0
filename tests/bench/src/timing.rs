// SPDX-License-Identifier: GPL-2.0

//! Takes the time of commands in a guest, one sample of each way after the other, round by round. It
//! only measures: all numbers are printed as they are.

#![forbid(unsafe_code)]

use std::error::Error;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const USAGE: &str = "usage: xen-tpm-timing time|run ROUNDS COMMAND NAME=DEVICE...
       xen-tpm-timing row COUNT COMMAND NAME=DEVICE...
       xen-tpm-timing busy SECONDS COMMAND NAME=DEVICE
COMMAND is in hexadecimal, NUL bytes that follow as +COUNT. A DEVICE in /sys is a file that gives the ns itself.
'time' gives each sample's ns, and as 'clock' those between two looks at the clock; 'run' the ns that the vCPU has run
by Xen's account, and as 'clock' what looking at that takes; 'row' the ns of COUNT commands in a row; 'busy' one
command after the other for that long, and the time of day, in ns, after every 16th.";

/// After so many commands the time is taken down.
const MARK: usize = 16;

/// What Xen says that the vCPU has run, in ns: see floor.c.
const RUNNING: &str = "/sys/kernel/debug/vtpm-floor/running";

/// Bytes of a packet's header.
const HEADER: usize = 10;

/// A way to have a command carried out.
enum Way {
    /// By a device, from here.
    Device(File),
    /// By the kernel, which repeats the last command of the device before it and gives the time.
    Kernel(String),
}

impl Way {
    fn open(path: &str) -> Result<Self> {
        if path.starts_with("/sys/") {
            return Ok(Self::Kernel(path.to_owned()));
        }
        let file = OpenOptions::new().read(true).write(true).open(path);
        Ok(Self::Device(file.map_err(|e| format!("{path}: {e}"))?))
    }
}

/// Carries out a command, which has to succeed.
fn exchange(device: &mut File, command: &[u8], answer: &mut [u8]) -> Result<usize> {
    device.write_all(command)?;
    Ok(device.read(answer)?)
}

/// Fails unless it is the answer to a command that succeeded.
fn check(answer: &[u8]) -> Result<()> {
    match answer.get(6..HEADER) {
        Some([0, 0, 0, 0]) => Ok(()),
        _ => Err(format!("the answer is {answer:02x?}").into()),
    }
}

/// The number in a file.
fn number(path: &str) -> Result<u64> {
    let text = fs::read_to_string(path).map_err(|e| format!("{path}: {e}"))?;
    Ok(text.trim().parse()?)
}

/// Which clock the samples are taken by.
enum Clock {
    Time(Instant),
    Running,
}

impl Clock {
    /// The ns since some moment.
    fn now(&self) -> Result<u64> {
        match self {
            Self::Time(start) => Ok(u64::try_from(start.elapsed().as_nanos())?),
            Self::Running => number(RUNNING),
        }
    }
}

/// One sample of each way in each round.
fn rounds(clock: &Clock, count: usize, command: &[u8], ways: &mut [(String, Way)]) -> Result<()> {
    let mut samples = vec![Vec::with_capacity(count); ways.len() + 1];
    let mut answer = [0; 4096];

    for _ in 0..count {
        for ((_, way), samples) in ways.iter_mut().zip(&mut samples) {
            samples.push(match way {
                Way::Device(device) => {
                    let start = clock.now()?;
                    let length = exchange(device, command, &mut answer)?;
                    let end = clock.now()?;
                    check(&answer[..length])?;
                    end - start
                }
                Way::Kernel(path) => number(path)?,
            });
        }
        let start = clock.now()?;
        samples[ways.len()].push(clock.now()? - start);
    }
    let names = ways.iter().map(|(name, _)| name.as_str()).chain(["clock"]);
    for (name, samples) in names.zip(&samples) {
        let samples: Vec<String> = samples.iter().map(u64::to_string).collect();
        println!("{name} {}", samples.join(" "));
    }
    Ok(())
}

/// The commands of each way in a row.
fn rows(count: usize, command: &[u8], ways: &mut [(String, Way)]) -> Result<()> {
    let mut answer = [0; 4096];

    for (name, way) in ways {
        let Way::Device(device) = way else {
            return Err("in a row there are devices only".into());
        };
        let start = Instant::now();
        for _ in 0..count {
            let length = exchange(device, command, &mut answer)?;
            check(&answer[..length])?;
        }
        println!("{name} {}", start.elapsed().as_nanos());
    }
    Ok(())
}

/// One command after the other, while others do the same in other guests.
fn busy(seconds: u64, command: &[u8], name: &str, device: &mut File) -> Result<()> {
    let (start, limit) = (Instant::now(), Duration::from_secs(seconds));
    let (mut marks, mut answer) = (Vec::new(), [0; 4096]);

    while start.elapsed() < limit {
        marks.push(SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos());
        for _ in 0..MARK {
            let length = exchange(device, command, &mut answer)?;
            check(&answer[..length])?;
        }
    }
    let marks: Vec<String> = marks.iter().map(u128::to_string).collect();
    println!("{name} {}", marks.join(" "));
    Ok(())
}

/// Makes a command of its text.
fn command(text: &str) -> Result<Vec<u8>> {
    let (digits, zeroes) = text.split_once('+').unwrap_or((text, "0"));
    let byte = |at| digits.get(at..at + 2).ok_or("half a byte");
    let mut command = Vec::new();
    for at in (0..digits.len()).step_by(2) {
        command.push(u8::from_str_radix(byte(at)?, 16)?);
    }
    command.resize(command.len() + zeroes.parse::<usize>()?, 0);
    Ok(command)
}

fn measure(args: &[String]) -> Result<()> {
    let [what, count, packet, devices @ ..] = args else {
        return Err(USAGE.into());
    };
    let (count, packet) = (count.parse()?, command(packet)?);
    let mut ways = Vec::new();
    for device in devices {
        let (name, path) = device.split_once('=').ok_or(USAGE)?;
        ways.push((name.to_owned(), Way::open(path)?));
    }
    match what.as_str() {
        "time" => rounds(&Clock::Time(Instant::now()), count, &packet, &mut ways),
        "run" => rounds(&Clock::Running, count, &packet, &mut ways),
        "row" => rows(count, &packet, &mut ways),
        "busy" => match ways.as_mut_slice() {
            [(name, Way::Device(device))] => busy(count as u64, &packet, name, device),
            _ => Err(USAGE.into()),
        },
        _ => Err(USAGE.into()),
    }
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match measure(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("xen-tpm-timing: {e}");
            ExitCode::FAILURE
        }
    }
}
