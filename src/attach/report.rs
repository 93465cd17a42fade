//! `raylet-uring attach --status`: which raylet is in place, and which ones run.

use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::files::{inspect, Found, Kind};
use super::{AttachError, Installation, SUPPORTED_RAY_VERSIONS};

/// Exit status where ours is in place.
pub const EXIT_OURS: i32 = 0;
/// Exit status where Ray's own is in place.
pub const EXIT_STOCK: i32 = 1;
/// Exit status where the state is broken or can't be told.
pub const EXIT_BROKEN: i32 = 2;

/// The state of an installation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The version of Ray.
    pub ray_version: String,
    /// The raylet that Ray starts.
    pub raylet: PathBuf,
    /// Whose it is; `None`: there is none.
    pub in_place: Option<Kind>,
    /// The version of raylet-uring that was put there, as the record says.
    pub ours_version: Option<String>,
    /// What is not as it should be.
    pub problems: Vec<String>,
    /// Processes that run from this installation now.
    pub running: Vec<Running>,
}

/// A raylet that runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Running {
    /// Its process id.
    pub pid: u32,
    /// Whose it is.
    pub kind: Kind,
}

impl Report {
    /// 0 ours is in place, 1 Ray's own, 2 broken.
    pub fn exit_status(&self) -> i32 {
        match self.in_place {
            None => EXIT_BROKEN,
            Some(Kind::Ours) if !self.problems.is_empty() => EXIT_BROKEN,
            Some(Kind::Ours) => EXIT_OURS,
            Some(Kind::Stock) => EXIT_STOCK,
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match (self.in_place, &self.ours_version) {
            (None, _) => "no raylet is in place".to_owned(),
            (Some(Kind::Stock), _) => "Ray's own raylet is in place".to_owned(),
            (Some(Kind::Ours), Some(version)) => format!("raylet-uring {version} is in place"),
            (Some(Kind::Ours), None) => "raylet-uring is in place".to_owned(),
        };
        writeln!(f, "Ray {}: {what} ({})", self.ray_version, self.raylet.display())?;
        for problem in &self.problems {
            writeln!(f, "problem: {problem}")?;
        }
        for Running { pid, kind } in &self.running {
            let name = match kind {
                Kind::Ours => "raylet-uring",
                Kind::Stock => "Ray's own raylet",
            };
            let note = if Some(*kind) == self.in_place { "" } else { ", until it ends" };
            writeln!(f, "running: pid {pid}, {name}{note}")?;
        }
        Ok(())
    }
}

pub(super) fn gather(installation: &Installation) -> Result<Report, AttachError> {
    let (live, stock) = (inspect(&installation.raylet)?, inspect(&installation.stock())?);
    let record = installation.record();
    let mut problems = Vec::new();
    if !SUPPORTED_RAY_VERSIONS.contains(&installation.ray_version.as_str()) {
        let supported = SUPPORTED_RAY_VERSIONS.join(", ");
        problems
            .push(format!("Ray {} is none of those that raylet-uring speaks: {supported}", installation.ray_version));
    }
    match (&live, &record) {
        (None, _) => {
            problems.push("the raylet isn't there; reinstall Ray, or detach where raylet.stock is there".to_owned())
        }
        (Some(Found { kind: Kind::Stock, .. }), _) => {}
        (Some(Found { kind: Kind::Ours, .. }), None) => {
            problems.push("raylet-uring.json is missing or broken; attach again".to_owned());
        }
        (Some(Found { kind: Kind::Ours, sha256 }), Some(record)) if record.ours_sha256 != *sha256 => {
            problems.push("the executable isn't the one that was attached; attach again".to_owned());
        }
        _ => {}
    }
    if live.as_ref().is_none_or(|l| l.kind == Kind::Ours) {
        if let Err(error) = installation.checked_stock(stock) {
            problems.push(error.to_string());
        }
    }
    Ok(Report {
        ray_version: installation.ray_version.clone(),
        raylet: installation.raylet.clone(),
        in_place: live.map(|l| l.kind),
        ours_version: record.map(|r| r.ours_version),
        problems,
        running: running(installation),
    })
}

/// Processes whose executable is, or was when they started, this installation's raylet. Those of other users may be hidden.
fn running(installation: &Installation) -> Vec<Running> {
    let directory = installation.raylet.parent().unwrap_or(Path::new("/"));
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let mut running: Vec<Running> = processes
        .filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            let exe = entry.path().join("exe");
            let target = fs::read_link(&exe).ok()?;
            let name = target.file_name()?.to_str()?;
            // The kernel marks a file that was replaced since.
            let name = name.strip_suffix(" (deleted)").unwrap_or(name);
            let is_raylet =
                target.parent() == Some(directory) && matches!(name, "raylet" | "raylet.stock" | "raylet.uring-new");
            is_raylet.then(|| kind_of(&exe, installation)).flatten().map(|kind| Running { pid, kind })
        })
        .collect();
    running.sort_unstable_by_key(|r| r.pid);
    running
}

/// Whose executable a process runs: by the file that it is, else by its bytes (it was replaced since, but still exists).
fn kind_of(exe: &Path, installation: &Installation) -> Option<Kind> {
    let same = |a: &fs::Metadata, b: &Path| fs::metadata(b).is_ok_and(|b| (a.dev(), a.ino()) == (b.dev(), b.ino()));
    let meta = fs::metadata(exe).ok()?;
    if same(&meta, &installation.stock()) {
        return Some(Kind::Stock);
    }
    inspect(exe).ok().flatten().map(|found| found.kind)
}
