//! A GCS of Ray 2.60 for one test.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::python::python;
use super::rpc_support::TOKEN;

fn gcs_executable() -> PathBuf {
    let code = "import importlib.util as u; print(u.find_spec('ray').submodule_search_locations[0])";
    let output = Command::new(python()).args(["-c", code]).output().expect("python runs");
    assert!(output.status.success(), "Ray is not installed: {}", String::from_utf8_lossy(&output.stderr));
    let package = String::from_utf8(output.stdout).expect("utf-8 path");
    Path::new(package.trim()).join("core/src/ray/gcs/gcs_server")
}

/// A GCS that keeps its tables on disk and takes nodes for dead quickly.
pub struct Gcs {
    executable: PathBuf,
    dir: TempDir,
    child: Child,
    pub port: u16,
}

impl Gcs {
    /// Starts one on a free port.
    pub fn start() -> Self {
        let executable = gcs_executable();
        let dir = tempfile::tempdir().expect("temporary directory");
        fs::create_dir(dir.path().join("logs")).expect("mkdir");
        let (child, port) = Self::spawn(&executable, dir.path(), 0);
        Self { executable, dir, child, port }
    }

    /// `host:port`.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Ends it, without a chance to tell anyone.
    pub fn kill(&mut self) {
        self.child.kill().expect("kill");
        self.child.wait().expect("wait");
    }

    /// Starts it again on its port, with its tables.
    pub fn restart(&mut self) {
        self.child = Self::spawn(&self.executable, self.dir.path(), self.port).0;
    }

    fn spawn(executable: &Path, dir: &Path, port: u16) -> (Child, u16) {
        let node = "ab".repeat(28);
        let port_file = dir.join(format!("gcs_server_port_{node}"));
        let _ = fs::remove_file(&port_file);
        let log = fs::File::create(dir.join("gcs.log")).expect("log file");
        let path = |name: &str| dir.join(name).display().to_string();
        let mut child = Command::new(executable)
            .arg(format!("--log_dir={}", path("logs")))
            .arg("--config_list=e30=")
            .arg(format!("--gcs_server_port={port}"))
            .arg("--metrics-agent-port=1")
            .arg("--node-ip-address=127.0.0.1")
            .args(["--session-name=test", "--ray-commit=test"])
            .arg(format!("--session-dir={}", dir.display()))
            .arg(format!("--node-id={node}"))
            .env("RAY_AUTH_MODE", "token")
            .env("RAY_AUTH_TOKEN", TOKEN)
            .env("RAY_gcs_storage", "rocksdb")
            .env("RAY_gcs_storage_path", path("db"))
            .env("RAY_health_check_initial_delay_ms", "100")
            .env("RAY_health_check_period_ms", "200")
            .env("RAY_health_check_timeout_ms", "20000")
            .env("RAY_health_check_failure_threshold", "2")
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("log file"))
            .stderr(log)
            .spawn()
            .expect("gcs_server starts");
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let written = fs::read_to_string(&port_file).ok().and_then(|text| text.trim().parse().ok());
            if let Some(port) = written {
                return (child, port);
            }
            let ended = child.try_wait().expect("wait");
            let log = || fs::read_to_string(dir.join("gcs.log")).unwrap_or_default();
            assert!(ended.is_none() && Instant::now() < deadline, "no GCS: {}", log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Gcs {
    fn drop(&mut self) {
        // It may have been killed by the test.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
