//! The machine that is looked at: the kernel's files below a root directory, and what only a system call can tell.
//!
//! A test gives a directory and answers of its own, so that every finding can be had without the machine that has it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::arena::ArenaError;
use crate::pages::PageKind;
use crate::probes::{Clock, DiskSpeed, Probes, Rings, SystemProbes};
use crate::sysfs;

/// A machine, seen through its files and its answers.
pub struct Host {
    root: PathBuf,
    probes: Box<dyn Probes>,
}

impl Host {
    /// The machine that this process runs on.
    pub fn this() -> Host {
        Host { root: PathBuf::from("/"), probes: Box::new(SystemProbes) }
    }

    /// A machine whose files (/proc, /sys, /etc, ...) lie below `root`, with answers of its own.
    pub fn at(root: impl Into<PathBuf>, probes: Box<dyn Probes>) -> Host {
        Host { root: root.into(), probes }
    }

    /// The files of another machine below `root`, with this machine's answers to system calls.
    pub fn files_at(root: impl Into<PathBuf>) -> Host {
        Host::at(root, Box::new(SystemProbes))
    }

    /// Whether the files are this machine's own.
    pub fn is_this_machine(&self) -> bool {
        self.root == Path::new("/")
    }

    /// Where one of the machine's absolute paths lies.
    pub fn path(&self, absolute: impl AsRef<Path>) -> PathBuf {
        let path = absolute.as_ref();
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// A path below the root as the machine itself calls it.
    pub fn name_of(&self, path: &Path) -> PathBuf {
        path.strip_prefix(&self.root).map_or_else(|_| path.to_owned(), |rest| Path::new("/").join(rest))
    }

    /// A small file's text, trimmed; `None` where it can't be read, which means that the kernel doesn't say.
    pub(crate) fn text(&self, absolute: impl AsRef<Path>) -> Option<String> {
        sysfs::text(self.path(absolute))
    }

    /// A small file's number.
    pub(crate) fn number(&self, absolute: impl AsRef<Path>) -> Option<u64> {
        sysfs::number(self.path(absolute))
    }

    /// The selected word of a choice file.
    pub(crate) fn selected(&self, absolute: impl AsRef<Path>) -> Option<String> {
        sysfs::selected(&self.text(absolute)?).map(str::to_owned)
    }

    /// Names in a directory, sorted; none where it can't be read.
    pub(crate) fn names(&self, absolute: impl AsRef<Path>) -> Vec<String> {
        let entries = fs::read_dir(self.path(absolute)).into_iter().flatten().flatten();
        let mut names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.sort();
        names
    }

    /// A soft and hard limit of this process, from /proc/self/limits; `None` where the kernel doesn't say.
    pub(crate) fn limit(&self, name: &str) -> Option<Limit> {
        let limits = self.text("/proc/self/limits")?;
        let mut values = limits.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace();
        let value = |text: &str| if text == "unlimited" { Some(None) } else { text.parse().ok().map(Some) };
        Some(Limit { soft: value(values.next()?)?, hard: value(values.next()?)? })
    }

    /// Whether this process has a capability (its bit), from /proc/self/status.
    pub(crate) fn has_capability(&self, bit: u32) -> bool {
        let effective = self.status_line("CapEff").and_then(|line| u64::from_str_radix(&line, 16).ok());
        effective.is_some_and(|bits| bits >> bit & 1 == 1)
    }

    /// The rest of a line of /proc/self/status.
    pub(crate) fn status_line(&self, name: &str) -> Option<String> {
        let status = self.text("/proc/self/status")?;
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        Some(line.trim().to_owned())
    }

    pub(crate) fn rings(&self) -> io::Result<Rings> {
        self.probes.rings()
    }

    pub(crate) fn filesystem_bytes(&self, path: &Path) -> io::Result<(u64, u64)> {
        self.probes.filesystem_bytes(&self.path(path))
    }

    pub(crate) fn disk_speed(&self, directory: &Path) -> io::Result<DiskSpeed> {
        self.probes.disk_speed(&self.path(directory))
    }

    pub(crate) fn huge_pages(&self) -> Result<(PageKind, Option<String>), ArenaError> {
        self.probes.huge_pages()
    }

    pub(crate) fn bind(&self, port: u16) -> io::Result<()> {
        self.probes.bind(port)
    }

    pub(crate) fn clock(&self) -> io::Result<Clock> {
        self.probes.clock()
    }
}

/// A soft and a hard limit; `None`: unlimited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limit {
    /// What holds now.
    pub(crate) soft: Option<u64>,
    /// What it can be raised to without privileges.
    pub(crate) hard: Option<u64>,
}
