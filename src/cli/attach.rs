//! `raylet-uring attach` and `detach`: what they print and with which status they exit.

use std::io::Write;
use std::path::Path;

use super::own::{AttachArgs, DetachArgs};
use crate::attach::{AttachError, Installation, Outcome, Report, Running};

/// The running program, whatever became of its file since it was started.
const THIS_PROGRAM: &str = "/proc/self/exe";

/// Attaches, or shows the state. Gives the exit status.
///
/// # Errors
/// [`AttachError`].
pub fn attach(arguments: &AttachArgs, out: &mut dyn Write) -> Result<i32, AttachError> {
    let installation = Installation::find(&arguments.python)?;
    if arguments.status {
        let report = installation.report()?;
        let _ = write!(out, "{report}");
        return Ok(report.exit_status());
    }
    let outcome = installation.attach(Path::new(THIS_PROGRAM))?;
    let report = installation.report()?;
    let did = match outcome {
        Outcome::Done => "attached",
        Outcome::Updated => "attached, in place of another build",
        Outcome::Already => "attached already",
    };
    let (version, original) = (&installation.ray_version, installation.stock());
    let _ = writeln!(out, "{did}: Ray {version} starts raylet-uring {} now", env!("CARGO_PKG_VERSION"));
    let _ = writeln!(out, "  {}", installation.raylet.display());
    let _ = writeln!(out, "  Ray's own raylet is kept as {}; `detach` puts it back", original.display());
    still_running(&report, out);
    Ok(0)
}

/// Detaches. Gives the exit status.
///
/// # Errors
/// [`AttachError`].
pub fn detach(arguments: &DetachArgs, out: &mut dyn Write) -> Result<i32, AttachError> {
    let installation = Installation::find(&arguments.python)?;
    let did = match installation.detach()? {
        Outcome::Already => "Ray's own raylet is in place already",
        Outcome::Done | Outcome::Updated => "detached: Ray's own raylet is back",
    };
    let _ = writeln!(out, "{did} ({})", installation.raylet.display());
    still_running(&installation.report()?, out);
    Ok(0)
}

/// A raylet that runs stays what it is until it ends.
fn still_running(report: &Report, out: &mut dyn Write) {
    let others = report.running.iter().filter(|r| Some(r.kind) != report.in_place);
    let pids: Vec<String> = others.map(|Running { pid, .. }| pid.to_string()).collect();
    if !pids.is_empty() {
        let _ = writeln!(out, "  still running from before, until it ends: pid {}", pids.join(", "));
    }
}
