//! Kernel, io_uring and the limits of processes.

use super::{Check, Subject};
use crate::cgroup;
use crate::limits::{KERNEL_WANTED, MEMLOCK_WANTED_BYTES, OPEN_FILES_WANTED};

/// Bit of CAP_SYS_ADMIN, with which io_uring is allowed where the setting is 1.
const CAP_SYS_ADMIN: u32 = 21;
/// Threads that Ray's workers and agents make for each usable core, and those that a node has anyway. A Python worker of
/// Ray 2.60 has some 50.
const THREADS_PER_CORE: u64 = 100;
const THREADS_AT_LEAST: u64 = 1000;

pub(super) fn version(subject: &Subject) -> Check {
    let release = subject.host.text("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse::<u32>().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version >= KERNEL_WANTED {
        return Check::ok("kernel", format!("Linux {release}"));
    }
    let (major, minor) = KERNEL_WANTED;
    Check::error(
        "kernel",
        format!("Linux {release}, older than {major}.{minor}"),
        "its io_uring and huge pages lack what the node is built on",
        ["apt-get install -t stable linux-image-amd64 && reboot".to_owned()],
    )
}

pub(super) fn io_uring_setting(subject: &Subject) -> Check {
    let name = "io_uring_disabled";
    let allow = || ["sysctl -w kernel.io_uring_disabled=0".to_owned()];
    match subject.host.number("/proc/sys/kernel/io_uring_disabled") {
        None | Some(0) => Check::ok(name, "io_uring is allowed for everybody"),
        Some(1) => {
            let group = subject.host.text("/proc/sys/kernel/io_uring_group").unwrap_or_default();
            let groups = subject.host.status_line("Groups").unwrap_or_default();
            let is_member = groups.split_whitespace().any(|ours| ours == group);
            if subject.host.has_capability(CAP_SYS_ADMIN) || is_member {
                return Check::ok(name, "io_uring is for privileged processes, of which this is one");
            }
            Check::error(name, "io_uring is for privileged processes only", "the node can't start", allow())
        }
        Some(_) => Check::error(name, "io_uring is forbidden", "the node can't start", allow()),
    }
}

pub(super) fn io_uring_features(subject: &Subject) -> Check {
    let name = "io_uring";
    match subject.host.rings() {
        Err(error) => Check::error(
            name,
            format!("no ring can be made: {error}"),
            "the node can't start; in a container the seccomp profile is the usual cause",
            ["docker run --security-opt seccomp=unconfined ...".to_owned()],
        ),
        Ok(rings) if !rings.missing.is_empty() => Check::error(
            name,
            format!("the kernel lacks {}", rings.missing.join(", ")),
            "the node can't start",
            ["apt-get install -t stable linux-image-amd64 && reboot".to_owned()],
        ),
        Ok(rings) if !rings.missing_fast.is_empty() => Check::warning(
            name,
            format!("the kernel lacks {}", rings.missing_fast.join(", ")),
            "more system calls and copies for large objects on their way to disks and other nodes",
            ["apt-get install -t stable linux-image-amd64 && reboot".to_owned()],
        ),
        Ok(_) => Check::ok(name, "rings can be made, with all operations that the node uses"),
    }
}

pub(super) fn memlock(subject: &Subject) -> Check {
    let name = "memlock";
    let Some(limit) = subject.host.limit("Max locked memory") else {
        return Check::ok(name, "the kernel tells no limit");
    };
    // The node raises its soft limit itself.
    match limit.hard {
        Some(hard) if hard < MEMLOCK_WANTED_BYTES => Check::error(
            name,
            format!("{} KiB may be locked, a node needs {} KiB", hard >> 10, MEMLOCK_WANTED_BYTES >> 10),
            "the node can't start: its rings ask for it",
            [
                "raylet-uring tune --apply".to_owned(),
                format!("prlimit --pid $$ --memlock={MEMLOCK_WANTED_BYTES}:{MEMLOCK_WANTED_BYTES}"),
            ],
        ),
        Some(hard) => Check::ok(name, format!("{} KiB may be locked", hard >> 10)),
        None => Check::ok(name, "unlimited"),
    }
}

pub(super) fn open_files(subject: &Subject) -> Check {
    let name = "open files";
    match subject.host.limit("Max open files").and_then(|limit| limit.hard) {
        Some(hard) if hard < OPEN_FILES_WANTED => Check::warning(
            name,
            format!("{hard} files may be open"),
            "with a few hundred workers, connections are refused",
            ["raylet-uring tune --apply".to_owned(), format!("prlimit --pid $$ --nofile={OPEN_FILES_WANTED}")],
        ),
        Some(hard) => Check::ok(name, format!("{hard} may be open")),
        None => Check::ok(name, "unlimited"),
    }
}

pub(super) fn processes(subject: &Subject) -> Check {
    let name = "processes";
    let wanted = THREADS_AT_LEAST.max(THREADS_PER_CORE * subject.picture.topology.usable_cores() as u64);
    let by_user = subject.host.limit("Max processes").and_then(|limit| limit.hard);
    if let Some(hard) = by_user.filter(|&hard| hard < wanted) {
        return Check::warning(
            name,
            format!("this user may have {hard} threads, a busy node has {wanted}"),
            "workers can't start, or fail when they make a thread",
            ["raylet-uring tune --apply".to_owned(), format!("prlimit --pid $$ --nproc={wanted}")],
        );
    }
    match cgroup::pids(subject.host) {
        Some(room) if room.limit.saturating_sub(room.used) < wanted => {
            let group = subject.host.name_of(&room.group);
            Check::warning(
                name,
                format!(
                    "control group {} has room for {} more threads",
                    group.display(),
                    room.limit - room.used.min(room.limit)
                ),
                format!("a busy node has {wanted}; workers can't start, or fail when they make a thread"),
                [format!("echo {} > {}/pids.max", room.used + wanted, group.display())],
            )
        }
        _ => Check::ok(name, by_user.map_or("no limit that matters".to_owned(), |hard| format!("{hard} threads"))),
    }
}
