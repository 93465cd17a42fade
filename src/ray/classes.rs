//! Scheduling classes: lease requests that differ in nothing the scheduler looks at share a number.

use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};
use std::rc::Rc;

use raylet_shard::ids::{PlacementGroupId, ShardId};
use raylet_shard::sched::{ClassDef, ClassId, ResourceSet, WorkerKey};
use rustc_hash::{FxHashMap, FxHasher};

use crate::native::classes::FIRST_CLASS;
use crate::ray::labels::is_elsewhere;
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
    /// The placement group that it names, with which it is forgotten.
    pub group: Option<PlacementGroupId>,
    /// Its shard was told what it is.
    pub defined: bool,
    key: Rc<Key>,
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Key {
    resources: Vec<(String, u64)>,
    worker: WorkerKey,
}

/// The classes in use.
#[derive(Default)]
pub struct Classes {
    keys: FxHashMap<Rc<Key>, ClassId>,
    classes: FxHashMap<ClassId, Class>,
    /// The number of the next class. A number is not given twice before all were.
    next: u32,
    options: FxHashMap<Vec<String>, u32>,
    option_lists: Vec<Vec<String>>,
}

impl Classes {
    /// The class of a request, and whether it is new.
    pub fn of(
        &mut self,
        resources: BTreeMap<String, f64>,
        worker: WorkerKey,
        names: &mut Names,
        shards: ShardId,
    ) -> Result<(ClassId, bool), ClassError> {
        let key =
            Key { resources: resources.into_iter().map(|(name, amount)| (name, amount.to_bits())).collect(), worker };
        if let Some(id) = self.keys.get(&key) {
            return Ok((*id, false));
        }
        if self.classes.len() >= MAX_CLASSES {
            return Err(ClassError::TooMany);
        }
        let amounts = key.resources.iter().map(|(name, bits)| (name.clone(), f64::from_bits(*bits)));
        let demand = names.set(&amounts.collect())?;
        let id = self.free_number();
        let group = key.resources.iter().find_map(|(name, _)| group_of(name));
        // Classes are spread over the shards in turn, but all of a placement group go to one, which has the group's bundles.
        let shard = match group {
            Some(group) => home_of(group.as_bytes(), shards),
            None => (id.0 % u32::from(shards)) as ShardId,
        };
        let key = Rc::new(key);
        let class = Class { id, shard, def: ClassDef { demand, worker }, group, defined: false, key: key.clone() };
        self.classes.insert(id, class);
        self.keys.insert(key, id);
        Ok((id, true))
    }

    fn free_number(&mut self) -> ClassId {
        loop {
            let id = ClassId(self.next);
            // Numbers of native classes begin where these end.
            self.next = (self.next + 1) % FIRST_CLASS;
            if !self.classes.contains_key(&id) {
                return id;
            }
        }
    }

    /// A class by its number.
    pub fn get(&self, id: ClassId) -> Option<&Class> {
        self.classes.get(&id)
    }

    /// As [`Self::get`], to change what is noted of it.
    pub fn get_mut(&mut self, id: ClassId) -> Option<&mut Class> {
        self.classes.get_mut(&id)
    }

    /// A class that its shard does not know any more.
    pub fn forget(&mut self, id: ClassId) {
        if let Some(class) = self.classes.remove(&id) {
            self.keys.remove(&class.key);
        }
    }

    /// The classes that ask for exactly these resources, whatever labels they want besides.
    pub fn with_shape(&self, shape: &ResourceSet, names: &Names) -> Vec<ClassId> {
        let amounts = |set: &ResourceSet| {
            let parts = set.iter().filter(|(id, _)| !is_elsewhere(names.name(*id)));
            ResourceSet::new(parts)
        };
        let same = self.classes.values().filter(|class| amounts(&class.def.demand) == *shape);
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
        assert!(new);
        assert_eq!(classes.of(cpu(1.0), key, &mut names, 1), Ok((first, false)));
        let other = WorkerKey { runtime_env_hash: 5, ..key };
        assert_ne!(classes.of(cpu(1.0), other, &mut names, 1).unwrap().0, first);
        assert_ne!(classes.of(cpu(2.0), key, &mut names, 1).unwrap().0, first);
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
            let (id, _) = classes.of(resources, WorkerKey::default(), &mut names, 4).unwrap();
            let class = classes.get(id).unwrap();
            assert_eq!(class.group, Some(PlacementGroupId([0xab; 18])));
            shards.push(class.shard);
        }
        assert!(shards.windows(2).all(|pair| pair[0] == pair[1]), "{shards:?}");
        assert_eq!(shards[0], home_of(&[0xab; 18], 4));
    }

    #[test]
    fn a_forgotten_class_is_made_anew_under_another_number() {
        let (mut classes, mut names) = (Classes::default(), Names::default());
        let key = WorkerKey::default();
        let (first, _) = classes.of(cpu(1.0), key, &mut names, 1).unwrap();
        classes.forget(first);
        classes.forget(first);
        let (second, new) = classes.of(cpu(1.0), key, &mut names, 1).unwrap();
        assert!(new && second != first && classes.get(first).is_none());
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
