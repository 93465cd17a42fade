//! Scheduling classes: lease requests that differ in nothing the scheduler looks at share a number.

use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};

use raylet_shard::ids::ShardId;
use raylet_shard::sched::{ClassDef, ClassId, ResourceSet, WorkerKey};
use rustc_hash::{FxHashMap, FxHasher};

use crate::ray::proto;
use crate::ray::resources::{group_of, Names, ResourceError};

/// Most classes that a node remembers. Past it, the request that brings a new one fails: that many distinct shapes are a
/// program's mistake.
pub const MAX_CLASSES: usize = 1 << 20;

/// Why a request has no class.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ClassError {
    /// Its resources make no sense.
    #[error(transparent)]
    Resource(#[from] ResourceError),
    /// [`MAX_CLASSES`] is reached.
    #[error("this node knows {MAX_CLASSES} different resource shapes already")]
    TooMany,
}

/// A class as the control thread knows it.
#[derive(Clone, Debug)]
pub struct Class {
    /// Its number.
    pub id: ClassId,
    /// The shard that queues its requests.
    pub shard: ShardId,
    /// What it asks for.
    pub def: ClassDef,
}

#[derive(PartialEq, Eq, Hash)]
struct Key {
    resources: Vec<(String, u64)>,
    worker: WorkerKey,
}

/// The classes seen so far.
#[derive(Default)]
pub struct Classes {
    keys: FxHashMap<Key, usize>,
    classes: Vec<Class>,
    options: FxHashMap<Vec<String>, u32>,
    option_lists: Vec<Vec<String>>,
}

impl Classes {
    /// The class of a request, and whether it is new: then its shard must be told what it is.
    pub fn of(
        &mut self,
        resources: BTreeMap<String, f64>,
        worker: WorkerKey,
        names: &mut Names,
        shards: ShardId,
    ) -> Result<(&Class, bool), ClassError> {
        let key =
            Key { resources: resources.into_iter().map(|(name, amount)| (name, amount.to_bits())).collect(), worker };
        if let Some(at) = self.keys.get(&key) {
            return Ok((&self.classes[*at], false));
        }
        if self.classes.len() >= MAX_CLASSES {
            return Err(ClassError::TooMany);
        }
        let amounts = key.resources.iter().map(|(name, bits)| (name.clone(), f64::from_bits(*bits)));
        let demand = names.set(&amounts.collect())?;
        let at = self.classes.len();
        self.classes.push(Class {
            id: ClassId(at as u32),
            shard: shard_of(&key, at, shards),
            def: ClassDef { demand, worker },
        });
        self.keys.insert(key, at);
        Ok((&self.classes[at], true))
    }

    /// A class by its number.
    pub fn get(&self, id: ClassId) -> Option<&Class> {
        self.classes.get(id.0 as usize)
    }

    /// The classes that ask for exactly these resources.
    pub fn with_demand(&self, demand: &ResourceSet) -> Vec<ClassId> {
        let same = self.classes.iter().filter(|class| class.def.demand == *demand);
        same.map(|class| class.id).collect()
    }

    /// The number of a list of worker options; 0 for none.
    pub fn options(&mut self, list: &[String]) -> u32 {
        if list.is_empty() {
            return 0;
        }
        if let Some(number) = self.options.get(list) {
            return *number;
        }
        self.option_lists.push(list.to_vec());
        let number = self.option_lists.len() as u32;
        self.options.insert(list.to_vec(), number);
        number
    }

    /// The list of worker options behind a number.
    pub fn option_list(&self, number: u32) -> &[String] {
        (number as usize).checked_sub(1).and_then(|at| self.option_lists.get(at)).map_or(&[], Vec::as_slice)
    }
}

/// Classes spread over the shards in turn, but all of a placement group go to one, which has the group's bundles.
fn shard_of(key: &Key, at: usize, shards: ShardId) -> ShardId {
    let group = key.resources.iter().find_map(|(name, _)| group_of(name));
    match group {
        Some(group) => home_of(group.as_bytes(), shards),
        None => (at % usize::from(shards)) as ShardId,
    }
}

/// The shard of a placement group.
pub fn home_of(group: &[u8], shards: ShardId) -> ShardId {
    (hash(group) % u64::from(shards)) as ShardId
}

/// Number of a runtime environment, as workers carry it: 0 for none (Ray 2.60 `CalculateRuntimeEnvHash`; every node may
/// hash as it likes, because a worker only echoes what it was started with).
pub fn runtime_env_hash(info: Option<&proto::RuntimeEnvInfo>) -> i32 {
    match info.map(|info| info.serialized_runtime_env.as_str()) {
        None | Some("" | "{}") => 0,
        Some(env) => match (hash(env.as_bytes()) >> 16) as i32 {
            0 => 1,
            hash => hash,
        },
    }
}

fn hash(bytes: &[u8]) -> u64 {
    let mut hasher = FxHasher::default();
    bytes.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cpu(amount: f64) -> BTreeMap<String, f64> {
        BTreeMap::from([("CPU".to_owned(), amount)])
    }

    #[test]
    fn equal_requests_share_a_class_and_others_do_not() {
        let (mut classes, mut names) = (Classes::default(), Names::default());
        let key = WorkerKey::default();
        let (first, new) = classes.of(cpu(1.0), key, &mut names, 1).unwrap();
        let first = first.id;
        assert!(new);
        assert_eq!(classes.of(cpu(1.0), key, &mut names, 1).map(|(c, new)| (c.id, new)), Ok((first, false)));
        let other = WorkerKey { runtime_env_hash: 5, ..key };
        assert_ne!(classes.of(cpu(1.0), other, &mut names, 1).unwrap().0.id, first);
        assert_ne!(classes.of(cpu(2.0), key, &mut names, 1).unwrap().0.id, first);
    }

    #[test]
    fn an_empty_environment_is_none_and_a_real_one_is_never_taken_for_none() {
        let info = |env: &str| proto::RuntimeEnvInfo { serialized_runtime_env: env.to_owned(), ..Default::default() };
        assert_eq!(runtime_env_hash(None), 0);
        assert_eq!(runtime_env_hash(Some(&info("{}"))), 0);
        assert_ne!(runtime_env_hash(Some(&info("{\"env_vars\":{\"A\":\"1\"}}"))), 0);
    }

    #[test]
    fn the_classes_of_a_placement_group_share_its_shard() {
        let (mut classes, mut names) = (Classes::default(), Names::default());
        let group = "ab".repeat(18);
        let mut shards = Vec::new();
        for index in 0..8 {
            let resources = BTreeMap::from([(format!("CPU_group_{index}_{group}"), 1.0)]);
            shards.push(classes.of(resources, WorkerKey::default(), &mut names, 4).unwrap().0.shard);
        }
        assert!(shards.windows(2).all(|pair| pair[0] == pair[1]), "{shards:?}");
        assert_eq!(shards[0], home_of(&[0xab; 18], 4));
    }

    #[test]
    fn options_are_numbered_from_one() {
        let mut classes = Classes::default();
        assert_eq!(classes.options(&[]), 0);
        let number = classes.options(&["-x".to_owned()]);
        assert_eq!(classes.option_list(number), ["-x"]);
        assert!(classes.option_list(0).is_empty());
    }
}
