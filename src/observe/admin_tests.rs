use std::cell::Cell;

use super::super::client::{self, ClientError};
use super::super::{log, status::Door};
use super::*;

/// One process has one log, and tests share the process.
fn test_log() -> LogHandle {
    static LOG: std::sync::OnceLock<LogHandle> = std::sync::OnceLock::new();
    LOG.get_or_init(|| log::init("info", log::LogFormat::Text, log::LogTarget::Stderr).unwrap()).clone()
}

/// Serves, runs the test, and stops serving by dropping everything.
fn with_server<F: Future<Output = ()>>(shutdown: Option<Box<dyn Fn()>>, test: impl FnOnce(PathBuf) -> F) -> PathBuf {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let local = tokio::task::LocalSet::new();
    let dir = tempfile::tempdir().unwrap();
    let socket = local.block_on(&runtime, async {
        let server = AdminServer::bind(&dir.path().join("nodes")).unwrap();
        let socket = server.path().to_owned();
        let asked = Rc::new(Cell::new(0));
        let status: StatusProvider = Box::new(move || {
            let asked = Rc::clone(&asked);
            Box::pin(async move {
                tokio::time::sleep(Duration::from_millis(1)).await;
                asked.set(asked.get() + 1);
                NodeStatus { pid: asked.get(), doors: vec![Door::Native], ..NodeStatus::default() }
            })
        });
        let routes = Routes { status, config: "cores  auto  default\n".to_owned(), log: test_log(), shutdown };
        let serving = tokio::task::spawn_local(server.serve(routes));
        test(socket.clone()).await;
        serving.abort();
        let _ = serving.await;
        socket
    });
    socket
}

async fn get(socket: &Path, path: &str) -> Result<String, ClientError> {
    client::request(socket, Method::GET, path, Bytes::new()).await.map(|b| String::from_utf8(b.to_vec()).unwrap())
}

async fn post(socket: &Path, path: &str, body: &str) -> Result<String, ClientError> {
    let body = Bytes::copy_from_slice(body.as_bytes());
    client::request(socket, Method::POST, path, body).await.map(|b| String::from_utf8(b.to_vec()).unwrap())
}

fn refused(result: Result<String, ClientError>) -> (u16, String) {
    match result {
        Err(ClientError::Refused { status, message, .. }) => (status.as_u16(), message),
        other => panic!("{other:?}"),
    }
}

#[test]
fn status_is_asked_anew_each_time_and_the_socket_goes_with_the_server() {
    let socket = with_server(None, |socket| async move {
        assert_eq!(socket.parent().and_then(Path::file_name), Some("nodes".as_ref()));
        for asked in 1..=3 {
            let status = client::status(&socket).await.unwrap();
            assert_eq!((status.pid, status.doors.as_slice()), (asked, &[Door::Native][..]));
        }
        assert_eq!(get(&socket, "/config").await.unwrap(), "cores  auto  default\n");
        assert_eq!(runtime_dir::running(socket.parent().unwrap()).unwrap(), std::slice::from_ref(&socket));
    });
    assert!(!socket.exists());
}

#[test]
fn wrong_requests_get_an_error_that_says_what_is_right() {
    with_server(None, |socket| async move {
        let socket = &socket;
        assert_eq!(refused(get(socket, "/nothing").await).0, 404);
        assert_eq!(refused(post(socket, "/status", "").await), (405, "use GET".to_owned()));
        assert_eq!(refused(get(socket, "/shutdown").await), (405, "use POST".to_owned()));
        let (code, message) = refused(post(socket, "/shutdown", "").await);
        assert!(code == 403 && message.contains("SIGTERM"), "{message}");
        assert_eq!(refused(post(socket, "/log-level", &"x".repeat(BODY_MAX_BYTES + 1)).await).0, 413);
        let (code, message) = refused(post(socket, "/log-level", "loud").await);
        assert!(code == 400 && message.contains("\"loud\" is no level"), "{message}");
    });
}

#[test]
fn the_log_filter_changes_at_run_time() {
    with_server(None, |socket| async move {
        let answer = post(&socket, "/log-level", " debug,raylet_uring::cli=off\n").await.unwrap();
        assert_eq!(answer, "debug,raylet_uring::cli=off\n");
        assert!(tracing::enabled!(target: "raylet_uring::x", tracing::Level::DEBUG));
        assert!(!tracing::enabled!(target: "raylet_uring::cli", tracing::Level::ERROR));
        assert_eq!(get(&socket, "/log-level").await.unwrap(), answer);
        post(&socket, "/log-level", "info").await.unwrap();
        assert!(!tracing::enabled!(target: "raylet_uring::x", tracing::Level::DEBUG));
    });
}

#[test]
fn shutdown_where_it_is_wanted() {
    let stopped = Rc::new(Cell::new(false));
    let flag = Rc::clone(&stopped);
    with_server(Some(Box::new(move || flag.set(true))), |socket| async move {
        assert_eq!(post(&socket, "/shutdown", "").await.unwrap(), "shutting down\n");
    });
    assert!(stopped.get());
}

#[test]
fn more_connections_than_places_are_all_served() {
    with_server(None, |socket| async move {
        let requests: Vec<_> = (0..4 * CONNECTIONS_MAX)
            .map(|_| {
                let socket = socket.clone();
                tokio::task::spawn_local(async move { client::status(&socket).await.unwrap().pid })
            })
            .collect();
        let mut seen = Vec::new();
        for request in requests {
            seen.push(request.await.unwrap());
        }
        seen.sort_unstable();
        assert_eq!(seen, (1..=4 * CONNECTIONS_MAX as u32).collect::<Vec<_>>());
    });
}

#[test]
fn the_client_names_a_socket_that_nobody_serves() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("1.sock");
    let error = runtime.block_on(client::status(&socket)).unwrap_err();
    assert!(matches!(&error, ClientError::Connect { path, .. } if *path == socket), "{error}");
    // Something that closes at once.
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let closing = std::thread::spawn(move || drop(listener.accept()));
    let error = runtime.block_on(client::status(&socket)).unwrap_err();
    assert!(matches!(error, ClientError::Protocol { .. }), "{error}");
    closing.join().unwrap();
}
