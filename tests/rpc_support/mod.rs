//! What the tests of the RPC layer against real processes of Ray share.

use std::future::Future;
use std::time::{Duration, Instant};

/// The token that all processes of the tests share.
pub const TOKEN: &str = "0123456789abcdef0123456789abcdef";

/// Runs a test on a thread like the node's control thread, for at most two minutes.
pub fn on_control_thread(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    let local = tokio::task::LocalSet::new();
    let bounded = async { tokio::time::timeout(Duration::from_secs(120), test).await.expect("in time") };
    local.block_on(&runtime, bounded);
}

/// Waits until `done` holds, for at most a minute.
pub async fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !done() {
        assert!(Instant::now() < deadline, "in vain: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
