//! `raylet-uring attach`: makes a Ray installation use this binary as its raylet, and `detach` undoes it.
//!
//! Ray starts the file `ray/core/src/ray/raylet/raylet` of its package and nothing redirects that (Ray 2.60 services.py,
//! RAYLET_EXECUTABLE). So that file is replaced. Beside it lie, while ours is in place:
//!
//! | file | what |
//! |---|---|
//! | `raylet` | a copy of this binary |
//! | `raylet.stock` | Ray's own, as it was |
//! | `raylet-uring.json` | versions and checksums of both |
//!
//! Every change is a rename of a finished, synced file, in an order in which each moment's state is a working raylet that
//! `attach`, `detach` and `--status` understand: the original gets its second name before its first one is taken over,
//! and loses it after it is back.

mod files;
mod python;
mod report;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use files::{inspect, Found};
pub use files::{Kind, MARKER};
pub use report::{Report, Running, EXIT_BROKEN, EXIT_OURS, EXIT_STOCK};

/// The versions of Ray whose protocols this binary speaks.
pub const SUPPORTED_RAY_VERSIONS: &[&str] = &["2.60.0"];

/// Why an installation can't be attached, detached or told.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AttachError {
    /// The Python can't be started.
    #[error("can't run {python}: {source}; give the Python of the Ray installation, such as .venv/bin/python")]
    Python {
        /// The Python.
        python: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The Python has no Ray.
    #[error("{python} can't import ray; install ray=={} there first: {stderr}", SUPPORTED_RAY_VERSIONS[0])]
    NoRay {
        /// The Python.
        python: PathBuf,
        /// The end of what it said.
        stderr: String,
    },
    /// The Python takes too long.
    #[error("{python} didn't import ray within {seconds} s")]
    PythonTimeout {
        /// The Python.
        python: PathBuf,
        /// The limit.
        seconds: u64,
    },
    /// A version whose protocols we don't speak.
    #[error("Ray {found} is installed; raylet-uring speaks Ray {}: install one of these", SUPPORTED_RAY_VERSIONS.join(", "))]
    UnsupportedVersion {
        /// The installed version.
        found: String,
    },
    /// Neither Ray's raylet nor a copy of it is there.
    #[error("{raylet} isn't there: this installation of Ray has no raylet; reinstall Ray (pip install --force-reinstall --no-deps ray=={version})")]
    NoRaylet {
        /// Where it should be.
        raylet: PathBuf,
        /// The installed version.
        version: String,
    },
    /// Ours is in place and the original is gone or not what it was.
    #[error("{stock} {problem}: Ray's own raylet can't be put back from it; reinstall Ray (pip install --force-reinstall --no-deps ray=={version})")]
    StockLost {
        /// Where the original should be.
        stock: PathBuf,
        /// What is wrong.
        problem: String,
        /// The installed version.
        version: String,
    },
    /// The binary to install isn't this program.
    #[error("{binary} is no raylet-uring executable")]
    NotOurs {
        /// The binary.
        binary: PathBuf,
    },
    /// A file can't be read or written.
    #[error("{action} {path}: {source}{}", permission_hint(.source))]
    File {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

fn permission_hint(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::PermissionDenied => "; run this as the owner of the Ray installation",
        _ => "",
    }
}

/// What attaching or detaching did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The installation was changed.
    Done,
    /// Another build of ours was replaced by this one.
    Updated,
    /// It was as asked for already.
    Already,
}

/// What is written beside the two executables. The record is written before ours takes its place, so that whenever ours is
/// in place the record describes the original.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    /// The version of Ray at the time.
    ray_version: String,
    /// SHA-256 of Ray's own raylet, in hexadecimal.
    stock_sha256: String,
    /// The version of raylet-uring.
    ours_version: String,
    /// SHA-256 of our binary, in hexadecimal.
    ours_sha256: String,
}

/// A Ray installation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Installation {
    /// The version, such as "2.60.0".
    pub ray_version: String,
    /// The raylet that Ray starts.
    pub raylet: PathBuf,
}

impl Installation {
    /// Asks a Python for its Ray.
    ///
    /// # Errors
    /// Where the Python can't be run or has no Ray.
    pub fn find(python: &Path) -> Result<Self, AttachError> {
        python::find(python)
    }

    /// Where the original lies while ours is in place.
    pub fn stock(&self) -> PathBuf {
        self.raylet.with_file_name("raylet.stock")
    }

    /// Our binary on its way to its place.
    fn new_path(&self) -> PathBuf {
        self.raylet.with_file_name("raylet.uring-new")
    }

    fn record_path(&self) -> PathBuf {
        self.raylet.with_file_name("raylet-uring.json")
    }

    /// Puts a copy of `binary` (this program) in place of Ray's raylet.
    ///
    /// # Errors
    /// [`AttachError`]. The installation works as before then, with one of the two raylets in place.
    pub fn attach(&self, binary: &Path) -> Result<Outcome, AttachError> {
        self.check_version()?;
        let _lock = self.lock()?;
        let (live, stock) = (inspect(&self.raylet)?, inspect(&self.stock())?);
        let stock_sha256 = match (&live, stock) {
            (Some(Found { kind: Kind::Stock, sha256 }), _) => {
                // Also where an older raylet.stock is there: Ray was reinstalled over an attached installation.
                files::link_over(&self.raylet, &self.stock())?;
                sha256.clone()
            }
            (None, None) => return Err(self.no_raylet()),
            (_, stock) => self.checked_stock(stock)?,
        };
        let record = |ours: &Found| Record {
            ray_version: self.ray_version.clone(),
            stock_sha256: stock_sha256.clone(),
            ours_version: env!("CARGO_PKG_VERSION").to_owned(),
            ours_sha256: ours.sha256.clone(),
        };
        let is_ours = live.as_ref().is_some_and(|l| l.kind == Kind::Ours);
        if is_ours && live == inspect(binary)? && self.record() == live.as_ref().map(record) {
            return Ok(Outcome::Already);
        }
        let new = self.new_path();
        let ours = files::copy_executable(binary, &new)?;
        if ours.kind != Kind::Ours {
            files::remove(&new)?;
            return Err(AttachError::NotOurs { binary: binary.to_owned() });
        }
        self.write_record(&record(&ours))?;
        files::rename(&new, &self.raylet)?;
        files::sync_directory_of(&self.raylet)?;
        Ok(if is_ours { Outcome::Updated } else { Outcome::Done })
    }

    /// Puts Ray's own raylet back.
    ///
    /// # Errors
    /// [`AttachError::StockLost`] where the original is gone or changed: ours stays then. Others as for attaching.
    pub fn detach(&self) -> Result<Outcome, AttachError> {
        let _lock = self.lock()?;
        let outcome = match (inspect(&self.raylet)?, inspect(&self.stock())?) {
            (Some(Found { kind: Kind::Stock, .. }), _) => Outcome::Already,
            (None, None) => return Err(self.no_raylet()),
            (_, stock) => {
                self.checked_stock(stock)?;
                files::link_over(&self.stock(), &self.raylet)?;
                files::sync_directory_of(&self.raylet)?;
                Outcome::Done
            }
        };
        // The original is back under its own name; what was written for the exchange goes.
        for path in [self.stock(), self.record_path(), self.new_path()] {
            files::remove(&path)?;
        }
        files::sync_directory_of(&self.raylet)?;
        Ok(outcome)
    }

    /// Which raylet is in place, and which ones run.
    ///
    /// # Errors
    /// Where the files can't be read.
    pub fn report(&self) -> Result<Report, AttachError> {
        report::gather(self)
    }

    /// The checksum of the original where it is there and what it was when it was put aside.
    fn checked_stock(&self, stock: Option<Found>) -> Result<String, AttachError> {
        let lost = |problem: &str| AttachError::StockLost {
            stock: self.stock(),
            problem: problem.to_owned(),
            version: self.ray_version.clone(),
        };
        match (stock, self.record()) {
            (None, _) => Err(lost("isn't there")),
            (Some(Found { kind: Kind::Ours, .. }), _) => Err(lost("is a raylet-uring executable")),
            (Some(found), Some(record)) if record.stock_sha256 != found.sha256 => {
                Err(lost("was changed since it was put there (its checksum is another)"))
            }
            (Some(found), _) => Ok(found.sha256),
        }
    }

    fn check_version(&self) -> Result<(), AttachError> {
        if SUPPORTED_RAY_VERSIONS.contains(&self.ray_version.as_str()) {
            return Ok(());
        }
        Err(AttachError::UnsupportedVersion { found: self.ray_version.clone() })
    }

    fn no_raylet(&self) -> AttachError {
        AttachError::NoRaylet { raylet: self.raylet.clone(), version: self.ray_version.clone() }
    }

    /// The record, where there is one that can be read. One that can't be proves nothing, and is as good as none.
    fn record(&self) -> Option<Record> {
        serde_json::from_slice(&fs::read(self.record_path()).ok()?).ok()
    }

    fn write_record(&self, record: &Record) -> Result<(), AttachError> {
        let path = self.record_path();
        let json = serde_json::to_vec_pretty(record).map_err(|error| AttachError::File {
            action: "write",
            path: path.clone(),
            source: io::Error::other(error),
        })?;
        files::write_over(&path, &json)
    }

    /// One attach or detach at a time: a lock on the directory, which leaves no file behind.
    fn lock(&self) -> Result<fs::File, AttachError> {
        let directory = self.raylet.parent().unwrap_or(Path::new("/"));
        let error = |source| AttachError::File { action: "lock", path: directory.to_owned(), source };
        let file = fs::File::open(directory).map_err(error)?;
        rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive).map_err(|e| error(e.into()))?;
        Ok(file)
    }
}

#[cfg(test)]
mod tests;
