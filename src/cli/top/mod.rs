//! `raylet-uring top`: a live view of the running nodes in a terminal, or one screen of it as text or JSON.

mod sample;
mod screen;

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use ratatui::Terminal;

use self::sample::{Sample, Samples};
use super::own::TopArgs;
use super::status::{gather, RuntimeDir, StatusError, EXIT_NO_NODE, EXIT_UNREACHABLE};

/// Pause between two looks, in milliseconds: shorter ones would cost the node more than they show.
const INTERVAL_MIN_MS: u64 = 100;
/// Longest pause between two looks.
const INTERVAL_MAX_MS: u64 = 60_000;
/// How soon a key has its effect.
const KEY_WAIT: Duration = Duration::from_millis(50);
/// Looks that may lie unseen, beside the one that is shown.
const UNSEEN_MAX: usize = 1;
/// Columns of a screen that is printed, where COLUMNS does not say.
const TEXT_COLUMNS: u16 = 110;
/// Lines of a screen that is printed: one that shows all is as long as it has to be.
const TEXT_LINES_MAX: u16 = 400;

/// A view that can't be shown.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TopError {
    /// Standard output is no terminal.
    #[error("top needs a terminal to draw on: use --once for one screen as text, or --json for programs")]
    NoTerminal,
    /// A pause that is too short or too long.
    #[error("--interval {given}: expected seconds from {} to {}", INTERVAL_MIN_MS as f64 / 1000.0, INTERVAL_MAX_MS / 1000)]
    Interval {
        /// What was given.
        given: f64,
    },
    /// The nodes can't be looked for.
    #[error(transparent)]
    Status(#[from] StatusError),
    /// The terminal fails.
    #[error("the terminal: {0}")]
    Terminal(#[from] io::Error),
    /// A sample that isn't JSON. The fields are plain, so this says that memory ran out.
    #[error(transparent)]
    Json(#[from] serde_json::Error),
}

/// Shows the nodes until `q` is pressed, or once. Gives the exit status: 0, that of `status` where there is no node.
///
/// # Errors
/// [`TopError`].
pub fn run(arguments: &TopArgs, runtime_dir: &RuntimeDir) -> Result<i32, TopError> {
    let interval_ms = (arguments.interval * 1000.0).round();
    if !(INTERVAL_MIN_MS as f64..=INTERVAL_MAX_MS as f64).contains(&interval_ms) {
        return Err(TopError::Interval { given: arguments.interval });
    }
    let watch = Watch {
        node: arguments.node.clone(),
        runtime_dir: runtime_dir.clone(),
        interval: Duration::from_millis(interval_ms as u64),
    };
    if arguments.once || arguments.json {
        return once(arguments, &watch);
    }
    if !io::stdout().is_terminal() {
        return Err(TopError::NoTerminal);
    }
    live(watch)
}

/// Where to look, and how often.
struct Watch {
    node: Option<PathBuf>,
    runtime_dir: RuntimeDir,
    interval: Duration,
}

impl Watch {
    fn look(&self, samples: &mut Samples, problems: &mut dyn Write) -> Result<(Vec<Sample>, bool), StatusError> {
        let (nodes, failed) = gather(self.node.as_deref(), false, &self.runtime_dir, problems)?;
        Ok((samples.add(nodes), failed))
    }
}

/// Two looks an interval apart, so that there are rates to tell, and one screen for each node.
fn once(arguments: &TopArgs, watch: &Watch) -> Result<i32, TopError> {
    let mut samples = Samples::default();
    let (mut out, mut problems) = (io::stdout(), io::stderr());
    let (first, failed) = watch.look(&mut samples, &mut problems)?;
    if first.is_empty() {
        return no_node(watch, failed);
    }
    thread::sleep(watch.interval);
    let (seen, failed) = watch.look(&mut samples, &mut problems)?;
    if arguments.json {
        serde_json::to_writer_pretty(&mut out, &seen)?;
        writeln!(out)?;
    } else {
        for sample in &seen {
            write!(out, "{}", text(sample)?)?;
        }
    }
    match (seen.is_empty(), failed) {
        (_, true) => Ok(EXIT_UNREACHABLE),
        (true, false) => no_node(watch, false),
        (false, false) => Ok(0),
    }
}

fn no_node(watch: &Watch, failed: bool) -> Result<i32, TopError> {
    if failed {
        return Ok(EXIT_UNREACHABLE);
    }
    writeln!(io::stderr(), "raylet-uring: no node runs (looked in {})", watch.runtime_dir.path.display())?;
    Ok(EXIT_NO_NODE)
}

/// The screen as lines, without colours.
fn text(sample: &Sample) -> Result<String, TopError> {
    let columns = std::env::var("COLUMNS").ok().and_then(|columns| columns.parse().ok()).unwrap_or(TEXT_COLUMNS);
    let lines = screen::lines_wanted(sample).min(TEXT_LINES_MAX);
    let infallible = |never: std::convert::Infallible| -> TopError { match never {} };
    let mut terminal = Terminal::new(TestBackend::new(columns, lines)).map_err(infallible)?;
    terminal.draw(|frame| screen::draw(frame, &screen::View::of(sample))).map_err(infallible)?;
    let buffer = terminal.backend().buffer();
    let mut text = String::new();
    for line in buffer.content.chunks(usize::from(columns.max(1))) {
        let line: String = line.iter().map(|cell| cell.symbol()).collect();
        text.push_str(line.trim_end());
        text.push('\n');
    }
    Ok(text)
}

/// What one look brought.
enum Look {
    Seen(Vec<Sample>),
    Failed(String),
}

/// Draws until `q`. The nodes are asked on a thread of its own, so that keys work while one does not answer.
fn live(watch: Watch) -> Result<i32, TopError> {
    let mut samples = Samples::default();
    let mut problems = Vec::new();
    let (first, failed) = watch.look(&mut samples, &mut problems)?;
    if first.is_empty() {
        io::stderr().write_all(&problems)?;
        return no_node(&watch, failed);
    }
    let (sender, looks) = mpsc::sync_channel(UNSEEN_MAX);
    let interval = watch.interval;
    // It ends with the process, or when nobody listens any more.
    thread::Builder::new().name("top".to_owned()).spawn(move || loop {
        thread::sleep(watch.interval);
        let mut problems = Vec::new();
        let look = match watch.look(&mut samples, &mut problems) {
            Ok((seen, false)) => Look::Seen(seen),
            Ok((_, true)) => Look::Failed(String::from_utf8_lossy(&problems).trim().to_owned()),
            Err(error) => Look::Failed(error.to_string()),
        };
        if sender.send(look).is_err() {
            return;
        }
    })?;
    let mut terminal = ratatui::try_init()?;
    let shown = show(&mut terminal, first, &looks, interval);
    ratatui::try_restore()?;
    shown
}

fn show(
    terminal: &mut ratatui::DefaultTerminal,
    first: Vec<Sample>,
    looks: &mpsc::Receiver<Look>,
    interval: Duration,
) -> Result<i32, TopError> {
    let mut state = State { samples: first, chosen: 0, paused: false, problem: None };
    loop {
        let view = screen::View {
            sample: state.samples.get(state.chosen),
            place: (state.chosen + 1, state.samples.len()),
            interval: Some(interval),
            paused: state.paused,
            problem: state.problem.as_deref(),
        };
        terminal.draw(|frame| screen::draw(frame, &view))?;
        let mut changed = false;
        while !changed {
            match looks.recv_timeout(Duration::ZERO) {
                Ok(look) => changed = state.take(look),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Ok(EXIT_UNREACHABLE),
            }
            if event::poll(KEY_WAIT)? {
                match state.on(&event::read()?) {
                    Reaction::End => return Ok(0),
                    Reaction::Draw => changed = true,
                    Reaction::None => {}
                }
            }
        }
    }
}

/// What a key or a change of the window leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reaction {
    End,
    Draw,
    None,
}

/// What is shown.
struct State {
    samples: Vec<Sample>,
    chosen: usize,
    paused: bool,
    problem: Option<String>,
}

impl State {
    /// Takes in a look; true where there is something new to draw.
    fn take(&mut self, look: Look) -> bool {
        if self.paused {
            return false;
        }
        match look {
            Look::Seen(seen) if seen.is_empty() => self.problem = Some("the node has ended".to_owned()),
            Look::Seen(seen) => {
                // Stay with the node that is looked at, whatever came and went beside it.
                let pid = self.samples.get(self.chosen).map(|sample| sample.status.pid);
                self.chosen = seen.iter().position(|sample| Some(sample.status.pid) == pid).unwrap_or(0);
                self.samples = seen;
                self.problem = None;
            }
            Look::Failed(problem) => self.problem = Some(problem),
        }
        true
    }

    fn on(&mut self, event: &Event) -> Reaction {
        let key = match event {
            Event::Key(key) if key.kind != KeyEventKind::Release => key,
            Event::Resize(..) => return Reaction::Draw,
            _ => return Reaction::None,
        };
        match (key.code, key.modifiers) {
            (KeyCode::Char('q') | KeyCode::Esc, _) | (KeyCode::Char('c'), KeyModifiers::CONTROL) => Reaction::End,
            (KeyCode::Tab, _) if !self.samples.is_empty() => {
                self.chosen = (self.chosen + 1) % self.samples.len();
                Reaction::Draw
            }
            (KeyCode::Char('p'), _) => {
                self.paused = !self.paused;
                Reaction::Draw
            }
            _ => Reaction::None,
        }
    }
}

#[cfg(test)]
mod tests {
    use ratatui::crossterm::event::KeyEvent;

    use super::*;
    use crate::observe::status::NodeStatus;

    fn sample(pid: u32) -> Sample {
        Sample { status: NodeStatus { pid, ..Default::default() }, rates: Vec::new(), flows: Vec::new() }
    }

    fn press(state: &mut State, code: KeyCode) -> Reaction {
        state.on(&Event::Key(KeyEvent::from(code)))
    }

    #[test]
    fn keys_end_pause_and_go_on_to_the_next_node() {
        let mut state = State { samples: vec![sample(1), sample(2)], chosen: 0, paused: false, problem: None };
        assert_eq!((press(&mut state, KeyCode::Tab), state.chosen), (Reaction::Draw, 1));
        assert!(state.take(Look::Seen(vec![sample(2), sample(3)])));
        assert_eq!(state.chosen, 0, "it stays with node 2");
        assert_eq!((press(&mut state, KeyCode::Char('p')), state.paused), (Reaction::Draw, true));
        assert!(!state.take(Look::Seen(vec![sample(4)])), "a paused view does not move");
        press(&mut state, KeyCode::Char('p'));
        assert!(state.take(Look::Seen(Vec::new())));
        assert_eq!((state.samples.len(), state.problem.as_deref()), (2, Some("the node has ended")));
        assert_eq!(press(&mut state, KeyCode::Char('x')), Reaction::None);
        assert_eq!(press(&mut state, KeyCode::Char('q')), Reaction::End);
        let control_c = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
        assert_eq!(state.on(&Event::Key(control_c)), Reaction::End);
    }
}
