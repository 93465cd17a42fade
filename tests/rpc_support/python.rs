//! Where Ray 2.60 is.

use std::path::{Path, PathBuf};

/// The Python interpreter that has Ray 2.60.
pub fn python() -> PathBuf {
    let named = std::env::var_os("RAYLET_TEST_PYTHON").map(PathBuf::from);
    let python = named.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join(".venv/bin/python"));
    assert!(
        python.exists(),
        "{} is not there: this test runs against Ray 2.60; install it with `python -m venv .venv && \
         .venv/bin/pip install 'ray[default]==2.60.0'`, or name another interpreter in RAYLET_TEST_PYTHON",
        python.display()
    );
    python
}
