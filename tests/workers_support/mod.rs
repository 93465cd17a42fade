//! What the tests of worker processes share.

mod eventually;

use std::path::{Path, PathBuf};

pub use eventually::eventually;

/// A Python with Ray 2.60: `RAYLET_TEST_PYTHON`, or the project's own environment.
pub fn python() -> PathBuf {
    let own = || Path::new(env!("CARGO_MANIFEST_DIR")).join(".venv/bin/python");
    let python = std::env::var_os("RAYLET_TEST_PYTHON").map_or_else(own, PathBuf::from);
    assert!(python.exists(), "{python:?} is missing: `make test` creates it, or set RAYLET_TEST_PYTHON");
    python
}
