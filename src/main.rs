//! The raylet-uring executable.

use std::process::ExitCode;

use raylet_uring::{cli, node};

fn main() -> ExitCode {
    cli::main(cli::Node {
        run_ray: |flags, config, log| Ok(node::run_ray(flags, config, log)?),
        run_native: |config, log| Ok(node::run_native(config, log)?),
    })
}
