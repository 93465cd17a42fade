//! The command line: Ray's flags where the binary is called `raylet`, our own otherwise.

pub mod closest;
pub mod command_line;
pub mod gflags;
pub mod ray_flags;
