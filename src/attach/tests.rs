//! Attaching and detaching on a tree of files, stopped at every step.

use std::cell::Cell;

use super::*;

thread_local! {
    /// Changes to the file system until the next one fails; `None`: none fails.
    static STEPS_LEFT: Cell<Option<usize>> = const { Cell::new(None) };
}

/// Fails once the steps of this thread are used up, and from then on, as after a crash.
pub(super) fn step() -> io::Result<()> {
    STEPS_LEFT.with(|steps| match steps.get() {
        None => Ok(()),
        Some(0) => Err(io::Error::other("stopped by the test")),
        Some(n) => {
            steps.set(Some(n - 1));
            Ok(())
        }
    })
}

fn stopping_after<T>(steps: usize, act: impl FnOnce() -> T) -> T {
    STEPS_LEFT.set(Some(steps));
    let result = act();
    STEPS_LEFT.set(None);
    result
}

const STOCK: &[u8] = b"stock raylet of Ray";

fn ours(build: &str) -> Vec<u8> {
    [b"build ", build.as_bytes(), b" ", MARKER].concat()
}

struct Tree {
    dir: tempfile::TempDir,
    installation: Installation,
}

impl Tree {
    fn new() -> Tree {
        let dir = tempfile::tempdir().unwrap();
        let installation =
            Installation { ray_version: SUPPORTED_RAY_VERSIONS[0].to_owned(), raylet: dir.path().join("ray/raylet") };
        fs::create_dir(dir.path().join("ray")).unwrap();
        fs::write(&installation.raylet, STOCK).unwrap();
        Tree { dir, installation }
    }

    fn binary(&self, build: &str) -> PathBuf {
        let path = self.dir.path().join(build);
        fs::write(&path, ours(build)).unwrap();
        path
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.dir.path().join("ray")).unwrap();
        let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn live(&self) -> Vec<u8> {
        fs::read(&self.installation.raylet).unwrap()
    }

    /// What must hold after a crash at any moment: a whole raylet in place, and the original somewhere.
    fn check_invariants(&self, at: usize, builds: &[&str]) {
        let live = self.live();
        let whole = live == STOCK || builds.iter().any(|b| live == ours(b));
        assert!(whole, "step {at}: in place is {:?}", String::from_utf8_lossy(&live));
        if live != STOCK {
            assert_eq!(fs::read(self.installation.stock()).unwrap(), STOCK, "step {at}: the original is lost");
        }
        let report = self.installation.report().unwrap();
        assert_eq!(report.in_place, Some(if live == STOCK { Kind::Stock } else { Kind::Ours }), "step {at}");
    }
}

#[test]
fn attach_and_detach_and_each_again() {
    let tree = Tree::new();
    let binary = tree.binary("a");
    assert_eq!(tree.installation.attach(&binary).unwrap(), Outcome::Done);
    assert_eq!(tree.live(), ours("a"));
    assert_eq!(tree.names(), ["raylet", "raylet-uring.json", "raylet.stock"]);
    let report = tree.installation.report().unwrap();
    assert_eq!((report.exit_status(), report.problems.len()), (EXIT_OURS, 0));
    assert_eq!(report.ours_version.as_deref(), Some(env!("CARGO_PKG_VERSION")));
    assert_eq!(tree.installation.attach(&binary).unwrap(), Outcome::Already);
    assert_eq!(tree.installation.attach(&tree.binary("b")).unwrap(), Outcome::Updated);
    assert_eq!(tree.live(), ours("b"));
    assert_eq!(fs::read(tree.installation.stock()).unwrap(), STOCK);
    assert_eq!(tree.installation.detach().unwrap(), Outcome::Done);
    assert_eq!((tree.live().as_slice(), tree.names()), (STOCK, vec!["raylet".to_owned()]));
    assert_eq!(tree.installation.report().unwrap().exit_status(), EXIT_STOCK);
    assert_eq!(tree.installation.detach().unwrap(), Outcome::Already);
}

/// Runs `act` with a crash at every step, and after each crash checks the tree and that both ways out work.
fn crash_everywhere(prepare: impl Fn(&Tree), builds: &[&str], act: impl Fn(&Tree) -> Result<Outcome, AttachError>) {
    let mut crashes = 0;
    for recovery in ["attach", "detach"] {
        for at in 0.. {
            let tree = Tree::new();
            prepare(&tree);
            if stopping_after(at, || act(&tree)).is_ok() {
                crashes += at;
                break;
            }
            tree.check_invariants(at, builds);
            match recovery {
                "attach" => {
                    tree.installation.attach(&tree.binary("b")).unwrap_or_else(|e| panic!("step {at}: {e}"));
                    assert_eq!(tree.live(), ours("b"), "step {at}");
                    assert_eq!(tree.installation.report().unwrap().exit_status(), EXIT_OURS, "step {at}");
                    assert_eq!(tree.installation.detach().unwrap(), Outcome::Done, "step {at}");
                }
                _ => {
                    tree.installation.detach().unwrap_or_else(|e| panic!("step {at}: {e}"));
                }
            }
            assert_eq!(tree.live(), STOCK, "step {at}");
            tree.installation.attach(&tree.binary("b")).unwrap();
            assert_eq!(tree.installation.detach().unwrap(), Outcome::Done);
            assert_eq!(tree.names(), ["raylet"], "step {at}: nothing is left behind");
        }
    }
    assert!(crashes > 10, "{crashes} crashes are too few to have been at every step");
}

#[test]
fn attaching_survives_a_crash_at_every_step() {
    crash_everywhere(|_| {}, &["a"], |tree| tree.installation.attach(&tree.binary("a")));
}

#[test]
fn updating_survives_a_crash_at_every_step() {
    let prepare = |tree: &Tree| assert_eq!(tree.installation.attach(&tree.binary("a")).unwrap(), Outcome::Done);
    crash_everywhere(prepare, &["a", "b"], |tree| tree.installation.attach(&tree.binary("b")));
}

#[test]
fn detaching_survives_a_crash_at_every_step() {
    let prepare = |tree: &Tree| assert_eq!(tree.installation.attach(&tree.binary("a")).unwrap(), Outcome::Done);
    crash_everywhere(prepare, &["a"], |tree| tree.installation.detach());
}

#[test]
fn a_missing_or_changed_original_is_refused() {
    let tree = Tree::new();
    let binary = tree.binary("a");
    tree.installation.attach(&binary).unwrap();
    fs::write(tree.installation.stock(), "tampered").unwrap();
    for result in [tree.installation.attach(&binary), tree.installation.detach()] {
        let error = result.unwrap_err().to_string();
        assert!(error.contains("was changed since") && error.contains("--force-reinstall"), "{error}");
    }
    fs::copy(&binary, tree.installation.stock()).unwrap();
    assert!(tree.installation.detach().unwrap_err().to_string().contains("is a raylet-uring executable"));
    fs::remove_file(tree.installation.stock()).unwrap();
    for result in [tree.installation.attach(&binary), tree.installation.detach()] {
        assert!(matches!(result, Err(AttachError::StockLost { problem, .. }) if problem == "isn't there"));
    }
    assert_eq!(tree.live(), ours("a"), "and nothing is touched");
    let report = tree.installation.report().unwrap();
    assert_eq!(report.exit_status(), EXIT_BROKEN);
    assert!(report.problems[0].contains("isn't there"), "{:?}", report.problems);
}

#[test]
fn without_any_raylet_there_is_nothing_to_attach_to() {
    let tree = Tree::new();
    fs::remove_file(&tree.installation.raylet).unwrap();
    let binary = tree.binary("a");
    assert!(matches!(tree.installation.attach(&binary), Err(AttachError::NoRaylet { .. })));
    assert!(matches!(tree.installation.detach(), Err(AttachError::NoRaylet { .. })));
    assert_eq!(tree.installation.report().unwrap().exit_status(), EXIT_BROKEN);
    // Somebody removed ours by hand: the original is beside it, and both ways work.
    fs::write(tree.installation.stock(), STOCK).unwrap();
    assert_eq!(tree.installation.detach().unwrap(), Outcome::Done);
    assert_eq!(tree.live(), STOCK);
}

#[test]
fn a_reinstalled_ray_is_the_new_original() {
    let tree = Tree::new();
    tree.installation.attach(&tree.binary("a")).unwrap();
    // pip puts a new file in the place and knows nothing of the others.
    fs::remove_file(&tree.installation.raylet).unwrap();
    fs::write(&tree.installation.raylet, "newer stock").unwrap();
    assert_eq!(tree.installation.report().unwrap().exit_status(), EXIT_STOCK);
    assert_eq!(tree.installation.attach(&tree.binary("a")).unwrap(), Outcome::Done);
    tree.installation.detach().unwrap();
    assert_eq!(tree.live(), b"newer stock");
}

#[test]
fn other_versions_and_other_programs_are_refused() {
    let mut tree = Tree::new();
    let other = tree.dir.path().join("other");
    fs::write(&other, "some program").unwrap();
    assert!(matches!(tree.installation.attach(&other), Err(AttachError::NotOurs { .. })));
    assert_eq!(tree.live(), STOCK);
    tree.installation.ray_version = "2.59.0".to_owned();
    let error = tree.installation.attach(&tree.binary("a")).unwrap_err().to_string();
    assert_eq!(error, "Ray 2.59.0 is installed; raylet-uring speaks Ray 2.60.0: install one of these");
    assert!(tree.installation.report().unwrap().problems[0].contains("2.59.0"));
}

#[test]
fn the_report_tells_a_foreign_build_from_the_attached_one() {
    let tree = Tree::new();
    tree.installation.attach(&tree.binary("a")).unwrap();
    fs::write(&tree.installation.raylet, ours("somebody's")).unwrap();
    let report = tree.installation.report().unwrap();
    assert_eq!(report.exit_status(), EXIT_BROKEN);
    assert!(report.problems[0].contains("isn't the one that was attached"), "{:?}", report.problems);
    fs::write(tree.installation.record_path(), "{").unwrap();
    assert!(tree.installation.report().unwrap().problems[0].contains("missing or broken"));
    tree.installation.attach(&tree.binary("a")).unwrap();
    assert_eq!(tree.installation.report().unwrap().exit_status(), EXIT_OURS);
}
