//! A driver of Ray 2.60 with a stock node under it, for one test.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::python::python;
use super::rpc_support::TOKEN;

const DRIVER: &str = r#"
import sys, ray
ray.init(num_cpus=1, object_store_memory=80 * 1024 * 1024, include_dashboard=False, _temp_dir=sys.argv[1],
         log_to_driver=False, configure_logging=False)
ref, kept = ray.put(b"x" * 1_000_000), ray.put(b"y" * 1_000_000)
print("OWNER", ray._private.worker.global_worker.core_worker.get_owner_address(ref).hex())
print("OBJECT", ref.hex())
print("KEPT", kept.hex(), flush=True)
for line in sys.stdin:
    if line.strip() == "free":
        del ref
        print("FREED", flush=True)
ray.shutdown()
"#;

/// A driver that owns two objects, on a node of stock processes.
pub struct Driver {
    child: Child,
    lines: BufReader<std::process::ChildStdout>,
    /// The driver's serialized address.
    pub owner: Vec<u8>,
    /// The id of the object in the node's store.
    pub object: Vec<u8>,
    /// The id of another one, which the driver keeps to its end.
    pub kept: Vec<u8>,
    _dir: TempDir,
}

impl Driver {
    /// Starts the node and the driver, and has it put two objects.
    pub fn start() -> Self {
        let dir = tempfile::tempdir().expect("temporary directory");
        let mut child = Command::new(python())
            .args(["-c", DRIVER])
            .arg(dir.path().join("r"))
            .env("RAY_AUTH_MODE", "token")
            .env("RAY_AUTH_TOKEN", TOKEN)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .expect("python starts");
        let lines = BufReader::new(child.stdout.take().expect("piped"));
        let mut driver = Self { child, lines, owner: Vec::new(), object: Vec::new(), kept: Vec::new(), _dir: dir };
        driver.owner = unhex(&driver.line("OWNER "));
        driver.object = unhex(&driver.line("OBJECT "));
        driver.kept = unhex(&driver.line("KEPT "));
        driver
    }

    /// Drops the driver's only reference to its first object.
    pub fn free(&mut self) {
        self.tell("free\n");
        self.line("FREED");
    }

    /// Lets the driver and its node end, and waits for it.
    pub fn stop(&mut self) {
        drop(self.child.stdin.take());
        let deadline = Instant::now() + Duration::from_secs(60);
        while self.child.try_wait().expect("wait").is_none() {
            if Instant::now() > deadline {
                self.child.kill().expect("kill");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn tell(&mut self, text: &str) {
        let stdin = self.child.stdin.as_mut().expect("running");
        stdin.write_all(text.as_bytes()).and_then(|()| stdin.flush()).expect("the driver listens");
    }

    fn line(&mut self, prefix: &str) -> String {
        loop {
            let mut line = String::new();
            let read = self.lines.read_line(&mut line).expect("utf-8");
            assert!(read > 0, "the driver ended before it printed {prefix}");
            if let Some(rest) = line.strip_prefix(prefix) {
                return rest.trim().to_owned();
            }
        }
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Bytes from hexadecimal digits.
fn unhex(text: &str) -> Vec<u8> {
    let pairs = text.as_bytes().chunks(2);
    let byte = |pair| u8::from_str_radix(std::str::from_utf8(pair).expect("ascii"), 16).expect("hexadecimal");
    pairs.map(byte).collect()
}
