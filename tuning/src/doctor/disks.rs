//! The disks that objects are spilled to.

use std::path::Path;

use super::{mib, Check, Subject};
use crate::placement::PlacedDirectory;

/// Writing slower than this, spilling falls behind one worker that puts.
const WRITE_WANTED_MB_S: f64 = 500.0;

/// Two checks for each directory: room, and how fast the disk is.
pub(super) fn spill(subject: &Subject) -> Vec<Check> {
    let directories = &subject.picture.spill;
    let mut checks: Vec<Check> = directories.iter().map(|directory| room(subject, &directory.path)).collect();
    if subject.measure_disks {
        checks.extend(directories.iter().map(|directory| speed(subject, directory)));
    }
    checks
}

fn room(subject: &Subject, path: &Path) -> Check {
    let name = "spill room";
    let costs = "when the object store is full and the disk too, puts fail";
    let mend = || [format!("df -h {0} && du -xsh {0}/*", path.display())];
    match subject.host.filesystem_bytes(path) {
        Err(error) => {
            let found = format!("{} can't be looked at: {error}", path.display());
            Check::warning(name, found, "objects can't be spilled there", [format!("mkdir -p {}", path.display())])
        }
        Ok((_, free)) if free < subject.store_bytes => {
            let found =
                format!("{} has {} free, the object store is {}", path.display(), mib(free), mib(subject.store_bytes));
            Check::warning(name, found, costs, mend())
        }
        Ok((_, free)) => Check::ok(name, format!("{} has {} free", path.display(), mib(free))),
    }
}

fn speed(subject: &Subject, directory: &PlacedDirectory) -> Check {
    let name = "spill disk";
    let path = directory.path.display();
    let disk = directory.disk.clone().unwrap_or_else(|| "no disk of this machine".to_owned());
    let speed = match subject.host.disk_speed(&directory.path) {
        Ok(speed) => speed,
        Err(error) => {
            let found = format!("{path} can't be written: {error}");
            return Check::warning(
                name,
                found,
                "objects can't be spilled there",
                [format!("mkdir -p {path} && test -w {path}")],
            );
        }
    };
    let found = format!("{path} on {disk}: {:.0} MB/s written, {:.0} MB/s read", speed.write_mb_s, speed.read_mb_s);
    let another =
        || ["lsblk -d -o NAME,ROTA,SIZE,MODEL".to_owned(), "export RAY_object_spilling_directory=DIR".to_owned()];
    if !speed.direct {
        let costs =
            "its file system has no O_DIRECT: spilled bytes are copied once more and push other pages out of memory";
        return Check::warning(name, found, costs, another());
    }
    if speed.write_mb_s < WRITE_WANTED_MB_S {
        let costs = format!("a full object store empties at {:.0} MB/s, and puts wait for it", speed.write_mb_s);
        return Check::warning(name, found, costs, another());
    }
    Check::ok(name, found)
}
