//! `cargo bench`: the rows of the native door that SPECIFICATION.md promises, against the node as users get it.
//!
//! What Cargo builds for a bench has the features of the tests in it, fault injection among them, so the executables that are measured are built
//! apart, by the same Cargo. Options of `raylet-bench native` can be given: `cargo bench --bench native -- --seconds 5`.

use std::process::{Command, ExitCode};

fn main() -> ExitCode {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    // Cargo gives `--bench` when it measures; without it, this is a test run, and the shortest that exercises every row will do.
    let measures = std::env::args().any(|argument| argument == "--bench");
    let mut rest: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    if !measures {
        rest.extend(["--seconds".to_owned(), "0.05".to_owned()]);
    }
    let build = ["build", "--locked", "--release", "--workspace", "--bins"].map(str::to_owned);
    let run =
        ["run", "--locked", "--release", "--quiet", "--package", "raylet-bench", "--", "native"].map(str::to_owned);
    for arguments in [build.to_vec(), [run.to_vec(), rest].concat()] {
        match Command::new(&cargo).args(&arguments).current_dir(env!("CARGO_MANIFEST_DIR")).status() {
            Ok(status) if status.success() => {}
            Ok(status) => {
                eprintln!("`cargo {}` ended with {status}", arguments.join(" "));
                return ExitCode::FAILURE;
            }
            Err(error) => {
                eprintln!("`cargo {}` could not be started: {error}", arguments.join(" "));
                return ExitCode::FAILURE;
            }
        }
    }
    ExitCode::SUCCESS
}
