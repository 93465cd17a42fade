//! The machine's limits for bytes that move can be measured where the node can run.

use std::path::Path;

use raylet_bench::{disk, stream, LoadError};

#[test]
fn a_stream_brings_every_byte_and_both_sides_spend_cpu() {
    let program = Path::new(env!("CARGO_BIN_EXE_raylet-bench"));
    let settings = stream::Settings { size_bytes: (32 << 20) + 5, block_bytes: 1 << 20 };
    let report = stream::run(program, settings).expect("measured");
    assert_eq!(report.bytes, settings.size_bytes);
    assert!(report.gb_per_s > 0.0 && report.cpu_s_per_gb > 0.0, "{report:?}");
}

#[test]
fn a_sender_that_never_comes_is_an_error() {
    let settings = stream::Settings { size_bytes: 1 << 20, block_bytes: 1 << 20 };
    let error = stream::run(Path::new("/bin/false"), settings).expect_err("nobody sends");
    assert!(matches!(error, LoadError::Io { .. }), "{error}");
}

#[test]
fn a_file_is_written_read_and_removed() {
    // Beside the executable, because a temporary directory may be memory, which knows no O_DIRECT.
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let settings = disk::Settings {
        directory: directory.path().to_owned(),
        size_bytes: (16 << 20) + 4096,
        block_bytes: 1 << 20,
        depth: 8,
    };
    let report = disk::run(&settings).expect("measured");
    assert_eq!(report.bytes, 16 << 20);
    assert!(report.write.gb_per_s > 0.0 && report.read.gb_per_s > 0.0, "{report:?}");
    assert_eq!(std::fs::read_dir(directory.path()).expect("listed").count(), 0);
    let odd = disk::Settings { block_bytes: 1000, ..settings };
    assert!(matches!(disk::run(&odd), Err(LoadError::Setting { .. })));
}
