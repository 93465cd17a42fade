//! Native workers that the node started, bound to the NUMA node of the core that granted their lease (`--pin-workers`).
//!
//! Cores grant such leases without the control thread, which binds; so they tell it of each, where workers are bound at all. A worker that
//! came by itself is not bound: its process is not the node's, and may do more than serve leases.

use std::cell::RefCell;
use std::rc::{Rc, Weak};

use raylet_shard::ids::{ShardId, WorkerId};
use rustc_hash::FxHashMap;

use super::client::Class;
use super::control::{NativeAsk, NativeControl};
use crate::bridge::ToControl;
use crate::core_loop::Core;
use crate::ray::resources::CPU;
use crate::workers::pinning::{Doing, Pins, SETTLE_EVERY};

/// Units of the ledger (1/10,000 of a CPU) in a thousandth of a CPU.
const UNITS_PER_MILLI: u64 = 10;

/// The control thread's part.
pub(super) struct WorkerPins {
    pins: RefCell<Pins>,
    /// The process of each worker that the node started.
    pids: RefCell<FxHashMap<WorkerId, u32>>,
}

impl WorkerPins {
    pub(super) fn new(pins: Pins) -> Self {
        Self { pins: RefCell::new(pins), pids: RefCell::default() }
    }

    pub(super) fn count(&self) -> usize {
        self.pins.borrow().count()
    }

    /// A process was started for a shard.
    pub(super) fn starting(&self, pid: u32, shard: ShardId) {
        self.pins.borrow_mut().starting(pid, shard);
    }

    /// It has registered. `pid` is that of its connection, which may be a child of what was started; 0 where it can't be seen.
    pub(super) fn registered(&self, worker: WorkerId, pid: u32, shard: ShardId) {
        if pid != 0 {
            self.pids.borrow_mut().insert(worker, pid);
            self.pins.borrow_mut().started(worker, pid, shard);
        }
    }

    pub(super) fn leased(&self, worker: WorkerId, shard: ShardId, cpu_milli: u64) {
        if let Some(pid) = self.pids.borrow().get(&worker) {
            self.pins.borrow_mut().leased(worker, *pid, shard, cpu_milli);
        }
    }

    pub(super) fn returned(&self, worker: &WorkerId) {
        self.pins.borrow_mut().returned(worker);
    }

    pub(super) fn gone(&self, worker: &WorkerId) {
        self.pids.borrow_mut().remove(worker);
    }

    fn settle(&self) {
        let pids = self.pids.borrow();
        self.pins.borrow_mut().settle(|worker| if pids.contains_key(worker) { Doing::Up } else { Doing::Gone });
    }
}

/// Looks after bound workers for as long as the door is there. Must run inside a `LocalSet`.
pub(super) fn settle_for_ever(control: &Rc<NativeControl>) {
    let control: Weak<NativeControl> = Rc::downgrade(control);
    tokio::task::spawn_local(async move {
        while let Some(control) = control.upgrade() {
            if let Some(pins) = control.pins() {
                pins.settle();
            }
            drop(control);
            tokio::time::sleep(SETTLE_EVERY).await;
        }
    });
}

/// A lease of this core has this worker from now on.
pub(super) fn leased(core: &Core, worker: WorkerId, class: Option<&Class>) {
    if binds(core) {
        let cpu = class.and_then(|class| class.wanted.get(CPU)).map_or(0, |amount| amount.0.unsigned_abs());
        let cpu_milli = cpu / UNITS_PER_MILLI;
        let leased = NativeAsk::Leased { worker, shard: core.shard, cpu_milli };
        core.tell_control_later(ToControl::Native(leased));
    }
}

/// A lease of this core that this worker served has ended.
pub(super) fn returned(core: &Core, worker: WorkerId) {
    if binds(core) {
        core.tell_control_later(ToControl::Native(NativeAsk::Returned { worker }));
    }
}

fn binds(core: &Core) -> bool {
    core.native.shared().is_some_and(|shared| shared.binds_workers)
}
