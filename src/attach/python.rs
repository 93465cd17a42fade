//! Asking a Python where its Ray is.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde::Deserialize;

use super::{AttachError, Installation};

/// Time for `import ray`, which takes a second on a warm disk and much longer on a cold network one.
const IMPORT_TIMEOUT: Duration = Duration::from_secs(120);
/// Pause between two looks whether the Python has ended.
const POLL_INTERVAL: Duration = Duration::from_millis(5);
/// Bytes of what the Python says that are kept.
const OUTPUT_MAX_BYTES: u64 = 64 << 10;
/// Bytes of its errors that are shown.
const SHOWN_MAX_BYTES: usize = 600;

/// Begins the one line of output that is ours, among what `import ray` may print.
const LINE: &str = "raylet-uring-installation:";

/// `RAYLET_EXECUTABLE` is what Ray 2.60 starts; a version without it is answered too, so that it can be refused by name.
const SCRIPT: &str = "
import json, os, ray
try:
    from ray._private.services import RAYLET_EXECUTABLE as raylet
except ImportError:
    raylet = os.path.join(os.path.dirname(ray.__file__), 'core/src/ray/raylet/raylet')
print('\\nraylet-uring-installation:' + json.dumps({'version': ray.__version__, 'raylet': os.path.realpath(os.path.dirname(raylet)) + '/' + os.path.basename(raylet)}))
";

#[derive(Deserialize)]
struct Answer {
    version: String,
    raylet: PathBuf,
}

pub(super) fn find(python: &Path) -> Result<Installation, AttachError> {
    let failed = |source| AttachError::Python { python: python.to_owned(), source };
    // A relative path is meant from here, and the Python runs elsewhere: a directory `ray` here is not the installation.
    let program = match python.components().count() {
        0 | 1 => python.to_owned(),
        _ => std::path::absolute(python).map_err(failed)?,
    };
    let mut child = Command::new(&program)
        .args(["-c", SCRIPT])
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    let (out, err) = (reader(child.stdout.take()), reader(child.stderr.take()));
    let deadline = Instant::now() + IMPORT_TIMEOUT;
    let status = loop {
        match child.try_wait().map_err(failed)? {
            Some(status) => break status,
            None if Instant::now() > deadline => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(AttachError::PythonTimeout {
                    python: python.to_owned(),
                    seconds: IMPORT_TIMEOUT.as_secs(),
                });
            }
            None => thread::sleep(POLL_INTERVAL),
        }
    };
    let (out, err) = (out.join().unwrap_or_default(), err.join().unwrap_or_default());
    let answer = out.lines().find_map(|line| serde_json::from_str::<Answer>(line.strip_prefix(LINE)?).ok());
    match answer.filter(|_| status.success()) {
        Some(Answer { version, raylet }) => Ok(Installation { ray_version: version, raylet }),
        None => {
            let start = err.len().saturating_sub(SHOWN_MAX_BYTES);
            let start = (start..=err.len()).find(|at| err.is_char_boundary(*at)).unwrap_or(0);
            Err(AttachError::NoRay { python: python.to_owned(), stderr: err[start..].trim().to_owned() })
        }
    }
}

/// Reads a pipe to its end on a thread of its own, so that the Python never waits for us.
fn reader(pipe: Option<impl Read + Send + 'static>) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            let _ = pipe.by_ref().take(OUTPUT_MAX_BYTES).read_to_end(&mut bytes);
            let _ = std::io::copy(&mut pipe, &mut std::io::sink());
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}
