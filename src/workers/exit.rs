//! How a process ended, in words.

use std::fmt;

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitStatus {
    /// It returned this code, 0..=255.
    Code(i32),
    /// A signal ended it.
    Signal {
        /// Number of the signal.
        signal: i32,
        /// True where the kernel wrote a core file.
        core_dumped: bool,
    },
    /// It is gone, and whoever could have read its status is gone too.
    Unknown,
}

impl ExitStatus {
    /// True for exit code 0.
    pub fn success(self) -> bool {
        self == ExitStatus::Code(0)
    }

    /// The code as Ray reports one: the exit code itself, or minus the signal, or -1 where nothing is known.
    pub fn as_code(self) -> i32 {
        match self {
            ExitStatus::Code(code) => code,
            ExitStatus::Signal { signal, .. } => -signal,
            ExitStatus::Unknown => -1,
        }
    }
}

impl fmt::Display for ExitStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            ExitStatus::Code(code) => write!(f, "exit code {code}"),
            ExitStatus::Signal { signal, core_dumped } => {
                write!(f, "killed by {}", signal_name(signal))?;
                f.write_str(if core_dumped { ", core dumped" } else { "" })
            }
            ExitStatus::Unknown => f.write_str("exit status unknown"),
        }
    }
}

/// Name and number of a signal, for messages: `SIGKILL (9)`.
pub fn signal_name(signal: i32) -> String {
    let name = match signal {
        libc::SIGHUP => "SIGHUP",
        libc::SIGINT => "SIGINT",
        libc::SIGQUIT => "SIGQUIT",
        libc::SIGILL => "SIGILL",
        libc::SIGTRAP => "SIGTRAP",
        libc::SIGABRT => "SIGABRT",
        libc::SIGBUS => "SIGBUS",
        libc::SIGFPE => "SIGFPE",
        libc::SIGKILL => "SIGKILL",
        libc::SIGUSR1 => "SIGUSR1",
        libc::SIGSEGV => "SIGSEGV",
        libc::SIGUSR2 => "SIGUSR2",
        libc::SIGPIPE => "SIGPIPE",
        libc::SIGALRM => "SIGALRM",
        libc::SIGTERM => "SIGTERM",
        libc::SIGXCPU => "SIGXCPU",
        libc::SIGXFSZ => "SIGXFSZ",
        libc::SIGSYS => "SIGSYS",
        _ => return format!("signal {signal}"),
    };
    format!("{name} ({signal})")
}

/// The cause of death that is reported to the GCS for a worker whose connection broke without a goodbye.
///
/// Starts with the words of the stock raylet ("Worker unexpectedly exits with a connection error code 2. End of
/// file."), which tools look for, and goes on with what is known here: pid and exit status.
pub fn unexpected_exit_text(pid: u32, status: Option<ExitStatus>) -> String {
    let mut text = String::from(
        "Worker unexpectedly exits with a connection error code 2. End of file. Some common causes include: ",
    );
    text.push_str(
        "(1) the process was killed by the OOM killer due to high memory usage, (2) ray stop --force was called, or (3) \
         the worker crashed unexpectedly due to SIGSEGV or another unexpected error.",
    );
    match status {
        Some(status) => text.push_str(&format!(" The worker process had pid {pid} and ended with {status}.")),
        None => text.push_str(&format!(" The worker process has pid {pid}.")),
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_read_well() {
        let killed = ExitStatus::Signal { signal: libc::SIGKILL, core_dumped: false };
        let crashed = ExitStatus::Signal { signal: libc::SIGSEGV, core_dumped: true };
        assert_eq!(killed.to_string(), "killed by SIGKILL (9)");
        assert_eq!(crashed.to_string(), "killed by SIGSEGV (11), core dumped");
        assert_eq!(ExitStatus::Signal { signal: 42, core_dumped: false }.to_string(), "killed by signal 42");
        assert_eq!(ExitStatus::Code(3).to_string(), "exit code 3");
        assert_eq!((ExitStatus::Code(3).as_code(), killed.as_code(), ExitStatus::Unknown.as_code()), (3, -9, -1));
    }

    #[test]
    fn the_cause_of_death_begins_as_rays_does_and_names_the_status() {
        let text = unexpected_exit_text(77, Some(ExitStatus::Code(1)));
        assert!(text.starts_with("Worker unexpectedly exits with a connection error code 2. End of file."));
        assert!(text.ends_with("pid 77 and ended with exit code 1."), "{text}");
    }
}
