//! Settings of the machine that last: which a node would gain from, as files to write, with a diff, and a way back.
//!
//! What is written: a sysctl file, a tmpfiles file for settings in /sys, drop-ins for systemd and a file of login limits. A
//! setting is written only where the machine's value costs something ([`crate::doctor`] says what), or where an earlier call
//! wrote it. Values that are better already are left alone. [`apply`] notes what was there before it changes anything, so
//! that [`undo`] can put it back, after a crash too.

mod settings;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use similar::TextDiff;

use crate::host::Host;
use crate::pages::PageChoice;
use crate::placement::Picture;
use settings::Line;

/// Where it is noted what was there before.
pub const RECORD: &str = "/var/lib/raylet-uring/tune.json";
/// The sysctl file.
pub const SYSCTL_FILE: &str = "/etc/sysctl.d/90-raylet-uring.conf";
/// Settings in /sys, written at boot by systemd-tmpfiles.
pub const TMPFILES_FILE: &str = "/etc/tmpfiles.d/raylet-uring.conf";
/// Limits of what users' systemd starts.
pub const USER_DROP_IN: &str = "/etc/systemd/system/user@.service.d/90-raylet-uring.conf";
/// Settings of the node's own unit.
pub const UNIT_DROP_IN: &str = "/etc/systemd/system/raylet-uring.service.d/90-tune.conf";
/// Limits of logins.
pub const LIMITS_FILE: &str = "/etc/security/limits.d/90-raylet-uring.conf";

/// Bytes of a diff's context, in lines.
const CONTEXT_LINES: usize = 3;

/// Huge pages to reserve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reserve {
    /// `Huge2M` or `Huge1G`.
    pub pages: PageChoice,
    /// How many, over all NUMA nodes that the object store is on.
    pub count: u64,
}

/// What the machine is to be set for.
pub struct Request<'a> {
    /// The machine with the node in place.
    pub picture: &'a Picture,
    /// Huge pages to reserve; none unless asked for, since that takes memory from everything else.
    pub reserve: &'a [Reserve],
}

/// A file to write.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileChange {
    /// Its absolute path.
    pub path: PathBuf,
    /// Its text now; `None` where it isn't there.
    pub before: Option<String>,
    /// Its text then; `None`: it goes.
    pub after: Option<String>,
}

/// A value of the running kernel to set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LiveChange {
    /// Its file below /proc/sys or /sys.
    pub path: PathBuf,
    /// Its value now.
    pub before: String,
    /// Its value then.
    pub after: String,
}

/// What would be changed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// Files, which hold from the next boot or login on.
    pub files: Vec<FileChange>,
    /// Values, which hold at once.
    pub live: Vec<LiveChange>,
}

/// What could not be done.
#[derive(Debug, thiserror::Error)]
pub enum TuneError {
    /// A file can't be written.
    #[error("{path} can't be written: {source}: run as root (sudo raylet-uring tune ...)")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The note of what was there before can't be read.
    #[error(
        "{path}, which notes what was there before, can't be read: {message}: put the files back by hand and remove it"
    )]
    Record {
        /// The note.
        path: PathBuf,
        /// Why.
        message: String,
    },
    /// Huge pages that the machine doesn't have.
    #[error("this kernel has no pool of such huge pages: {path} is not there: 2M and 1G are the usual sizes")]
    NoPool {
        /// The pool's file.
        path: PathBuf,
    },
    /// Nothing was applied.
    #[error("nothing to undo: {path} is not there")]
    NothingToUndo {
        /// Where it would be noted.
        path: PathBuf,
    },
}

impl Plan {
    /// Whether everything is as it should be.
    pub fn is_empty(&self) -> bool {
        self.files.is_empty() && self.live.is_empty()
    }

    /// The changes of files as a unified diff, then those of the running kernel, one a line.
    pub fn diff(&self) -> String {
        let mut text = String::new();
        for change in &self.files {
            let (before, after) = (change.before.as_deref(), change.after.as_deref());
            let name = |text: Option<&str>| text.map_or("/dev/null".to_owned(), |_| change.path.display().to_string());
            let diff = TextDiff::from_lines(before.unwrap_or_default(), after.unwrap_or_default());
            text += &diff.unified_diff().context_radius(CONTEXT_LINES).header(&name(before), &name(after)).to_string();
        }
        for change in &self.live {
            text += &format!("now {}: {} -> {}\n", change.path.display(), change.before, change.after);
        }
        text
    }
}

/// Finds what to change.
///
/// # Errors
/// [`TuneError::NoPool`] where huge pages are to be reserved that the machine doesn't have.
pub fn plan(host: &Host, request: &Request) -> Result<Plan, TuneError> {
    let mut plan = Plan::default();
    for (path, lines) in settings::files(host, request)? {
        let before = fs::read_to_string(host.path(path)).ok();
        let after = settings::text_of(path, &lines);
        if before != after {
            plan.files.push(FileChange { path: path.into(), before, after });
        }
        for line in &lines {
            plan.live.extend(live_changes(host, line));
        }
    }
    Ok(plan)
}

fn live_changes(host: &Host, line: &Line) -> Vec<LiveChange> {
    let differ = |before: &str| before.split_whitespace().ne(line.value.split_whitespace());
    line.live
        .iter()
        .filter_map(|path| Some((path, settings::current(host, path)?)))
        .filter(|(_, before)| differ(before))
        .map(|(path, before)| LiveChange { path: path.clone(), before, after: line.value.clone() })
        .collect()
}

/// Carries a plan out. Returns what the running kernel did not take, in words; the files are written all the same.
///
/// # Errors
/// [`TuneError`] where a file can't be written. What was done until then can be undone.
pub fn apply(host: &Host, plan: &Plan) -> Result<Vec<String>, TuneError> {
    let record = merge(read_record(host)?.unwrap_or_default(), plan);
    write(host, Path::new(RECORD), &serde_json::to_string_pretty(&record).unwrap_or_default())?;
    for change in &plan.files {
        put(host, &change.path, change.after.as_deref())?;
    }
    Ok(plan.live.iter().filter_map(|change| set_live(host, &change.path, &change.after)).collect())
}

/// Puts back what was there before [`apply`]. Files and values that somebody else changed since stay as they are. Returns
/// what was left alone or refused, in words.
///
/// # Errors
/// [`TuneError`] where nothing was applied or a file can't be written.
pub fn undo(host: &Host) -> Result<Vec<String>, TuneError> {
    let record = read_record(host)?.ok_or(TuneError::NothingToUndo { path: RECORD.into() })?;
    let mut left = Vec::new();
    for change in &record.files {
        let now = fs::read_to_string(host.path(&change.path)).ok();
        if now == change.before {
            continue;
        }
        if now == change.after {
            put(host, &change.path, change.before.as_deref())?;
        } else {
            left.push(format!("{} was changed by somebody else and stays", change.path.display()));
        }
    }
    for change in &record.live {
        let now = settings::current(host, &change.path).unwrap_or_default();
        if now.split_whitespace().eq(change.before.split_whitespace()) {
            continue;
        }
        if now.split_whitespace().eq(change.after.split_whitespace()) {
            left.extend(set_live(host, &change.path, &change.before));
        } else {
            left.push(format!("{} is {now} by now and stays", change.path.display()));
        }
    }
    put(host, Path::new(RECORD), None)?;
    Ok(left)
}

/// What `undo` would change.
///
/// # Errors
/// As [`undo`].
pub fn plan_undo(host: &Host) -> Result<Plan, TuneError> {
    let record = read_record(host)?.ok_or(TuneError::NothingToUndo { path: RECORD.into() })?;
    let back = |change: &FileChange| FileChange {
        path: change.path.clone(),
        before: change.after.clone(),
        after: change.before.clone(),
    };
    let back_live = |change: &LiveChange| LiveChange {
        path: change.path.clone(),
        before: change.after.clone(),
        after: change.before.clone(),
    };
    Ok(Plan { files: record.files.iter().map(back).collect(), live: record.live.iter().map(back_live).collect() })
}

/// The earliest state before, and the latest after.
fn merge(mut record: Plan, plan: &Plan) -> Plan {
    for change in &plan.files {
        match record.files.iter_mut().find(|known| known.path == change.path) {
            Some(known) => known.after.clone_from(&change.after),
            None => record.files.push(change.clone()),
        }
    }
    for change in &plan.live {
        match record.live.iter_mut().find(|known| known.path == change.path) {
            Some(known) => known.after.clone_from(&change.after),
            None => record.live.push(change.clone()),
        }
    }
    record
}

fn read_record(host: &Host) -> Result<Option<Plan>, TuneError> {
    let path = host.path(RECORD);
    let failed = |message: String| TuneError::Record { path: RECORD.into(), message };
    match fs::read_to_string(path) {
        Ok(text) => serde_json::from_str(&text).map(Some).map_err(|error| failed(error.to_string())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed(error.to_string())),
    }
}

/// Writes a file, or removes it, and then its directory where that is empty (a drop-in's).
fn put(host: &Host, path: &Path, text: Option<&str>) -> Result<(), TuneError> {
    if let Some(text) = text {
        return write(host, path, text);
    }
    let real = host.path(path);
    match fs::remove_file(&real) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(source) => return Err(TuneError::Write { path: path.to_owned(), source }),
    }
    let ours = |directory: &&Path| {
        let name = directory.file_name().unwrap_or_default().to_string_lossy();
        name.ends_with(".service.d") || name == "raylet-uring"
    };
    if let Some(directory) = real.parent().filter(ours) {
        // Others' files in it keep it.
        let _ = fs::remove_dir(directory);
    }
    Ok(())
}

/// Writes a file whole or not at all.
fn write(host: &Host, path: &Path, text: &str) -> Result<(), TuneError> {
    let real = host.path(path);
    let mut unfinished = real.clone().into_os_string();
    unfinished.push(".new");
    let make = || -> io::Result<()> {
        if let Some(directory) = real.parent() {
            fs::create_dir_all(directory)?;
        }
        fs::write(&unfinished, text)?;
        fs::rename(&unfinished, &real)
    };
    make().map_err(|source| TuneError::Write { path: path.to_owned(), source })
}

/// Sets a value of the running kernel; says what went wrong.
fn set_live(host: &Host, path: &Path, value: &str) -> Option<String> {
    if let Err(error) = fs::write(host.path(path), value) {
        return Some(format!("{} can't be set to {value}: {error}", path.display()));
    }
    let now = settings::current(host, path).unwrap_or_default();
    let is_set = now.split_whitespace().eq(value.split_whitespace());
    let hint = match path.ends_with("nr_hugepages") {
        true => ": memory is fragmented or used; reserve them at boot (hugepagesz=1G hugepages=N on the kernel's command line)",
        false => "",
    };
    (!is_set).then(|| format!("{} is {now} although {value} was written{hint}", path.display()))
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
