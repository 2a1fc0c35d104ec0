// SPDX-License-Identifier: GPL-2.0

//! The command line of xen-vtpmd.

#![forbid(unsafe_code)]

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;

use lexopt::{Arg, Parser, ValueExt};
use log::LevelFilter;

use xen_vtpmd::config::{Config, Uuid};
use xen_vtpmd::daemon::Daemon;
use xen_vtpmd::logger;
use xen_vtpmd::swtpm::{Setup, Version};

const HELP: &str = "\
xen-vtpmd: a vTPM backend for Xen guests, with one swtpm for each vTPM.

Usage:
  xen-vtpmd run [OPTIONS]                 Serve this domain's vTPMs
  xen-vtpmd create-state [OPTIONS] UUID   Make the state of a vTPM beforehand

Options of run:
  --state-dir DIR         Where the state is, a folder for each vTPM
                          [default: /var/lib/xen-vtpmd]
  --default-version V     What a vTPM without state becomes: 1.2 or 2.0
                          [default: 2.0]
  --version UUID=V        What the vTPM with this uuid becomes or has to be;
                          may be given several times
  --log-level L           error, warn, info, debug or trace [default: info]

Options of create-state:
  --state-dir DIR         As above
  --version V             1.2 or 2.0 [default: 2.0]

  -h, --help              Show this
  -V, --version-info      Show the program's own version
";

/// What the command line asks for.
enum Task {
    Print(String),
    Run(Config),
    CreateState(Config, Uuid),
}

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> ExitCode {
    match parse(Parser::from_env()).and_then(perform) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("xen-vtpmd: {e}");
            ExitCode::FAILURE
        }
    }
}

fn parse(mut args: Parser) -> Result<Task> {
    let mut config = Config::default();
    let mut level = LevelFilter::Info;
    let mut words = Vec::new();
    let mut versions = Vec::new();

    while let Some(arg) = args.next()? {
        match arg {
            Arg::Short('h') | Arg::Long("help") => return Ok(Task::Print(HELP.to_owned())),
            Arg::Short('V') | Arg::Long("version-info") => {
                let version = env!("CARGO_PKG_VERSION");
                return Ok(Task::Print(format!("xen-vtpmd {version}\n")));
            }
            Arg::Long("state-dir") => config.state_dir = PathBuf::from(args.value()?),
            Arg::Long("default-version") => {
                config.default_version = version(&args.value()?.string()?)?;
            }
            Arg::Long("version") => versions.push(args.value()?.string()?),
            Arg::Long("log-level") => {
                let value = args.value()?.string()?;
                level = LevelFilter::from_str(&value)
                    .map_err(|_| format!("{value:?} is not a log level"))?;
            }
            Arg::Value(word) => words.push(word.string()?),
            arg => return Err(arg.unexpected().into()),
        }
    }
    config.state_dir = std::path::absolute(&config.state_dir)?;
    logger::init(level);

    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["run"] => {
            for given in versions {
                let (key, value) = given.split_once('=').ok_or_else(|| {
                    format!("--version {given:?}: UUID=1.2 or UUID=2.0 is expected")
                })?;
                config.versions.insert(uuid(key)?, version(value)?);
            }
            Ok(Task::Run(config))
        }
        ["create-state", id] => {
            let id = uuid(id)?;
            if let Some(given) = versions.last() {
                config.versions.insert(id.clone(), version(given)?);
            }
            Ok(Task::CreateState(config, id))
        }
        [] => Err("nothing to do; try --help".into()),
        _ => Err(format!("{words:?} makes no sense; try --help").into()),
    }
}

fn version(value: &str) -> Result<Version> {
    value
        .parse()
        .map_err(|()| format!("{value:?} is not a TPM version: 1.2 or 2.0 is expected").into())
}

fn uuid(value: &str) -> Result<Uuid> {
    value
        .parse()
        .map_err(|()| format!("{value:?} is not a uuid").into())
}

fn perform(task: Task) -> Result<()> {
    match task {
        Task::Print(text) => print!("{text}"),
        Task::Run(config) => Daemon::new(config)?.run()?,
        Task::CreateState(config, uuid) => {
            let state = config.state(&uuid, None)?;
            if state.exists {
                let path = state.path.display();
                return Err(
                    format!("{path} has the state of a TPM {} already", state.version).into(),
                );
            }
            let mut setup = Setup::spawn(state.version, &state.path)?;
            let status = setup.process().wait()?;
            setup.finish(status)?;
        }
    }
    Ok(())
}
