//! CPU time of another process, to the nanosecond, with the threads that it has had and not with its children.
//!
//! `/proc/PID/stat` counts in ticks of 10 ms, and the per-thread `schedstat` files lose threads that have ended. The
//! process's CPU clock (`clock_getcpuclockid(3)`) does neither, and costs one system call to read.

use std::io;
use std::mem::MaybeUninit;
use std::time::Duration;

/// The highest process id that Linux gives on any machine (PID_MAX_LIMIT).
const PID_MAX: i32 = 4 << 20;

/// The CPU clock of a process.
#[derive(Debug, Clone, Copy)]
pub struct CpuClock {
    clock: libc::clockid_t,
}

impl CpuClock {
    /// The clock of the process with this id; fails where there is none.
    pub fn of(pid: i32) -> io::Result<Self> {
        // 0 would mean this process, and the high bits of an impossible id would not fit into the clock's.
        if !(1..=PID_MAX).contains(&pid) {
            return Err(io::Error::from_raw_os_error(libc::ESRCH));
        }
        let mut clock = MaybeUninit::uninit();
        // SAFETY: `clock` is valid for a write of one `clockid_t`, which is all that the call does with it.
        let error = unsafe { libc::clock_getcpuclockid(pid, clock.as_mut_ptr()) };
        if error != 0 {
            return Err(io::Error::from_raw_os_error(error));
        }
        // SAFETY: the call has succeeded, so it has written the clock's id.
        let clock = unsafe { clock.assume_init() };
        Ok(Self { clock })
    }

    /// The clock of this process.
    pub fn own() -> Self {
        Self { clock: libc::CLOCK_PROCESS_CPUTIME_ID }
    }

    /// CPU time spent since the process began, in user and kernel; fails once the process is gone.
    pub fn read(&self) -> io::Result<Duration> {
        let mut time = MaybeUninit::uninit();
        // SAFETY: `time` is valid for a write of one `timespec`, which is all that the call does with it.
        if unsafe { libc::clock_gettime(self.clock, time.as_mut_ptr()) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the call has succeeded, so it has written the time.
        let time: libc::timespec = unsafe { time.assume_init() };
        Ok(Duration::new(time.tv_sec as u64, time.tv_nsec as u32))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    fn burn(time: Duration) {
        let start = Instant::now();
        while start.elapsed() < time {
            std::hint::spin_loop();
        }
    }

    #[test]
    fn the_clock_of_a_process_counts_its_work_and_its_ended_threads() {
        let clock = CpuClock::of(std::process::id() as i32).expect("this process is there");
        let before = clock.read().expect("read");
        std::thread::spawn(|| burn(Duration::from_millis(60))).join().expect("joined");
        let spent = clock.read().expect("read") - before;
        // Another program may have had the core for a part of it, never for more than the test's own time.
        assert!(spent > Duration::from_millis(5), "{spent:?}");
        assert!(CpuClock::own().read().expect("read") >= spent);
    }

    #[test]
    fn a_process_that_is_not_there_has_no_clock() {
        for pid in [i32::MIN, -1, 0, PID_MAX, PID_MAX + 1, i32::MAX] {
            assert!(CpuClock::of(pid).is_err(), "{pid}");
        }
    }
}
