// SPDX-License-Identifier: GPL-2.0

//! The command line of xen-vtpmd.

#![forbid(unsafe_code)]

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;
use log::LevelFilter;
use rustix::process::setsid;

use xen_vtpmd::archive;
use xen_vtpmd::cgroup;
use xen_vtpmd::config::{self, Config, ConfigFile, Uuid};
use xen_vtpmd::control::{self, Request};
use xen_vtpmd::daemon::Daemon;
use xen_vtpmd::io::{self, Io};
use xen_vtpmd::launch::Launch;
use xen_vtpmd::logger;
use xen_vtpmd::machine;
use xen_vtpmd::manager::{self, Manager};
use xen_vtpmd::status::Report;
use xen_vtpmd::swtpm::{Setup, Version};
use xen_vtpmd::worker::{self, Serve};

const AFTER_HELP: &str = "\
Give a guest a TPM by a line in its xl configuration, with a uuid of its own (uuidgen makes one):
  vtpm = ['backend=0,uuid=0f8fad5b-d9cb-469f-a165-70867728950e']

Files:
  /etc/xen-vtpmd.toml        what the administrator decides; see xen-vtpmd.toml(5)
  /var/lib/xen-vtpmd/UUID/   the state of a vTPM
  /run/xen-vtpmd/            the control socket, and which process is whose

Signals: SIGTERM ends the daemon and leaves the TPMs of running guests to the next one.

Exit status: 0 done, 1 failed (the reason is on stderr), 2 wrong usage.";

/// How long a TPM's making may take, on the slowest of machines.
const SETUP_LIMIT: Duration = Duration::from_secs(600);

/// A vTPM backend for Xen guests, with one swtpm for each vTPM.
#[derive(Parser)]
#[command(name = "xen-vtpmd", version, after_help = AFTER_HELP)]
struct Args {
    /// What the administrator decides [default: /etc/xen-vtpmd.toml, if it is there]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Serve this domain's vTPMs
    Run {
        /// error, warn, info, debug or trace [default: the configuration's, or info]
        #[arg(long)]
        log_level: Option<LevelFilter>,
    },
    /// Show the daemon's vTPMs
    Status {
        /// Everything there is to know, as JSON
        #[arg(long)]
        json: bool,
    },
    /// Close every vTPM and end all TPMs and the daemon; the guests lose their TPMs
    Stop,
    /// Make the state of a vTPM beforehand
    CreateState {
        /// Of which vTPM
        uuid: Uuid,
        /// 1.2 or 2.0 [default: the configuration's]
        #[arg(long)]
        version: Option<Version>,
    },
    /// Put a vTPM that no guest uses into one file, and remove it here
    Export {
        /// Which vTPM
        uuid: Uuid,
        /// A file that is not there yet
        file: PathBuf,
        /// Leave it here too, for a backup: a vTPM must never run from two places
        #[arg(long)]
        keep: bool,
    },
    /// Take in a vTPM that was exported, or one from a folder of swtpm's
    Import {
        /// The file, or the folder
        path: PathBuf,
        /// Which vTPM it is to be [default: the one that was exported]
        #[arg(long)]
        uuid: Option<Uuid>,
    },
    /// Say what is wrong with a configuration, with line and key
    CheckConfig {
        /// Which one [default: --config, or /etc/xen-vtpmd.toml]
        file: Option<PathBuf>,
    },
    /// Print completions for a shell
    #[command(hide = true)]
    Completions {
        /// Which shell
        shell: Shell,
    },
    /// The manager, until `run` is it
    #[command(hide = true)]
    Manage {
        #[arg(long)]
        log_level: Option<LevelFilter>,
    },
    /// Serve one vTPM (the manager starts this)
    #[command(hide = true)]
    Serve {
        #[command(flatten)]
        serve: Serve,
        /// The cgroup to be in
        #[arg(long)]
        cgroup: Option<PathBuf>,
        /// As the manager's
        #[arg(long)]
        log_level: Option<LevelFilter>,
    },
    /// Serve one connection to a guest (the worker starts this)
    #[command(hide = true)]
    Io(Io),
    /// Become the swtpm or swtpm_setup of a vTPM
    #[command(hide = true)]
    Launch {
        /// What to do, in JSON
        launch: String,
    },
}

fn main() -> ExitCode {
    match perform(Args::parse()) {
        Ok(status) => status,
        Err(e) => {
            eprintln!("xen-vtpmd: {e}");
            ExitCode::FAILURE
        }
    }
}

/// Where the configuration is; only the usual file may be missing.
fn config_file(given: Option<PathBuf>) -> ConfigFile {
    ConfigFile {
        may_be_missing: given.is_none(),
        path: given.unwrap_or(config::CONFIG_FILE.into()),
    }
}

/// The configuration; only the usual file may be missing.
fn load(given: Option<PathBuf>) -> Result<Config, config::FileError> {
    match given {
        Some(path) => config::load(&path, false),
        None => config::load(config::CONFIG_FILE.as_ref(), true),
    }
}

fn perform(args: Args) -> Result<ExitCode, Box<dyn Error>> {
    match args.task {
        Task::Run { log_level } => {
            let config = load(args.config)?;
            logger::init(log_level.unwrap_or(config.log_level));
            Daemon::new(config)?.run()?;
        }
        Task::Status { json } => {
            let answer = control::ask(&load(args.config)?.run_dir, Request::Status)?;
            if json {
                println!("{answer}");
            } else {
                let report: Report = serde_json::from_str(&answer)?;
                print!("{}", report.table());
            }
        }
        Task::Stop => {
            let config = load(args.config)?;
            match control::ask(&config.run_dir, Request::Stop) {
                // What a daemon left that is gone.
                Err(control::Error::NoManager(_)) => {
                    let left = manager::stop_without_manager(&config.run_dir)?;
                    if !left.is_empty() {
                        return Err(format!("these vTPMs did not end: {left:?}").into());
                    }
                    drop(machine::end_strays(&config, |_, _| false)?)
                }
                answer => drop(answer?),
            }
        }
        Task::CreateState { uuid, version } => {
            let config = load(args.config)?;
            let state = config.state(&uuid, version)?;
            if state.exists {
                let path = state.path.display();
                return Err(format!("{path} has the state of a TPM already").into());
            }
            let mut setup = Setup::spawn(&config, &state)?;
            let exit = setup.process().wait(SETUP_LIMIT)?;
            setup.finish(&exit.ok_or("swtpm_setup does not come to an end")?)?;
        }
        Task::Export { uuid, file, keep } => {
            archive::export(&load(args.config)?, &uuid, &file, keep)?;
        }
        Task::Import { path, uuid } => {
            let uuid = archive::import(&load(args.config)?, &path, uuid.as_ref())?;
            println!("{uuid}");
        }
        Task::Manage { log_level } => {
            let file = config_file(args.config);
            let (config, text) = file.load()?;
            logger::init(log_level.unwrap_or(config.log_level));
            Manager::new(config, file, &text)?.run()?;
        }
        Task::Serve {
            serve,
            cgroup,
            log_level,
        } => {
            let config = load(args.config)?;
            logger::init(log_level.unwrap_or(config.log_level));
            logger::about(serve.id());
            // The manager's terminal and its process group are none of a worker's.
            let _ = setsid();
            if let Some(Err(e)) = cgroup.as_deref().map(cgroup::enter) {
                log::error!("no cgroup of its own: {e}");
            }
            return Ok(worker::run(config, serve));
        }
        Task::Io(io) => return Ok(io::run(io)),
        Task::Launch { launch } => {
            let launch: Launch = serde_json::from_str(&launch)?;
            let Err(e) = launch.run();
            println!("{e}");
            return Err(e.into());
        }
        Task::CheckConfig { file } => {
            let given = file.or(args.config);
            let path = given.clone().unwrap_or(config::CONFIG_FILE.into());
            load(given)?;
            println!("{}: fine", path.display());
        }
        Task::Completions { shell } => {
            let mut command = Args::command();
            clap_complete::generate(shell, &mut command, "xen-vtpmd", &mut std::io::stdout());
        }
    }
    Ok(ExitCode::SUCCESS)
}
