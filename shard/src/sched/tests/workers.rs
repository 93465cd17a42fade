//! The pool: matching, starting, blocking, reaping.

use super::*;
use crate::ids::ActorId;

fn starts(effects: &[SchedEffect]) -> Vec<StartToken> {
    let start = |effect: &SchedEffect| match effect {
        SchedEffect::StartWorker { start, .. } => Some(*start),
        _ => None,
    };
    effects.iter().filter_map(start).collect()
}

fn ready(node: &mut Node, n: u32, start: Option<StartToken>, job: Option<JobId>) -> Vec<SchedEffect> {
    node.send(SchedEvent::WorkerReady { worker: worker(n), start, key: WorkerKey::default(), job })
}

const JOB: Option<JobId> = Some(JobId([1; 4]));

#[test]
fn a_worker_serves_what_ray_says_it_fits() {
    let mut node = Node::one(8);
    node.define(1, cpus(1));
    ready(&mut node, 1, None, None);
    assert_eq!(grants(&node.ask(request(1, 1))), vec![(1, worker(1))], "a worker of no job yet");
    node.give_back(0, 1);
    let unfit = [
        LeaseRequest { job: JobId([2; 4]), ..request(2, 1) },
        LeaseRequest { is_gpu: true, ..request(3, 1) },
        LeaseRequest { actor: Some(ActorId([1; 16])), ..request(4, 1) },
    ];
    for request in unfit {
        let effects = node.ask(request);
        assert!(grants(&effects).is_empty() && starts(&effects).len() == 1, "{effects:?}");
    }
    let root = Some(ActorId([5; 16]));
    assert_eq!(grants(&node.ask(LeaseRequest { root_detached_actor: root, ..request(5, 1) })).len(), 1);
    node.give_back(0, 5);
    let other = LeaseRequest { root_detached_actor: Some(ActorId([6; 16])), ..request(6, 1) };
    assert!(grants(&node.ask(other)).is_empty(), "it belongs to another detached actor");
}

#[test]
fn only_as_many_processes_start_as_leases_wait_and_the_limit_allows() {
    let mut node = Node::new(1, 8, |config| config.startup_concurrency = 2);
    node.define(1, cpus(1));
    let mut tokens = Vec::new();
    for n in 1..=5 {
        tokens.extend(starts(&node.ask(request(n, 1))));
    }
    assert_eq!(tokens.len(), 2);
    assert_eq!(node.free(CPU), Fixed::units(3), "all five hold their CPU");
    let effects = ready(&mut node, 1, Some(tokens[1]), JOB);
    assert_eq!(grants(&effects), vec![(1, worker(1))], "it serves who has waited longest");
    assert_eq!(starts(&effects).len(), 1);
    node.give_back(0, 1);
    let effects = node.take();
    assert_eq!(grants(&effects), vec![(2, worker(1))]);
    assert_eq!(node.shards[0].worker_counts().starting, 2);
    // Leases 3, 4 and 5 wait, two processes are on their way: one more start when one is through.
    let effects = ready(&mut node, 2, Some(tokens[0]), JOB);
    assert_eq!((grants(&effects).len(), starts(&effects).len()), (1, 1));
    assert_eq!(node.shards[0].worker_counts().starting, 2);
}

#[test]
fn the_process_of_a_cancelled_lease_becomes_idle() {
    let mut node = Node::one(2);
    node.define(1, cpus(1));
    let token = starts(&node.ask(request(1, 1)))[0];
    node.send(SchedEvent::Cancel { token: 9, lease: lease(1) });
    assert_eq!(node.free(CPU), Fixed::units(2));
    ready(&mut node, 1, Some(token), JOB);
    assert_eq!(node.shards[0].worker_counts(), WorkerCounts { idle: 1, ..WorkerCounts::default() });
    assert_eq!(grants(&node.ask(request(2, 1))).len(), 1);
}

#[test]
fn the_process_of_a_cancelled_lease_is_counted_on_by_the_next() {
    let mut node = Node::new(1, 8, |config| config.startup_concurrency = 2);
    node.define(1, cpus(1));
    let tokens: Vec<_> = (1..=3).flat_map(|n| starts(&node.ask(request(n, 1)))).collect();
    node.send(SchedEvent::Cancel { token: 9, lease: lease(2) });
    let effects = ready(&mut node, 1, Some(tokens[0]), JOB);
    assert_eq!(grants(&effects), vec![(1, worker(1))]);
    assert!(starts(&effects).is_empty(), "lease 3 waits for what was started for lease 2");
    let effects = ready(&mut node, 2, Some(tokens[1]), JOB);
    assert_eq!(grants(&effects), vec![(3, worker(2))]);
}

#[test]
fn a_start_that_fails_is_tried_again_a_few_times() {
    let mut node = Node::one(1);
    node.define(1, cpus(1));
    let mut token = starts(&node.ask(request(1, 1)))[0];
    for _ in 0..2 {
        let effects = node.send(SchedEvent::StartFailed { start: token, why: StartFailure::NotRegistered });
        token = starts(&effects)[0];
    }
    let effects = node.send(SchedEvent::StartFailed { start: token, why: StartFailure::NotRegistered });
    assert!(matches!(effects[..], [SchedEffect::Failed { why: FailReason::WorkerStart { attempts: 3 }, .. }]));
    assert_eq!(node.free(CPU), Fixed::ONE);
    let token = starts(&node.ask(request(2, 1)))[0];
    let why = StartFailure::RuntimeEnv("no such package".into());
    let effects = node.send(SchedEvent::StartFailed { start: token, why });
    assert!(
        matches!(&effects[..], [SchedEffect::Failed { why: FailReason::RuntimeEnv(why), .. }] if &**why == "no such package")
    );
}

#[test]
fn a_lease_that_waits_for_a_worker_to_come_finds_one_that_came_to_another_shard() {
    let mut node = Node::new(2, 8, |_| {});
    node.define(1, cpus(1));
    let mut token = starts(&node.ask(request(1, 1)))[0];
    for _ in 0..5 {
        let effects = node.send(SchedEvent::StartFailed { start: token, why: StartFailure::NoneCame });
        token = starts(&effects)[0];
    }
    node.to(1, SchedEvent::WorkerReady { worker: worker(1), start: None, key: WorkerKey::default(), job: JOB });
    let effects = node.send(SchedEvent::StartFailed { start: token, why: StartFailure::NoneCame });
    assert_eq!(grants(&effects), vec![(1, worker(1))]);
}

#[test]
fn a_blocked_worker_lends_its_cpu_and_takes_it_back() {
    let mut node = Node::one(1);
    node.define(1, cpus(1));
    node.define(2, cpus(1));
    let (_, first) = node.granted([(0, request(1, 1))])[0];
    node.ask(request(2, 2));
    node.to(0, SchedEvent::Blocked { worker: first });
    node.to(0, SchedEvent::Blocked { worker: first });
    assert_eq!(node.granted([]).len(), 1);
    node.to(0, SchedEvent::Unblocked { worker: first });
    assert_eq!(node.free(CPU), Fixed::units(-1));
    node.give_back(0, 2);
    assert_eq!(node.free(CPU), Fixed::ZERO);
    node.to(0, SchedEvent::Blocked { worker: first });
    node.send(SchedEvent::WorkerGone { worker: first });
    assert_eq!(node.free(CPU), Fixed::ONE, "given back once, not twice");
}

#[test]
fn a_class_at_its_cap_waits_longer_for_each_further_lease() {
    let mut node = Node::one(1);
    node.define(1, cpus(1));
    let mut granted = node.granted((1..=9).map(|n| (0, request(n, 1))));
    let mut times = Vec::new();
    for _ in 0..800 {
        if let Some((_, blocked)) = granted.pop() {
            node.to(0, SchedEvent::Blocked { worker: blocked });
        }
        node.now += 10 * MS;
        node.to(0, SchedEvent::Tick);
        granted.extend(node.granted([]));
        if !granted.is_empty() {
            times.push(node.now / MS);
        }
    }
    // 1 s for the first above the cap, 2 s more for the second, 4 s more for the third.
    assert_eq!(times, vec![1000, 3000, 7000]);
}

#[test]
fn idle_workers_above_the_limit_exit_and_may_refuse() {
    let mut node = Node::new(1, 4, |config| config.workers_soft_limit = 1);
    for n in 1..=3 {
        ready(&mut node, n, None, JOB);
    }
    node.now = 900 * MS;
    assert!(node.send(SchedEvent::Tick).is_empty());
    node.now = 1100 * MS;
    let effects = node.send(SchedEvent::Tick);
    assert!(matches!(effects[..], [SchedEffect::ExitWorker { .. }, SchedEffect::ExitWorker { .. }]));
    node.send(SchedEvent::ExitRefused { worker: worker(1) });
    node.send(SchedEvent::WorkerGone { worker: worker(2) });
    assert_eq!(node.shards[0].worker_counts(), WorkerCounts { idle: 2, ..WorkerCounts::default() });
    node.now = 1200 * MS;
    let effects = node.send(SchedEvent::Tick);
    let oldest = worker(3);
    assert!(
        matches!(effects[..], [SchedEffect::ExitWorker { worker, why: ExitReason::Idle }] if worker == oldest),
        "{effects:?}"
    );
    node.define(1, cpus(1));
    assert_eq!(grants(&node.ask(request(1, 1))), vec![(1, worker(1))], "one asked to exit serves nobody");
}

/// One shard may have all the workers that a node keeps: the others' shares are not held against it.
#[test]
fn shards_share_the_limit_of_idle_workers() {
    let mut node = Node::new(3, 4, |config| config.workers_soft_limit = 4);
    let ready_on = |node: &mut Node, shard, n| {
        let (key, worker) = (WorkerKey::default(), worker(n));
        node.to(shard, SchedEvent::WorkerReady { worker, start: None, key, job: JOB });
    };
    (1..=4).for_each(|n| ready_on(&mut node, 2, n));
    let ticks = |node: &mut Node| {
        for _ in 0..4 {
            node.now += 500 * MS;
            node.everywhere(SchedEvent::Tick);
        }
        let asked = node.take();
        let asked = asked.iter().map(|effect| match effect {
            SchedEffect::ExitWorker { worker, why: ExitReason::Idle } => *worker,
            other => panic!("{other:?}"),
        });
        asked.collect::<Vec<_>>()
    };
    assert_eq!(ticks(&mut node), vec![], "as many as the node keeps");
    ready_on(&mut node, 0, 5);
    ready_on(&mut node, 1, 6);
    assert_eq!(ticks(&mut node), vec![worker(1), worker(2)], "the two that were idle for longest");
    assert_eq!(ticks(&mut node), vec![], "and no more");
    (7..=9).for_each(|n| ready_on(&mut node, 1, n));
    assert_eq!(ticks(&mut node).len(), 3);
    assert_eq!(ticks(&mut node), vec![]);
}

#[test]
fn workers_started_ahead_are_kept_as_long_as_promised() {
    let mut node = Node::new(1, 4, |config| config.workers_soft_limit = 0);
    let keep_alive_ns = 5_000 * MS;
    let (key, count) = (WorkerKey::default(), PrestartCount::New(2));
    let effects = node.send(SchedEvent::Prestart { key, job: JOB, count, keep_alive_ns });
    let tokens = starts(&effects);
    assert_eq!(tokens.len(), 2);
    for (n, token) in tokens.into_iter().enumerate() {
        ready(&mut node, n as u32, Some(token), JOB);
    }
    node.now = 4_999 * MS;
    assert!(node.send(SchedEvent::Tick).is_empty());
    node.now = 5_001 * MS;
    assert_eq!(node.send(SchedEvent::Tick).len(), 2);
}

#[test]
fn a_backlog_starts_workers_for_the_cpus_that_are_free() {
    let mut node = Node::one(4);
    node.define(1, cpus(1));
    ready(&mut node, 1, None, JOB);
    node.ask(request(1, 1));
    ready(&mut node, 2, None, JOB);
    let prestart = |count| SchedEvent::Prestart { key: WorkerKey::default(), job: JOB, count, keep_alive_ns: 0 };
    // Three CPUs are free and one worker is idle.
    assert_eq!(starts(&node.send(prestart(PrestartCount::Backlog(9)))).len(), 2);
    assert!(starts(&node.send(prestart(PrestartCount::Backlog(9)))).is_empty(), "they are on their way");
}

#[test]
fn a_broken_or_leaving_worker_serves_nobody_again() {
    let mut node = Node::one(4);
    node.define(1, cpus(1));
    for (n, fate) in [(1, WorkerFate::Disconnect), (2, WorkerFate::Exiting)] {
        node.granted([(0, request(n, 1))]);
        let effects = node.send(SchedEvent::Return { lease: lease(n), fate });
        let kills = effects.iter().filter(|effect| matches!(effect, SchedEffect::KillWorker { .. })).count();
        assert_eq!(kills, usize::from(fate == WorkerFate::Disconnect));
        assert_eq!(node.free(CPU), Fixed::units(4));
    }
    let counts = node.shards[0].worker_counts();
    assert_eq!((counts.idle, counts.leaving), (0, 2));
}

#[test]
fn idle_workers_of_a_finished_job_exit_and_so_do_those_that_come_late() {
    let mut node = Node::one(2);
    node.define(1, cpus(1));
    let token = starts(&node.ask(request(1, 1)))[0];
    ready(&mut node, 5, None, Some(JobId([2; 4])));
    ready(&mut node, 6, None, JOB);
    assert_eq!(node.shards[0].lease(lease(1)).unwrap().worker, worker(6));
    let effects = node.send(SchedEvent::JobFinished { job: JobId([1; 4]) });
    assert!(matches!(effects[..], [SchedEffect::KillWorker { why: KillReason::JobFinished, .. }]), "{effects:?}");
    let effects = ready(&mut node, 7, Some(token), JOB);
    assert!(matches!(effects[..], [SchedEffect::ExitWorker { why: ExitReason::JobFinished, .. }]), "{effects:?}");
    assert_eq!(node.shards[0].worker_counts().idle, 1, "the other job's");
}
