//! `raylet-uring topology`: the machine, with a running or planned node in its place.

use std::collections::BTreeMap;
use std::io::Write;

use raylet_tuning::placement::{PlacedArena, PlacedBy};
use raylet_tuning::{Host, Picture};

use super::own::TopologyArgs;
use super::plan::{plan, spill_directories, PlanError};
use super::status::{self, RuntimeDir, StatusError};
use super::topology_text;
use crate::config::Config;
use crate::observe::status::NodeStatus;

/// A machine that can't be drawn.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TopologyCommandError {
    /// Settings or machine don't allow it.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// Running nodes can't be looked for.
    #[error(transparent)]
    Status(#[from] StatusError),
    /// The node at the named socket gave no answer.
    #[error("the node of --node gave no answer")]
    NoAnswer,
    /// More than one node runs.
    #[error("{count} nodes run here: choose one with --node PATH (`raylet-uring status` lists them), or give settings such as --cores auto")]
    Several {
        /// How many.
        count: usize,
    },
    /// Standard output can't be written.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// A picture that isn't JSON. The fields are plain, so this says that memory ran out.
    #[error(transparent)]
    Json(#[from] serde_json::Error),
}

/// Draws the machine on `out`; problems with nodes go to `problems`. Gives the exit status 0.
///
/// # Errors
/// [`TopologyCommandError`].
pub fn run(
    arguments: &TopologyArgs,
    environment: &BTreeMap<String, String>,
    out: &mut dyn Write,
    problems: &mut dyn Write,
) -> Result<i32, TopologyCommandError> {
    let picture = match node(arguments, environment, problems)? {
        Some(node) => with_node(arguments, environment, &node)?,
        None => plan(&arguments.plan, environment)?.picture,
    };
    if arguments.json {
        serde_json::to_writer_pretty(&mut *out, &picture)?;
        writeln!(out)?;
    } else {
        write!(out, "{}", topology_text::draw(&picture))?;
    }
    out.flush()?;
    Ok(0)
}

/// The running node to show; `None` where settings are to be shown.
fn node(
    arguments: &TopologyArgs,
    environment: &BTreeMap<String, String>,
    problems: &mut dyn Write,
) -> Result<Option<NodeStatus>, TopologyCommandError> {
    let elsewhere = arguments.plan.root.is_some() || environment.contains_key("HWLOC_SYNTHETIC");
    if !arguments.plan.given().is_empty() || elsewhere {
        return Ok(None);
    }
    let config = Config::load(&BTreeMap::new(), environment).map_err(PlanError::from)?;
    let (mut nodes, _) = status::gather(arguments.node.as_deref(), false, &RuntimeDir::of(config), problems)?;
    match (nodes.len(), arguments.node.is_some()) {
        (0, true) => Err(TopologyCommandError::NoAnswer),
        (0 | 1, _) => Ok(nodes.pop()),
        (count, _) => Err(TopologyCommandError::Several { count }),
    }
}

fn with_node(
    arguments: &TopologyArgs,
    environment: &BTreeMap<String, String>,
    node: &NodeStatus,
) -> Result<Picture, TopologyCommandError> {
    let mut picture = Picture::of(&Host::this()).map_err(PlanError::from)?;
    picture.placed_by = PlacedBy::Node(node.pid);
    // A shard that isn't pinned has no core in the status.
    let pus: Vec<Option<u32>> =
        node.shards.iter().map(|shard| (shard.core != u32::MAX).then_some(shard.core)).collect();
    picture.place_shards(&pus);
    picture.arenas = node
        .arenas
        .iter()
        .map(|arena| PlacedArena {
            segment: arena.segment,
            numa_node: arena.numa_node,
            size_bytes: arena.size_bytes,
            pages: arena.page_kind.clone(),
            fallback: arena.fallback_reason.clone(),
        })
        .collect();
    // A node that spills says where.
    match node.spill.is_empty() {
        true => picture.place_spill(&spill_directories(&arguments.plan, environment)),
        false => picture.place_spill(&node.spill.iter().map(|spill| spill.path.clone()).collect::<Vec<_>>()),
    }
    Ok(picture)
}
