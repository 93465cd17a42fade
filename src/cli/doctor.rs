//! `raylet-uring doctor`: what of this machine costs a node speed, or keeps it from running.

use std::collections::BTreeMap;
use std::io::{self, Write};

use raylet_tuning::doctor::{examine, exit_status, Check, Level, Subject};

use super::own::DoctorArgs;
use super::plan::{plan, PlanError};

/// Column at which what was found begins.
const FOUND_COLUMN: usize = 31;

/// An examination that can't be made or told.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DoctorError {
    /// Settings or machine don't allow it.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// Standard output can't be written.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// Findings that aren't JSON. The fields are plain, so this says that memory ran out.
    #[error(transparent)]
    Json(#[from] serde_json::Error),
}

/// Examines the machine for a node with the settings and prints the findings on `out`. Gives the exit status: 0 all is
/// well, 1 there are warnings, 2 there are errors.
///
/// # Errors
/// [`DoctorError`].
pub fn run(
    arguments: &DoctorArgs,
    environment: &BTreeMap<String, String>,
    out: &mut dyn Write,
) -> Result<i32, DoctorError> {
    let plan = plan(&arguments.plan, environment)?;
    let checks = examine(&Subject {
        host: &plan.host,
        picture: &plan.picture,
        pages: plan.config.hugepages,
        store_bytes: plan.store_bytes,
        ports: &arguments.ports,
        measure_disks: !arguments.no_disk,
    });
    if arguments.json {
        serde_json::to_writer_pretty(&mut *out, &checks)?;
        writeln!(out)?;
    } else {
        print(&checks, out)?;
    }
    out.flush()?;
    Ok(exit_status(&checks))
}

/// The worst first, each finding with its price and its remedies; then a line that counts.
fn print(checks: &[Check], out: &mut dyn Write) -> io::Result<()> {
    let mut sorted: Vec<&Check> = checks.iter().collect();
    sorted.sort_by_key(|check| std::cmp::Reverse(check.level));
    for check in sorted {
        let level = match check.level {
            Level::Ok => "ok",
            Level::Warning => "warning",
            Level::Error => "error",
        };
        let head = format!("{level:<9}{}", check.name);
        writeln!(out, "{head:<FOUND_COLUMN$}{}", check.found)?;
        if let Some(costs) = &check.costs {
            writeln!(out, "         costs: {costs}")?;
        }
        for command in &check.mend {
            writeln!(out, "         mend:  {command}")?;
        }
    }
    let count = |level: Level| checks.iter().filter(|check| check.level == level).count();
    let (errors, warnings) = (count(Level::Error), count(Level::Warning));
    writeln!(out, "\n{} ok, {warnings} warnings, {errors} errors", count(Level::Ok))?;
    if warnings + errors > 0 {
        writeln!(out, "`raylet-uring tune` shows the settings that it would write so that they last")?;
    }
    Ok(())
}
