//! From `argv` to an exit status.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use clap::Parser;

use super::own::{Cli, Command};
use super::ray_flags::{self, RayFlags, RayRequest};
use super::status::RuntimeDir;
use super::{attach, doctor, generate, is_ray_executable, log_level, status, top, topology, tune};
use crate::config::{Config, ConfigError};
use crate::observe::log::{self, LogHandle, LogTarget, Rotation};

/// Exit status for an error of any kind but a wrong command line of our own, for which clap's is 2.
const EXIT_ERROR: u8 = 1;
/// Exit status of `attach` and `detach` that failed. `attach --status` uses 0 and 1 for its answers.
const EXIT_ATTACH_ERROR: u8 = 2;
/// Exit status of a `doctor` that can't look; 0, 1 and 2 are its answers.
const EXIT_DOCTOR_ERROR: u8 = 2;
/// Exit status of a `tune` that failed; 0 and 1 are its answers.
const EXIT_TUNE_ERROR: u8 = 2;

/// Why a node ended before its time.
pub type NodeEnd = Box<dyn std::error::Error>;

/// What runs a node. Both give the exit status.
#[derive(Debug, Clone, Copy)]
pub struct Node {
    /// As Ray's raylet.
    pub run_ray: fn(RayFlags, Config, LogHandle) -> Result<i32, NodeEnd>,
    /// A node of its own.
    pub run_native: fn(Config, LogHandle) -> Result<i32, NodeEnd>,
}

/// What the executable does: as Ray's raylet where it is called so, else as `raylet-uring`.
pub fn main(node: Node) -> ExitCode {
    let mut arguments = std::env::args_os();
    let program = arguments.next().unwrap_or_default();
    if is_ray_executable(&program) {
        return ray(node, arguments.collect());
    }
    let cli = Cli::parse();
    match &cli.command {
        None => own_node(node, &cli),
        Some(Command::Status(arguments)) => show_status(arguments),
        Some(Command::LogLevel(arguments)) => {
            finish(log_level::run(arguments, &environment(), &mut io::stdout(), &mut io::stderr()), EXIT_ERROR)
        }
        Some(Command::Attach(arguments)) => finish(attach::attach(arguments, &mut io::stdout()), EXIT_ATTACH_ERROR),
        Some(Command::Detach(arguments)) => finish(attach::detach(arguments, &mut io::stdout()), EXIT_ATTACH_ERROR),
        Some(Command::Topology(arguments)) => {
            finish(topology::run(arguments, &environment(), &mut io::stdout(), &mut io::stderr()), EXIT_ERROR)
        }
        Some(Command::Doctor(arguments)) => {
            finish(doctor::run(arguments, &environment(), &mut io::stdout()), EXIT_DOCTOR_ERROR)
        }
        Some(Command::Top(arguments)) => watch(arguments),
        Some(Command::Generate { directory }) => finish(generate::generate(directory), EXIT_ERROR),
        Some(Command::Tune(arguments)) => {
            finish(tune::run(arguments, &environment(), &mut io::stdout()), EXIT_TUNE_ERROR)
        }
    }
}

/// All variables that are text. Others are no settings.
fn environment() -> BTreeMap<String, String> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect()
}

fn finish<E: std::fmt::Display>(result: Result<i32, E>, on_error: u8) -> ExitCode {
    match result {
        Ok(status) => ExitCode::from(u8::try_from(status).unwrap_or(EXIT_ERROR)),
        Err(error) => {
            complain(&error);
            ExitCode::from(on_error)
        }
    }
}

/// Says on standard error what went wrong; where that is closed there is nobody to tell.
fn complain(error: &dyn std::fmt::Display) {
    let _ = writeln!(io::stderr(), "raylet-uring: {error}");
}

fn own_node(node: Node, cli: &Cli) -> ExitCode {
    let config = match Config::load(&cli.node.given(), &environment()) {
        Ok(config) => config,
        Err(error) => return finish(Err(error), EXIT_ERROR),
    };
    if config.print_config {
        let _ = write!(io::stdout(), "{}", config.describe());
        config.warnings.iter().for_each(|warning| complain(warning));
        return ExitCode::SUCCESS;
    }
    let log = match log::init(&config.log, config.log_format, LogTarget::Stderr) {
        Ok(log) => log,
        Err(error) => return finish(Err(error), EXIT_ERROR),
    };
    config.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
    let ended = (node.run_native)(config, log.clone());
    log.finish();
    finish(ended, EXIT_ERROR)
}

fn show_status(arguments: &super::own::StatusArgs) -> ExitCode {
    let run = || -> Result<i32, Box<dyn std::error::Error>> {
        let runtime_dir = RuntimeDir::of(Config::load(&BTreeMap::new(), &environment())?);
        Ok(status::run(arguments, &runtime_dir, &mut io::stdout(), &mut io::stderr())?)
    };
    finish(run(), EXIT_ERROR)
}

fn watch(arguments: &super::own::TopArgs) -> ExitCode {
    let run = || -> Result<i32, Box<dyn std::error::Error>> {
        let runtime_dir = RuntimeDir::of(Config::load(&BTreeMap::new(), &environment())?);
        Ok(top::run(arguments, &runtime_dir)?)
    };
    finish(run(), EXIT_ERROR)
}

/// A command line of Ray's that can't be followed.
#[derive(Debug, thiserror::Error)]
enum RayStartError {
    #[error("argument {0:?} is not UTF-8")]
    NotText(OsString),
    #[error(transparent)]
    Flags(#[from] ray_flags::FlagError),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Log(#[from] log::LogError),
    #[error("{0}")]
    Node(NodeEnd),
}

fn ray(node: Node, arguments: Vec<OsString>) -> ExitCode {
    let environment = environment();
    let text: Result<Vec<String>, OsString> = arguments.into_iter().map(OsString::into_string).collect();
    let text = match text {
        Ok(text) => text,
        Err(argument) => return finish(Err(RayStartError::NotText(argument)), EXIT_ERROR),
    };
    match start_ray(node, &text, &environment) {
        Ok(status) => ExitCode::from(u8::try_from(status).unwrap_or(EXIT_ERROR)),
        // Standard error is the file already, or there is none.
        Err(error @ RayStartError::Node(_)) => {
            tracing::error!("{error}");
            finish(Err(error), EXIT_ERROR)
        }
        Err(error) => {
            // Ray connects its raylet's standard error to nothing and looks into the file.
            if let Some(path) = ray_flags::stderr_filepath(&text) {
                append(&path, &format!("raylet-uring: {error}\n"));
            }
            finish(Err(error), EXIT_ERROR)
        }
    }
}

fn append(path: &Path, line: &str) {
    // The error goes to standard error too; a file that can't be written takes nothing away.
    let _ = OpenOptions::new().create(true).append(true).open(path).and_then(|mut f| f.write_all(line.as_bytes()));
}

fn start_ray(node: Node, arguments: &[String], environment: &BTreeMap<String, String>) -> Result<i32, RayStartError> {
    let variable = |name: &str| environment.get(name).cloned();
    let flags = match RayFlags::parse(arguments, &variable)? {
        RayRequest::Run(flags) => *flags,
        RayRequest::Print(text) => {
            let _ = write!(io::stdout(), "{text}");
            return Ok(0);
        }
    };
    let mut config = Config::load(&BTreeMap::new(), environment)?;
    config.apply_ray_flags(&flags);
    let rotation = Rotation::from_environment(variable);
    let (stdout, stderr) = (flags.stdout_filepath.clone(), flags.stderr_filepath.clone());
    let log = log::init(&config.log, config.log_format, LogTarget::Files { stdout, stderr, rotation })?;
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        pid = std::process::id(),
        "raylet-uring starts as Ray's raylet"
    );
    config.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
    if config.print_config {
        config.describe().lines().for_each(|line| tracing::info!("setting {line}"));
    }
    let ended = (node.run_ray)(flags, config, log.clone());
    log.finish();
    ended.map_err(RayStartError::Node)
}
