//! `raylet-uring tune`: settings of the machine that last, with a diff first and a way back.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::Path;
use std::process::Command;

use raylet_tuning::tune::{self, Plan, Request, Reserve, TuneError, UNIT_DROP_IN, USER_DROP_IN};
use raylet_tuning::PageChoice;

use super::own::{PlanFlags, TuneArgs};
use super::plan::{plan, PlanError};

/// Exit status where there is something to apply, or the kernel did not take something.
const EXIT_PENDING: i32 = 1;
/// Huge pages that can be asked for: more is a slip.
const RESERVE_MAX: u64 = 1 << 30;

/// A machine that can't be set.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TuneCommandError {
    /// Settings or machine don't allow it.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// Files can't be written, or there is nothing to undo.
    #[error(transparent)]
    Tune(#[from] TuneError),
    /// A reservation that isn't one.
    #[error("--hugepages {0:?}: expected 2M=COUNT or 1G=COUNT, such as 2M=4096 for 8 GiB")]
    Reserve(String),
    /// Standard output can't be written.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Shows what would change on `out`, and changes it where told to. Gives the exit status: 0 nothing is left to do,
/// 1 something is.
///
/// # Errors
/// [`TuneCommandError`].
pub fn run(
    arguments: &TuneArgs,
    environment: &BTreeMap<String, String>,
    out: &mut dyn Write,
) -> Result<i32, TuneCommandError> {
    let flags = PlanFlags { root: arguments.root.clone(), ..PlanFlags::default() };
    let node = plan(&flags, environment)?;
    if arguments.undo {
        let change = tune::plan_undo(&node.host)?;
        write!(out, "{}", change.diff())?;
        let left = tune::undo(&node.host)?;
        return finish(&change, &left, node.host.is_this_machine(), "undone", out);
    }
    let reserve: Result<Vec<Reserve>, _> = arguments.hugepages.iter().map(|text| parse_reserve(text)).collect();
    let change = tune::plan(&node.host, &Request { picture: &node.picture, reserve: &reserve? })?;
    if change.is_empty() {
        writeln!(out, "nothing to do: the machine is set")?;
        return Ok(0);
    }
    write!(out, "{}", change.diff())?;
    if !arguments.apply {
        writeln!(out, "\nnothing was changed; `raylet-uring tune --apply` does it, `--undo` takes it back")?;
        return Ok(EXIT_PENDING);
    }
    let refused = tune::apply(&node.host, &change)?;
    finish(&change, &refused, node.host.is_this_machine(), "applied", out)
}

fn finish(
    change: &Plan,
    problems: &[String],
    is_this_machine: bool,
    done: &str,
    out: &mut dyn Write,
) -> Result<i32, TuneCommandError> {
    let mut problems = problems.to_vec();
    let drop_in = |path: &Path| path == Path::new(UNIT_DROP_IN) || path == Path::new(USER_DROP_IN);
    // systemd's own mark that it runs.
    let has_systemd = is_this_machine && Path::new("/run/systemd/system").exists();
    if has_systemd && change.files.iter().any(|file| drop_in(&file.path)) {
        match Command::new("systemctl").arg("daemon-reload").status() {
            Ok(status) if status.success() => {}
            Ok(status) => problems.push(format!("systemctl daemon-reload ended with {status}")),
            Err(error) => problems.push(format!("systemctl daemon-reload can't be run: {error}")),
        }
    }
    writeln!(out, "\n{done}; limits hold from the next login or start of the unit on")?;
    for problem in &problems {
        writeln!(out, "not {done}: {problem}")?;
    }
    out.flush()?;
    Ok(if problems.is_empty() { 0 } else { EXIT_PENDING })
}

fn parse_reserve(text: &str) -> Result<Reserve, TuneCommandError> {
    let parse = || {
        let (kind, count) = text.split_once('=')?;
        let pages: PageChoice = kind.parse().ok().filter(|pages: &PageChoice| pages.hugetlb_bytes().is_some())?;
        let count = count.trim().parse().ok().filter(|count| (1..=RESERVE_MAX).contains(count))?;
        Some(Reserve { pages, count })
    };
    parse().ok_or_else(|| TuneCommandError::Reserve(text.to_owned()))
}
