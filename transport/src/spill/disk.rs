//! The files of one core: what is written, read and removed, and which operations of that are under way.

use std::collections::VecDeque;
use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use rustc_hash::FxHashMap;
use rustix::io::Errno;

use super::directory::check_room;
use super::format::{Entry, CHUNK_BYTES, PAGE_BYTES};
use super::read::{ObjectReader, ReadError, Target, Wanted};
use super::serve::SpilledObject;
use super::write::{FileWriter, Piece, Source};
use crate::uring::{FileOperation, FileResult};

/// Operations of one core that are under way at most: pieces of up to 1 MiB, enough to keep fast disks busy.
pub const OPERATIONS_MAX: usize = 32;

/// Checksums of one core that are due at most, each of up to 1 MiB: no more is asked for meanwhile.
pub const CHECKS_MAX: usize = 64;

/// Bytes that are summed before the core looks around again.
const CHECKED_AT_A_TIME_BYTES: u64 = CHUNK_BYTES;

/// Pieces of one file or object that may come back short, or interrupted, before it is given up.
const SHORTS_MAX: u32 = 1000;

/// How a core's files are kept.
#[derive(Clone, Debug)]
pub struct DiskSettings {
    /// Directories, which are there.
    pub directories: Vec<PathBuf>,
    /// So many of them, the first ones, are near the core: they are used in turn, and the others when none of these takes a file.
    pub near: usize,
    /// Share of a disk, 0 to 1, that may be full after a file is written (Ray: `local_fs_capacity_threshold`).
    pub capacity_share: f64,
    /// Sets the names of this core's files apart from those of others.
    pub name: String,
}

/// Why a file could not be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WriteFailure {
    /// The disk is full.
    pub full: bool,
    /// In words.
    pub why: String,
}

/// Why an object could not be read back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadFailure {
    /// It is not there any more, or changed: another try is in vain.
    pub lost: bool,
    /// In words.
    pub why: String,
}

/// Something that was asked for has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A file is written, or could not be.
    Written {
        /// Its number.
        file: u32,
        /// Length of the file in bytes, or why not.
        result: Result<u64, WriteFailure>,
    },
    /// An object is in its place, or could not be read.
    Read {
        /// As given with the request.
        ticket: u64,
        /// Length of its data and metadata in bytes, or why not.
        result: Result<u64, ReadFailure>,
    },
}

/// What is on disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskUse {
    /// Files.
    pub files: u64,
    /// Their lengths in bytes.
    pub bytes: u64,
}

#[derive(Debug)]
struct Directory {
    path: PathBuf,
    /// O_DIRECT works there, as far as is known.
    direct: bool,
}

/// A file that is written.
#[derive(Debug)]
struct Stored {
    path: PathBuf,
    entries: Vec<Entry>,
    direct: bool,
    bytes: u64,
}

#[derive(Debug)]
enum Work {
    Write(WriteWork),
    Read(ReadWork),
}

#[derive(Debug)]
struct WriteWork {
    file: u32,
    writer: FileWriter,
    directory: usize,
    /// Directories that are still to be tried.
    tries: usize,
    /// The page cache is in between: the first try showed that it has to be.
    again_buffered: bool,
    failed: Option<WriteFailure>,
}

#[derive(Debug)]
struct ReadWork {
    ticket: u64,
    reader: ObjectReader,
    failed: Option<ReadFailure>,
}

#[derive(Debug)]
struct Job {
    path: PathBuf,
    direct: bool,
    handle: Option<Rc<OwnedFd>>,
    under_way: usize,
    /// Checksums that are due.
    unchecked: usize,
    shorts: u32,
    /// All pieces were asked for.
    exhausted: bool,
    work: Work,
}

/// A checksum that is due.
#[derive(Debug)]
enum Check {
    /// Of what has come.
    Read(Wanted),
    /// Of what is being written: the next one of its file.
    Written,
}

#[derive(Debug)]
enum Step {
    Open,
    Allocate,
    Write(Piece),
    Read(Wanted, u64),
}

/// See the [module](super).
#[derive(Debug)]
pub struct Disk {
    directories: Vec<Directory>,
    capacity_share: f64,
    name: String,
    /// The first directories, which are used before the others.
    near: usize,
    /// Whose turn it is, of those and of the others.
    turns: [usize; 2],
    next_name: u64,
    files: FxHashMap<u32, Stored>,
    jobs: FxHashMap<u64, Job>,
    next_job: u64,
    steps: FxHashMap<u64, (u64, Step)>,
    next_step: u64,
    /// Jobs that have pieces to ask for, reads before writes.
    reads: VecDeque<u64>,
    writes: VecDeque<u64>,
    /// Checksums that are due, with their jobs, some of which may have failed meanwhile.
    checks: VecDeque<(u64, Check)>,
    begin: Vec<(u64, FileOperation)>,
    outcomes: Vec<Outcome>,
    used: DiskUse,
}

fn c_path(path: &Path) -> CString {
    // A path with a zero byte can't have come from the system; the empty path that stands for it is refused by the kernel.
    CString::new(path.as_os_str().as_bytes()).unwrap_or_default()
}

fn is(error: &io::Error, any: &[Errno]) -> bool {
    any.iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

impl Disk {
    /// No files yet.
    pub fn new(settings: DiskSettings) -> Self {
        let directories: Vec<_> =
            settings.directories.into_iter().map(|path| Directory { path, direct: true }).collect();
        Self {
            near: settings.near.min(directories.len()),
            turns: [0; 2],
            directories,
            capacity_share: settings.capacity_share,
            name: settings.name,
            next_name: 0,
            files: FxHashMap::default(),
            jobs: FxHashMap::default(),
            next_job: 0,
            steps: FxHashMap::default(),
            next_step: 0,
            reads: VecDeque::new(),
            writes: VecDeque::new(),
            checks: VecDeque::new(),
            begin: Vec::new(),
            outcomes: Vec::new(),
            used: DiskUse::default(),
        }
    }

    /// What is on disk.
    pub fn used(&self) -> DiskUse {
        self.used
    }

    /// Where an object is, and its owner's part of the news: the URL.
    pub fn url(&self, file: u32, index: u32) -> Option<String> {
        let stored = self.files.get(&file)?;
        Some(stored.entries.get(index as usize)?.url(&stored.path))
    }

    /// An object that is written, for whoever reads it without a core.
    pub fn object(&self, file: u32, index: u32) -> Option<SpilledObject> {
        let stored = self.files.get(&file)?;
        let entry = stored.entries.get(index as usize)?.clone();
        Some(SpilledObject { path: stored.path.clone(), direct: stored.direct, entry })
    }

    /// Writes objects to a new file. Ends with [`Outcome::Written`].
    pub fn write(&mut self, file: u32, sources: Vec<Source>) {
        let tries = self.directories.len();
        let writer = FileWriter::new(sources);
        self.start_write(WriteWork { file, writer, directory: 0, tries, again_buffered: false, failed: None });
    }

    /// Reads an object to its place. Ends with [`Outcome::Read`].
    pub fn read(&mut self, file: u32, index: u32, target: Target, ticket: u64) {
        let lost = |why: &str| Err(ReadFailure { lost: true, why: why.to_owned() });
        let Some(stored) = self.files.get(&file) else {
            return self.outcomes.push(Outcome::Read { ticket, result: lost("the file is not known") });
        };
        let Some(entry) = stored.entries.get(index as usize).cloned() else {
            return self.outcomes.push(Outcome::Read { ticket, result: lost("the file has no such object") });
        };
        let (path, direct) = (stored.path.clone(), stored.direct);
        let reader = match ObjectReader::new(entry, target) {
            Ok(reader) => reader,
            Err(error) => {
                let result = Err(ReadFailure { lost: false, why: error.to_string() });
                return self.outcomes.push(Outcome::Read { ticket, result });
            }
        };
        let work = Work::Read(ReadWork { ticket, reader, failed: None });
        self.open(Job::new(path, direct, work));
    }

    /// Removes a file of which nothing is wanted any more.
    pub fn delete(&mut self, file: u32) {
        if let Some(stored) = self.files.remove(&file) {
            self.used.files -= 1;
            self.used.bytes -= stored.bytes;
            self.unlink(&stored.path);
        }
    }

    /// What is to be begun on the ring now, with the keys under which it ends.
    pub fn operations(&mut self) -> Vec<(u64, FileOperation)> {
        self.ask_for_pieces();
        std::mem::take(&mut self.begin)
    }

    /// What has ended since this was last asked for.
    pub fn outcomes(&mut self) -> Vec<Outcome> {
        std::mem::take(&mut self.outcomes)
    }

    /// An operation has ended.
    pub fn completed(&mut self, key: u64, result: io::Result<FileResult>) {
        // Nobody waits for a removal.
        let Some((number, step)) = self.steps.remove(&key) else {
            return;
        };
        let Some(mut job) = self.jobs.remove(&number) else {
            return;
        };
        job.under_way -= 1;
        match step {
            Step::Open => return self.opened(number, job, result),
            Step::Allocate => self.allocated(number, &mut job, result),
            Step::Write(piece) => self.wrote(number, &mut job, &piece, result),
            Step::Read(wanted, done) => self.has_read(number, &mut job, wanted, done, result),
        }
        self.settle(number, job);
    }

    fn start_write(&mut self, mut work: WriteWork) {
        let prior = work.failed.take();
        let (mut full, mut why) = (false, String::new());
        while work.tries > 0 {
            let index = self.take_turn(self.directories.len() - work.tries);
            work.tries -= 1;
            let directory = &self.directories[index];
            match self.has_room(&directory.path, work.writer.length_bytes()) {
                Ok(()) => {
                    work.directory = index;
                    let direct = directory.direct && !work.again_buffered;
                    let path = directory.path.join(format!(
                        "{}{:x}-multi-{}",
                        self.name,
                        self.next_name,
                        work.writer.objects()
                    ));
                    self.next_name += 1;
                    return self.open(Job::new(path, direct, Work::Write(work)));
                }
                Err(failure) => (full, why) = (full || failure.full, failure.why),
            }
        }
        let failure = prior.unwrap_or(WriteFailure { full, why });
        self.outcomes.push(Outcome::Written { file: work.file, result: Err(failure) });
    }

    /// The directory for the next try of a file that was tried in so many: all that are near come first.
    fn take_turn(&mut self, tried: usize) -> usize {
        let (first, count, far) = match tried < self.near {
            true => (0, self.near, 0),
            false => (self.near, self.directories.len() - self.near, 1),
        };
        let turn = self.turns[far] % count;
        self.turns[far] = turn + 1;
        first + turn
    }

    /// The next try is to be in this directory again.
    fn give_turn_to(&mut self, directory: usize) {
        match directory < self.near {
            true => self.turns[0] = directory,
            false => self.turns[1] = directory - self.near,
        }
    }

    fn has_room(&self, path: &Path, bytes: u64) -> Result<(), WriteFailure> {
        if !path.exists() {
            // Somebody removed the directory; the files in it are gone, but others can be written.
            let made = fs::create_dir_all(path);
            made.map_err(|e| WriteFailure { full: false, why: format!("{}: {e}", path.display()) })?;
        }
        check_room(path, bytes, self.capacity_share).map_err(|why| WriteFailure { full: true, why })
    }

    fn open(&mut self, mut job: Job) {
        let create = matches!(job.work, Work::Write(_));
        let operation = FileOperation::Open { path: c_path(&job.path), create, direct: job.direct };
        let number = self.next_job;
        self.next_job += 1;
        job.under_way = 1;
        self.jobs.insert(number, job);
        self.ask(number, Step::Open, operation);
    }

    fn ask(&mut self, job: u64, step: Step, operation: FileOperation) {
        let key = self.next_step;
        self.next_step += 1;
        self.steps.insert(key, (job, step));
        self.begin.push((key, operation));
    }

    fn unlink(&mut self, path: &Path) {
        let key = self.next_step;
        self.next_step += 1;
        self.begin.push((key, FileOperation::Unlink { path: c_path(path) }));
    }

    fn opened(&mut self, number: u64, mut job: Job, result: io::Result<FileResult>) {
        let error = match result {
            Ok(FileResult::Opened(handle)) => {
                let handle = Rc::new(handle);
                job.handle = Some(handle.clone());
                match &job.work {
                    Work::Write(work) => {
                        let bytes = work.writer.length_bytes();
                        job.under_way += 1;
                        self.jobs.insert(number, job);
                        self.ask(number, Step::Allocate, FileOperation::Allocate { file: handle, bytes });
                    }
                    Work::Read(_) => {
                        self.reads.push_back(number);
                        self.jobs.insert(number, job);
                    }
                }
                return;
            }
            Ok(FileResult::Done(_)) => io::Error::from(io::ErrorKind::Other),
            Err(error) => error,
        };
        let why = format!("{}: {error}", job.path.display());
        let refused_direct = job.direct && is(&error, &[Errno::INVAL, Errno::OPNOTSUPP]);
        match job.work {
            Work::Write(mut work) => {
                if refused_direct {
                    self.directories[work.directory].direct = false;
                    work.tries += 1;
                    self.give_turn_to(work.directory);
                }
                // The kernel may have made the file before it refused.
                self.unlink(&job.path);
                work.failed = Some(WriteFailure { full: is(&error, &[Errno::NOSPC, Errno::DQUOT]), why });
                self.start_write(work);
            }
            Work::Read(_) if refused_direct => self.open(Job { direct: false, ..job }),
            Work::Read(work) => {
                let result = Err(ReadFailure { lost: error.kind() == io::ErrorKind::NotFound, why });
                self.outcomes.push(Outcome::Read { ticket: work.ticket, result });
            }
        }
    }

    fn allocated(&mut self, number: u64, job: &mut Job, result: io::Result<FileResult>) {
        match result {
            // A file system that can't promise room says so when it is written.
            Err(error) if !is(&error, &[Errno::OPNOTSUPP, Errno::NOSYS, Errno::INVAL, Errno::INTR]) => job.fail(&error),
            _ => self.writes.push_back(number),
        }
    }

    fn wrote(&mut self, number: u64, job: &mut Job, piece: &Piece, result: io::Result<FileResult>) {
        let moved = match result {
            Ok(FileResult::Done(moved)) => u64::from(moved),
            Ok(FileResult::Opened(_)) => 0,
            Err(error) if is(&error, &[Errno::INTR, Errno::AGAIN]) => 0,
            Err(error) if job.direct && is(&error, &[Errno::INVAL, Errno::OPNOTSUPP]) => {
                if let Work::Write(work) = &mut job.work {
                    work.again_buffered = true;
                    self.directories[work.directory].direct = false;
                }
                return job.fail(&error);
            }
            Err(error) => return job.fail(&error),
        };
        if moved >= piece.len {
            return;
        }
        if !job.may_be_short() {
            return job.fail(&io::Error::from(io::ErrorKind::WriteZero));
        }
        let done = moved - moved % PAGE_BYTES;
        let rest = Piece { at: piece.at + done, offset: piece.offset + done, len: piece.len - done, ..piece.clone() };
        self.ask_piece(number, job, Step::Write(rest));
    }

    fn has_read(&mut self, number: u64, job: &mut Job, wanted: Wanted, done: u64, result: io::Result<FileResult>) {
        let moved = match result {
            Ok(FileResult::Done(moved)) => u64::from(moved),
            Ok(FileResult::Opened(_)) => 0,
            Err(error) if is(&error, &[Errno::INTR, Errno::AGAIN]) && job.may_be_short() => {
                return self.ask_piece(number, job, Step::Read(wanted, done));
            }
            Err(error) => return job.fail(&error),
        };
        if done + moved >= wanted.needed {
            return self.check_later(number, job, Check::Read(wanted));
        }
        let pages = moved - moved % PAGE_BYTES;
        if pages == 0 || !job.may_be_short() {
            return job.fail_read(&ReadError::Cut { at: wanted.piece.at + done + moved });
        }
        self.ask_piece(number, job, Step::Read(wanted, done + pages));
    }

    fn ask_piece(&mut self, number: u64, job: &mut Job, step: Step) {
        let Some(file) = job.handle.clone() else {
            return;
        };
        let operation = match &step {
            Step::Write(piece) => FileOperation::Write {
                file,
                at: piece.at,
                memory: piece.memory.clone(),
                offset: piece.offset,
                len: piece.len as u32,
            },
            Step::Read(Wanted { piece, .. }, done) => FileOperation::Read {
                file,
                at: piece.at + done,
                memory: piece.memory.clone(),
                offset: piece.offset + done,
                len: (piece.len - done) as u32,
            },
            Step::Open | Step::Allocate => return,
        };
        job.under_way += 1;
        self.ask(number, step, operation);
    }

    fn check_later(&mut self, number: u64, job: &mut Job, check: Check) {
        job.unchecked += 1;
        self.checks.push_back((number, check));
    }

    /// Checksums are due: [`Self::check`] is to be called once what [`Self::operations`] gave is begun.
    pub fn has_checks(&self) -> bool {
        !self.checks.is_empty()
    }

    /// Does some of the checksums that are due, while the disk is at work. More may be to be begun afterwards, and may have ended.
    pub fn check(&mut self) {
        let mut checked_bytes = 0;
        while checked_bytes < CHECKED_AT_A_TIME_BYTES {
            let Some((number, check)) = self.checks.pop_front() else {
                return;
            };
            let Some(mut job) = self.jobs.remove(&number) else {
                continue;
            };
            job.unchecked -= 1;
            checked_bytes += job.check(check);
            self.settle(number, job);
        }
    }

    /// Asks for more pieces while there is room for them.
    fn ask_for_pieces(&mut self) {
        while self.steps.len() < OPERATIONS_MAX && self.checks.len() < CHECKS_MAX {
            let Some(number) = self.reads.pop_front().or_else(|| self.writes.pop_front()) else {
                return;
            };
            let Some(mut job) = self.jobs.remove(&number) else {
                continue;
            };
            let step = match (job.has_failed(), &mut job.work) {
                (true, _) => None,
                (_, Work::Read(work)) => work.reader.next_piece().map(|wanted| Step::Read(wanted, 0)),
                (_, Work::Write(_)) => self.next_write(number, &mut job).map(Step::Write),
            };
            match step {
                Some(step) => {
                    match step {
                        // In turn with others of its kind.
                        Step::Read(..) => self.reads.push_back(number),
                        // One disk writes file by file: the first is whole, and its memory free, the sooner.
                        _ if self.directories.len() == 1 => self.writes.push_front(number),
                        _ => self.writes.push_back(number),
                    }
                    self.ask_piece(number, &mut job, step);
                    self.jobs.insert(number, job);
                }
                None => {
                    job.exhausted = true;
                    self.settle(number, job);
                }
            }
        }
    }

    /// The next piece of a file, whose checksums are done when it is under way.
    fn next_write(&mut self, number: u64, job: &mut Job) -> Option<Piece> {
        let Work::Write(work) = &mut job.work else {
            return None;
        };
        let due = work.writer.sums_due();
        let piece = work.writer.next_piece();
        let new = work.writer.sums_due() - due;
        for _ in 0..new {
            self.check_later(number, job, Check::Written);
        }
        piece.unwrap_or_else(|error| {
            job.fail(&error);
            None
        })
    }

    /// Ends a job of which nothing is under way any more.
    fn settle(&mut self, number: u64, job: Job) {
        let done = job.exhausted && job.unchecked == 0;
        let over = job.under_way == 0 && (done || job.has_failed());
        if !over {
            self.jobs.insert(number, job);
            return;
        }
        match job.work {
            Work::Read(ReadWork { ticket, reader, failed }) => {
                let result = failed.map_or(Ok(reader.size_bytes()), Err);
                self.outcomes.push(Outcome::Read { ticket, result });
            }
            Work::Write(mut work) => match work.failed.take() {
                None => {
                    let bytes = work.writer.length_bytes();
                    let entries = work.writer.into_entries();
                    self.files.insert(work.file, Stored { path: job.path, entries, direct: job.direct, bytes });
                    self.used.files += 1;
                    self.used.bytes += bytes;
                    self.outcomes.push(Outcome::Written { file: work.file, result: Ok(bytes) });
                }
                Some(failure) => {
                    self.unlink(&job.path);
                    work.writer.restart();
                    if job.direct && work.again_buffered {
                        work.tries += 1;
                        self.give_turn_to(work.directory);
                    }
                    work.failed = Some(failure);
                    self.start_write(work);
                }
            },
        }
    }
}

impl Job {
    fn new(path: PathBuf, direct: bool, work: Work) -> Self {
        Self { path, direct, handle: None, under_way: 0, unchecked: 0, shorts: 0, exhausted: false, work }
    }

    fn has_failed(&self) -> bool {
        match &self.work {
            Work::Write(work) => work.failed.is_some(),
            Work::Read(work) => work.failed.is_some(),
        }
    }

    /// Does a checksum, and tells of how many bytes it was. What has failed needs none.
    fn check(&mut self, check: Check) -> u64 {
        match (&mut self.work, check) {
            (Work::Read(work), Check::Read(wanted)) if work.failed.is_none() => {
                if let Err(error) = work.reader.read(&wanted) {
                    self.fail_read(&error);
                }
                wanted.needed
            }
            (Work::Write(work), Check::Written) if work.failed.is_none() => work.writer.sum().unwrap_or_else(|error| {
                self.fail(&error);
                0
            }),
            _ => 0,
        }
    }

    fn may_be_short(&mut self) -> bool {
        self.shorts += 1;
        self.shorts <= SHORTS_MAX
    }

    /// The first failure is the one that counts.
    fn fail(&mut self, error: &io::Error) {
        let why = format!("{}: {error}", self.path.display());
        match &mut self.work {
            Work::Write(work) => {
                let full = is(error, &[Errno::NOSPC, Errno::DQUOT]);
                work.failed.get_or_insert(WriteFailure { full, why });
            }
            Work::Read(work) => {
                work.failed.get_or_insert(ReadFailure { lost: false, why });
            }
        }
    }

    fn fail_read(&mut self, error: &ReadError) {
        let lost = !matches!(error, ReadError::Io(_));
        let why = format!("{}: {error}", self.path.display());
        if let Work::Read(work) = &mut self.work {
            work.failed.get_or_insert(ReadFailure { lost, why });
        }
    }
}
