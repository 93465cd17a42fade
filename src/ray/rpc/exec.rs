//! Runs hyper's tasks on the thread that they come from.

use std::future::Future;

/// An executor for hyper whose tasks needn't be `Send`. Use it inside a `LocalSet`.
#[derive(Clone, Copy, Debug)]
pub struct LocalExec;

impl<F: Future + 'static> hyper::rt::Executor<F> for LocalExec {
    fn execute(&self, task: F) {
        tokio::task::spawn_local(async move {
            task.await;
        });
    }
}
