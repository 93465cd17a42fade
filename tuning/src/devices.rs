//! Network cards and disks, and the NUMA node that each is plugged into.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::host::Host;
use crate::sysfs;

/// Device-mapper and RAID levels that are followed down to a disk.
const STACK_MAX: usize = 8;
/// Bytes of the unit in which sysfs gives the size of a disk, whatever its sectors are.
const SYSFS_SECTOR_BYTES: u64 = 512;

/// A network card (loopback, bridges and the like are none).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nic {
    /// Its interface, such as `eth0`.
    pub name: String,
    /// NUMA node that it is plugged into; `None` where the machine doesn't say.
    pub numa_node: Option<u32>,
    /// Speed of the link; `None` where it is down or the driver doesn't say.
    pub speed_mbit_s: Option<u64>,
    /// Whether it is up.
    pub up: bool,
    /// Driver's name.
    pub driver: Option<String>,
}

/// What a disk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DiskKind {
    /// NVMe.
    Nvme,
    /// Without moving parts, on another bus.
    Ssd,
    /// Rotating.
    Hdd,
    /// A virtual machine's; what is behind it isn't known.
    Virtual,
}

/// A disk that something is plugged in for (loop devices, RAM disks and the like are none).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// Its device, such as `nvme0n1`.
    pub name: String,
    /// What it is.
    pub kind: DiskKind,
    /// NUMA node that it is plugged into; `None` where the machine doesn't say.
    pub numa_node: Option<u32>,
    /// Its size.
    pub size_bytes: u64,
    /// Its model, as it says.
    pub model: Option<String>,
    /// Where file systems on it, or on volumes made of it, are mounted.
    pub mounts: Vec<PathBuf>,
}

/// The network cards, by name.
pub fn nics(host: &Host) -> Vec<Nic> {
    let class = "/sys/class/net";
    let names = host.names(class).into_iter().filter(|name| host.path(class).join(name).join("device").exists());
    names
        .map(|name| {
            let directory = host.path(class).join(&name);
            let driver = fs::read_link(directory.join("device/driver")).ok();
            // A virtual card says -1, one that is down fails to say.
            let speed_mbit_s = sysfs::number(directory.join("speed")).filter(|&speed| speed < u64::from(u32::MAX));
            Nic {
                numa_node: numa_node(&directory),
                speed_mbit_s,
                up: sysfs::text(directory.join("operstate")).as_deref() == Some("up"),
                driver: driver.and_then(|link| Some(link.file_name()?.to_str()?.to_owned())),
                name,
            }
        })
        .collect()
}

/// The disks, by name.
pub fn disks(host: &Host) -> Vec<Disk> {
    let class = "/sys/class/block";
    let mut mounts = mounts_by_disk(host);
    let real = |name: &String| {
        let directory = host.path(class).join(name);
        directory.join("device").exists() && !directory.join("partition").exists()
    };
    host.names(class)
        .into_iter()
        .filter(real)
        .map(|name| {
            let directory = host.path(class).join(&name);
            let rotates = sysfs::number(directory.join("queue/rotational")) == Some(1);
            let kind = match rotates {
                _ if name.starts_with("nvme") => DiskKind::Nvme,
                _ if name.starts_with("vd") || name.starts_with("xvd") => DiskKind::Virtual,
                false => DiskKind::Ssd,
                true => DiskKind::Hdd,
            };
            Disk {
                kind,
                numa_node: numa_node(&directory),
                size_bytes: sysfs::number(directory.join("size")).unwrap_or(0).saturating_mul(SYSFS_SECTOR_BYTES),
                model: sysfs::text(directory.join("device/model")).filter(|model| !model.is_empty()),
                mounts: mounts.remove(&name).unwrap_or_default().into_iter().collect(),
                name,
            }
        })
        .collect()
}

/// The disk whose file system a directory is on, by the mount that is the longest part of its path.
pub fn disk_of<'a>(disks: &'a [Disk], directory: &Path) -> Option<&'a Disk> {
    let depth = |disk: &&Disk| {
        let mounts = disk.mounts.iter().filter(|mount| directory.starts_with(mount));
        mounts.map(|mount| mount.components().count()).max()
    };
    disks.iter().filter(|disk| depth(disk).is_some()).max_by_key(depth)
}

/// The nearest NUMA node above a device's place in the device tree.
fn numa_node(class_directory: &Path) -> Option<u32> {
    let device = class_directory.canonicalize().ok()?;
    let said = device.ancestors().find_map(|place| sysfs::text(place.join("numa_node")))?;
    // -1: a machine with one node, or firmware that doesn't say.
    said.parse().ok()
}

/// Mount points by the names of the disks below them.
fn mounts_by_disk(host: &Host) -> BTreeMap<String, BTreeSet<PathBuf>> {
    let mut mounts: BTreeMap<String, BTreeSet<PathBuf>> = BTreeMap::new();
    let numbers: BTreeMap<String, String> = host
        .names("/sys/class/block")
        .into_iter()
        .filter_map(|name| Some((host.text(format!("/sys/class/block/{name}/dev"))?, name)))
        .collect();
    for line in host.text("/proc/self/mountinfo").unwrap_or_default().lines() {
        let mut fields = line.split_whitespace().skip(2);
        let (Some(number), Some(_), Some(mount)) = (fields.next(), fields.next(), fields.next()) else { continue };
        let Some(device) = numbers.get(number) else { continue };
        for disk in disks_below(host, device, STACK_MAX) {
            mounts.entry(disk).or_default().insert(PathBuf::from(unescape(mount)));
        }
    }
    mounts
}

/// The disks that a block device is made of.
fn disks_below(host: &Host, device: &str, levels: usize) -> Vec<String> {
    let directory = format!("/sys/class/block/{device}");
    if host.path(&directory).join("partition").exists() {
        let real = host.path(&directory).canonicalize().ok();
        let whole = real.and_then(|path| Some(path.parent()?.file_name()?.to_str()?.to_owned()));
        return whole.map_or_else(Vec::new, |disk| vec![disk]);
    }
    let slaves = host.names(format!("{directory}/slaves"));
    if slaves.is_empty() || levels == 0 {
        return vec![device.to_owned()];
    }
    slaves.iter().flat_map(|slave| disks_below(host, slave, levels - 1)).collect()
}

/// A path of mountinfo, in which blanks are octal escapes.
fn unescape(text: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(text.to_owned(), |text, (escape, character)| text.replace(escape, character))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::FakeHost;

    #[test]
    fn cards_have_their_nodes_and_virtual_ones_are_left_out() {
        let fake = FakeHost::new();
        fake.device("net", "eth0", 0, &[("operstate", "up"), ("speed", "100000")]);
        fake.device("net", "eth1", 1, &[("operstate", "down"), ("speed", "-1")]);
        fake.device("net", "eth2", -1, &[("operstate", "up")]);
        fake.link("/sys/devices/pci0000:00/eth0.0/driver", "../../../bus/pci/drivers/mlx5_core");
        fake.file("/sys/devices/virtual/net/lo/operstate", "unknown");
        fake.link("/sys/class/net/lo", "../../devices/virtual/net/lo");
        let nics = nics(&fake.host());
        let seen: Vec<_> = nics.iter().map(|n| (n.name.as_str(), n.numa_node, n.speed_mbit_s, n.up)).collect();
        let expected =
            [("eth0", Some(0), Some(100_000), true), ("eth1", Some(1), None, false), ("eth2", None, None, true)];
        assert_eq!(seen, expected);
        assert_eq!((nics[0].driver.as_deref(), nics[1].driver.as_deref()), (Some("mlx5_core"), None));
    }

    fn with_disks() -> FakeHost {
        let fake = FakeHost::new();
        fake.device("block", "nvme0n1", 1, &[("dev", "259:0"), ("size", "8388608"), ("queue/rotational", "0")]);
        fake.device("block", "sda", 0, &[("dev", "8:0"), ("size", "16"), ("queue/rotational", "1")]);
        fake.file("/sys/devices/pci0000:00/nvme0n1.0/model", "Fast One ");
        let partition = "/sys/devices/pci0000:00/nvme0n1.0/block/nvme0n1/nvme0n1p2";
        fake.file(&format!("{partition}/partition"), "2");
        fake.file(&format!("{partition}/dev"), "259:2");
        fake.link("/sys/class/block/nvme0n1p2", "../../devices/pci0000:00/nvme0n1.0/block/nvme0n1/nvme0n1p2");
        fake.file("/sys/devices/virtual/block/dm-0/dev", "253:0");
        fake.file("/sys/devices/virtual/block/dm-0/slaves/nvme0n1p2/dev", "259:2");
        fake.link("/sys/class/block/dm-0", "../../devices/virtual/block/dm-0");
        fake.file("/sys/devices/virtual/block/loop0/dev", "7:0");
        fake.link("/sys/class/block/loop0", "../../devices/virtual/block/loop0");
        fake.file(
            "/proc/self/mountinfo",
            "21 1 8:0 / / rw - ext4 /dev/sda rw\n22 21 253:0 / /data\\040one rw - xfs /dev/dm-0 rw\n\
             23 21 0:5 / /proc rw - proc proc rw",
        );
        fake
    }

    #[test]
    fn disks_have_their_nodes_and_their_mounts_through_volumes() {
        let disks = disks(&with_disks().host());
        let names: Vec<_> = disks.iter().map(|d| (d.name.as_str(), d.kind, d.numa_node, d.size_bytes)).collect();
        assert_eq!(names, [("nvme0n1", DiskKind::Nvme, Some(1), 4 << 30), ("sda", DiskKind::Hdd, Some(0), 8192)]);
        assert_eq!((disks[0].model.as_deref(), disks[1].model.as_deref()), (Some("Fast One"), None));
        assert_eq!(
            (&disks[0].mounts, &disks[1].mounts),
            (&vec![PathBuf::from("/data one")], &vec![PathBuf::from("/")])
        );
    }

    #[test]
    fn a_directory_is_on_the_disk_of_its_nearest_mount() {
        let disks = disks(&with_disks().host());
        let name = |path: &str| disk_of(&disks, Path::new(path)).map(|disk| disk.name.clone());
        assert_eq!(name("/data one/spill").as_deref(), Some("nvme0n1"));
        assert_eq!(name("/data onerous").as_deref(), Some("sda"));
        assert_eq!(disk_of(&disks[..1], Path::new("/tmp")), None);
    }

    #[test]
    fn this_machine_can_be_looked_at() {
        let host = Host::this();
        assert!(nics(&host).iter().all(|nic| nic.name != "lo"));
        assert!(disks(&host).iter().all(|disk| !disk.name.starts_with("loop")));
    }
}
