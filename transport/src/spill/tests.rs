//! Spill files on this machine's disk and kernel, and on disks that fail.

use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::disk::CHECKS_MAX;
use super::format::{CHUNK_BYTES, PAGE_BYTES};
use super::read::ReadError;
use super::*;
use crate::fault::{arm_file, FileFault, FileKind};
use crate::uring::{Completion, CoreRing, Doorbell, IoMemory, PageBuffer};

const PATIENCE: Duration = Duration::from_secs(60);

/// An arena of one MiB more than the largest object, a disk, and the ring between them.
struct Bench {
    ring: CoreRing,
    disk: Disk,
    arena: Rc<PageBuffer>,
}

/// An object as it lies in the arena.
#[derive(Clone)]
struct Object {
    data_offset: u64,
    data: Vec<u8>,
    metadata: Vec<u8>,
}

fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..len).map(next).collect()
}

impl Bench {
    fn new(directories: &[&Path]) -> Self {
        Self::with_near(directories, directories.len())
    }

    /// Of the directories so many are near the core.
    fn with_near(directories: &[&Path], near: usize) -> Self {
        let directories = directories.iter().map(|path| path.to_path_buf()).collect();
        Self {
            ring: CoreRing::new(Doorbell::new().unwrap()).unwrap(),
            disk: Disk::new(DiskSettings { directories, near, capacity_share: 1.0, name: "test-".to_owned() }),
            arena: Rc::new(PageBuffer::new(24 << 20).unwrap()),
        }
    }

    /// Objects of these lengths of data and metadata, one behind the other; large ones begin on a page.
    fn objects(&self, lengths: &[(usize, usize)]) -> Vec<Object> {
        let mut at = 64;
        let place = |(seed, (data, metadata)): (usize, &(usize, usize))| {
            let align = if data + metadata >= 64 << 10 { PAGE_BYTES } else { 64 };
            let data_offset = u64::next_multiple_of(at, align);
            let object = Object {
                data_offset,
                data: pattern(seed as u64 + 1, *data),
                metadata: pattern(seed as u64 + 1000, *metadata),
            };
            assert!(self.arena.write(data_offset, &object.data));
            assert!(self.arena.write(data_offset + *data as u64, &object.metadata));
            at = (data_offset + (data + metadata) as u64).next_multiple_of(PAGE_BYTES);
            object
        };
        lengths.iter().enumerate().map(place).collect()
    }

    fn sources(&self, objects: &[Object]) -> Vec<Source> {
        let of = |object: &Object| Source {
            owner_address: Rc::from(&b"the owner"[..]),
            memory: self.arena.clone(),
            data_offset: object.data_offset,
            data_bytes: object.data.len() as u64,
            metadata_offset: object.data_offset + object.data.len() as u64,
            metadata_bytes: object.metadata.len() as u64,
        };
        objects.iter().map(of).collect()
    }

    fn write(&mut self, file: u32, objects: &[Object]) -> Result<u64, WriteFailure> {
        self.disk.write(file, self.sources(objects));
        match &self.outcomes(1)[..] {
            [Outcome::Written { file: written, result }] if *written == file => result.clone(),
            other => panic!("{other:?}"),
        }
    }

    fn outcomes(&mut self, count: usize) -> Vec<Outcome> {
        let deadline = Instant::now() + PATIENCE;
        let mut outcomes = self.disk.outcomes();
        loop {
            let begun = self.disk.operations();
            let idle = begun.is_empty() && self.ring.files_under_way() == 0 && !self.disk.has_checks();
            if idle && outcomes.len() >= count {
                return outcomes;
            }
            assert!(Instant::now() < deadline, "still waiting: {outcomes:?}");
            begun.into_iter().for_each(|(key, operation)| self.ring.begin(key, operation));
            let pause = if self.disk.has_checks() { Duration::ZERO } else { Duration::from_millis(20) };
            self.ring.wait(Some(Instant::now() + pause), || false).unwrap();
            let disk = &mut self.disk;
            disk.check();
            self.ring.reap(|completion| match completion {
                Completion::File { key, result } => disk.completed(key, result),
                other => panic!("{other:?}"),
            });
            outcomes.extend(self.disk.outcomes());
        }
    }

    fn target(&self, object: &Object) -> Target {
        let room_bytes = (object.data.len() + object.metadata.len()) as u64;
        Target {
            memory: self.arena.clone(),
            data_offset: object.data_offset,
            room_bytes: room_bytes.next_multiple_of(PAGE_BYTES),
            metadata_offset: object.data_offset + object.data.len() as u64,
        }
    }

    /// Clears an object's place and reads it back.
    fn read(&mut self, file: u32, index: usize, object: &Object) -> Result<(), ReadFailure> {
        let len = object.data.len() + object.metadata.len();
        assert!(self.arena.write(object.data_offset, &vec![0xee; len]));
        let target = self.target(object);
        self.disk.read(file, index as u32, target, 77);
        match &self.outcomes(1)[..] {
            [Outcome::Read { ticket: 77, result }] => result.clone().map(|bytes| assert_eq!(bytes, len as u64))?,
            other => panic!("{other:?}"),
        }
        let mut bytes = vec![0; len];
        assert!(self.arena.read(object.data_offset, &mut bytes));
        assert_eq!(bytes[..object.data.len()], object.data, "data of {} bytes", object.data.len());
        assert_eq!(bytes[object.data.len()..], object.metadata);
        Ok(())
    }

    fn path_of(&self, file: u32) -> std::path::PathBuf {
        self.disk.url(file, 0).unwrap().split('?').next().unwrap().into()
    }
}

const MIB: usize = CHUNK_BYTES as usize;

/// All kinds of lengths: nothing, small, just below and above what goes directly, whole and broken pages and chunks.
const LENGTHS: [(usize, usize); 14] = [
    (0, 5),
    (1, 0),
    (100, 3),
    (65_535, 1),
    (65_536, 0),
    (65_536 + 4095, 9),
    (3, 70_000),
    (300_000, 5000),
    (MIB, 8),
    (MIB + 1, 8),
    (3 * MIB - 1, 4097),
    (5 * MIB, 0),
    (50, 50),
    (4 * MIB + 12_345, 6),
];

#[test]
fn objects_come_back_as_they_were_in_any_order() {
    let directory = tempfile::tempdir().unwrap();
    let mut bench = Bench::new(&[directory.path()]);
    let objects = bench.objects(&LENGTHS);
    let bytes = bench.write(3, &objects).unwrap();
    assert_eq!((bytes % PAGE_BYTES, bench.disk.used()), (0, DiskUse { files: 1, bytes }));
    for index in (0..objects.len()).rev().chain(0..objects.len()) {
        bench.read(3, index, &objects[index]).unwrap();
    }
    bench.disk.delete(3);
    bench.outcomes(0);
    assert_eq!((std::fs::read_dir(&directory).unwrap().count(), bench.disk.used()), (0, DiskUse::default()));
}

#[test]
fn a_file_is_what_ray_reads() {
    let directory = tempfile::tempdir().unwrap();
    let mut bench = Bench::new(&[directory.path()]);
    let objects = bench.objects(&LENGTHS);
    bench.write(0, &objects).unwrap();
    for (index, object) in objects.iter().enumerate() {
        let url = bench.disk.url(0, index as u32).unwrap();
        let (path, place) = url.split_once("?offset=").unwrap();
        let (offset, size) = place.split_once("&size=").unwrap();
        let (offset, size): (usize, usize) = (offset.parse().unwrap(), size.parse().unwrap());
        let bytes = std::fs::read(path).unwrap()[offset..offset + size].to_vec();
        let length = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize;
        let (owner, metadata, data) = (length(0), length(8), length(16));
        assert_eq!((24 + owner + metadata + data, &bytes[24..24 + owner]), (size, &b"the owner"[..]));
        assert_eq!(bytes[24 + owner..24 + owner + metadata], object.metadata);
        assert_eq!(bytes[24 + owner + metadata..], object.data);
    }
}

#[test]
fn directories_are_used_in_turn_and_one_that_fails_is_passed_over() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut bench = Bench::new(&[one.path(), two.path()]);
    let objects = bench.objects(&[(100_000, 4)]);
    let count = |directory: &tempfile::TempDir| std::fs::read_dir(directory).map_or(0, Iterator::count);
    bench.write(0, &objects).unwrap();
    bench.write(1, &objects).unwrap();
    assert_eq!((count(&one), count(&two)), (1, 1));
    arm_file(FileKind::Write, 0, 1, FileFault::Error(Errno::IO.raw_os_error()));
    bench.write(2, &objects).unwrap();
    assert_eq!((count(&one), count(&two)), (1, 2), "the half-written file of the first is gone");
    bench.read(2, 0, &objects[0]).unwrap();
    arm_file(FileKind::Open, 0, 2, FileFault::Error(Errno::ACCESS.raw_os_error()));
    let failure = bench.write(3, &objects).unwrap_err();
    assert!(!failure.full && failure.why.contains("denied"), "{failure:?}");
    assert_eq!((count(&one), count(&two), bench.disk.used().files), (1, 2, 3));
}

#[test]
fn a_full_disk_is_told_and_nothing_is_left_of_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let mut bench = Bench::new(&[directory.path()]);
    let objects = bench.objects(&LENGTHS);
    for (kind, errno) in
        [(FileKind::Allocate, Errno::NOSPC), (FileKind::Write, Errno::NOSPC), (FileKind::Write, Errno::DQUOT)]
    {
        for passes in [0, 2] {
            arm_file(kind, if kind == FileKind::Write { passes } else { 0 }, 1, FileFault::Error(errno.raw_os_error()));
            assert!(bench.write(0, &objects).unwrap_err().full);
            assert_eq!(std::fs::read_dir(&directory).unwrap().count(), 0);
        }
    }
    bench.disk = Disk::new(DiskSettings {
        directories: vec![directory.path().to_owned()],
        near: 1,
        capacity_share: 0.0,
        name: String::new(),
    });
    let failure = bench.write(0, &objects).unwrap_err();
    assert!(failure.full && failure.why.contains("RAY_local_fs_capacity_threshold"), "{failure:?}");
}

#[test]
fn near_directories_are_used_in_turn_and_the_others_when_those_take_nothing() {
    let directories = [(); 4].map(|()| tempfile::tempdir().unwrap());
    let paths: Vec<&Path> = directories.iter().map(|directory| directory.path()).collect();
    let mut bench = Bench::with_near(&paths, 2);
    let objects = bench.objects(&[(200_000, 4)]);
    let files = || paths.iter().map(|path| std::fs::read_dir(path).unwrap().count()).collect::<Vec<_>>();
    for file in 0..4 {
        bench.write(file, &objects).unwrap();
    }
    assert_eq!(files(), [2, 2, 0, 0]);
    // Each near one fails once: the file goes to one that is not.
    for file in 4..6 {
        arm_file(FileKind::Allocate, 0, 2, FileFault::Error(Errno::NOSPC.raw_os_error()));
        bench.write(file, &objects).unwrap();
    }
    assert_eq!(files(), [2, 2, 1, 1]);
    // All fail but the last.
    arm_file(FileKind::Allocate, 0, 3, FileFault::Error(Errno::NOSPC.raw_os_error()));
    bench.write(6, &objects).unwrap();
    arm_file(FileKind::Allocate, 0, 4, FileFault::Error(Errno::NOSPC.raw_os_error()));
    assert!(bench.write(7, &objects).unwrap_err().full);
    bench.write(8, &objects).unwrap();
    let now = files();
    assert_eq!((now[..2].iter().sum::<usize>(), now[2..].iter().sum::<usize>()), (5, 3));
    bench.read(0, 0, &objects[0]).unwrap();
    bench.read(6, 0, &objects[0]).unwrap();
}

#[test]
fn short_and_interrupted_writes_and_reads_go_on_where_they_ended() {
    let directory = tempfile::tempdir().unwrap();
    let mut bench = Bench::new(&[directory.path()]);
    let objects = bench.objects(&LENGTHS);
    arm_file(FileKind::Write, 1, 20, FileFault::Short(70_000));
    arm_file(FileKind::Write, 1, 3, FileFault::Error(Errno::INTR.raw_os_error()));
    bench.write(0, &objects).unwrap();
    for (index, object) in objects.iter().enumerate() {
        arm_file(FileKind::Read, 0, 1, FileFault::Error(Errno::AGAIN.raw_os_error()));
        arm_file(FileKind::Read, 0, 2, FileFault::Short(9000));
        bench.read(0, index, object).unwrap();
    }
}

#[test]
fn a_disk_that_never_writes_is_given_up() {
    let directory = tempfile::tempdir().unwrap();
    let mut bench = Bench::new(&[directory.path()]);
    let objects = bench.objects(&[(200_000, 4)]);
    arm_file(FileKind::Write, 0, 3000, FileFault::Short(0));
    assert!(!bench.write(0, &objects).unwrap_err().full);
    assert_eq!(std::fs::read_dir(&directory).unwrap().count(), 0);
}

#[test]
fn where_the_page_cache_can_not_be_passed_by_it_is_used() {
    let directory = tempfile::tempdir().unwrap();
    for kind in [FileKind::Open, FileKind::Write] {
        let mut bench = Bench::new(&[directory.path()]);
        let objects = bench.objects(&LENGTHS);
        arm_file(kind, 0, 1, FileFault::Error(Errno::INVAL.raw_os_error()));
        bench.write(0, &objects).unwrap();
        assert_eq!(std::fs::read_dir(&directory).unwrap().count(), 1, "{kind:?}");
        for (index, object) in objects.iter().enumerate() {
            bench.read(0, index, object).unwrap();
        }
        bench.disk.delete(0);
        bench.outcomes(0);
    }
}

#[test]
fn bytes_that_changed_are_never_handed_out() {
    let directory = tempfile::tempdir().unwrap();
    let mut bench = Bench::new(&[directory.path()]);
    let objects = bench.objects(&[(500, 40), (200_000, 4)]);
    bench.write(0, &objects).unwrap();
    for (index, object) in objects.iter().enumerate() {
        arm_file(FileKind::Read, index as u32, 1, FileFault::Flip);
        let failure = bench.read(0, index, object).unwrap_err();
        assert!(failure.lost && failure.why.contains("checksum"), "{failure:?}");
        bench.read(0, index, object).unwrap();
    }
    let path = bench.path_of(0);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[8] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    let failure = bench.read(0, 0, &objects[0]).unwrap_err();
    assert!(failure.lost && failure.why.contains("lengths"), "{failure:?}");
}

#[test]
fn a_file_that_was_cut_or_vanished_is_lost_and_an_error_of_the_disk_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let mut bench = Bench::new(&[directory.path()]);
    let objects = bench.objects(&[(5000, 4), (3 * MIB, 4)]);
    bench.write(0, &objects).unwrap();
    arm_file(FileKind::Read, 0, 1, FileFault::Error(Errno::IO.raw_os_error()));
    assert!(!bench.read(0, 1, &objects[1]).unwrap_err().lost);
    arm_file(FileKind::Open, 0, 1, FileFault::Error(Errno::MFILE.raw_os_error()));
    assert!(!bench.read(0, 1, &objects[1]).unwrap_err().lost);
    bench.read(0, 1, &objects[1]).unwrap();
    let path = bench.path_of(0);
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(MIB as u64 + 100).unwrap();
    let failure = bench.read(0, 1, &objects[1]).unwrap_err();
    assert!(failure.lost && failure.why.contains("cut"), "{failure:?}");
    std::fs::remove_file(&path).unwrap();
    assert!(bench.read(0, 0, &objects[0]).unwrap_err().lost);
    assert!(bench.read(9, 0, &objects[0]).unwrap_err().lost && bench.read(0, 9, &objects[0]).unwrap_err().lost);
}

#[test]
fn a_directory_that_was_removed_is_made_again() {
    let parent = tempfile::tempdir().unwrap();
    let directory = parent.path().join("spill");
    let mut bench = Bench::new(&[&directory]);
    let objects = bench.objects(&[(100_000, 4)]);
    bench.write(0, &objects).unwrap();
    std::fs::remove_dir_all(&directory).unwrap();
    bench.write(1, &objects).unwrap();
    bench.read(1, 0, &objects[0]).unwrap();
    std::fs::remove_dir_all(&directory).unwrap();
    std::fs::write(&directory, b"a file").unwrap();
    assert!(!bench.write(2, &objects).unwrap_err().full);
}

impl Bench {
    /// Has the disk do all that it is asked to, and no checksum. How many operations that were.
    fn run_without_checks(&mut self) -> usize {
        let deadline = Instant::now() + PATIENCE;
        let mut count = 0;
        loop {
            let begun = self.disk.operations();
            if begun.is_empty() && self.ring.files_under_way() == 0 {
                return count;
            }
            assert!(Instant::now() < deadline, "{count} operations and no end");
            count += begun.len();
            begun.into_iter().for_each(|(key, operation)| self.ring.begin(key, operation));
            self.ring.wait(Some(Instant::now() + Duration::from_millis(20)), || false).unwrap();
            let disk = &mut self.disk;
            self.ring.reap(|completion| match completion {
                Completion::File { key, result } => disk.completed(key, result),
                other => panic!("{other:?}"),
            });
        }
    }
}

#[test]
fn nothing_counts_before_its_checksums_are_done_and_few_are_left_to_do() {
    let directory = tempfile::tempdir().unwrap();
    let mut bench = Bench::new(&[directory.path()]);
    // One piece each, and what is in front of it: an open and room for the file come first.
    let objects = bench.objects(&[(65_536, 0); 100]);
    bench.disk.write(0, bench.sources(&objects));
    let begun = bench.run_without_checks();
    assert!((CHECKS_MAX..=2 * CHECKS_MAX + 2).contains(&begun), "{begun} operations");
    assert!(bench.disk.outcomes().is_empty() && bench.disk.has_checks());
    assert!(matches!(bench.outcomes(1)[..], [Outcome::Written { file: 0, result: Ok(_) }]));
    for (index, object) in objects.iter().enumerate() {
        let target = bench.target(object);
        bench.disk.read(0, index as u32, target, index as u64);
    }
    bench.run_without_checks();
    assert!(bench.disk.outcomes().is_empty() && bench.disk.has_checks());
    let outcomes = bench.outcomes(objects.len());
    assert!(outcomes.iter().all(|outcome| matches!(outcome, Outcome::Read { result: Ok(65_536), .. })), "{outcomes:?}");
    assert_eq!(outcomes.len(), objects.len());
}

#[test]
fn reads_and_writes_go_on_beside_each_other() {
    let directory = tempfile::tempdir().unwrap();
    let mut bench = Bench::new(&[directory.path()]);
    let objects = bench.objects(&LENGTHS);
    bench.write(0, &objects[..7]).unwrap();
    let (first, second) = (bench.sources(&objects[7..11]), bench.sources(&objects[11..]));
    bench.disk.write(1, first);
    bench.disk.write(2, second);
    for (index, object) in objects[..7].iter().enumerate() {
        let target = bench.target(object);
        bench.disk.read(0, index as u32, target, index as u64);
    }
    let outcomes = bench.outcomes(9);
    let failed =
        |o: &&Outcome| !matches!(o, Outcome::Written { result: Ok(_), .. } | Outcome::Read { result: Ok(_), .. });
    assert!(!outcomes.iter().any(|o| failed(&o)), "{outcomes:?}");
    for (file, first) in [(1, 7), (2, 11)] {
        for (index, object) in objects.iter().enumerate().skip(first).take(if file == 1 { 4 } else { 3 }) {
            bench.read(file, index - first, object).unwrap();
        }
    }
}

/// What another node would be sent, in chunks of this length.
fn served(object: &SpilledObject, chunk_bytes: u64) -> Result<Vec<u8>, ReadError> {
    let mut buffer = PageBuffer::new(chunk_buffer_bytes(chunk_bytes) as usize).unwrap();
    let total = object.data_bytes() + object.metadata_bytes();
    let mut all = Vec::new();
    while (all.len() as u64) < total {
        let (start, len) = (all.len() as u64, chunk_bytes.min(total - all.len() as u64));
        let at = object.read(start, len, &mut buffer)? as usize;
        all.extend_from_slice(&buffer.bytes_mut()[at..at + len as usize]);
    }
    Ok(all)
}

#[test]
fn objects_are_served_from_their_files_in_chunks_of_any_length() {
    let directory = tempfile::tempdir().unwrap();
    let mut bench = Bench::new(&[directory.path()]);
    let objects = bench.objects(&LENGTHS);
    bench.write(0, &objects).unwrap();
    for (index, object) in objects.iter().enumerate() {
        let spilled = bench.disk.object(0, index as u32).unwrap();
        let expected = [&object.data[..], &object.metadata].concat();
        let lengths = [70_001, MIB as u64, 3 * MIB as u64 + 4097, 64 << 20];
        for chunk_bytes in lengths {
            assert!(served(&spilled, chunk_bytes).unwrap() == expected, "object {index} in chunks of {chunk_bytes}");
        }
        let total = expected.len() as u64;
        let mut buffer = PageBuffer::new(chunk_buffer_bytes(1) as usize).unwrap();
        let outside = spilled.read(total, 1, &mut buffer).unwrap_err();
        assert!(matches!(outside, ReadError::Io(_)), "{outside}");
        if total > 3 * MIB as u64 {
            assert!(spilled.read(0, total, &mut buffer).is_err(), "the buffer is too small");
        }
    }
    assert!(bench.disk.object(0, objects.len() as u32).is_none() && bench.disk.object(1, 0).is_none());
}

#[test]
fn nothing_is_served_from_a_file_that_was_changed_cut_or_can_not_be_read() {
    let directory = tempfile::tempdir().unwrap();
    let mut bench = Bench::new(&[directory.path()]);
    let objects = bench.objects(&[(500, 40), (2 * MIB + 5000, 4)]);
    bench.write(0, &objects).unwrap();
    let spilled: Vec<_> = (0..2).map(|index| bench.disk.object(0, index).unwrap()).collect();
    let right = |object: &Object| [&object.data[..], &object.metadata].concat();
    let chunk = MIB as u64;
    for (spilled, object) in spilled.iter().zip(&objects) {
        arm_file(FileKind::Read, 0, 1, FileFault::Flip);
        assert!(matches!(served(spilled, chunk), Err(ReadError::Changed(_))));
        arm_file(FileKind::Read, 0, 1, FileFault::Error(Errno::IO.raw_os_error()));
        assert!(matches!(served(spilled, chunk), Err(ReadError::Io(_))));
        arm_file(FileKind::Read, 0, 1, FileFault::Error(Errno::INTR.raw_os_error()));
        assert!(served(spilled, chunk).unwrap() == right(object));
        // A file system may refuse O_DIRECT, and give less than it is asked for.
        arm_file(FileKind::Read, 0, 1, FileFault::Error(Errno::INVAL.raw_os_error()));
        assert!(served(spilled, chunk).unwrap() == right(object));
    }
    arm_file(FileKind::Read, 0, 2, FileFault::Short(10_000));
    assert!(served(&spilled[1], chunk).unwrap() == right(&objects[1]));
    let path = bench.path_of(0);
    let whole = std::fs::read(&path).unwrap();
    // Any byte that counts: of the lengths, the metadata, the data.
    for at in [0, 30, 100, 540, 6000, whole.len() - 6000] {
        let mut changed = whole.clone();
        changed[at] ^= 1;
        std::fs::write(&path, &changed).unwrap();
        let found = spilled.iter().filter(|spilled| matches!(served(spilled, chunk), Err(ReadError::Changed(_))));
        assert_eq!(found.count(), 1, "byte {at}");
    }
    std::fs::write(&path, &whole[..MIB]).unwrap();
    assert!(served(&spilled[0], chunk).unwrap() == right(&objects[0]));
    assert!(matches!(served(&spilled[1], chunk), Err(ReadError::Cut { .. })));
    std::fs::remove_file(&path).unwrap();
    assert!(spilled.iter().all(|spilled| matches!(served(spilled, chunk), Err(ReadError::Io(_)))));
}
