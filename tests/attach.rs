//! `attach`, `detach` and `attach --status` as a user calls them, on a tree of files that looks like a Ray installation.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Instant;

const OURS: &str = env!("CARGO_BIN_EXE_raylet-uring");

/// A package `ray` with a raylet, and a Python that imports it.
struct FakeRay {
    dir: tempfile::TempDir,
    raylet: PathBuf,
}

/// Something that runs and isn't ours, to stand in for Ray's own raylet.
const STAND_IN: &str = "/bin/sleep";

/// Makes a file that can be executed, in a process of its own: had this one ever had it open for writing, so might a child
/// that another test forks at that moment, and as long as that lasts nobody can execute it.
fn install(from: &Path, to: &Path) {
    let status = Command::new("install").args(["-m", "755"]).args([from, to]).status().unwrap();
    assert!(status.success());
}

impl FakeRay {
    fn new(version: &str) -> FakeRay {
        let dir = tempfile::tempdir().unwrap();
        let package = dir.path().join("site/ray");
        let raylet = package.join("core/src/ray/raylet/raylet");
        fs::create_dir_all(raylet.parent().unwrap()).unwrap();
        fs::create_dir_all(package.join("_private")).unwrap();
        fs::write(package.join("__init__.py"), format!("__version__ = {version:?}\nprint('a banner')\n")).unwrap();
        fs::write(package.join("_private/__init__.py"), "").unwrap();
        let services = "import os, ray\nRAYLET_EXECUTABLE = os.path.join(os.path.dirname(ray.__file__), 'core/src/ray/raylet/raylet')\n";
        fs::write(package.join("_private/services.py"), services).unwrap();
        install(Path::new(STAND_IN), &raylet);
        let python = dir.path().join("python");
        let site = dir.path().join("site");
        let text = dir.path().join("python.text");
        fs::write(&text, format!("#!/bin/sh\nPYTHONPATH='{}' exec python3 -S \"$@\"\n", site.display())).unwrap();
        install(&text, &python);
        FakeRay { dir, raylet }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(OURS);
        command.args(arguments).arg(self.dir.path().join("python"));
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Runs and gives standard output; the exit status must be as expected.
    fn expect(&self, arguments: &[&str], status: i32) -> String {
        let output = self.run(arguments);
        let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert_eq!(output.status.code(), Some(status), "{arguments:?}: {text}");
        text
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(self.raylet.parent().unwrap())
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    fn stock(&self) -> PathBuf {
        self.raylet.with_file_name("raylet.stock")
    }
}

fn same(a: &Path, b: impl AsRef<Path>) -> bool {
    fs::read(a).unwrap() == fs::read(b).unwrap()
}

/// A child that is gone when the test is.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn attach_puts_this_program_in_place_and_detach_the_original() {
    let ray = FakeRay::new("2.60.0");
    assert!(ray.expect(&["attach", "--status"], 1).contains("Ray's own raylet is in place"));
    assert!(ray.expect(&["attach"], 0).starts_with("attached: Ray 2.60.0 starts raylet-uring"));
    assert!(same(&ray.raylet, OURS) && same(&ray.stock(), STAND_IN));
    assert_eq!(ray.names(), ["raylet", "raylet-uring.json", "raylet.stock"]);
    let version = Command::new(&ray.raylet).arg("--version").output().unwrap();
    assert!(String::from_utf8_lossy(&version.stdout).starts_with("raylet (raylet-uring "), "{version:?}");
    assert!(ray.expect(&["attach", "--status"], 0).contains("raylet-uring"));
    assert!(ray.expect(&["attach"], 0).starts_with("attached already"));
    assert!(ray.expect(&["detach"], 0).starts_with("detached"));
    assert!(same(&ray.raylet, STAND_IN));
    assert_eq!(ray.names(), ["raylet"]);
    assert_eq!(fs::metadata(&ray.raylet).unwrap().permissions().mode() & 0o111, 0o111);
    assert!(ray.expect(&["detach"], 0).contains("already"));
    ray.expect(&["attach", "--status"], 1);
}

#[test]
fn another_version_is_refused_by_name() {
    let ray = FakeRay::new("2.59.1");
    let text = ray.expect(&["attach"], 2);
    assert!(text.contains("Ray 2.59.1 is installed; raylet-uring speaks Ray 2.60.0"), "{text}");
    assert!(same(&ray.raylet, STAND_IN));
    assert_eq!(ray.names(), ["raylet"]);
    assert!(ray.expect(&["attach", "--status"], 1).contains("problem: Ray 2.59.1"));
}

#[test]
fn a_python_without_ray_and_no_python_at_all() {
    let ray = FakeRay::new("2.60.0");
    fs::remove_dir_all(ray.dir.path().join("site")).unwrap();
    for arguments in [&["attach"][..], &["attach", "--status"], &["detach"]] {
        let text = ray.expect(arguments, 2);
        assert!(text.contains("can't import ray; install ray==2.60.0 there first"), "{text}");
    }
    fs::remove_file(ray.dir.path().join("python")).unwrap();
    assert!(ray.expect(&["attach"], 2).contains("give the Python of the Ray installation"));
}

#[test]
fn a_lost_original_is_refused_and_said() {
    let ray = FakeRay::new("2.60.0");
    ray.expect(&["attach"], 0);
    fs::remove_file(ray.stock()).unwrap();
    for arguments in [&["attach"][..], &["detach"]] {
        let text = ray.expect(arguments, 2);
        assert!(text.contains("raylet.stock isn't there") && text.contains("--force-reinstall"), "{text}");
    }
    assert!(ray.expect(&["attach", "--status"], 2).contains("problem: "));
    assert!(same(&ray.raylet, OURS));
}

#[test]
fn raylets_that_run_are_told_apart() {
    let ray = FakeRay::new("2.60.0");
    let stock = Running(Command::new(&ray.raylet).arg("60").spawn().unwrap());
    let line = format!("running: pid {}, Ray's own raylet", stock.0.id());
    let text = ray.expect(&["attach", "--status"], 1);
    assert!(text.contains(&format!("{line}\n")), "{text}");
    let text = ray.expect(&["attach"], 0);
    assert!(text.contains(&format!("still running from before, until it ends: pid {}", stock.0.id())), "{text}");
    let text = ray.expect(&["attach", "--status"], 0);
    assert!(text.contains(&format!("{line}, until it ends\n")), "{text}");
    // Its file goes with detaching and attaching again, and it still is what it is.
    ray.expect(&["detach"], 0);
    fs::remove_file(&ray.raylet).unwrap();
    install(Path::new(STAND_IN), &ray.raylet);
    ray.expect(&["attach"], 0);
    assert!(ray.expect(&["attach", "--status"], 0).contains(&line));
}

#[test]
fn killed_at_any_moment_there_is_a_raylet_and_the_original() {
    let ray = FakeRay::new("2.60.0");
    let start = Instant::now();
    ray.expect(&["attach"], 0);
    ray.expect(&["detach"], 0);
    let whole = start.elapsed() / 2;
    const ROUNDS: u32 = 16;
    let mut killed = 0;
    for round in 0..ROUNDS {
        let action = if round % 2 == 0 { "attach" } else { "detach" };
        let mut child = Running(ray.command(&[action]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
        std::thread::sleep(whole * round / ROUNDS);
        child.0.kill().unwrap();
        killed += u32::from(!child.0.wait().unwrap().success());
        let live = &ray.raylet;
        assert!(
            same(live, STAND_IN) || (same(live, OURS) && same(&ray.stock(), STAND_IN)),
            "round {round}: {:?}",
            ray.names()
        );
        let status = ray.run(&["attach", "--status"]).status.code();
        assert_eq!(status, Some(i32::from(same(live, STAND_IN))), "round {round}");
    }
    assert!(killed > 0, "no round was cut short");
    ray.expect(&["attach"], 0);
    ray.expect(&["detach"], 0);
    assert_eq!(ray.names(), ["raylet"], "nothing is left of what was cut short");
}

#[test]
fn two_at_once_wait_for_each_other() {
    let ray = FakeRay::new("2.60.0");
    for action in ["attach", "detach"] {
        let children: Vec<Child> = (0..3)
            .map(|_| ray.command(&[action]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap())
            .collect();
        for child in children {
            let output = child.wait_with_output().unwrap();
            assert!(output.status.success(), "{action}: {}", String::from_utf8_lossy(&output.stderr));
        }
        assert!(same(&ray.raylet, if action == "attach" { OURS } else { STAND_IN }));
    }
    assert_eq!(ray.names(), ["raylet"]);
}
