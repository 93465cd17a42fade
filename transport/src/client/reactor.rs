//! The loops of a [`Driver`] on the reactors of async-io and tokio.

use std::future::poll_fn;
use std::task::Poll;

use super::{ClientError, Driver};

impl Driver {
    /// Drives until the connection ends, and says why it did. For executors beside async-io's reactor.
    #[cfg(feature = "async-io")]
    pub async fn run_on_async_io(self) -> ClientError {
        let readable = match async_io::Async::new_nonblocking(self) {
            Ok(readable) => readable,
            Err(error) => return ClientError::io("watching the connection")(error),
        };
        loop {
            match readable.get_ref().turn() {
                Ok(true) => {
                    if let Err(error) = readable.readable().await {
                        return ClientError::io("watching the connection")(error);
                    }
                }
                Ok(false) => let_others().await,
                Err(error) => return error,
            }
        }
    }

    /// Drives until the connection ends, and says why it did. For a tokio runtime with I/O enabled.
    #[cfg(feature = "tokio")]
    pub async fn run_on_tokio(self) -> ClientError {
        // SAFETY: `Driver::as_raw_fd` names the one epoll descriptor that the driver shares ownership of, always the same one, and it
        // stays open as long as the driver, which the registration owns.
        let readable = unsafe { tokio::io::unix::AsyncFd::register_with_interest(self, tokio::io::Interest::READABLE) };
        let readable = match readable {
            Ok(readable) => readable,
            Err(error) => return ClientError::io("watching the connection")(error.into()),
        };
        loop {
            match readable.get_ref().turn() {
                Ok(true) => match readable.readable().await {
                    // What came before this is found by the next turn, what comes after it makes the descriptor readable again.
                    Ok(mut guard) => guard.clear_ready(),
                    Err(error) => return ClientError::io("watching the connection")(error),
                },
                Ok(false) => let_others().await,
                Err(error) => return error,
            }
        }
    }
}

/// Lets the executor run others first.
async fn let_others() {
    let mut is_done = false;
    poll_fn(|context| {
        if std::mem::replace(&mut is_done, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}
