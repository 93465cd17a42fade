//! The command line: Ray's flags where the binary is called `raylet`, our own otherwise.

pub mod ray_flags;
