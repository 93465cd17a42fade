use proptest::prelude::{any, prop_assert, proptest, Strategy as Draws};

use super::super::{Affinity, Amounts, Operator, View};
use super::*;
use crate::sched::Fixed;

const HERE: NodeId = NodeId([5; 28]);

fn node(n: u8) -> NodeId {
    NodeId([n; 28])
}

fn of(parts: &[(&str, i64)]) -> Amounts {
    parts.iter().map(|(name, units)| ((*name).into(), Fixed::units(*units))).collect()
}

fn view(total: &[(&str, i64)], free: &[(&str, i64)], zone: &str) -> View {
    let labels = [("zone".to_owned(), zone.to_owned())].into();
    View { total: of(total), available: of(free), labels, draining: false }
}

/// Four nodes of 4 CPUs: 1 unused, 2 half used, 3 full, and 4 with a GPU.
fn views() -> Views {
    let mut views = Views::default();
    views.heard(node(1), view(&[("CPU", 4)], &[("CPU", 4)], "a"));
    views.heard(node(2), view(&[("CPU", 4)], &[("CPU", 2)], "b"));
    views.heard(node(3), view(&[("CPU", 4)], &[], "a"));
    views.heard(node(4), view(&[("CPU", 4), ("GPU", 1)], &[("CPU", 4), ("GPU", 1)], "c"));
    views
}

fn want(parts: &[(&str, i64)], strategy: Strategy) -> Want {
    Want { demand: of(parts), placement: of(parts), strategy, ..Want::default() }
}

fn affinity(node: NodeId) -> Affinity {
    Affinity { node, soft: false, spill_on_unavailable: false, fail_on_unavailable: false }
}

struct Local {
    labels: BTreeMap<String, String>,
    utilization: f64,
    room: bool,
}

impl Local {
    fn at(utilization: f64, room: bool) -> Self {
        Self { labels: [("zone".to_owned(), "b".to_owned())].into(), utilization, room }
    }

    fn here(&self) -> Here<'_> {
        Here {
            id: HERE,
            labels: &self.labels,
            open: true,
            feasible: true,
            available: self.room,
            grantable: self.room,
            utilization: self.utilization,
            has_gpu: false,
        }
    }
}

fn pick(want: &Want, local: &Local, prefer_here: bool) -> Choice {
    views().pick(want, &local.here(), prefer_here, &Policy::default(), &mut |_| 0)
}

#[test]
fn a_node_serves_itself_below_the_threshold_and_the_least_used_one_above() {
    let cpu = want(&[("CPU", 1)], Strategy::Hybrid);
    assert_eq!(pick(&cpu, &Local::at(0.49, true), false), Choice::Here);
    assert_eq!(pick(&cpu, &Local::at(0.5, true), false), Choice::There(node(1)));
    assert_eq!(pick(&cpu, &Local::at(0.5, true), true), Choice::Here, "chosen for its objects");
    assert_eq!(pick(&cpu, &Local::at(1.0, false), true), Choice::There(node(1)), "no room");
    let big = want(&[("CPU", 3)], Strategy::Hybrid);
    assert_eq!(pick(&big, &Local::at(1.0, false), true), Choice::There(node(1)));
}

#[test]
fn where_nobody_has_room_a_lease_waits_where_it_is() {
    let mut views = views();
    for n in [1, 2, 4] {
        let full = View { available: Amounts::default(), ..views.get(&node(n)).unwrap().clone() };
        views.heard(node(n), full);
    }
    let (cpu, full) = (want(&[("CPU", 1)], Strategy::Hybrid), Local::at(1.0, false));
    for prefer in [false, true] {
        assert_eq!(views.pick(&cpu, &full.here(), prefer, &Policy::default(), &mut |_| 0), Choice::Here);
    }
    let never = Here { feasible: false, ..full.here() };
    assert!(matches!(views.pick(&cpu, &never, true, &Policy::default(), &mut |_| 0), Choice::There(_)));
    let closed = Here { open: false, ..full.here() };
    assert!(matches!(views.pick(&cpu, &closed, true, &Policy::default(), &mut |_| 0), Choice::There(_)), "it drains");
}

#[test]
fn what_needs_no_gpu_avoids_nodes_with_one() {
    let all_but_gpu_full = Local::at(1.0, false);
    let mut views = views();
    views.died(&node(1));
    views.died(&node(2));
    let cpu = want(&[("CPU", 1)], Strategy::Hybrid);
    let policy = Policy::default();
    assert_eq!(views.pick(&cpu, &all_but_gpu_full.here(), false, &policy, &mut |_| 0), Choice::There(node(4)));
    let gpu = want(&[("GPU", 1)], Strategy::Hybrid);
    let no_gpu = Here { feasible: false, ..all_but_gpu_full.here() };
    assert_eq!(views.pick(&gpu, &no_gpu, false, &policy, &mut |_| 0), Choice::There(node(4)));
    let nothing = want(&[("lamp", 1)], Strategy::Hybrid);
    assert_eq!(views.pick(&nothing, &no_gpu, false, &policy, &mut |_| 0), Choice::Nowhere);
}

#[test]
fn spread_takes_the_nodes_with_room_in_turn() {
    let (mut views, local, policy) = (views(), Local::at(0.0, true), Policy::default());
    let spread = want(&[("CPU", 1)], Strategy::Spread);
    let mut turn = || views.pick(&spread, &local.here(), false, &policy, &mut |_| 0);
    let expected = [Choice::There(node(1)), Choice::There(node(2)), Choice::There(node(4)), Choice::Here];
    for round in 0..2 {
        for choice in expected {
            assert_eq!(turn(), choice, "round {round}");
        }
    }
}

#[test]
fn affinity_binds_hard_or_softly() {
    let local = Local::at(0.0, true);
    let to = |affinity| want(&[("CPU", 1)], Strategy::Affinity(affinity));
    assert_eq!(pick(&to(affinity(node(3))), &local, false), Choice::There(node(3)), "full, but it can");
    assert_eq!(pick(&to(affinity(HERE)), &local, false), Choice::Here);
    assert_eq!(pick(&to(affinity(node(9))), &local, false), Choice::Nowhere);
    let soft = Affinity { soft: true, ..affinity(node(9)) };
    assert_eq!(pick(&to(soft), &local, false), Choice::Here);
    let waits = Affinity { soft: true, ..affinity(node(3)) };
    assert_eq!(pick(&to(waits), &local, false), Choice::There(node(3)));
    let spills = Affinity { spill_on_unavailable: true, ..waits };
    assert_eq!(pick(&to(spills), &local, false), Choice::Here);
    let fails = Affinity { fail_on_unavailable: true, ..affinity(node(3)) };
    assert_eq!(pick(&to(fails), &local, false), Choice::Nowhere);
    assert_eq!(Choice::Nowhere.verdict(&to(fails), false), Verdict::Fail);
    assert_eq!(Choice::Nowhere.verdict(&to(soft), false), Verdict::Wait);
    assert_eq!(Choice::There(node(1)).verdict(&to(soft), true), Verdict::Reject);
}

#[test]
fn labels_and_selectors_choose_among_the_nodes_that_have_them() {
    let local = Local::at(0.0, true);
    let zone = |zones: &[&str]| {
        let values = zones.iter().map(|zone| (*zone).to_owned()).collect();
        vec![Rule { key: "zone".to_owned(), operator: Operator::In(values) }]
    };
    let labels = |hard, soft| want(&[("CPU", 1)], Strategy::Labels { hard, soft });
    assert_eq!(pick(&labels(zone(&["c"]), vec![]), &local, false), Choice::There(node(4)));
    assert_eq!(pick(&labels(zone(&["b", "c"]), zone(&["c"])), &local, false), Choice::There(node(4)));
    assert_eq!(pick(&labels(zone(&["z"]), vec![]), &local, false), Choice::Nowhere);
    let selecting = |selectors| Want { selectors, ..want(&[("CPU", 1)], Strategy::Hybrid) };
    assert_eq!(pick(&selecting(vec![zone(&["a"])]), &local, true), Choice::There(node(1)));
    assert_eq!(pick(&selecting(vec![zone(&["z"]), zone(&["c"])]), &local, true), Choice::There(node(4)), "fallback");
}

#[test]
fn an_actor_without_resources_goes_anywhere() {
    let anywhere = Want { actor: true, ..want(&[], Strategy::Hybrid) };
    let (local, mut seen) = (Local::at(0.0, true), Vec::new());
    for at in 0..5 {
        seen.push(views().pick(&anywhere, &local.here(), false, &Policy::default(), &mut |_| at));
    }
    assert_eq!(
        seen,
        [1, 2, 3, 4].map(|n| Choice::There(node(n))).into_iter().chain([Choice::Here]).collect::<Vec<_>>()
    );
}

#[test]
fn what_was_sent_is_taken_off_until_the_node_tells_or_time_passes() {
    let (mut views, cpus) = (views(), of(&[("CPU", 3)]));
    let big = want(&[("CPU", 3)], Strategy::Hybrid);
    let full = Local::at(1.0, false);
    let policy = Policy { avoid_gpu_nodes: false, ..Policy::default() };
    let choose = |views: &mut Views| views.pick(&big, &full.here(), true, &policy, &mut |_| 0);
    assert_eq!(choose(&mut views), Choice::There(node(1)));
    views.debit(&node(1), &cpus, 7);
    assert_eq!(choose(&mut views), Choice::There(node(4)));
    views.debit(&node(4), &cpus, 8);
    assert_eq!(choose(&mut views), Choice::Here);
    views.refresh(7 + super::super::REFRESH_NS);
    assert_eq!(choose(&mut views), Choice::There(node(1)));
    views.debit(&node(1), &cpus, 9);
    let told = views.get(&node(4)).unwrap().clone();
    views.heard(node(4), told);
    assert_eq!(choose(&mut views), Choice::There(node(4)));
}

fn any_view() -> impl Draws<Value = View> {
    (1..8i64, 0..8i64, 0..2i64, any::<bool>(), 0..3usize).prop_map(|(total, free, gpus, draining, zone)| View {
        draining,
        ..view(&[("CPU", total), ("GPU", gpus)], &[("CPU", free.min(total)), ("GPU", gpus)], ["a", "b", "c"][zone])
    })
}

proptest! {
    /// Whatever the views: the node that is chosen lives, takes work and can hold the request; one with room is preferred to one
    /// without; and there is none only where no node can.
    #[test]
    fn the_chosen_node_can_serve(
        all in proptest::collection::vec(any_view(), 0..12),
        cpus in 0..9i64, gpus in 0..2i64, kind in 0..4u8, room in any::<bool>(), feasible in any::<bool>(),
        used in 0.0..1.0f64, prefer in any::<bool>(), draw in any::<usize>(),
    ) {
        let mut views = Views::default();
        for (n, view) in all.iter().enumerate() {
            views.heard(node(n as u8 + 10), view.clone());
        }
        let strategy = match kind {
            0 => Strategy::Hybrid,
            1 => Strategy::Spread,
            2 => Strategy::Affinity(Affinity { soft: true, ..affinity(node(12)) }),
            _ => Strategy::Labels { hard: vec![], soft: vec![] },
        };
        let want = want(&[("CPU", cpus), ("GPU", gpus)].into_iter().filter(|(_, n)| *n > 0).collect::<Vec<_>>(), strategy);
        let local = Local::at(used, room && feasible);
        let here = Here { feasible, ..local.here() };
        let able = |view: &View| !view.draining && holds(&view.total, &want.placement);
        let roomy = |view: &View| able(view) && holds(&view.available, &want.placement);
        let bound_elsewhere = kind == 2 && all.get(2).is_some_and(able);
        match views.pick(&want, &here, prefer, &Policy::default(), &mut |n| draw % n) {
            Choice::Nowhere => prop_assert!(!feasible && !all.iter().any(able)),
            Choice::Here => prop_assert!(feasible && (room || prefer || !all.iter().any(roomy))),
            Choice::There(id) => {
                let view = views.get(&id).expect("it is known");
                prop_assert!(able(view));
                let somebody_has_room = room && feasible || all.iter().any(roomy);
                prop_assert!(roomy(view) || bound_elsewhere || !somebody_has_room);
                prop_assert!(!(prefer && room && feasible));
            }
        }
    }
}
