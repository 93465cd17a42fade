//! Classes of leases that native clients define, and the kinds of workers that serve them.

use std::collections::BTreeMap;

use raylet_shard::ids::ShardId;
use raylet_shard::sched::{ClassDef, ClassId, Fixed, ResourceId, ResourceSet, WorkerKey};
use raylet_transport::messages::{Refusal, RefusalCode};
use rustc_hash::FxHashMap;

use crate::ray::resources::Names;

/// Most classes of the native door; one more is refused.
pub const MAX_CLASSES: usize = 1 << 16;

/// Most kinds of workers.
const MAX_KINDS: usize = 1 << 16;

/// Numbers of native classes have this bit; those of Ray's door do not (see [`crate::ray::classes`]).
pub const FIRST_CLASS: u32 = 1 << 31;

/// Stands in the key of a worker for the language that native workers have. (Ray has no such language.)
pub const NATIVE_LANGUAGE: u8 = u8::MAX - 1;

/// A class as its client is told of it.
#[derive(Clone, Debug)]
pub struct Defined {
    /// Its number.
    pub id: ClassId,
    /// What each lease holds.
    pub demand: ResourceSet,
    /// Names of its resources.
    pub names: Vec<(ResourceId, String)>,
    /// It asks for GPUs.
    pub is_gpu: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Definition {
    shard: ShardId,
    kind: String,
    resources: BTreeMap<String, u64>,
}

/// The classes and kinds of a node. The same definition is a class of its own on each shard, so that a client's leases are granted by
/// the core that serves it; the shards share out the resources.
#[derive(Default)]
pub struct NativeClasses {
    classes: FxHashMap<Definition, Defined>,
    kinds: FxHashMap<String, u32>,
    names: Vec<String>,
}

impl NativeClasses {
    /// The class of a definition on a shard, and what the shard has to be told of it where it is new.
    ///
    /// # Errors
    /// Amounts that make no sense, and limits.
    pub fn define(
        &mut self,
        shard: ShardId,
        kind: String,
        resources: Vec<(String, u64)>,
        names: &mut Names,
    ) -> Result<(Defined, Option<ClassDef>), Refusal> {
        let mut amounts: BTreeMap<String, u64> = BTreeMap::new();
        for (name, amount) in resources {
            let sum = amounts.entry(name).or_default();
            *sum = sum.saturating_add(amount);
        }
        let definition = Definition { shard, kind, resources: amounts };
        if let Some(known) = self.classes.get(&definition) {
            return Ok((known.clone(), None));
        }
        if self.classes.len() >= MAX_CLASSES {
            return Err(Refusal::new(RefusalCode::QueueFull, format!("{MAX_CLASSES} classes are defined already")));
        }
        let worker = self.worker(&definition.kind)?;
        let mut named = Vec::with_capacity(definition.resources.len());
        for name in definition.resources.keys() {
            let id = names.intern(name).map_err(|e| Refusal::new(RefusalCode::LimitReached, e.to_string()))?;
            named.push((id, name.clone()));
        }
        let parts = named.iter().zip(definition.resources.values()).map(|((id, name), amount)| {
            let amount = i64::try_from(*amount).map(Fixed).map_err(|_| {
                Refusal::new(RefusalCode::Infeasible, format!("{amount} of {name:?} is more than any node has"))
            })?;
            Ok((*id, amount))
        });
        let demand = ResourceSet::new(parts.collect::<Result<Vec<_>, Refusal>>()?);
        let is_gpu = definition.resources.get("GPU").is_some_and(|amount| *amount > 0);
        let id = ClassId(FIRST_CLASS + self.classes.len() as u32);
        let defined = Defined { id, demand: demand.clone(), names: named, is_gpu };
        self.classes.insert(definition, defined.clone());
        Ok((defined, Some(ClassDef { demand, worker })))
    }

    /// The kind of worker of this name; of no name: none.
    ///
    /// # Errors
    /// Where there are too many.
    pub fn worker(&mut self, kind: &str) -> Result<WorkerKey, Refusal> {
        if kind.is_empty() {
            return Ok(WorkerKey::NONE);
        }
        let number = match self.kinds.get(kind) {
            Some(number) => *number,
            None if self.names.len() >= MAX_KINDS => {
                return Err(Refusal::new(RefusalCode::QueueFull, format!("{MAX_KINDS} kinds of workers are known")));
            }
            None => {
                self.names.push(kind.to_owned());
                self.kinds.insert(kind.to_owned(), self.names.len() as u32);
                self.names.len() as u32
            }
        };
        Ok(WorkerKey { language: NATIVE_LANGUAGE, runtime_env_hash: 0, dynamic_options: number })
    }

    /// The name of a kind.
    pub fn kind(&self, key: WorkerKey) -> &str {
        (key.dynamic_options as usize).checked_sub(1).and_then(|at| self.names.get(at)).map_or("", String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn define(classes: &mut NativeClasses, shard: ShardId, kind: &str, resources: &[(&str, u64)]) -> Defined {
        let resources = resources.iter().map(|(name, amount)| ((*name).to_owned(), *amount)).collect();
        classes.define(shard, kind.to_owned(), resources, &mut Names::default()).unwrap().0
    }

    #[test]
    fn the_same_definition_is_one_class_on_each_shard() {
        let mut classes = NativeClasses::default();
        let first = define(&mut classes, 0, "map", &[("CPU", 5000), ("CPU", 5000)]);
        assert_eq!(define(&mut classes, 0, "map", &[("CPU", 10_000)]).id, first.id);
        for (shard, kind, amount) in [(1, "map", 10_000), (0, "fold", 10_000), (0, "map", 1)] {
            assert_ne!(define(&mut classes, shard, kind, &[("CPU", amount)]).id, first.id);
        }
        assert!(first.id.0 >= FIRST_CLASS && !first.is_gpu);
        assert!(define(&mut classes, 0, "", &[("GPU", 1)]).is_gpu);
    }

    #[test]
    fn leases_without_a_kind_need_no_worker_and_kinds_keep_their_numbers() {
        let mut classes = NativeClasses::default();
        assert_eq!(classes.worker("").unwrap(), WorkerKey::NONE);
        let (map, fold) = (classes.worker("map").unwrap(), classes.worker("fold").unwrap());
        assert!(map != fold && classes.worker("map").unwrap() == map);
        assert_eq!((classes.kind(map), classes.kind(fold), classes.kind(WorkerKey::default())), ("map", "fold", ""));
    }

    #[test]
    fn an_amount_beyond_all_bounds_is_refused() {
        let mut classes = NativeClasses::default();
        let refused = classes.define(0, String::new(), vec![("CPU".into(), u64::MAX)], &mut Names::default());
        assert_eq!(refused.unwrap_err().code, RefusalCode::Infeasible);
    }
}
