// SPDX-License-Identifier: GPL-2.0

//! The command line of xen-vtpmd.

#![forbid(unsafe_code)]

use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread::Builder;

use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;
use log::LevelFilter;
use rustix::process::setsid;

use xen_vtpmd::admin::{self, Rekeyed};
use xen_vtpmd::archive::{self, Identity, Import};
use xen_vtpmd::attest::{self, Attest, Nonce};
use xen_vtpmd::broker::{self, Broker};
use xen_vtpmd::cgroup;
use xen_vtpmd::config::{self, Config, ConfigFile, Uuid};
use xen_vtpmd::control::{self, Request};
use xen_vtpmd::io::{run as run_io, Io};
use xen_vtpmd::launch::Launch;
use xen_vtpmd::logger;
use xen_vtpmd::manager::{self, Manager};
use xen_vtpmd::metrics;
use xen_vtpmd::migrate::{self, send::Migrate};
use xen_vtpmd::report;
use xen_vtpmd::seal::{self, SealTo};
use xen_vtpmd::status::Report;
use xen_vtpmd::swtpm::Version;
use xen_vtpmd::sys::{one_heap, release_memory};
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
    /// Show the vTPMs of this domain's guests
    Status {
        /// Everything there is to know, as JSON
        #[arg(long)]
        json: bool,
        /// Metrics for the textfile collector of Prometheus' node_exporter
        #[arg(long, conflicts_with = "json")]
        prometheus: bool,
    },
    /// Print what a report of a fault needs: read it before you send it, it names guests and files
    Report,
    /// Close every vTPM, end all TPMs and the manager; running guests lose their TPMs
    Stop,
    /// List the states that are here, also of vTPMs that no guest uses
    List {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Show what is known of a vTPM, with its endorsement keys and certificates
    Info {
        /// Which vTPM
        uuid: Uuid,
    },
    /// Write the event log of a vTPM's guest, for tpm2_eventlog, to stdout
    Eventlog {
        /// Which vTPM
        uuid: Uuid,
    },
    /// Remove the state of a vTPM that is not in use
    Remove {
        /// Which vTPM
        uuid: Uuid,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
    /// Make a new TPM in place of one that is not in use
    Reset {
        /// Which vTPM
        uuid: Uuid,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
    /// Have a TPM 2.0 that is not in use forget failed authorisations
    ClearLockout {
        /// Which vTPM
        uuid: Uuid,
    },
    /// Encrypt states that are not in use by the key that is configured now
    Rekey {
        /// Which vTPMs
        #[arg(required_unless_present = "all")]
        uuids: Vec<Uuid>,
        /// All that are here and not in use
        #[arg(long, conflicts_with = "uuids")]
        all: bool,
        /// The key-file that they are encrypted by, if that is another one
        #[arg(long, value_name = "FILE")]
        old_key: Option<PathBuf>,
    },
    /// Give evidence of a vTPM, quoted by this host's TPM, on standard output
    Attest(Attest),
    /// Check what `attest` has given, and print what it says
    VerifyAttestation {
        /// The file
        file: PathBuf,
        /// What was given to `attest`
        #[arg(long)]
        nonce: Nonce,
        /// The public part of the host's attestation key, in PEM
        #[arg(long, value_name = "FILE")]
        ak: PathBuf,
    },
    /// Seal the configured key-file to this host's TPM; it is made where there is none
    Seal {
        #[command(flatten)]
        to: SealTo,
    },
    /// Say whether the sealed key-file opens
    UnsealCheck,
    /// Seal the recovery key, which is read from standard input, in place of a key-file that does not open
    Recover {
        #[command(flatten)]
        to: SealTo,
    },
    /// Make the state of a vTPM beforehand
    CreateState {
        /// Of which vTPM
        uuid: Uuid,
        /// 1.2 or 2.0 [default: the configuration's]
        #[arg(long)]
        version: Option<Version>,
    },
    /// Export a vTPM to a file, and remove it here
    Export {
        /// Which vTPM
        uuid: Uuid,
        /// A file that does not exist
        file: PathBuf,
        /// Keep it here, for a backup, also of a vTPM that is in use
        #[arg(long)]
        keep: bool,
    },
    /// Import a vTPM that was exported, or one from a directory of swtpm's
    Import {
        /// The file, or the directory
        path: PathBuf,
        /// Which vTPM it is to be [default: the one that was exported]
        #[arg(long)]
        uuid: Option<Uuid>,
        /// Import it although a vTPM here has the same identity: seeds, keys and certificates
        #[arg(long)]
        copy: bool,
        /// Give it new seeds and endorsement keys
        #[arg(long, conflicts_with = "copy")]
        new_identity: bool,
    },
    /// Migrate a guest to another host, with its vTPMs
    Migrate(Migrate),
    /// Say that the TPM here is the one that counts, where a migration has failed
    Take {
        /// Which vTPM
        uuid: Uuid,
    },
    /// Say that what a migration left here is of no use, and remove it
    Discard {
        /// Which vTPM
        uuid: Uuid,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
    /// Validate a configuration file
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
    /// Receive a vTPM (migrate starts this on the other host)
    #[command(hide = true)]
    MigrateReceive,
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
    /// Do what a worker may not (the worker starts this)
    #[command(hide = true)]
    Broker(Broker),
    /// Become the swtpm or swtpm_setup of a vTPM
    #[command(hide = true)]
    Launch,
}

fn main() -> ExitCode {
    // Workers and I/O processes are started as /proc/self/exe, which no ps(1) and no pidof(8) finds.
    let _ = rustix::thread::set_name(c"xen-vtpmd");
    one_heap();
    let args = parse();
    release_memory();
    let done = match args {
        // What stays for long is not below the stack of all the rest.
        Ok(Args {
            task: Task::Io(io), ..
        }) => return run_io(&io),
        Ok(Args {
            task: Task::Broker(broker),
            ..
        }) => return broker::run(&broker),
        Ok(Args {
            config,
            task:
                Task::Serve {
                    serve,
                    cgroup,
                    log_level,
                },
        }) => serve_one(config, serve, cgroup, log_level),
        Ok(args) => perform(args),
        Err(e) => Err(e.into()),
    };
    match done {
        Ok(status) => status,
        Err(e) => {
            eprintln!("xen-vtpmd: {e}");
            ExitCode::FAILURE
        }
    }
}

/// Is a worker.
fn serve_one(
    config: Option<PathBuf>,
    serve: Serve,
    cgroup: Option<PathBuf>,
    log_level: Option<LevelFilter>,
) -> Result<ExitCode, Box<dyn Error>> {
    let config = load(config)?;
    logger::init(log_level.unwrap_or(config.log_level));
    logger::about(serve.id());
    // The manager's terminal and its process group are none of a worker's.
    let _ = setsid();
    if let Some(Err(e)) = cgroup.as_deref().map(cgroup::enter) {
        log::error!("no cgroup of its own: {e}");
    }
    Ok(worker::run(config, serve))
}

/// Parses the command line, in a thread whose stack goes with it: clap takes some hundred KiB, and a worker and an
/// I/O process for each vTPM would keep them for life.
fn parse() -> io::Result<Args> {
    // The C library keeps smaller stacks for the threads to come.
    const STACK: usize = 48 << 20;
    let parsing = Builder::new().stack_size(STACK).spawn(Args::parse)?;
    parsing.join().map_err(|_| io::ErrorKind::Other.into())
}

/// Where the configuration is; only the usual file may be missing.
fn config_file(given: Option<PathBuf>) -> ConfigFile {
    ConfigFile {
        may_be_missing: given.is_none(),
        path: given.unwrap_or(config::CONFIG_FILE.into()),
    }
}

/// Where the manager listens. Who may only read the status need not be able to read the configuration.
fn run_dir(given: Option<PathBuf>) -> PathBuf {
    load(given).map_or(config::RUN_DIR.into(), |config| config.run_dir)
}

/// The configuration; only the usual file may be missing.
fn load(given: Option<PathBuf>) -> Result<Config, config::FileError> {
    match given {
        Some(path) => config::load(&path, false),
        None => config::load(config::CONFIG_FILE.as_ref(), true),
    }
}

/// Says what became of each, and goes on with the next where one fails.
fn rekey(
    config: &Config,
    mut uuids: Vec<Uuid>,
    all: bool,
    old_key: Option<&Path>,
) -> Result<ExitCode, Box<dyn Error>> {
    let mut status = ExitCode::SUCCESS;
    if all {
        for entry in admin::list(config, &admin::users(config))? {
            match entry.in_use {
                None => uuids.push(entry.uuid.parse()?),
                Some(user) => {
                    eprintln!("xen-vtpmd: {}: left as it is: {user}", entry.uuid);
                    status = ExitCode::FAILURE;
                }
            }
        }
    }
    for uuid in uuids {
        match admin::rekey(config, &uuid, old_key) {
            Ok(Rekeyed::Done) => println!("{uuid}: done"),
            Ok(Rekeyed::NothingToDo) => println!("{uuid}: nothing to do"),
            Err(e) => {
                eprintln!("xen-vtpmd: {uuid}: {e}");
                status = ExitCode::FAILURE;
            }
        }
    }
    Ok(status)
}

fn perform(args: Args) -> Result<ExitCode, Box<dyn Error>> {
    match args.task {
        Task::Run { log_level } => {
            let file = config_file(args.config);
            let (config, text) = file.load()?;
            logger::init(log_level.unwrap_or(config.log_level));
            Manager::new(config, file, &text)?.run()?;
        }
        Task::Status { json, prometheus } => {
            let run_dir = run_dir(args.config);
            let response = control::ask(&run_dir, Request::Status)?;
            if json {
                println!("{response}");
            } else {
                let report: Report = serde_json::from_str(&response)?;
                let text = match prometheus {
                    true => metrics::text(&report),
                    false => report.table(),
                };
                print!("{text}");
            }
        }
        Task::Report => {
            // A configuration that is wrong is what the report may be about.
            let (config, text) = config_file(args.config).load().or_else(|e| {
                config::parse("".as_ref(), "").map(|config| (config, e.to_string()))
            })?;
            print!("{}", report::report(&config, &text));
        }
        Task::List { json } => {
            let config = load(args.config)?;
            let entries = admin::list(&config, &admin::users(&config))?;
            match json {
                true => println!("{}", serde_json::to_string(&entries)?),
                false => print!("{}", admin::table(&entries)),
            }
        }
        Task::Info { uuid } => {
            let config = load(args.config)?;
            print!("{}", admin::info(&config, &uuid, &admin::users(&config))?);
        }
        Task::Eventlog { uuid } => admin::event_log(&load(args.config)?, &uuid)?,
        Task::Remove { uuid, yes } => {
            let config = load(args.config)?;
            let question = format!("All keys and all NV of vTPM {uuid} will be gone.");
            admin::confirm(&question, yes)?;
            admin::remove(&config, &uuid)?;
        }
        Task::Reset { uuid, yes } => {
            let config = load(args.config)?;
            let question =
                format!("All keys and all NV of vTPM {uuid} will be gone, for a new TPM.");
            admin::confirm(&question, yes)?;
            admin::reset(&config, &uuid)?;
        }
        Task::Rekey {
            uuids,
            all,
            old_key,
        } => return rekey(&load(args.config)?, uuids, all, old_key.as_deref()),
        Task::ClearLockout { uuid } => admin::clear_lockout(&load(args.config)?, &uuid)?,
        Task::Stop => {
            let config = load(args.config)?;
            match control::ask(&config.run_dir, Request::Stop) {
                // What a daemon left that is gone.
                Err(control::Error::NoManager(_)) => {
                    let left = manager::stop_without_manager(&config.run_dir)?;
                    if !left.is_empty() {
                        return Err(format!("these vTPMs did not end: {left:?}").into());
                    }
                }
                answer => drop(answer?),
            }
        }
        Task::Attest(how) => print!("{}", attest::attest(&load(args.config)?, &how)?),
        Task::VerifyAttestation { file, nonce, ak } => {
            print!("{}", attest::verify(&file, &nonce, &ak)?);
        }
        Task::Seal { to } => {
            print!("{}", &*seal::seal(&load(args.config)?, &to.policy())?);
        }
        Task::UnsealCheck => print!("{}", seal::check(&load(args.config)?)?),
        Task::Recover { to } => {
            print!("{}", seal::recover(&load(args.config)?, &to.policy())?);
        }
        Task::CreateState { uuid, version } => {
            admin::create(&load(args.config)?, &uuid, version)?;
        }
        Task::Export { uuid, file, keep } => {
            if archive::export(&load(args.config)?, &uuid, &file, keep)? {
                eprintln!(
                    "xen-vtpmd: vTPM {uuid} is in use: this is its permanent state as of now"
                );
            }
        }
        Task::Import {
            path,
            uuid,
            copy,
            new_identity,
        } => {
            let identity = match (copy, new_identity) {
                (true, _) => Identity::Copied,
                (_, true) => Identity::New,
                _ => Identity::Moved,
            };
            let how = Import { uuid, identity };
            let imported = archive::import(&load(args.config)?, &path, &how)?;
            for remark in imported.remarks {
                eprintln!("xen-vtpmd: {remark}");
            }
            println!("{}", imported.uuid);
        }
        Task::Migrate(how) => migrate::send::run(&load(args.config)?, &how)?,
        Task::MigrateReceive => migrate::receive::run(&load(args.config)?)?,
        Task::Take { uuid } => migrate::resolve::take(&load(args.config)?, &uuid)?,
        Task::Discard { uuid, yes } => {
            let question = format!("What is here of vTPM {uuid} will be gone.");
            admin::confirm(&question, yes)?;
            migrate::resolve::discard(&load(args.config)?, &uuid)?;
        }
        Task::Serve { .. } | Task::Io(_) | Task::Broker(_) => (),
        Task::Launch => {
            let launch = Launch::read(std::io::stdin().lock())?;
            let Err(e) = launch.run();
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
