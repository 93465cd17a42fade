//! The choice of a node.

use std::collections::BTreeMap;

use super::holds;
use super::views::Views;
use super::want::{selects, Affinity, Rule, Strategy, Want};
use crate::ids::NodeId;

/// Settings of the choice; names and defaults are Ray 2.60's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Policy {
    /// `scheduler_spread_threshold`: nodes used less than this count as unused, 0 to 1.
    pub spread_threshold: f64,
    /// `scheduler_top_k_fraction`: of the best nodes, this part of all nodes is drawn from.
    pub top_k_fraction: f64,
    /// `scheduler_top_k_absolute`: at least so many.
    pub top_k_absolute: usize,
    /// `scheduler_avoid_gpu_nodes`: what needs no GPU goes to nodes without one, while they have room.
    pub avoid_gpu_nodes: bool,
}

impl Default for Policy {
    fn default() -> Self {
        Self { spread_threshold: 0.5, top_k_fraction: 0.2, top_k_absolute: 1, avoid_gpu_nodes: true }
    }
}

/// What this node can do for a request.
#[derive(Clone, Debug)]
pub struct Here<'a> {
    /// This node.
    pub id: NodeId,
    /// Its labels.
    pub labels: &'a BTreeMap<String, String>,
    /// It takes new work: it is not draining.
    pub open: bool,
    /// All that it has would suffice for `placement` and `demand`.
    pub feasible: bool,
    /// `placement` fits now.
    pub available: bool,
    /// `demand` fits now.
    pub grantable: bool,
    /// The highest used part of CPU, memory and object store, 0 to 1.
    pub utilization: f64,
    /// It has a GPU.
    pub has_gpu: bool,
}

/// Who serves a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// This node, now or when it has room.
    Here,
    /// Another node.
    There(NodeId),
    /// No node of the cluster can ever hold it, or the one that it names can't.
    Nowhere,
}

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is granted here, or waits here until this node or another one has room.
    Stay,
    /// It waits here, reported as infeasible, until some node can ever hold it.
    Wait,
    /// Its owner is to ask that node.
    Spill(NodeId),
    /// Its owner, which was sent here by another node, is to ask there again.
    Reject,
    /// It fails: it names a node that is gone, or that can't hold it.
    Fail,
}

impl Choice {
    /// What becomes of the request. `grant_or_reject`: another node sent it here, so it may wait here but not be sent on.
    pub fn verdict(self, want: &Want, grant_or_reject: bool) -> Verdict {
        match self {
            Self::Here => Verdict::Stay,
            Self::There(_) if grant_or_reject => Verdict::Reject,
            Self::There(node) => Verdict::Spill(node),
            Self::Nowhere if want.is_bound() => Verdict::Fail,
            Self::Nowhere => Verdict::Wait,
        }
    }
}

/// A node that could serve a request some time.
#[derive(Clone, Copy)]
struct Candidate<'a> {
    id: NodeId,
    is_here: bool,
    available: bool,
    utilization: f64,
    has_gpu: bool,
    labels: &'a BTreeMap<String, String>,
}

impl Candidate<'_> {
    fn score(&self, threshold: f64) -> f64 {
        if self.utilization < threshold {
            0.0
        } else {
            self.utilization
        }
    }

    fn choice(&self) -> Choice {
        if self.is_here {
            Choice::Here
        } else {
            Choice::There(self.id)
        }
    }
}

impl Views {
    /// Chooses the node for a request. `prefer_here`: this node was chosen before (by another node, by the request's owner for its
    /// objects, or because the request waits here), so it stays unless another node has room and this one has not. `lot(n)` draws a
    /// number below `n`.
    pub fn pick(
        &mut self,
        want: &Want,
        here: &Here,
        prefer_here: bool,
        policy: &Policy,
        lot: &mut impl FnMut(usize) -> usize,
    ) -> Choice {
        let may_stay = prefer_here && here.open && want.allows(here.id, here.labels);
        if may_stay && here.feasible && here.grantable {
            return Choice::Here;
        }
        let best = self.best(want, here, policy, lot);
        let has_room = match best {
            Choice::Here => here.grantable,
            Choice::There(node) => self.peers.get(&node).is_some_and(|peer| holds(peer.free(), &want.demand)),
            Choice::Nowhere => true,
        };
        // Nobody has room: it waits where it is.
        if !has_room && may_stay && here.feasible {
            return Choice::Here;
        }
        best
    }

    fn best(&mut self, want: &Want, here: &Here, policy: &Policy, lot: &mut impl FnMut(usize) -> usize) -> Choice {
        let round = self.round;
        let any: [Vec<Rule>; 1] = [Vec::new()];
        let selectors = if want.selectors.is_empty() { &any[..] } else { &want.selectors };
        let anyones = want.actor && want.placement.is_empty() && !want.is_bound();
        let all = self.candidates(want, here);
        let chosen = [true, false].into_iter().find_map(|available_only| {
            selectors.iter().find_map(|rules| {
                let fits = |node: &&Candidate| selects(rules, node.labels) && (node.available || !available_only);
                let nodes: Vec<Candidate> = all.iter().filter(fits).copied().collect();
                match &want.strategy {
                    _ if nodes.is_empty() => None,
                    _ if anyones => Some(nodes[lot(nodes.len())]),
                    Strategy::Hybrid => hybrid(&nodes, self.len() + 1, policy.spread_threshold, want, policy, lot),
                    Strategy::Spread if available_only => next_in_turn(&all, &nodes, round),
                    Strategy::Spread => hybrid(&nodes, self.len() + 1, 0.0, want, policy, lot),
                    Strategy::Affinity(affinity) => bound(affinity, &nodes).or_else(|| {
                        let other = affinity.soft
                            && (!available_only || affinity.spill_on_unavailable || lacks(&all, affinity));
                        let threshold = policy.spread_threshold;
                        other.then(|| hybrid(&nodes, self.len() + 1, threshold, want, policy, lot)).flatten()
                    }),
                    Strategy::Labels { hard, soft } => by_labels(&nodes, hard, soft, lot),
                }
            })
        });
        let turn = chosen.and_then(|chosen| all.iter().position(|node| node.id == chosen.id));
        let choice = chosen.map_or(Choice::Nowhere, |node| node.choice());
        if let (Some(at), Strategy::Spread) = (turn, &want.strategy) {
            self.round = at + 1;
        }
        choice
    }

    /// The nodes that may serve a request and could some time, in the order of their ids.
    fn candidates<'a>(&'a self, want: &Want, here: &'a Here) -> Vec<Candidate<'a>> {
        let mut all: Vec<Candidate> = Vec::with_capacity(self.peers.len() + 1);
        let asks_the_same = want.placement == want.demand;
        for (id, peer) in &self.peers {
            let view = &peer.view;
            let able = || holds(&view.total, &want.placement) && (asks_the_same || holds(&view.total, &want.demand));
            if !view.draining && want.allows(*id, &view.labels) && able() {
                all.push(Candidate {
                    id: *id,
                    is_here: false,
                    available: holds(peer.free(), &want.placement),
                    utilization: peer.utilization(),
                    has_gpu: peer.has_gpu(),
                    labels: &peer.view.labels,
                });
            }
        }
        if here.open && here.feasible && want.allows(here.id, here.labels) {
            let at = all.partition_point(|node| node.id < here.id);
            let (available, utilization) = (here.available, here.utilization);
            let (id, labels, has_gpu) = (here.id, here.labels, here.has_gpu);
            all.insert(at, Candidate { id, is_here: true, available, utilization, has_gpu, labels });
        }
        all
    }
}

/// This node if none is better, else one of the best. `nodes` are all with room, or all without.
fn hybrid<'a>(
    nodes: &[Candidate<'a>],
    cluster: usize,
    threshold: f64,
    want: &Want,
    policy: &Policy,
    lot: &mut impl FnMut(usize) -> usize,
) -> Option<Candidate<'a>> {
    let needs_gpu = want.placement.contains_key("GPU");
    let mut ranked: Vec<Candidate> = nodes.to_vec();
    if policy.avoid_gpu_nodes && !needs_gpu && nodes.iter().any(|node| node.available && !node.has_gpu) {
        ranked.retain(|node| !node.has_gpu);
    }
    ranked.sort_by(|a, b| a.score(threshold).total_cmp(&b.score(threshold)));
    let best = ranked.first()?.score(threshold);
    if let Some(here) = ranked.iter().find(|node| node.is_here && node.score(threshold) <= best) {
        return Some(*here);
    }
    let top = ((cluster as f64 * policy.top_k_fraction) as usize).max(policy.top_k_absolute).max(1);
    Some(ranked[lot(top.min(ranked.len()))])
}

/// The first node with room from the place on where the last turn ended.
fn next_in_turn<'a>(all: &[Candidate<'a>], with_room: &[Candidate<'a>], round: usize) -> Option<Candidate<'a>> {
    let turn = (0..all.len()).map(|step| all[(round + step) % all.len()]);
    turn.into_iter().find(|node| with_room.iter().any(|with_room| with_room.id == node.id))
}

/// The node that is named, if it is among these and may be taken as it is.
fn bound<'a>(affinity: &Affinity, nodes: &[Candidate<'a>]) -> Option<Candidate<'a>> {
    let needs_room = affinity.spill_on_unavailable || affinity.fail_on_unavailable;
    nodes.iter().find(|node| node.id == affinity.node && (node.available || !needs_room)).copied()
}

/// True where the named node can never serve the request.
fn lacks(all: &[Candidate], affinity: &Affinity) -> bool {
    all.iter().all(|node| node.id != affinity.node)
}

fn by_labels<'a>(
    nodes: &[Candidate<'a>],
    hard: &[Rule],
    soft: &[Rule],
    lot: &mut impl FnMut(usize) -> usize,
) -> Option<Candidate<'a>> {
    let matching: Vec<_> = nodes.iter().filter(|node| selects(hard, node.labels)).copied().collect();
    let better: Vec<_> = matching.iter().filter(|node| selects(soft, node.labels)).copied().collect();
    let nodes = if better.is_empty() { matching } else { better };
    (!nodes.is_empty()).then(|| nodes[lot(nodes.len())])
}

#[cfg(test)]
#[path = "pick_tests.rs"]
mod tests;
