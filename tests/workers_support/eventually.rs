//! Waiting for what another process does.

use std::time::{Duration, Instant};

/// Far above what anything here needs on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until something becomes true; fails the test when it doesn't within a minute.
pub async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
