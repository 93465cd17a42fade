//! Names of resources, as Ray writes them, and the numbers that the shards know them by.

use std::collections::{BTreeMap, VecDeque};

use raylet_shard::ids::PlacementGroupId;
use raylet_shard::sched::{
    Allocation, BundleId, BundleResource, BundleSpec, Fixed, ResourceId, ResourceKind, ResourceSet, BUNDLE_LABEL_UNITS,
};
use rustc_hash::FxHashMap;

use crate::ray::labels::selector_of;
use crate::ray::proto;

/// The resource of which a blocked worker gives back its share.
pub const CPU: &str = "CPU";

/// The label that every bundle carries besides its resources (Ray 2.60, `kBundle_ResourceLabel`).
const BUNDLE_LABEL: &str = "bundle";

/// Most distinct resource names that a node learns. Each bundle of a placement group brings a few, and they are forgotten with
/// it; a request that names more is refused.
pub const MAX_NAMES: usize = 1 << 20;

/// Why amounts of resources that came from outside can't be used.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ResourceError {
    /// Not an amount.
    #[error("resource {name:?}: expected an amount of 0 or more, got {amount}")]
    BadAmount {
        /// The resource.
        name: String,
        /// What came.
        amount: f64,
    },
    /// [`MAX_NAMES`] is reached.
    #[error("resource {0:?}: this node knows {MAX_NAMES} resource names already")]
    TooManyNames(String),
    /// A placement group id of another length.
    #[error("expected a placement group id of 18 bytes, got {0} bytes")]
    BadGroupId(usize),
    /// A bundle index that can't be.
    #[error("expected a bundle index of 0 or more, got {0}")]
    BadBundleIndex(i64),
}

/// Forgotten numbers that are not used again before so many others were forgotten. Accounts of the shards that are still on their
/// way may have them.
const QUARANTINE: usize = 1 << 14;

/// What a lease got, as its owner is told: instances by index, where a resource without instances is instance 0.
pub fn mapping<S: Into<String>>(
    allocation: &Allocation,
    name: impl Fn(ResourceId) -> S,
) -> Vec<proto::ResourceMapEntry> {
    let parts = allocation.0.iter().map(|part| {
        let resource_ids = if part.instances.is_empty() {
            vec![proto::ResourceId { index: 0, quantity: part.amount.to_f64() }]
        } else {
            let instances = part
                .instances
                .iter()
                .map(|(index, amount)| proto::ResourceId { index: i64::from(*index), quantity: amount.to_f64() });
            instances.collect()
        };
        proto::ResourceMapEntry { name: name(part.id).into(), resource_ids }
    });
    parts.collect()
}

/// Names and numbers. A number is used again only after [`Names::forget`], and not at once.
#[derive(Debug, Default)]
pub struct Names {
    ids: FxHashMap<String, ResourceId>,
    names: Vec<String>,
    free: VecDeque<ResourceId>,
}

impl Names {
    /// The number of a name, new where the name is.
    pub fn intern(&mut self, name: &str) -> Result<ResourceId, ResourceError> {
        if let Some(id) = self.ids.get(name) {
            return Ok(*id);
        }
        let full = self.names.len() >= MAX_NAMES;
        let reusable = self.free.len() > QUARANTINE || full;
        let id = match self.free.front().filter(|_| reusable).copied() {
            Some(id) => {
                self.free.pop_front();
                self.names[id.0 as usize] = name.to_owned();
                id
            }
            None if full => return Err(ResourceError::TooManyNames(name.to_owned())),
            None => {
                self.names.push(name.to_owned());
                ResourceId(self.names.len() as u32 - 1)
            }
        };
        self.ids.insert(name.to_owned(), id);
        Ok(id)
    }

    /// The number of a name that is known.
    pub fn get(&self, name: &str) -> Option<ResourceId> {
        self.ids.get(name).copied()
    }

    /// The name of a number.
    pub fn name(&self, id: ResourceId) -> &str {
        self.names.get(id.0 as usize).map_or("", String::as_str)
    }

    /// A name that nothing refers to any more.
    pub fn forget(&mut self, id: ResourceId) {
        if let Some(name) = self.names.get_mut(id.0 as usize) {
            if self.ids.remove(name).is_some() {
                name.clear();
                self.free.push_back(id);
            }
        }
    }

    /// Amounts by name as a set of numbers.
    pub fn set(&mut self, amounts: &BTreeMap<String, f64>) -> Result<ResourceSet, ResourceError> {
        let parts = amounts.iter().map(|(name, amount)| Ok((self.intern(name)?, fixed(name, *amount)?)));
        Ok(ResourceSet::new(parts.collect::<Result<Vec<_>, _>>()?))
    }

    /// As [`Self::set`], without learning names: `None` where one is not known, so that nothing here can ask for it.
    pub fn known_set(&self, amounts: &BTreeMap<String, f64>) -> Result<Option<ResourceSet>, ResourceError> {
        let mut parts = Vec::with_capacity(amounts.len());
        for (name, amount) in amounts {
            let amount = fixed(name, *amount)?;
            match self.get(name) {
                Some(id) => parts.push((id, amount)),
                None if amount == Fixed::ZERO => {}
                None => return Ok(None),
            }
        }
        Ok(Some(ResourceSet::new(parts)))
    }

    /// A set as amounts by name, and the label selectors that stand among them (see [`crate::ray::labels`]).
    pub fn shape(&self, set: &ResourceSet) -> (BTreeMap<String, f64>, Vec<proto::LabelSelector>) {
        let (mut amounts, mut selectors) = (BTreeMap::new(), Vec::new());
        for (id, amount) in set.iter() {
            match selector_of(self.name(id)) {
                Some(selector) if selector.label_constraints.is_empty() => {}
                Some(selector) => selectors.push(selector),
                None => drop(amounts.insert(self.name(id).to_owned(), amount.to_f64())),
            }
        }
        (amounts, selectors)
    }

    /// A bundle as the scheduler wants it. Each of its resources becomes two: `CPU_group_{index}_{group}` for requests that name
    /// the bundle, and `CPU_group_{group}` for those that take any (Ray 2.60, `FormatPlacementGroupResource`).
    pub fn bundle(&mut self, bundle: &proto::Bundle) -> Result<BundleSpec, ResourceError> {
        let id = bundle_id(bundle.bundle_id.as_ref())?;
        let mut resources = smallvec::SmallVec::new();
        for (name, amount) in &bundle.unit_resources {
            let amount = fixed(name, *amount)?;
            if amount > Fixed::ZERO {
                let original = Some(self.intern(name)?);
                resources.push(self.bundle_resource(name, original, &id, amount)?);
            }
        }
        resources.push(self.bundle_resource(BUNDLE_LABEL, None, &id, BUNDLE_LABEL_UNITS)?);
        Ok(BundleSpec { id, resources })
    }

    fn bundle_resource(
        &mut self,
        name: &str,
        original: Option<ResourceId>,
        id: &BundleId,
        amount: Fixed,
    ) -> Result<BundleResource, ResourceError> {
        Ok(BundleResource {
            original,
            indexed: self.intern(&format!("{name}_group_{}_{}", id.index, id.group))?,
            wildcard: self.intern(&format!("{name}_group_{}", id.group))?,
            amount,
        })
    }
}

/// The placement group that a resource name belongs to: the part after `_group_`, without an index.
pub fn group_of(name: &str) -> Option<PlacementGroupId> {
    let (_, rest) = name.rsplit_once("_group_")?;
    let hex = rest.rsplit_once('_').map_or(rest, |(_, hex)| hex);
    PlacementGroupId::from_slice(&unhex(hex)?)
}

/// How a resource is counted. `unit_instances` are the names that Ray counts by instance: GPU and accelerators.
pub fn kind_of(name: &str, unit_instances: &[String]) -> ResourceKind {
    if name == CPU {
        ResourceKind::Cpu
    } else if unit_instances.iter().any(|unit| unit == name) {
        ResourceKind::UnitInstances
    } else {
        ResourceKind::Plain
    }
}

/// Reads a bundle's id.
pub fn bundle_id(id: Option<&proto::bundle::BundleIdentifier>) -> Result<BundleId, ResourceError> {
    let (group, index) = id.map_or((&[][..], 0), |id| (&id.placement_group_id[..], id.bundle_index));
    Ok(BundleId {
        group: PlacementGroupId::from_slice(group).ok_or(ResourceError::BadGroupId(group.len()))?,
        index: u32::try_from(index).map_err(|_| ResourceError::BadBundleIndex(i64::from(index)))?,
    })
}

fn fixed(name: &str, amount: f64) -> Result<Fixed, ResourceError> {
    Fixed::from_f64(amount).ok_or_else(|| ResourceError::BadAmount { name: name.to_owned(), amount })
}

/// Bytes written as hexadecimal digits; `None` for anything else.
pub fn unhex(hex: &str) -> Option<Vec<u8>> {
    if !hex.len().is_multiple_of(2) || !hex.is_ascii() {
        return None;
    }
    let digits = hex.as_bytes().chunks_exact(2);
    digits.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()).collect()
}

/// Thousandths of a CPU that a request asks for, of the node's own or of a bundle's. A request for a bundle names its CPU twice,
/// with the bundle's index and without.
pub fn cpu_milli<'a>(resources: impl IntoIterator<Item = (&'a String, &'a f64)>) -> u64 {
    let of_cpu = |name: &str| name == CPU || name.starts_with("CPU_group_");
    let amounts = resources.into_iter().filter(|(name, _)| of_cpu(name)).map(|(_, amount)| (amount * 1000.0) as u64);
    amounts.max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_forgotten_name_gives_its_number_to_another_after_a_while() {
        let mut names = Names::default();
        let a = names.intern("a").unwrap();
        names.forget(a);
        names.forget(a);
        assert_eq!((names.get("a"), names.name(a)), (None, ""));
        for n in 0..QUARANTINE {
            let id = names.intern("short-lived").unwrap();
            assert_ne!(id, a, "used again after {n} others");
            names.forget(id);
        }
        assert_eq!(names.intern("b").unwrap(), a);
        assert_ne!(names.intern("c").unwrap(), a, "a number freed twice is given out twice");
        assert_eq!(names.name(a), "b");
        assert!(names.names.len() <= QUARANTINE + 2, "numbers are used again");
    }

    #[test]
    fn the_group_of_a_bundle_resource_is_read_from_its_name() {
        let group = PlacementGroupId([0xab; 18]);
        assert_eq!(group_of(&format!("CPU_group_3_{group}")), Some(group));
        assert_eq!(group_of(&format!("my_group_CPU_group_{group}")), Some(group));
        assert_eq!(group_of("CPU"), None);
        let bundle =
            [(format!("CPU_group_3_{group}"), 1.5), (format!("CPU_group_{group}"), 1.5), ("GPU".to_owned(), 4.0)];
        assert_eq!(cpu_milli(bundle.iter().map(|(name, amount)| (name, amount))), 1500);
        assert_eq!(cpu_milli(&BTreeMap::from([("memory".to_owned(), 9.0)])), 0);
        assert_eq!(group_of("CPU_group_xyz"), None);
    }

    #[test]
    fn an_amount_that_is_no_amount_is_refused() {
        let mut names = Names::default();
        let bad = BTreeMap::from([("CPU".to_owned(), f64::NAN)]);
        assert!(matches!(names.set(&bad), Err(ResourceError::BadAmount { .. })));
        let negative = BTreeMap::from([("CPU".to_owned(), -1.0)]);
        assert!(names.set(&negative).is_err());
    }

    #[test]
    fn a_bundle_has_an_indexed_and_a_wildcard_name_for_each_resource_and_its_label() {
        let mut names = Names::default();
        let bundle = proto::Bundle {
            bundle_id: Some(proto::bundle::BundleIdentifier {
                placement_group_id: vec![1; 18].into(),
                bundle_index: 2,
            }),
            unit_resources: [("CPU".to_owned(), 1.0)].into(),
            ..Default::default()
        };
        let spec = names.bundle(&bundle).unwrap();
        let group = PlacementGroupId([1; 18]);
        let written: Vec<_> = spec.resources.iter().map(|r| (names.name(r.indexed), names.name(r.wildcard))).collect();
        assert_eq!(written[0], (&*format!("CPU_group_2_{group}"), &*format!("CPU_group_{group}")));
        assert_eq!(written[1], (&*format!("bundle_group_2_{group}"), &*format!("bundle_group_{group}")));
    }
}
