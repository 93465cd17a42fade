//! Which workers to end when memory runs short. Pure functions.
//!
//! Since Ray 2.56 workers are chosen by the time of their lease, several at once; `worker_killing_policy_by_group` brings
//! back the older choice of one worker from the largest group. (Ray documentation, "Out-of-memory prevention".)

use std::cmp::Reverse;
use std::collections::BTreeMap;

use raylet_shard::ids::TaskId;

/// A worker as the choice sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Its process.
    pub pid: u32,
    /// Bytes that its end would free.
    pub used_bytes: u64,
    /// What it works on; `None` for an idle worker.
    pub lease: Option<CandidateLease>,
    /// True where it has ever worked. A worker that has not is expected to be small.
    pub has_worked: bool,
}

/// What a worker works on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CandidateLease {
    /// When the lease was granted, on any clock that grows.
    pub granted_at_ns: u64,
    /// True where Ray runs the task, or starts the actor, again by itself.
    pub retriable: bool,
    /// The task that asked for this work: the parent task of the lease.
    pub owner: TaskId,
}

/// A worker to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Victim {
    /// Its place in the list of candidates.
    pub index: usize,
    /// True where what it worked on should be tried again; else it fails with an out-of-memory error.
    pub should_retry: bool,
}

/// A busy candidate: its place in the list, and what it works on.
type Member = (usize, CandidateLease);

/// How workers are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// Idle workers first, largest first; then retriable work before other, the latest first; until enough is freed.
    ByTime,
    /// One worker: a large idle one, else the latest of the largest group with the same owner, retriable groups first.
    ByGroup,
}

/// Chooses the workers to end in order to free `to_free_bytes`. An idle worker that never worked is left alone unless it
/// uses `idle_threshold_bytes` or more.
pub fn choose(policy: Policy, candidates: &[Candidate], to_free_bytes: u64, idle_threshold_bytes: u64) -> Vec<Victim> {
    match policy {
        Policy::ByTime => by_time(candidates, to_free_bytes, idle_threshold_bytes),
        Policy::ByGroup => by_group(candidates, idle_threshold_bytes).into_iter().collect(),
    }
}

fn by_time(candidates: &[Candidate], to_free_bytes: u64, idle_threshold_bytes: u64) -> Vec<Victim> {
    let eligible = |c: &Candidate| c.lease.is_some() || c.has_worked || c.used_bytes >= idle_threshold_bytes;
    let mut order: Vec<usize> = (0..candidates.len()).filter(|i| eligible(&candidates[*i])).collect();
    order.sort_by_key(|i| match candidates[*i].lease {
        None => (0, false, Reverse(candidates[*i].used_bytes)),
        Some(lease) => (1, !lease.retriable, Reverse(lease.granted_at_ns)),
    });
    let mut left_bytes = to_free_bytes;
    let mut victims = Vec::new();
    for index in order {
        if left_bytes == 0 {
            break;
        }
        left_bytes = left_bytes.saturating_sub(candidates[index].used_bytes);
        let should_retry = candidates[index].lease.is_some_and(|lease| lease.retriable);
        victims.push(Victim { index, should_retry });
    }
    victims
}

fn by_group(candidates: &[Candidate], idle_threshold_bytes: u64) -> Option<Victim> {
    let large_idle = (0..candidates.len())
        .filter(|i| candidates[*i].lease.is_none() && candidates[*i].used_bytes >= idle_threshold_bytes)
        .max_by_key(|i| candidates[*i].used_bytes);
    if let Some(index) = large_idle {
        return Some(Victim { index, should_retry: false });
    }
    // What is not retried is a group of its own, whoever asked for it: its owner gains nothing if another one ends.
    let mut groups: BTreeMap<(Option<TaskId>, usize), Vec<Member>> = BTreeMap::new();
    for (index, candidate) in candidates.iter().enumerate() {
        let Some(lease) = candidate.lease else {
            continue;
        };
        let group = if lease.retriable { (Some(lease.owner), 0) } else { (None, index) };
        groups.entry(group).or_default().push((index, lease));
    }
    let earliest = |group: &[(usize, CandidateLease)]| group.iter().map(|(_, l)| l.granted_at_ns).min();
    let (key, group) =
        groups.into_iter().max_by_key(|((retriable, _), group)| (retriable.is_some(), group.len(), earliest(group)))?;
    let (index, _) = *group.iter().max_by_key(|(_, lease)| lease.granted_at_ns)?;
    // The last one of its owner is not tried again, so that a task that never fits comes to an end.
    Some(Victim { index, should_retry: key.0.is_some() && group.len() > 1 })
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDLE_THRESHOLD: u64 = 1000;

    fn idle(used_bytes: u64, has_worked: bool) -> Candidate {
        Candidate { pid: 1, used_bytes, lease: None, has_worked }
    }

    fn busy(used_bytes: u64, granted_at_ns: u64, retriable: bool, owner: u8) -> Candidate {
        let lease = CandidateLease { granted_at_ns, retriable, owner: TaskId([owner; 24]) };
        Candidate { pid: 1, used_bytes, lease: Some(lease), has_worked: true }
    }

    fn chosen(policy: Policy, candidates: &[Candidate], to_free: u64) -> Vec<(usize, bool)> {
        let victims = choose(policy, candidates, to_free, IDLE_THRESHOLD);
        victims.into_iter().map(|victim| (victim.index, victim.should_retry)).collect()
    }

    #[test]
    fn by_time_takes_idle_then_retriable_then_latest() {
        let workers = [
            busy(100, 5, false, 1),
            busy(100, 3, true, 1),
            busy(100, 4, true, 2),
            idle(10, true),
            idle(50, true),
            busy(100, 9, false, 1),
        ];
        let all = [(4, false), (3, false), (2, true), (1, true), (5, false), (0, false)];
        assert_eq!(chosen(Policy::ByTime, &workers, u64::MAX), all);
        assert_eq!(chosen(Policy::ByTime, &workers, 50), all[..1]);
        assert_eq!(chosen(Policy::ByTime, &workers, 51), all[..2]);
        assert_eq!(chosen(Policy::ByTime, &workers, 161), all[..4]);
        assert_eq!(chosen(Policy::ByTime, &workers, 0), []);
    }

    #[test]
    fn by_time_spares_small_workers_that_never_worked() {
        let workers = [idle(999, false), idle(1000, false), idle(1, true)];
        assert_eq!(chosen(Policy::ByTime, &workers, u64::MAX), [(1, false), (2, false)]);
        assert_eq!(chosen(Policy::ByTime, &workers[..1], u64::MAX), []);
        assert_eq!(chosen(Policy::ByTime, &[], 1), []);
    }

    #[test]
    fn by_group_takes_the_latest_of_the_largest_group() {
        let workers = [
            busy(1, 1, true, 1),
            busy(1, 2, true, 2),
            busy(1, 3, true, 2),
            busy(1, 9, false, 3),
            busy(1, 8, false, 3),
            busy(1, 7, false, 3),
        ];
        assert_eq!(chosen(Policy::ByGroup, &workers, 1), [(2, true)], "retriable before the larger group");
        assert_eq!(chosen(Policy::ByGroup, &workers[..2], 1), [(1, false)], "same size: the one that began later");
        assert_eq!(chosen(Policy::ByGroup, &workers[3..], 1), [(0, false)], "each is a group of its own");
    }

    #[test]
    fn by_group_prefers_a_large_idle_worker() {
        let workers = [busy(9000, 1, true, 1), idle(2000, false), idle(3000, true), idle(999, true)];
        assert_eq!(chosen(Policy::ByGroup, &workers, 1), [(2, false)]);
        assert_eq!(chosen(Policy::ByGroup, &[idle(999, true)], 1), []);
    }
}
