// SPDX-License-Identifier: GPL-2.0

//! `xen-vtpmd migrate-receive`, which the source starts over ssh: takes the state, and has the worker that xl's
//! destination starts wait for it. It ends with the connection and leaves the marks as they are then.

use std::io::{stdin, stdout, Write};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use tempfile::NamedTempFile;
use zeroize::Zeroizing;

use super::link::Link;
use super::mark::{Mark, Receiving, Role};
use super::programs::Versions;
use super::resolve::{marked, put, remove_state, unmark, LOCK_LIMIT};
use super::{key, Error, FromDestination, FromSource, Offer, FORMAT};
use crate::archive::{self, transfer};
use crate::config::{Config, Uuid};
use crate::control;
use crate::state::{self, Lock};
use crate::swtpm::Version;

/// How long the source may be silent. It says every few seconds that it is there.
const SILENCE: Duration = Duration::from_secs(60);

/// How long a state may be under way.
const TRANSFER: Duration = Duration::from_secs(30);

/// A vTPM that is expected.
#[derive(Debug)]
struct Expected {
    uuid: Uuid,
    mark: Mark,
    wants_key: bool,
    _receiving: Receiving,
}

fn unfit(uuid: &Uuid, reason: impl Into<String>) -> Error {
    Error::Unfit(uuid.clone(), reason.into())
}

/// Receives vTPMs over standard input and output.
pub fn run(config: &Config) -> Result<(), Error> {
    let from = stdin().as_fd().try_clone_to_owned()?;
    let mut link = Link::new(from, stdout().as_fd().try_clone_to_owned()?);
    let expected = match hello(config, &mut link) {
        Ok(expected) => expected,
        Err(e) => {
            let reason = e.to_string();
            link.send(&FromDestination::Refused { reason })?;
            return Ok(());
        }
    };
    let wants_key = expected.iter().filter(|vtpm| vtpm.wants_key);
    let wants_key = wants_key.map(|vtpm| vtpm.uuid.to_string()).collect();
    link.send(&FromDestination::Ready { wants_key })?;
    loop {
        let message = link.receive(SILENCE)?;
        let last = matches!(message, FromSource::Commit | FromSource::Discard);
        let response = match message {
            FromSource::Alive => continue,
            FromSource::State { uuid, len, key } => {
                let key = key.map(Zeroizing::new);
                let bytes = link.receive_bytes(len, TRANSFER)?;
                let begun = Instant::now();
                let stored = expected
                    .iter()
                    .find(|vtpm| vtpm.uuid.to_string() == uuid)
                    .ok_or_else(|| Error::Guest(format!("nobody said that {uuid} comes")))
                    .and_then(|vtpm| {
                        store(config, vtpm, &bytes, key.as_deref().map(String::as_str))
                    });
                match stored {
                    Ok(()) => FromDestination::Stored {
                        seconds: begun.elapsed().as_secs_f64(),
                    },
                    Err(e) => {
                        each(&expected, |vtpm| failed(config, vtpm))?;
                        let reason = e.to_string();
                        FromDestination::Refused { reason }
                    }
                }
            }
            FromSource::Abort { .. } => says(each(&expected, |vtpm| failed(config, vtpm))),
            FromSource::Commit => says(each(&expected, |vtpm| commit(config, vtpm))),
            FromSource::Discard => says(each(&expected, |vtpm| discard(config, vtpm))),
            FromSource::Taken => says(each(&expected, |vtpm| taken(config, vtpm))),
            FromSource::Hello { .. } => says(Err(Error::Guest("hello again".into()))),
        };
        link.send(&response)?;
        if last {
            return Ok(());
        }
    }
}

fn says(done: Result<(), Error>) -> FromDestination {
    match done {
        Ok(()) => FromDestination::Yes,
        Err(e) => FromDestination::No {
            reason: e.to_string(),
        },
    }
}

/// Does it for each, also after one failed, and gives the first failure.
fn each(
    expected: &[Expected],
    mut what: impl FnMut(&Expected) -> Result<(), Error>,
) -> Result<(), Error> {
    let done: Vec<_> = expected.iter().map(&mut what).collect();
    done.into_iter().collect()
}

/// Looks for anything that stands against the migration, before anything is done.
fn hello(config: &Config, link: &mut Link) -> Result<Vec<Expected>, Error> {
    let FromSource::Hello {
        format,
        migration,
        host,
        programs,
        vtpms,
    } = link.receive(SILENCE)?
    else {
        return Err(Error::Guest("a hello is expected".into()));
    };
    if format != FORMAT {
        let text = format!("its messages have the format {format}, and {FORMAT} is known here");
        return Err(Error::Guest(text));
    }
    if let Some(reason) = Versions::here().obstacle(&programs) {
        return Err(Error::Guest(reason));
    }
    let manager = control::ask(&config.run_dir, control::Request::Status);
    manager.map_err(|e| Error::Guest(e.to_string()))?;
    let mut expected = Vec::new();
    for offer in vtpms {
        let mark = Mark::new(&migration, &host, Role::Expected);
        expected.push(expect(config, &offer, mark)?);
    }
    // Only now that all of them can come.
    for vtpm in &expected {
        let (path, _) = marked(config, &vtpm.uuid)?;
        let _lock = Lock::wait(config, &vtpm.uuid, LOCK_LIMIT)?;
        // The source has the TPM, so this is what another migration left.
        remove_state(&path, &vtpm.uuid)?;
        put(&path, &vtpm.mark)?;
    }
    Ok(expected)
}

fn expect(config: &Config, offer: &Offer, mark: Mark) -> Result<Expected, Error> {
    let guest = |e: String| Error::Guest(e);
    let uuid: Uuid = offer.uuid.parse().map_err(guest)?;
    let version: Version = offer.version.parse().map_err(guest)?;
    let identity: Uuid = offer.identity.parse().map_err(guest)?;
    std::fs::create_dir_all(&config.run_dir)?;
    let receiving = Receiving::take(&config.run_dir, &uuid)?
        .ok_or_else(|| unfit(&uuid, "another migration brings it here"))?;
    let (path, old) = marked(config, &uuid)?;
    const SHARED: &str =
        "if the two hosts share the state directory, `xl migrate` alone takes it along";
    match Lock::wait(config, &uuid, LOCK_LIMIT) {
        Err(e @ state::Error::Locked { .. }) => return Err(unfit(&uuid, format!("{e}: {SHARED}"))),
        lock => drop(lock?),
    }
    match old {
        Some(old) if old.role == Role::Leaving => return Err(Error::Guest(old.refusal(&uuid))),
        Some(_) => (),
        None if path.try_exists()? => {
            return Err(unfit(
                &uuid,
                format!("it has a state there already: {SHARED}"),
            ));
        }
        None => (),
    }
    match config.policy(&uuid).version {
        Some(wanted) if wanted != version => {
            let found = version;
            return Err(state::Error::Version {
                uuid,
                found,
                wanted,
            }
            .into());
        }
        _ => (),
    }
    match archive::holder(config, &identity)? {
        Some(holder) if holder != offer.uuid => {
            let reason = format!("vTPM {holder} there has the same identity");
            return Err(unfit(&uuid, reason));
        }
        _ => (),
    }
    let wants_key = key::wants_key(config, &uuid, &offer.key)?;
    Ok(Expected {
        uuid,
        mark,
        wants_key,
        _receiving: receiving,
    })
}

/// Stores what came, durably, and says so to the worker that waits.
fn store(config: &Config, vtpm: &Expected, bytes: &[u8], key: Option<&str>) -> Result<(), Error> {
    let uuid = &vtpm.uuid;
    let _lock = Lock::wait(config, uuid, LOCK_LIMIT)?;
    let (path, mark) = marked(config, uuid)?;
    if mark.as_ref() != Some(&vtpm.mark) {
        return Err(unfit(uuid, "it is not expected any more"));
    }
    // In memory: /run is a tmpfs.
    let mut file = NamedTempFile::new_in(&config.run_dir)?;
    file.write_all(bytes)?;
    let mut unpacked = transfer::unpack(uuid, file.path())?;
    drop(file);
    if vtpm.wants_key {
        let version = unpacked.version;
        unpacked.files = key::encrypt(config, uuid, version, &unpacked.files, key)?;
    }
    transfer::place(config, uuid, unpacked, vtpm.wants_key)?;
    put(&path, &vtpm.mark.with(Role::Arrived))
}

/// Nothing comes, so that the worker refuses, and with it the destination's xl. The mark stays: without it the
/// worker would make a new TPM.
fn failed(config: &Config, vtpm: &Expected) -> Result<(), Error> {
    let _lock = Lock::wait(config, &vtpm.uuid, LOCK_LIMIT)?;
    let (path, mark) = marked(config, &vtpm.uuid)?;
    match mark {
        Some(mark) if mark.migration == vtpm.mark.migration => {
            remove_state(&path, &vtpm.uuid)?;
            match put(&path, &mark.with(Role::Failed)) {
                // The disk may be full: the worker gives up by itself.
                Err(_) if mark.role == Role::Expected => Ok(()),
                done => done,
            }
        }
        _ => Err(unfit(&vtpm.uuid, "it has been taken")),
    }
}

/// The guest runs here.
fn commit(config: &Config, vtpm: &Expected) -> Result<(), Error> {
    let lock = Lock::wait(config, &vtpm.uuid, LOCK_LIMIT);
    let (path, mark) = marked(config, &vtpm.uuid)?;
    match (mark, lock) {
        // Its worker has taken it.
        (None, _) => Ok(()),
        (Some(mark), Ok(_)) if mark == vtpm.mark.with(Role::Arrived) => unmark(&path),
        (_, Err(e)) => Err(e.into()),
        (Some(mark), _) => Err(unfit(&vtpm.uuid, mark.summary())),
    }
}

/// The guest runs at the source.
fn discard(config: &Config, vtpm: &Expected) -> Result<(), Error> {
    failed(config, vtpm)?;
    let (path, _) = marked(config, &vtpm.uuid)?;
    unmark(&path)
}

/// Whether the guest has taken its TPM.
fn taken(config: &Config, vtpm: &Expected) -> Result<(), Error> {
    let (path, mark) = marked(config, &vtpm.uuid)?;
    match mark {
        None if path.try_exists()? => Ok(()),
        None => Err(unfit(&vtpm.uuid, "it is not here")),
        Some(mark) => Err(unfit(&vtpm.uuid, mark.summary())),
    }
}
