//! How a node looks on a terminal.

use std::time::Duration;

use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Borders, Gauge, Paragraph, Row, Table};
use ratatui::Frame;

use super::sample::{Flow, Sample};
use crate::config::size::format_bytes;
use crate::observe::print::{duration, latency};
use crate::observe::status::{
    ArenaStatus, Door, NodeStatus, OperationStatus, ResourceStatus, ShardStatus, SpillCounts, TransferStatus,
};

/// What there is to draw.
pub struct View<'a> {
    /// The node; `None` before there is one.
    pub sample: Option<&'a Sample>,
    /// The number of the node from 1, and of how many.
    pub place: (usize, usize),
    /// Pause between two looks; `None` where the screen is printed once.
    pub interval: Option<Duration>,
    /// Nothing new is taken in.
    pub paused: bool,
    /// Why there is nothing new.
    pub problem: Option<&'a str>,
}

impl<'a> View<'a> {
    /// One sample, printed once.
    pub fn of(sample: &'a Sample) -> Self {
        View { sample: Some(sample), place: (1, 1), interval: None, paused: false, problem: None }
    }
}

const HEAD: Style = Style::new().add_modifier(Modifier::BOLD);
const DIM: Style = Style::new().fg(Color::DarkGray);
const WARN: Style = Style::new().fg(Color::Yellow);
/// Lines of the border and the head of a table.
const TABLE_FRAME_LINES: u16 = 3;
/// Lines of the head of the screen: what the node is, its counts, its keys.
const HEAD_LINES: u16 = 3;
/// Lines of a gauge.
const GAUGE_LINES: u16 = 1;

/// Lines that show all of a sample.
pub fn lines_wanted(sample: &Sample) -> u16 {
    let tables = tables(sample).iter().map(TableOf::lines).sum::<u16>();
    HEAD_LINES + gauges(&sample.status).len() as u16 * GAUGE_LINES + tables
}

/// Draws a view.
pub fn draw(frame: &mut Frame, view: &View) {
    let Some(sample) = view.sample else { return };
    let gauges = gauges(&sample.status);
    let tables = tables(sample);
    let mut parts = vec![Constraint::Length(HEAD_LINES), Constraint::Length(gauges.len() as u16 * GAUGE_LINES)];
    parts.extend(tables.iter().map(TableOf::constraint));
    // What is left stays empty, so that tables do not grow apart.
    parts.push(Constraint::Fill(1));
    let areas = Layout::vertical(parts).split(frame.area());
    frame.render_widget(Paragraph::new(head(sample, view)), areas[0]);
    let lines = Layout::vertical(vec![Constraint::Length(GAUGE_LINES); gauges.len()]).split(areas[1]);
    for (gauge, area) in gauges.iter().zip(lines.iter()) {
        gauge.draw(frame, *area);
    }
    for (table, area) in tables.into_iter().zip(areas.iter().skip(2)) {
        if area.height > TABLE_FRAME_LINES - 1 {
            frame.render_widget(table.into_widget(), *area);
        }
    }
}

fn head<'a>(sample: &Sample, view: &View<'a>) -> Vec<Line<'a>> {
    let status = &sample.status;
    let doors = status.doors.iter().map(|door| match door {
        Door::Ray => "ray",
        Door::Native => "native",
    });
    let doors: Vec<&str> = doors.collect();
    let mut name = vec![
        Span::styled(format!("raylet-uring {}", status.version), HEAD),
        Span::raw(format!("  pid {}  up {}  {} door", status.pid, duration(status.uptime_s), doors.join(" and "))),
    ];
    if !status.node_id.is_empty() {
        name.push(Span::styled(format!("  node {}", status.node_id.chars().take(12).collect::<String>()), DIM));
    }
    if let Some(interval) = view.interval {
        let every = format!("  every {:.1} s  node {} of {}", interval.as_secs_f64(), view.place.0, view.place.1);
        name.push(Span::styled(every, DIM));
    }
    let (leases, workers, objects) = (&status.leases, &status.workers, &status.objects);
    let infeasible = if leases.infeasible > 0 { format!(", {} infeasible", leases.infeasible) } else { String::new() };
    let counts = format!(
        "leases {} granted, {} queued{infeasible}   workers {} leased, {} idle, {} starting   drivers {}   objects {}, {} pinned",
        leases.granted,
        leases.queued,
        workers.leased,
        workers.idle,
        workers.starting,
        workers.drivers,
        objects.count,
        objects.pinned
    );
    let last = match (view.problem, view.paused, view.interval) {
        (Some(problem), ..) => Span::styled(problem, WARN),
        (None, true, _) => Span::styled("paused: p goes on", WARN),
        (None, false, Some(_)) => Span::styled("q quit   Tab next node   p pause", DIM),
        (None, false, None) => Span::raw(""),
    };
    vec![Line::from(name), Line::raw(counts), Line::from(last)]
}

/// How much of something is taken.
struct GaugeOf {
    label: String,
    taken: f64,
    total: f64,
    text: String,
}

impl GaugeOf {
    fn draw(&self, frame: &mut Frame, area: Rect) {
        let [name, bar] = Layout::horizontal([Constraint::Length(14), Constraint::Fill(1)]).areas(area);
        frame.render_widget(Paragraph::new(self.label.as_str()), name);
        let ratio = if self.total > 0.0 { (self.taken / self.total).clamp(0.0, 1.0) } else { 0.0 };
        let colour = if ratio > 0.9 { Color::Red } else { Color::Green };
        let gauge = Gauge::default().gauge_style(Style::new().fg(colour)).ratio(ratio).label(self.text.as_str());
        frame.render_widget(gauge, bar);
    }
}

fn gauges(status: &NodeStatus) -> Vec<GaugeOf> {
    let resource = |(name, r): (&String, &ResourceStatus)| {
        let taken = (r.total - r.available).max(0.0);
        let in_bytes = name.ends_with("memory");
        let amount = |n: f64| {
            if in_bytes {
                format_bytes(n.max(0.0) as u64)
            } else {
                format!("{n:.4}").trim_end_matches('0').trim_end_matches('.').to_owned()
            }
        };
        GaugeOf {
            label: name.clone(),
            taken,
            total: r.total,
            text: format!("{} of {}", amount(taken), amount(r.total)),
        }
    };
    // Those that everybody has; what programs name themselves may be many.
    let known =
        |(name, r): &(&String, &ResourceStatus)| matches!(name.as_str(), "CPU" | "GPU" | "memory") && r.total > 0.0;
    let mut gauges: Vec<GaugeOf> = status.resources.iter().filter(known).map(resource).collect();
    let sum = |of: fn(&ArenaStatus) -> u64| status.arenas.iter().map(of).sum::<u64>();
    let (used, size) = (sum(|arena| arena.used_bytes), sum(|arena| arena.size_bytes));
    let text = format!(
        "{} of {}, {} touched ahead",
        format_bytes(used),
        format_bytes(size),
        format_bytes(sum(|arena| arena.touched_bytes))
    );
    gauges.push(GaugeOf { label: "object store".to_owned(), taken: used as f64, total: size as f64, text });
    gauges
}

/// A table with a title.
struct TableOf {
    title: &'static str,
    head: Vec<&'static str>,
    widths: Vec<Constraint>,
    rows: Vec<Vec<String>>,
    /// May be cut to this many lines where the terminal is small.
    lines_min: u16,
}

impl TableOf {
    fn lines(&self) -> u16 {
        TABLE_FRAME_LINES.saturating_add(self.rows.len().min(usize::from(u16::MAX)) as u16)
    }

    fn constraint(&self) -> Constraint {
        match self.lines() <= self.lines_min {
            true => Constraint::Length(self.lines()),
            false => Constraint::Max(self.lines()),
        }
    }

    fn into_widget(self) -> Table<'static> {
        let rows = self.rows.into_iter().map(Row::new);
        let block = Block::default().borders(Borders::ALL).title(self.title);
        Table::new(rows, self.widths).header(Row::new(self.head).style(HEAD)).block(block).column_spacing(2)
    }
}

fn tables(sample: &Sample) -> Vec<TableOf> {
    let status = &sample.status;
    let tables = [shards(status), operations(sample), flows(sample), clients(status), arenas(status)];
    tables.into_iter().filter(|table| !table.rows.is_empty()).collect()
}

fn numbers(widths: &[u16]) -> Vec<Constraint> {
    widths.iter().map(|&width| Constraint::Length(width)).collect()
}

fn shards(status: &NodeStatus) -> TableOf {
    let row = |shard: &ShardStatus| {
        let core = if shard.core == u32::MAX { "any".to_owned() } else { shard.core.to_string() };
        let queues: Vec<String> = shard
            .queues
            .iter()
            .filter(|queue| queue.depth > 0 || queue.full_count > 0)
            .map(|queue| format!("{} {} (full {}x)", queue.name, queue.depth, queue.full_count))
            .collect();
        vec![
            shard.index.to_string(),
            core,
            shard.connections.to_string(),
            shard.leases_granted.to_string(),
            shard.leases_queued.to_string(),
            shard.objects.to_string(),
            format_bytes(shard.object_bytes),
            queues.join(", "),
        ]
    };
    let mut widths = numbers(&[5, 5, 11, 7, 7, 9, 11]);
    widths.push(Constraint::Fill(1));
    TableOf {
        title: " shards ",
        head: vec!["shard", "core", "connections", "leases", "queued", "objects", "bytes", "queues"],
        widths,
        rows: status.shards.iter().map(row).collect(),
        lines_min: 8,
    }
}

fn operations(sample: &Sample) -> TableOf {
    let rates = sample.rates.iter().map(|rate| rate.per_s.map_or_else(|| "-".to_owned(), |rate| format!("{rate:.1}")));
    let row = |(operation, rate): (&OperationStatus, String)| {
        let at = [operation.p50_us, operation.p99_us, operation.p999_us, operation.max_us].map(latency);
        let mut cells = vec![operation.name.clone(), rate, operation.count.to_string()];
        cells.extend(at);
        cells
    };
    TableOf {
        title: " operations ",
        head: vec!["operation", "per second", "count", "p50", "p99", "p99.9", "max"],
        widths: numbers(&[20, 11, 11, 10, 10, 10, 10]),
        rows: sample.status.operations.iter().zip(rates).map(row).collect(),
        lines_min: 10,
    }
}

/// What moves between nodes and to disk; empty for a node that does neither.
fn flows(sample: &Sample) -> TableOf {
    let status = &sample.status;
    let (transfer, spilling) = (&status.transfer, &status.spilling);
    let moves = *transfer != TransferStatus::default() || !status.peers.is_empty();
    let spills = *spilling != SpillCounts::default() || !status.spill.is_empty();
    let now = |flow: &str| match flow {
        "received" => format!("{} wanted, {} asked for", transfer.pulls_wanted, transfer.pulls_asked),
        "sent" => format!("{} lanes", transfer.lanes),
        "spilled" => format!("{} being written, {} failures", spilling.writing_objects, spilling.failures),
        _ => {
            let (objects, bytes) = (spilling.on_disk_objects, format_bytes(spilling.on_disk_bytes));
            format!("{} being read, {objects} objects on disk ({bytes})", spilling.restoring_objects)
        }
    };
    let is_shown = |flow: &&Flow| if matches!(flow.flow, "received" | "sent") { moves } else { spills };
    let rows = sample.flows.iter().filter(is_shown).map(|flow| {
        let rate = flow.bytes_per_s.map_or_else(|| "-".to_owned(), |rate| format_bytes(rate as u64));
        vec![flow.flow.to_owned(), rate, format_bytes(flow.bytes), now(flow.flow)]
    });
    let mut widths = numbers(&[20, 11, 11]);
    widths.push(Constraint::Fill(1));
    TableOf {
        title: " transfers and spills ",
        head: vec!["bytes", "per second", "in all", "now"],
        widths,
        rows: rows.collect(),
        lines_min: 7,
    }
}

fn clients(status: &NodeStatus) -> TableOf {
    let rows = status.clients.iter().map(|client| {
        let since = if client.leased_s > 0.0 { duration(client.leased_s) } else { String::new() };
        vec![client.pid.to_string(), client.role.clone(), client.shard.to_string(), since, client.task.clone()]
    });
    let mut widths = numbers(&[9, 8, 6, 12]);
    widths.push(Constraint::Fill(1));
    TableOf {
        title: " workers and drivers ",
        head: vec!["pid", "is", "shard", "leased for", "task"],
        widths,
        rows: rows.collect(),
        lines_min: 8,
    }
}

fn arenas(status: &NodeStatus) -> TableOf {
    let rows = status.arenas.iter().map(|arena| {
        let node = arena.numa_node.map_or_else(|| "any".to_owned(), |node| node.to_string());
        let bytes = [arena.size_bytes, arena.touched_bytes, arena.used_bytes].map(format_bytes);
        let mut cells = vec![arena.segment.to_string(), node];
        cells.extend(bytes);
        cells.push(arena.page_kind.clone());
        cells
    });
    let mut widths = numbers(&[7, 9, 11, 11, 11]);
    widths.push(Constraint::Fill(1));
    TableOf {
        title: " arenas ",
        head: vec!["segment", "NUMA node", "size", "touched", "used", "pages"],
        widths,
        rows: rows.collect(),
        lines_min: 5,
    }
}
