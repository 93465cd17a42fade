//! Placement groups that are gone: the numbers of their resources and of the classes that name them are given back.
//!
//! Each bundle brings names of resources, and each shape of task in a group a scheduling class. The shard that has the group
//! says when nothing of it is left; only then do the numbers mean something else.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use raylet_shard::ids::{PlacementGroupId, ShardId};
use raylet_shard::sched::{BundleSpec, ClassId, ResourceId, SchedEvent};
use rustc_hash::FxHashMap;

use super::Control;
use crate::ray::classes::home_of;
use crate::ray::resources::{group_of, Names};

/// How long after a group was given up, or could not be forgotten, its shard is asked. Its workers are killed meanwhile, and late
/// requests for it come in.
const ASK_AFTER: Duration = Duration::from_secs(1);

/// Groups that shards are asked about in one go.
const ASK_AT_ONCE: usize = 256;

/// What this node knows of a placement group.
#[derive(Debug, Default)]
struct Group {
    resources: Vec<ResourceId>,
    classes: Vec<ClassId>,
    /// It has no bundle here any more, as far as anybody said.
    leaving: bool,
    /// Its shard was asked to forget it and has not answered.
    asked: bool,
    /// Used since its shard was asked: what the shard forgets is still wanted.
    touched: bool,
    /// A class of another group's shard names it too: it is never forgotten.
    kept: bool,
}

/// The placement groups whose names this node has learned.
#[derive(Debug, Default)]
pub struct Groups {
    groups: FxHashMap<PlacementGroupId, Group>,
    /// Whom to ask for, and when, in order.
    due: VecDeque<(Instant, PlacementGroupId)>,
}

/// Numbers that mean nothing any more.
#[derive(Debug, Default, PartialEq)]
struct Forgotten {
    classes: Vec<ClassId>,
    resources: Vec<ResourceId>,
}

impl Groups {
    /// Bundles are about to be prepared.
    fn prepared(&mut self, bundles: &[BundleSpec]) {
        for bundle in bundles {
            let group = self.groups.entry(bundle.id.group).or_default();
            (group.leaving, group.touched) = (false, true);
            for id in bundle.resources.iter().flat_map(|resource| [resource.indexed, resource.wildcard]) {
                note(&mut group.resources, id);
            }
        }
    }

    /// A new class is used.
    fn class_made(&mut self, class: ClassId, demand: impl Iterator<Item = ResourceId>, names: &Names, now: Instant) {
        let mut home = None;
        for id in demand {
            let Some(group) = group_of(names.name(id)) else {
                continue;
            };
            let first = *home.get_or_insert(group);
            let entry = self.groups.entry(group).or_insert_with(|| {
                // No bundle of it was prepared here: the request is too late, and so will its end be.
                self.due.push_back((now + ASK_AFTER, group));
                Group { leaving: true, ..Group::default() }
            });
            note(&mut entry.resources, id);
            note(&mut entry.classes, class);
            entry.touched = true;
            entry.kept |= group != first;
        }
    }

    /// A class of a group is used again. True where its shard may have forgotten the class by now.
    fn class_used(&mut self, group: &PlacementGroupId) -> bool {
        match self.groups.get_mut(group).filter(|group| group.asked) {
            Some(group) => {
                group.touched = true;
                true
            }
            None => false,
        }
    }

    /// A group was given up, or came to nothing.
    fn given_up(&mut self, id: PlacementGroupId, now: Instant) {
        if let Some(group) = self.groups.get_mut(&id) {
            if !std::mem::replace(&mut group.leaving, true) {
                self.due.push_back((now + ASK_AFTER, id));
            }
        }
    }

    /// Groups that are not among those in use.
    fn unused(&self, in_use: &[PlacementGroupId]) -> Vec<PlacementGroupId> {
        self.groups.keys().filter(|id| !in_use.contains(id)).copied().collect()
    }

    /// A group whose shard is to be asked now.
    fn next_due(&mut self, now: Instant) -> Option<(PlacementGroupId, Forgotten)> {
        while let Some((_, id)) = self.due.front().filter(|due| due.0 <= now).copied() {
            self.due.pop_front();
            let ready = |group: &&mut Group| group.leaving && !group.asked && !group.kept;
            if let Some(group) = self.groups.get_mut(&id).filter(ready) {
                (group.asked, group.touched) = (true, false);
                return Some((id, Forgotten { classes: group.classes.clone(), resources: group.resources.clone() }));
            }
        }
        None
    }

    /// The shard's answer: what is to be forgotten here too, or the classes that the shard has to be told of again.
    fn answered(&mut self, id: PlacementGroupId, forgotten: bool, now: Instant) -> Result<Forgotten, Vec<ClassId>> {
        let Some(group) = self.groups.get_mut(&id) else {
            return Err(Vec::new());
        };
        group.asked = false;
        if forgotten && !group.touched {
            let gone = self.groups.remove(&id).unwrap_or_default();
            return Ok(Forgotten { classes: gone.classes, resources: gone.resources });
        }
        if group.leaving {
            self.due.push_back((now + ASK_AFTER, id));
        }
        Err(if forgotten { group.classes.clone() } else { Vec::new() })
    }
}

fn note<T: PartialEq>(list: &mut Vec<T>, item: T) {
    if !list.contains(&item) {
        list.push(item);
    }
}

impl Control {
    /// Bundles are about to be prepared.
    pub(super) fn bundles_prepared(&self, bundles: &[BundleSpec]) {
        self.groups.borrow_mut().prepared(bundles);
    }

    /// Groups were given up by the GCS, or could not be prepared.
    pub(super) fn groups_given_up(&self, groups: impl IntoIterator<Item = PlacementGroupId>) {
        let now = Instant::now();
        groups.into_iter().for_each(|group| self.groups.borrow_mut().given_up(group, now));
    }

    /// Every group but these was given up by the GCS.
    pub(super) fn other_groups_given_up(&self, in_use: &[PlacementGroupId]) {
        let unused = self.groups.borrow().unused(in_use);
        self.groups_given_up(unused);
    }

    /// Tells the shard of a class what it is, where the shard does not know or may not know any more.
    pub(super) fn define_class(&self, class: ClassId, new: bool) {
        let mut classes = self.classes.borrow_mut();
        let Some(class) = classes.get_mut(class) else {
            return;
        };
        if new && class.group.is_some() {
            let demand = class.def.demand.iter().map(|(id, _)| id);
            self.groups.borrow_mut().class_made(class.id, demand, &self.names.borrow(), Instant::now());
        }
        let shaky = class.group.as_ref().is_some_and(|group| self.groups.borrow_mut().class_used(group));
        if !std::mem::replace(&mut class.defined, true) || shaky {
            let def = Box::new(class.def.clone());
            self.sched(class.shard, SchedEvent::DefineClass { class: class.id, def });
        }
    }

    /// Asks shards to forget groups that were given up a while ago.
    pub(super) fn forget_groups(&self) {
        let now = Instant::now();
        for _ in 0..ASK_AT_ONCE {
            let Some((group, Forgotten { classes, resources })) = self.groups.borrow_mut().next_due(now) else {
                return;
            };
            let (token, shard): (_, ShardId) = (self.token(), home_of(group.as_bytes(), self.shards()));
            self.sched(shard, SchedEvent::ForgetGroup { token, group, classes, resources });
        }
    }

    /// A shard has forgotten a group, or can't yet.
    pub(super) fn group_forgotten(&self, group: PlacementGroupId, forgotten: bool) {
        let answer = self.groups.borrow_mut().answered(group, forgotten, Instant::now());
        let mut classes = self.classes.borrow_mut();
        match answer {
            Ok(gone) => {
                gone.classes.into_iter().for_each(|class| classes.forget(class));
                let mut names = self.names.borrow_mut();
                gone.resources.into_iter().for_each(|id| names.forget(id));
            }
            Err(again) => {
                again.into_iter().filter_map(|id| classes.get_mut(id).map(|class| class.defined = false)).collect()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use raylet_shard::sched::WorkerKey;

    use super::*;
    use crate::ray::classes::Classes;
    use crate::ray::proto;

    const GROUP: PlacementGroupId = PlacementGroupId([0xab; 18]);
    const OTHER: PlacementGroupId = PlacementGroupId([0xcd; 18]);

    fn bundle(names: &mut Names, group: PlacementGroupId) -> BundleSpec {
        let id =
            proto::bundle::BundleIdentifier { placement_group_id: group.as_bytes().to_vec().into(), bundle_index: 0 };
        let unit_resources = [("CPU".to_owned(), 1.0)].into();
        names.bundle(&proto::Bundle { bundle_id: Some(id), unit_resources, ..Default::default() }).unwrap()
    }

    fn class(
        classes: &mut Classes,
        names: &mut Names,
        groups: &mut Groups,
        of: &[PlacementGroupId],
        now: Instant,
    ) -> ClassId {
        let resources = of.iter().map(|group| (format!("CPU_group_{group}"), 1.0)).collect();
        let (id, new) = classes.of(resources, WorkerKey::default(), names, 1).unwrap();
        assert!(new);
        let demand: Vec<ResourceId> = classes.get_mut(id).unwrap().def.demand.iter().map(|(id, _)| id).collect();
        groups.class_made(id, demand.into_iter(), names, now);
        id
    }

    #[test]
    fn a_group_is_forgotten_after_its_shard_has_let_go_of_it() {
        let (mut groups, mut names, mut classes) = (Groups::default(), Names::default(), Classes::default());
        let now = Instant::now();
        groups.prepared(&[bundle(&mut names, GROUP)]);
        let made = class(&mut classes, &mut names, &mut groups, &[GROUP], now);
        assert_eq!(groups.next_due(now + ASK_AFTER), None, "its bundle is here");
        groups.given_up(GROUP, now);
        groups.given_up(GROUP, now);
        assert_eq!(groups.next_due(now), None, "its workers are on their way out");
        let (group, asked) = groups.next_due(now + ASK_AFTER).unwrap();
        assert_eq!((group, &asked.classes[..], asked.resources.len()), (GROUP, &[made][..], 4));
        assert_eq!(groups.next_due(now + ASK_AFTER), None, "once at a time");
        assert_eq!(groups.answered(GROUP, false, now), Err(Vec::new()));
        assert!(groups.next_due(now + ASK_AFTER).is_some(), "asked again");
        assert_eq!(groups.answered(GROUP, true, now), Ok(asked));
        assert!(groups.groups.is_empty() && groups.due.is_empty());
    }

    #[test]
    fn a_group_that_is_used_while_its_shard_forgets_it_stays() {
        let (mut groups, mut names, mut classes) = (Groups::default(), Names::default(), Classes::default());
        let now = Instant::now();
        groups.prepared(&[bundle(&mut names, GROUP)]);
        let made = class(&mut classes, &mut names, &mut groups, &[GROUP], now);
        assert!(!groups.class_used(&GROUP));
        groups.given_up(GROUP, now);
        groups.next_due(now + ASK_AFTER).unwrap();
        assert!(groups.class_used(&GROUP), "the shard has to be told of the class again");
        assert_eq!(groups.answered(GROUP, true, now), Err(vec![made]), "its shard knows it no more");
        groups.next_due(now + ASK_AFTER).unwrap();
        groups.prepared(&[bundle(&mut names, GROUP)]);
        assert_eq!(groups.answered(GROUP, true, now), Err(vec![made]));
        assert_eq!(groups.next_due(now + ASK_AFTER), None, "it has bundles again");
    }

    #[test]
    fn a_request_for_a_group_that_never_was_does_not_stay_for_ever() {
        let (mut groups, mut names, mut classes) = (Groups::default(), Names::default(), Classes::default());
        let now = Instant::now();
        class(&mut classes, &mut names, &mut groups, &[GROUP], now);
        let (group, _) = groups.next_due(now + ASK_AFTER).unwrap();
        assert!(group == GROUP && groups.answered(GROUP, true, now).is_ok());
    }

    #[test]
    fn a_class_of_two_groups_keeps_the_second() {
        let (mut groups, mut names, mut classes) = (Groups::default(), Names::default(), Classes::default());
        let now = Instant::now();
        class(&mut classes, &mut names, &mut groups, &[GROUP, OTHER], now);
        let asked: Vec<_> = std::iter::from_fn(|| groups.next_due(now + ASK_AFTER)).map(|(group, _)| group).collect();
        assert_eq!(asked, [GROUP]);
        assert_eq!(groups.unused(&[GROUP]), [OTHER]);
    }
}
