//! A machine as hwloc sees it, through the part of its binding that is sound: objects by depth, their indices, parents,
//! cache attributes and bit sets. Names, printing and NUMA objects crash in the binding (hwloc2 2.2.0) and are not used;
//! NUMA nodes come from the bit set of nodes near each PU.

use std::collections::BTreeMap;
use std::iter;

use hwloc2::{ObjectType, TopologyObject};

use super::{Cache, Draft, Place};

/// `None` where hwloc can't load a topology at all.
pub(super) fn read(allowed: impl Fn(u32) -> bool) -> Option<Draft> {
    let hwloc = hwloc2::Topology::new()?;
    let mut draft = Draft::default();
    let mut caches: BTreeMap<(u32, u32), Cache> = BTreeMap::new();
    let pus = (0..hwloc.depth()).filter(|&depth| matches!(hwloc.type_at_depth(depth), ObjectType::PU));
    for pu in pus.flat_map(|depth| hwloc.objects_at_depth(depth)) {
        let node = first_node(pu).unwrap_or(0);
        add_memory(&mut draft.memory_bytes, pu);
        let index = pu.os_index();
        if !allowed(index) {
            continue;
        }
        // A PU without a core above it is a core of its own; the high bit keeps such keys apart.
        let core = ancestor(pu, |kind| matches!(kind, ObjectType::Core))
            .map_or(1 << 32 | u64::from(index), |core| u64::from(core.logical_index()));
        let package = ancestor(pu, |kind| matches!(kind, ObjectType::Package))
            .map_or(u64::MAX, |package| u64::from(package.logical_index()));
        draft.places.push(Place { pu: index, core, package, numa_node: node });
        for (level, cache) in upwards(pu).filter_map(|object| Some((cache_level(&object.object_type())?, object))) {
            let size_bytes = cache.cache_attributes().map_or(0, |attributes| attributes.size());
            let shared = caches.entry((level, cache.logical_index())).or_insert_with(|| Cache {
                level,
                size_bytes,
                pus: Vec::new(),
            });
            shared.pus.push(index);
        }
    }
    draft.caches = caches.into_values().collect();
    draft.caches.iter_mut().for_each(|cache| cache.pus.sort_unstable());
    add_nodes_of_memory_only(&mut draft.memory_bytes, hwloc.object_at_root());
    Some(draft)
}

fn upwards(object: &TopologyObject) -> impl Iterator<Item = &TopologyObject> {
    iter::successors(Some(object), |object| object.parent())
}

fn ancestor(object: &TopologyObject, wanted: impl Fn(&ObjectType) -> bool) -> Option<&TopologyObject> {
    upwards(object).find(|object| wanted(&object.object_type()))
}

fn first_node(object: &TopologyObject) -> Option<u32> {
    u32::try_from(object.nodeset()?.first()).ok()
}

/// An object above a PU that is near one node only and has memory has all of that node's memory.
fn add_memory(memory_bytes: &mut BTreeMap<u32, u64>, pu: &TopologyObject) {
    for object in upwards(pu) {
        let one_node = object.nodeset().filter(|nodes| nodes.weight() == 1).and_then(|_| first_node(object));
        let Some(node) = one_node else { continue };
        let known = memory_bytes.entry(node).or_insert(0);
        *known = object.total_memory().max(*known);
    }
}

/// Nodes that no PU is near (memory expanders) appear in the root's set only.
fn add_nodes_of_memory_only(memory_bytes: &mut BTreeMap<u32, u64>, root: &TopologyObject) {
    // An infinite set, which says that nothing is known, has no last element and would iterate for ever.
    let Some(nodes) = root.nodeset().filter(|nodes| nodes.last() >= 0) else {
        return;
    };
    for node in nodes {
        memory_bytes.entry(node).or_insert(0);
    }
}

fn cache_level(kind: &ObjectType) -> Option<u32> {
    match kind {
        ObjectType::L1Cache => Some(1),
        ObjectType::L2Cache => Some(2),
        ObjectType::L3Cache => Some(3),
        ObjectType::L4Cache => Some(4),
        ObjectType::L5Cache => Some(5),
        _ => None,
    }
}
