//! The machine's own limit for what is spilled: blocks written to a file past the page cache, made durable, and read again.
//!
//! One thread with one ring, so many operations under way, as a core of the node has. Nothing is looked at: what spilling and restoring
//! are slower than this is their own.

use std::ffi::CString;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use raylet_transport::uring::{Completion, CoreRing, Doorbell, FileOperation, FileResult, IoMemory, PageBuffer};

use crate::LoadError;

/// Set apart from files of others in the same directory by the process's id.
const FILE_NAME: &str = "raylet-bench-disk";

/// What is written and read.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where the file is made, and removed from.
    pub directory: PathBuf,
    /// Length of the file in bytes; whole blocks of it are used.
    pub size_bytes: u64,
    /// Length of a block in bytes.
    pub block_bytes: u32,
    /// Operations under way at a time.
    pub depth: usize,
}

/// One way.
#[derive(Debug, serde::Serialize)]
pub struct Way {
    /// How long it took, writing with the wait until all is durable.
    pub seconds: f64,
    /// Bytes per second, in 10^9.
    pub gb_per_s: f64,
}

/// What came out.
#[derive(Debug, serde::Serialize)]
pub struct Report {
    /// Bytes each way.
    pub bytes: u64,
    /// To the disk.
    pub write: Way,
    /// From it.
    pub read: Way,
}

/// Writes the file, reads it, and removes it.
///
/// # Errors
/// Where the ring, the directory or the disk fails.
pub fn run(settings: &Settings) -> Result<Report, LoadError> {
    let blocks = settings.size_bytes / u64::from(settings.block_bytes);
    if blocks == 0 || !settings.block_bytes.is_multiple_of(4096) {
        let got = format!("{} bytes in blocks of {}", settings.size_bytes, settings.block_bytes);
        return Err(LoadError::Setting { setting: "--size", expected: "one block of whole 4 KiB pages or more", got });
    }
    let path = settings.directory.join(format!("{FILE_NAME}-{}", std::process::id()));
    let _removed_at_the_end = Remove(&path);
    let memory = PageBuffer::new(settings.block_bytes as usize * settings.depth.max(1));
    let memory: Rc<dyn IoMemory> = Rc::new(memory.map_err(LoadError::io("memory for the blocks"))?);
    let mut blocks = Blocks { ring: ring()?, memory, blocks, size: settings.block_bytes, depth: settings.depth.max(1) };
    let file = blocks.open(&path, true)?;
    blocks.allocate(&file)?;
    let write = blocks.all(&file, true)?;
    let file = blocks.open(&path, false)?;
    let read = blocks.all(&file, false)?;
    let bytes = blocks.bytes();
    let way = |took: Duration| Way { seconds: took.as_secs_f64(), gb_per_s: bytes as f64 / 1e9 / took.as_secs_f64() };
    Ok(Report { bytes, write: way(write), read: way(read) })
}

struct Remove<'a>(&'a Path);

impl Drop for Remove<'_> {
    fn drop(&mut self) {
        // It may not have been made.
        let _ = std::fs::remove_file(self.0);
    }
}

fn ring() -> Result<CoreRing, LoadError> {
    let failed = |error| LoadError::io("a ring")(std::io::Error::other(error));
    CoreRing::new(Doorbell::new().map_err(failed)?).map_err(failed)
}

/// A file's blocks, and the memory that they go through.
struct Blocks {
    ring: CoreRing,
    memory: Rc<dyn IoMemory>,
    blocks: u64,
    size: u32,
    depth: usize,
}

impl Blocks {
    fn bytes(&self) -> u64 {
        self.blocks * u64::from(self.size)
    }

    /// What the next operation to end came to, and its key.
    fn next(&mut self) -> Result<Vec<(u64, FileResult)>, LoadError> {
        let mut ended = Vec::new();
        while ended.is_empty() {
            self.ring.wait(None, || false).map_err(LoadError::io("io_uring_enter"))?;
            self.ring.reap(|completion| {
                if let Completion::File { key, result } = completion {
                    ended.push((key, result));
                }
            });
        }
        let failed = |(key, result): (u64, std::io::Result<_>)| Ok((key, result.map_err(LoadError::io("the file"))?));
        ended.into_iter().map(failed).collect()
    }

    fn open(&mut self, path: &Path, create: bool) -> Result<Rc<OwnedFd>, LoadError> {
        let path = CString::new(path.as_os_str().as_bytes()).map_err(|e| LoadError::io("the path")(e.into()))?;
        self.ring.begin(0, FileOperation::Open { path, create, direct: true });
        match self.next()?.pop() {
            Some((_, FileResult::Opened(file))) => Ok(Rc::new(file)),
            other => Err(LoadError::io("open")(std::io::Error::other(format!("unexpected {other:?}")))),
        }
    }

    /// Room for the whole file, so that its length does not grow with each block.
    fn allocate(&mut self, file: &Rc<OwnedFd>) -> Result<(), LoadError> {
        self.ring.begin(0, FileOperation::Allocate { file: file.clone(), bytes: self.bytes() });
        self.next().map(drop)
    }

    fn begin(&mut self, file: &Rc<OwnedFd>, block: u64, place: u64, write: bool) {
        let (file, memory, len) = (file.clone(), self.memory.clone(), self.size);
        let (at, offset) = (block * u64::from(len), place * u64::from(len));
        self.ring.begin(
            place,
            match write {
                true => FileOperation::Write { file, at, memory, offset, len },
                false => FileOperation::Read { file, at, memory, offset, len },
            },
        );
    }

    /// Writes or reads every block once.
    fn all(&mut self, file: &Rc<OwnedFd>, write: bool) -> Result<Duration, LoadError> {
        let begin = Instant::now();
        let (mut begun, mut done) = (0, 0);
        while begun < self.blocks.min(self.depth as u64) {
            self.begin(file, begun, begun, write);
            begun += 1;
        }
        while done < self.blocks {
            for (place, result) in self.next()? {
                if !matches!(result, FileResult::Done(moved) if moved == self.size) {
                    return Err(LoadError::io("a block")(std::io::Error::other(format!("only {result:?}"))));
                }
                done += 1;
                if begun < self.blocks {
                    self.begin(file, begun, place, write);
                    begun += 1;
                }
            }
        }
        if write {
            rustix::fs::fdatasync(&**file).map_err(|e| LoadError::io("fdatasync")(e.into()))?;
        }
        Ok(begin.elapsed())
    }
}
