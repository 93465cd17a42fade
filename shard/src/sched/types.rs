//! Resources in fixed point, sets of them, and what a lease got.

use std::fmt;
use std::ops::{Add, AddAssign, Neg, Sub, SubAssign};

use smallvec::SmallVec;

use crate::ids::{PlacementGroupId, ShardId};

/// An amount of a resource in 1/10,000 of a unit, as Ray counts (Ray 2.60, `FixedPoint`). May be negative: a node that shrinks
/// or a worker that wakes from a blocked `ray.get` leaves a debt.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Fixed(pub i64);

impl Fixed {
    /// Steps in one unit.
    pub const ONE: Fixed = Fixed(10_000);
    /// Nothing.
    pub const ZERO: Fixed = Fixed(0);

    /// A whole number of units.
    pub const fn units(n: i64) -> Fixed {
        Fixed(n * Self::ONE.0)
    }

    /// From a floating amount as it travels in protobuf, rounded to the nearest step. Not finite, negative or too large: `None`.
    pub fn from_f64(units: f64) -> Option<Fixed> {
        let steps = (units * Self::ONE.0 as f64).round();
        ((0.0..9.0e18).contains(&steps)).then_some(Fixed(steps as i64))
    }

    /// The amount in units.
    pub fn to_f64(self) -> f64 {
        self.0 as f64 / Self::ONE.0 as f64
    }

    /// Units, rounded up.
    pub fn ceil_units(self) -> i64 {
        (self.0 + Self::ONE.0 - 1).div_euclid(Self::ONE.0)
    }
}

impl Add for Fixed {
    type Output = Fixed;
    fn add(self, other: Fixed) -> Fixed {
        Fixed(self.0 + other.0)
    }
}

impl Sub for Fixed {
    type Output = Fixed;
    fn sub(self, other: Fixed) -> Fixed {
        Fixed(self.0 - other.0)
    }
}

impl Neg for Fixed {
    type Output = Fixed;
    fn neg(self) -> Fixed {
        Fixed(-self.0)
    }
}

impl AddAssign for Fixed {
    fn add_assign(&mut self, other: Fixed) {
        self.0 += other.0;
    }
}

impl SubAssign for Fixed {
    fn sub_assign(&mut self, other: Fixed) {
        self.0 -= other.0;
    }
}

impl std::iter::Sum for Fixed {
    fn sum<I: Iterator<Item = Fixed>>(iter: I) -> Fixed {
        iter.fold(Fixed::ZERO, Add::add)
    }
}

impl fmt::Debug for Fixed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.to_f64())
    }
}

/// A resource, interned by the caller: names stay outside. An id may be used again once its resource is gone.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ResourceId(pub u32);

/// How a resource is counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ResourceKind {
    /// A plain amount: memory, `node:ip`, a custom label.
    Plain,
    /// The CPU: a blocked worker gives it back, and only it (Ray 2.60, `ReleaseCpuResourcesFromBlockedWorker`).
    Cpu,
    /// GPU-like: instances 0..n of one unit each. Less than a unit shares one instance, a unit or more takes whole ones.
    UnitInstances,
}

/// Resources and amounts, sorted by id, without zeros.
#[derive(Clone, PartialEq, Eq, Hash, Default, Debug)]
pub struct ResourceSet(SmallVec<[(ResourceId, Fixed); 4]>);

impl ResourceSet {
    /// Sorts, adds up repeated ids and drops what is not positive.
    pub fn new(parts: impl IntoIterator<Item = (ResourceId, Fixed)>) -> Self {
        let mut set: SmallVec<[(ResourceId, Fixed); 4]> = parts.into_iter().collect();
        set.sort_unstable_by_key(|(id, _)| *id);
        set.dedup_by(|later, kept| {
            let same = later.0 == kept.0;
            if same {
                kept.1 += later.1;
            }
            same
        });
        set.retain(|(_, amount)| *amount > Fixed::ZERO);
        Self(set)
    }

    /// The parts in order of id.
    pub fn iter(&self) -> impl Iterator<Item = (ResourceId, Fixed)> + '_ {
        self.0.iter().copied()
    }

    /// The amount of one resource; zero where it is not named.
    pub fn get(&self, id: ResourceId) -> Fixed {
        self.0.binary_search_by_key(&id, |(id, _)| *id).map_or(Fixed::ZERO, |at| self.0[at].1)
    }

    /// True where nothing is asked for.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The same set `n` times.
    pub fn times(&self, n: u32) -> Self {
        Self(self.0.iter().map(|(id, amount)| (*id, Fixed(amount.0 * i64::from(n)))).collect())
    }
}

/// One resource of an [`Allocation`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Allocated {
    /// Which resource.
    pub id: ResourceId,
    /// How much of it.
    pub amount: Fixed,
    /// For [`ResourceKind::UnitInstances`]: which instances, and how much of each. Empty for the other kinds.
    pub instances: SmallVec<[(u16, Fixed); 1]>,
    /// True for a bundle's wildcard resource, which mirrors an indexed entry of the same allocation and is not counted again.
    pub mirror: bool,
}

/// What a lease, a bundle or a shard's credit is made of, in concrete instances.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Allocation(pub SmallVec<[Allocated; 2]>);

impl Allocation {
    /// The amount of one resource.
    pub fn get(&self, id: ResourceId) -> Fixed {
        self.0.iter().filter(|part| part.id == id).map(|part| part.amount).sum()
    }

    /// True where it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// A scheduling class: requests that differ in nothing the scheduler looks at. Interned by the caller.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ClassId(pub u32);

/// What kind of worker process a lease needs; the parts that are fixed when a process starts.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct WorkerKey {
    /// `ray.rpc.Language`.
    pub language: u8,
    /// Hash of the runtime environment; 0 without one.
    pub runtime_env_hash: i32,
    /// Interned list of dynamic worker options; 0 without any.
    pub dynamic_options: u32,
}

impl WorkerKey {
    /// Of leases that are resources alone: no worker serves them. (Ray has no such language.)
    pub const NONE: Self = Self { language: u8::MAX, runtime_env_hash: 0, dynamic_options: 0 };
}

/// What a scheduling class asks for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ClassDef {
    /// Resources each lease holds. For bundle resources: the wildcard, and the indexed one where the request names a bundle.
    pub demand: ResourceSet,
    /// The worker process it needs, or [`WorkerKey::NONE`].
    pub worker: WorkerKey,
}

/// A bundle of a placement group: group and index.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct BundleId {
    /// The placement group.
    pub group: PlacementGroupId,
    /// Index of the bundle in its group.
    pub index: u32,
}

/// The resources that stand for one resource of a bundle once it is committed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BundleResource {
    /// The node's resource it is carved from; `None` for the `bundle` label, which is carved from nothing.
    pub original: Option<ResourceId>,
    /// `CPU_group_{index}_{group}`.
    pub indexed: ResourceId,
    /// `CPU_group_{group}`, shared by all bundles of the group on this node.
    pub wildcard: ResourceId,
    /// How much; for the `bundle` label [`BUNDLE_LABEL_UNITS`].
    pub amount: Fixed,
}

/// Units of `bundle_group_*` that each bundle has, and of which each lease in it takes 0.001 (Ray 2.60, `bundle_spec`).
pub const BUNDLE_LABEL_UNITS: Fixed = Fixed::units(1000);

/// A bundle as the control plane asks for it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BundleSpec {
    /// Which bundle.
    pub id: BundleId,
    /// Its resources, each original at most once.
    pub resources: SmallVec<[BundleResource; 4]>,
}

impl BundleSpec {
    /// What the bundle takes from the node.
    pub fn demand(&self) -> ResourceSet {
        ResourceSet::new(self.resources.iter().filter_map(|part| Some((part.original?, part.amount))))
    }
}

/// Names a worker process that is being started. Carries its shard, so that whoever registers with it finds the shard.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct StartToken(pub u64);

impl StartToken {
    const SHARD_SHIFT: u32 = 40;

    /// The `n`-th start of a shard. Fits the signed 64-bit startup token of Ray's `RegisterClientRequest`.
    pub const fn new(shard: ShardId, n: u64) -> Self {
        Self((shard as u64) << Self::SHARD_SHIFT | n & ((1 << Self::SHARD_SHIFT) - 1))
    }

    /// The shard that asked for the start, and must hear of its end.
    pub const fn shard(self) -> ShardId {
        (self.0 >> Self::SHARD_SHIFT) as ShardId
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_round_to_a_ten_thousandth_and_nonsense_is_refused() {
        assert_eq!(Fixed::from_f64(0.1), Some(Fixed(1_000)));
        assert_eq!(Fixed::from_f64(1.000_04), Some(Fixed(10_000)));
        assert_eq!(Fixed::from_f64(f64::NAN), None);
        assert_eq!(Fixed::from_f64(-1.0), None);
        assert_eq!(Fixed(10_001).ceil_units(), 2);
        assert_eq!(Fixed(-1).ceil_units(), 0);
    }

    #[test]
    fn a_set_is_sorted_and_adds_up() {
        let (a, b) = (ResourceId(1), ResourceId(2));
        let set = ResourceSet::new([(b, Fixed(5)), (a, Fixed(1)), (b, Fixed(2)), (ResourceId(3), Fixed(0))]);
        assert_eq!(set.iter().collect::<Vec<_>>(), vec![(a, Fixed(1)), (b, Fixed(7))]);
        assert_eq!(set.get(ResourceId(9)), Fixed::ZERO);
    }

    #[test]
    fn a_start_token_names_its_shard() {
        let token = StartToken::new(3, 77);
        assert_eq!(token.shard(), 3);
        assert!(token.0 <= i64::MAX as u64);
    }
}
