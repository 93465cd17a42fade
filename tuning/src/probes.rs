//! What no file tells: the questions that need a system call, behind a trait so that tests can answer them.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use io_uring::{opcode, IoUring, Probe};
use serde::{Deserialize, Serialize};

use crate::arena::{ArenaError, Segment, SegmentRequest};
use crate::pages::{PageChoice, PageKind, HUGE_2M_BYTES};
use crate::sys;

/// What io_uring can do here.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rings {
    /// Operations that the node can't do without and the kernel lacks.
    pub missing: Vec<String>,
    /// Operations and ring modes that save time and the kernel lacks.
    pub missing_fast: Vec<String>,
}

/// A disk, measured with one stream of large writes and reads that pass the page cache.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct DiskSpeed {
    /// Whether the file system takes O_DIRECT; without it, the figures are of buffered writes that were synced.
    pub direct: bool,
    /// Writing, fdatasync included, in MB/s.
    pub write_mb_s: f64,
    /// Reading, in MB/s.
    pub read_mb_s: f64,
}

/// The machine's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Clock {
    /// Whether something (NTP, PTP) keeps it right.
    pub synchronized: bool,
    /// What reading it costs.
    pub read_ns: u64,
}

/// Questions to the kernel.
pub trait Probes: Send + Sync {
    /// Tries io_uring.
    fn rings(&self) -> io::Result<Rings>;
    /// Total and free bytes of the file system at a path.
    fn filesystem_bytes(&self, path: &Path) -> io::Result<(u64, u64)>;
    /// Measures the disk under a directory with a file of [`DISK_PROBE_BYTES`], which it removes.
    fn disk_speed(&self, directory: &Path) -> io::Result<DiskSpeed>;
    /// Makes a small segment with transparent huge pages; says which pages it got, and why no better ones.
    fn huge_pages(&self) -> Result<(PageKind, Option<String>), ArenaError>;
    /// Takes a TCP port for a moment; an error says why it can't be had.
    fn bind(&self, port: u16) -> io::Result<()>;
    /// Looks at the clock.
    fn clock(&self) -> io::Result<Clock>;
}

/// Bytes that measuring a disk writes at most.
pub const DISK_PROBE_BYTES: u64 = 64 << 20;
/// Time after which measuring a disk stops, in each direction.
const DISK_PROBE_MAX: Duration = Duration::from_secs(2);
/// Bytes of one write or read.
const DISK_STEP_BYTES: usize = 1 << 20;
/// Alignment that O_DIRECT wants of memory.
const DIRECT_ALIGNMENT: usize = 4096;
/// Readings of the clock that are timed.
const CLOCK_READS: u32 = 2000;

/// The kernel of this machine.
pub struct SystemProbes;

impl Probes for SystemProbes {
    fn rings(&self) -> io::Result<Rings> {
        let ring = IoUring::new(8)?;
        let mut probe = Probe::new();
        ring.submitter().register_probe(&mut probe)?;
        let lacking = |wanted: &[(&str, u8)]| -> Vec<String> {
            wanted.iter().filter(|(_, code)| !probe.is_supported(*code)).map(|(name, _)| (*name).to_owned()).collect()
        };
        let mut rings = Rings { missing: lacking(NEEDED), missing_fast: lacking(FAST) };
        let modes = <IoUring>::builder().setup_single_issuer().setup_defer_taskrun().build(8);
        if modes.is_err() {
            rings.missing_fast.push("SINGLE_ISSUER with DEFER_TASKRUN".to_owned());
        }
        Ok(rings)
    }

    fn filesystem_bytes(&self, path: &Path) -> io::Result<(u64, u64)> {
        sys::filesystem_bytes(path)
    }

    fn disk_speed(&self, directory: &Path) -> io::Result<DiskSpeed> {
        let file = ProbeFile::create(directory)?;
        let open = |flags| OpenOptions::new().read(true).write(true).custom_flags(flags).open(&file.0);
        let (handle, direct) = match open(libc::O_DIRECT) {
            Ok(handle) => (handle, true),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => (open(0)?, false),
            Err(error) => return Err(error),
        };
        let mut memory = vec![0xa5; DISK_STEP_BYTES + DIRECT_ALIGNMENT];
        let skip = memory.as_ptr().align_offset(DIRECT_ALIGNMENT);
        let block = &mut memory[skip..skip + DISK_STEP_BYTES];
        let started = Instant::now();
        let written = steps(started, |at| handle.write_all_at(block, at))?;
        handle.sync_data()?;
        let write_mb_s = rate(written, started);
        let started = Instant::now();
        let read = steps(started, |at| if at < written { handle.read_exact_at(block, at) } else { Ok(()) })?;
        Ok(DiskSpeed { direct, write_mb_s, read_mb_s: rate(read.min(written), started) })
    }

    fn huge_pages(&self) -> Result<(PageKind, Option<String>), ArenaError> {
        let size_bytes = HUGE_2M_BYTES;
        let name = "raylet-uring-probe".to_owned();
        let segment = Segment::create(&SegmentRequest { name, size_bytes, numa_node: None, pages: PageChoice::Thp })?;
        Ok((segment.page_kind(), segment.fallback().map(str::to_owned)))
    }

    fn bind(&self, port: u16) -> io::Result<()> {
        TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).map(drop)
    }

    fn clock(&self) -> io::Result<Clock> {
        let synchronized = sys::clock_is_synchronized()?;
        let started = Instant::now();
        for _ in 0..CLOCK_READS {
            std::hint::black_box(Instant::now());
        }
        Ok(Clock { synchronized, read_ns: (started.elapsed() / CLOCK_READS).as_nanos() as u64 })
    }
}

/// What glommio and the object store's paths are made of.
const NEEDED: &[(&str, u8)] = &[
    ("READ", opcode::Read::CODE),
    ("WRITE", opcode::Write::CODE),
    ("POLL_ADD", opcode::PollAdd::CODE),
    ("TIMEOUT", opcode::Timeout::CODE),
    ("ACCEPT", opcode::Accept::CODE),
    ("CONNECT", opcode::Connect::CODE),
    ("SEND", opcode::Send::CODE),
    ("RECV", opcode::Recv::CODE),
    ("SENDMSG", opcode::SendMsg::CODE),
    ("RECVMSG", opcode::RecvMsg::CODE),
    ("OPENAT", opcode::OpenAt::CODE),
    ("FALLOCATE", opcode::Fallocate::CODE),
    ("FSYNC", opcode::Fsync::CODE),
    ("CLOSE", opcode::Close::CODE),
];

/// What saves copies and system calls.
const FAST: &[(&str, u8)] = &[
    ("READ_FIXED", opcode::ReadFixed::CODE),
    ("WRITE_FIXED", opcode::WriteFixed::CODE),
    ("SEND_ZC", opcode::SendZc::CODE),
    ("MSG_RING", opcode::MsgRingData::CODE),
];

/// Repeats until [`DISK_PROBE_BYTES`] are done or the time is up; returns the bytes done.
fn steps(started: Instant, mut step: impl FnMut(u64) -> io::Result<()>) -> io::Result<u64> {
    let mut at = 0;
    while at < DISK_PROBE_BYTES && (at == 0 || started.elapsed() < DISK_PROBE_MAX) {
        step(at)?;
        at += DISK_STEP_BYTES as u64;
    }
    Ok(at)
}

fn rate(bytes: u64, started: Instant) -> f64 {
    bytes as f64 / 1e6 / started.elapsed().as_secs_f64().max(1e-9)
}

/// A file for measuring that goes when it is dropped.
struct ProbeFile(PathBuf);

impl ProbeFile {
    fn create(directory: &Path) -> io::Result<ProbeFile> {
        let path = directory.join(format!(".raylet-uring-probe-{}", std::process::id()));
        File::options().write(true).create_new(true).mode(0o600).open(&path)?;
        Ok(ProbeFile(path))
    }
}

impl Drop for ProbeFile {
    fn drop(&mut self) {
        // Nobody to tell; the name says whose file it is.
        let _ = fs::remove_file(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machines_rings_do_what_the_node_needs() {
        let rings = SystemProbes.rings().unwrap();
        assert_eq!(rings.missing, Vec::<String>::new());
    }

    #[test]
    fn a_disk_is_measured_and_left_as_it_was() {
        let directory = std::env::temp_dir().join(format!("raylet-tuning-disk-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let speed = SystemProbes.disk_speed(&directory).unwrap();
        assert!(speed.write_mb_s > 0.0 && speed.read_mb_s > 0.0, "{speed:?}");
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 0);
        fs::remove_dir(&directory).unwrap();
        assert!(SystemProbes.disk_speed(&directory).is_err(), "a directory that is gone");
    }

    #[test]
    fn a_port_in_use_is_seen() {
        let taken = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        let port = taken.local_addr().unwrap().port();
        assert_eq!(SystemProbes.bind(port).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(taken);
        SystemProbes.bind(port).unwrap();
    }

    #[test]
    fn the_clock_and_the_file_systems_answer() {
        assert!(SystemProbes.clock().unwrap().read_ns < 1_000_000);
        let (total, free) = SystemProbes.filesystem_bytes(Path::new("/proc/self/..")).unwrap();
        assert!(free <= total);
        assert!(SystemProbes.filesystem_bytes(Path::new("/no/such/place")).is_err());
    }
}
