// SPDX-License-Identifier: GPL-2.0

//! The command line of xen-vtpmd.

#![forbid(unsafe_code)]

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use log::LevelFilter;

use xen_vtpmd::config::{Config, Policy, Uuid};
use xen_vtpmd::daemon::Daemon;
use xen_vtpmd::logger;
use xen_vtpmd::swtpm::{Setup, Version};

/// A vTPM backend for Xen guests, with one swtpm for each vTPM.
#[derive(Parser)]
#[command(name = "xen-vtpmd", version)]
struct Args {
    /// Where the state is, a folder for each vTPM
    #[arg(long, global = true, default_value = xen_vtpmd::config::STATE_DIR)]
    state_dir: PathBuf,
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Serve this domain's vTPMs
    Run {
        /// What a vTPM without state becomes: 1.2 or 2.0
        #[arg(long, default_value = "2.0")]
        default_version: Version,
        /// What the vTPM with this uuid becomes or has to be: UUID=1.2
        #[arg(long, value_parser = version_of)]
        version: Vec<(Uuid, Version)>,
        /// error, warn, info, debug or trace
        #[arg(long, default_value = "info")]
        log_level: LevelFilter,
    },
    /// Make the state of a vTPM beforehand
    CreateState {
        /// Of which vTPM
        uuid: Uuid,
        /// 1.2 or 2.0
        #[arg(long, default_value = "2.0")]
        version: Version,
    },
}

fn version_of(given: &str) -> Result<(Uuid, Version), String> {
    let (uuid, version) = given.split_once('=').ok_or("UUID=1.2 is expected")?;
    Ok((uuid.parse()?, version.parse()?))
}

fn main() -> ExitCode {
    match perform(Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("xen-vtpmd: {e}");
            ExitCode::FAILURE
        }
    }
}

fn perform(args: Args) -> Result<(), Box<dyn Error>> {
    let mut config = Config {
        state_dir: std::path::absolute(args.state_dir)?,
        ..Config::default()
    };

    match args.task {
        Task::Run {
            default_version,
            version,
            log_level,
        } => {
            logger::init(log_level);
            config.policy.default_version = default_version;
            for (uuid, version) in version {
                let policy = Policy {
                    version: Some(version),
                    ..config.policy.clone()
                };
                config.vtpms.insert(uuid, policy);
            }
            Daemon::new(config)?.run()?;
        }
        Task::CreateState { uuid, version } => {
            let state = config.state(&uuid, Some(version))?;
            if state.exists {
                let path = state.path.display();
                return Err(format!("{path} has the state of a TPM already").into());
            }
            let mut setup = Setup::spawn(state.version, &state.path)?;
            let status = setup.process().wait()?;
            setup.finish(status)?;
        }
    }
    Ok(())
}
