//! The command line: Ray's flags where the binary is called `raylet`, our own otherwise.

pub mod attach;
pub mod closest;
pub mod command_line;
pub mod doctor;
pub mod generate;
pub mod gflags;
pub mod log_level;
pub mod own;
pub mod plan;
mod ray_flag_table;
pub mod ray_flags;
mod run;
pub mod status;
mod top;
pub mod topology;
mod topology_text;
pub mod tune;

use std::ffi::OsStr;
use std::path::Path;

pub use run::{main, Node, NodeEnd};

/// Whether a program's name (`argv[0]`) says that Ray started it: its file is called `raylet`.
pub fn is_ray_executable(program: &OsStr) -> bool {
    Path::new(program).file_name() == Some(OsStr::new("raylet"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_decides() {
        for (program, ray) in [
            ("raylet", true),
            ("/venv/ray/core/src/ray/raylet/raylet", true),
            ("/raylet/raylet-uring", false),
            ("raylet-uring", false),
            ("raylet.stock", false),
            ("", false),
        ] {
            assert_eq!(is_ray_executable(OsStr::new(program)), ray, "{program}");
        }
    }
}
