//! What the tests of worker processes share.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Waits until something becomes true; fails the test when it doesn't within 20 s.
pub async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A Python with Ray 2.60: `RAYLET_TEST_PYTHON`, or the project's own environment.
pub fn python() -> PathBuf {
    let own = || Path::new(env!("CARGO_MANIFEST_DIR")).join(".venv/bin/python");
    let python = std::env::var_os("RAYLET_TEST_PYTHON").map_or_else(own, PathBuf::from);
    assert!(python.exists(), "{python:?} is missing: `make test` creates it, or set RAYLET_TEST_PYTHON");
    python
}
