//! The log of a node: where it goes, and a filter that can change while the node runs.
//!
//! A node of its own logs to standard error. Under Ray, `--stdout_filepath` names the file that takes the log and standard
//! output (`<session>/logs/raylet.out`), `--stderr_filepath` the one for standard error (`raylet.err`). Ray's log monitor
//! forwards what is in `raylet.err` to drivers, so only what is meant for users may go there. Where standard error is the
//! journal's, each line begins with its priority, as sd-daemon(3) says. SIGHUP opens files again that were moved away.

use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, Writer};
use tracing_subscriber::fmt::writer::BoxMakeWriter;
use tracing_subscriber::fmt::FmtContext;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{fmt, reload, Layer, Registry};

use super::ray_json::RayJsonLine;

/// Rotated files that are kept at most, whatever the environment asks for.
const BACKUPS_MAX: u32 = 1000;

/// What glommio's rings have to say is that buffers for files can't be registered, where little memory may be locked. The node uses
/// none of these; who names glommio in a filter hears of it.
const GLOMMIO_RINGS: &str = "glommio::sys::uring=off";

/// Where the log goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogTarget {
    /// Standard error.
    Stderr,
    /// Ray's files.
    Files {
        /// Takes the log and standard output; `None`: the log goes to standard error.
        stdout: Option<PathBuf>,
        /// Takes standard error; `None`: not redirected.
        stderr: Option<PathBuf>,
        /// When the log file is rotated.
        rotation: Rotation,
    },
}

/// When a log file is rotated, as Ray's C++ processes do it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rotation {
    /// Size in bytes from which on a new file is begun; `None`: never.
    pub max_bytes: Option<u64>,
    /// Files that are kept beside the current one: `raylet.1.out` is the newest of them.
    pub backups: u32,
}

impl Rotation {
    /// From Ray's variables RAY_ROTATION_MAX_BYTES (bytes, 0: never) and RAY_ROTATION_BACKUP_COUNT.
    pub fn from_environment(environment: impl Fn(&str) -> Option<String>) -> Self {
        let number = |name: &str| environment(name).and_then(|text| text.trim().parse::<u64>().ok());
        Rotation {
            max_bytes: number("RAY_ROTATION_MAX_BYTES").filter(|bytes| *bytes > 0),
            backups: number("RAY_ROTATION_BACKUP_COUNT").map_or(1, |n| n.min(u64::from(BACKUPS_MAX)) as u32),
        }
    }
}

/// The form of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For the journal where standard error is the journal's, else text.
    Auto,
    /// Time, level, module, message, fields.
    Text,
    /// One JSON object a line.
    Json,
    /// One JSON object a line, with the members that Ray's C++ processes write (`RAY_BACKEND_LOG_JSON=1`).
    RayJson,
    /// Priority, module, message, fields: the journal adds the time itself.
    Journal,
}

impl LogFormat {
    /// What the setting takes.
    pub const EXPECTED: &'static str = "auto, text, json, ray-json or journal";

    /// Reads the setting.
    pub fn parse(text: &str) -> Option<LogFormat> {
        match text.to_ascii_lowercase().as_str() {
            "auto" => Some(LogFormat::Auto),
            "text" => Some(LogFormat::Text),
            "json" => Some(LogFormat::Json),
            "ray-json" => Some(LogFormat::RayJson),
            "journal" | "journald" => Some(LogFormat::Journal),
            _ => None,
        }
    }

    /// Decides `Auto`. The journal tells in JOURNAL_STREAM the device and inode that it gave as standard error.
    fn decide(self, to_stderr: bool, journal_stream: Option<&str>) -> LogFormat {
        if self != LogFormat::Auto {
            return self;
        }
        let is_journal = || {
            let (device, inode) = journal_stream?.split_once(':')?;
            let stat = rustix::fs::fstat(io::stderr()).ok()?;
            Some((device.parse(), inode.parse()) == (Ok(stat.st_dev), Ok(stat.st_ino)))
        };
        match to_stderr && is_journal() == Some(true) {
            true => LogFormat::Journal,
            false => LogFormat::Text,
        }
    }
}

impl std::fmt::Display for LogFormat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            LogFormat::Auto => "auto",
            LogFormat::Text => "text",
            LogFormat::Json => "json",
            LogFormat::RayJson => "ray-json",
            LogFormat::Journal => "journal",
        })
    }
}

/// Lines for the journal: the priority of syslog, then the text without a time.
struct JournalLine<F>(F);

impl<S, N, F> FormatEvent<S, N> for JournalLine<F>
where
    S: tracing::Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &tracing::Event<'_>,
    ) -> std::fmt::Result {
        let priority = match *event.metadata().level() {
            tracing::Level::ERROR => 3,
            tracing::Level::WARN => 4,
            tracing::Level::INFO => 6,
            _ => 7,
        };
        write!(writer, "<{priority}>")?;
        self.0.format_event(context, writer, event)
    }
}

/// A log that can't be set up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LogError {
    /// A filter that isn't one.
    #[error(
        "log filter {filter:?}: {message}; expected a level or directives like `info,raylet_uring::workers=debug`"
    )]
    Filter {
        /// The filter.
        filter: String,
        /// What is wrong with it.
        message: String,
    },
    /// A file that can't be written.
    #[error("can't open log file {path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Standard output or error can't be redirected.
    #[error("can't redirect {stream} into {path}: {source}")]
    Redirect {
        /// "standard output" or "standard error".
        stream: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Spans can't be exported.
    #[cfg(feature = "otel")]
    #[error("spans can't be exported: {0}")]
    Spans(super::spans::SpansError),
    /// The process has a log already.
    #[error("the log of this process is set up already")]
    Twice,
}

/// Changes the filter of a running node's log. Clones change the same log.
#[derive(Debug, Clone)]
pub struct LogHandle {
    reload: reload::Handle<Targets, Registry>,
    current: Arc<Mutex<String>>,
    file: Option<Arc<LogFile>>,
    stderr: Option<PathBuf>,
    #[cfg(feature = "otel")]
    spans: Option<Arc<super::spans::Spans>>,
}

impl LogHandle {
    /// Sends what is left of spans, where they are exported. The log itself goes on.
    pub fn finish(&self) {
        #[cfg(feature = "otel")]
        if let Some(spans) = &self.spans {
            spans.finish();
        }
    }

    /// The filter in force.
    pub fn filter(&self) -> String {
        self.current.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Opens the log's files again by their names, after somebody moved them away. Without files nothing is to be done.
    ///
    /// # Errors
    /// [`LogError::File`] or [`LogError::Redirect`]; what could not be opened goes on into the old file.
    pub fn reopen(&self) -> Result<(), LogError> {
        if let Some(path) = &self.stderr {
            redirect_stderr(path)?;
        }
        match &self.file {
            Some(file) => file.lock().reopen(),
            None => Ok(()),
        }
    }

    /// Puts another filter in force.
    ///
    /// # Errors
    /// [`LogError::Filter`]; the old filter stays.
    pub fn set_filter(&self, filter: &str) -> Result<(), LogError> {
        let targets = parse_filter(filter)?;
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        self.reload
            .reload(targets)
            .map_err(|error| LogError::Filter { filter: filter.to_owned(), message: error.to_string() })?;
        filter.clone_into(&mut current);
        Ok(())
    }
}

/// Reads a filter. A bare word that is no level is refused: it would be taken for a module, and all of it be logged.
fn parse_filter(filter: &str) -> Result<Targets, LogError> {
    let error = |message: String| LogError::Filter { filter: filter.to_owned(), message };
    let levels = ["error", "warn", "info", "debug", "trace", "off"];
    let is_level = |part: &str| levels.iter().any(|level| level.eq_ignore_ascii_case(part));
    let parts: Vec<&str> = filter.split(',').map(str::trim).collect();
    match parts.iter().find(|part| !part.contains('=') && !is_level(part)) {
        Some(part) => Err(error(format!("{part:?} is no level"))),
        None => {
            let is_named = parts.iter().any(|part| part.starts_with("glommio"));
            let own = if is_named { String::new() } else { format!(",{GLOMMIO_RINGS}") };
            let filter = parts.join(",") + &own;
            filter.parse().map_err(|e: tracing_subscriber::filter::ParseError| error(e.to_string()))
        }
    }
}

/// Whether a text is a filter that [`init`] takes.
pub fn is_filter(filter: &str) -> bool {
    parse_filter(filter).is_ok()
}

/// Sets up the log of this process, and logs panics.
///
/// # Errors
/// [`LogError`]. After an error nothing is redirected but what was named before the failing file.
pub fn init(filter: &str, format: LogFormat, target: LogTarget) -> Result<LogHandle, LogError> {
    let targets = parse_filter(filter)?;
    let (layer, reload) = reload::Layer::new(targets);
    let (file, stderr) = match target {
        LogTarget::Stderr => (None, None),
        LogTarget::Files { stdout, stderr, rotation } => {
            stderr.as_deref().map(redirect_stderr).transpose()?;
            let file = stdout.map(|path| RotatingFile::open(path, rotation, true)).transpose()?;
            (file.map(|file| Arc::new(LogFile(Mutex::new(file)))), stderr)
        }
    };
    let format = format.decide(file.is_none(), std::env::var("JOURNAL_STREAM").ok().as_deref());
    let registry = tracing_subscriber::registry().with(lines(format, file.clone()).with_filter(layer));
    #[cfg(feature = "otel")]
    let (registry, spans) = match super::spans::start() {
        Ok(Some((layer, spans))) => (registry.with(Some(layer)), Some(Arc::new(spans))),
        Ok(None) => (registry.with(None), None),
        Err(error) => return Err(LogError::Spans(error)),
    };
    registry.try_init().map_err(|_| LogError::Twice)?;
    log_panics();
    let current = Arc::new(Mutex::new(filter.to_owned()));
    Ok(LogHandle {
        reload,
        current,
        file,
        stderr,
        #[cfg(feature = "otel")]
        spans,
    })
}

/// What writes lines, into a file or to standard error.
fn lines<S>(format: LogFormat, file: Option<Arc<LogFile>>) -> Box<dyn Layer<S> + Send + Sync>
where
    S: tracing::Subscriber + for<'a> LookupSpan<'a>,
{
    let ansi = file.is_none() && io::stderr().is_terminal();
    let writer = match file {
        Some(file) => BoxMakeWriter::new(file),
        None => BoxMakeWriter::new(io::stderr),
    };
    let layer = fmt::layer().with_writer(writer);
    match format {
        LogFormat::Json => layer.with_ansi(false).json().boxed(),
        LogFormat::RayJson => layer.with_ansi(false).event_format(RayJsonLine::default()).boxed(),
        LogFormat::Journal => {
            let line = fmt::format().without_time().with_level(false).with_ansi(false);
            layer.with_ansi(false).event_format(JournalLine(line)).boxed()
        }
        LogFormat::Auto | LogFormat::Text => layer.with_ansi(ansi).boxed(),
    }
}

fn redirect_stderr(path: &Path) -> Result<(), LogError> {
    let file = open(path)?;
    rustix::stdio::dup2_stderr(&file).map_err(|e| LogError::Redirect {
        stream: "standard error",
        path: path.to_owned(),
        source: e.into(),
    })
}

/// A panic goes to standard error as ever, and to the log, which may be another file.
fn log_panics() {
    let default = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        tracing::error!(thread = std::thread::current().name(), "{info}");
        default(info);
    }));
}

fn open(path: &Path) -> Result<File, LogError> {
    let file = OpenOptions::new().create(true).append(true).open(path);
    file.map_err(|source| LogError::File { path: path.to_owned(), source })
}

/// A file that is renamed and begun anew when it has grown enough.
#[derive(Debug)]
struct RotatingFile {
    path: PathBuf,
    file: File,
    size_bytes: u64,
    rotation: Rotation,
    /// Standard output follows the file.
    is_stdout: bool,
}

impl RotatingFile {
    fn open(path: PathBuf, rotation: Rotation, is_stdout: bool) -> Result<Self, LogError> {
        let file = open(&path)?;
        let size_bytes = file.metadata().map_or(0, |m| m.len());
        let rotating = RotatingFile { path, file, size_bytes, rotation, is_stdout };
        rotating.redirect()?;
        Ok(rotating)
    }

    fn redirect(&self) -> Result<(), LogError> {
        if !self.is_stdout {
            return Ok(());
        }
        rustix::stdio::dup2_stdout(&self.file).map_err(|e| LogError::Redirect {
            stream: "standard output",
            path: self.path.clone(),
            source: e.into(),
        })
    }

    /// Begins to write into whatever has the file's name now, or a new file.
    fn reopen(&mut self) -> Result<(), LogError> {
        self.file = open(&self.path)?;
        self.size_bytes = self.file.metadata().map_or(0, |m| m.len());
        self.redirect()
    }

    /// `raylet.out` to `raylet.3.out`, the names that Ray's C++ log gives and its dashboard knows.
    fn backup(&self, number: u32) -> PathBuf {
        let stem = self.path.file_stem().unwrap_or_default().to_string_lossy();
        let name = match self.path.extension() {
            Some(extension) => format!("{stem}.{number}.{}", extension.to_string_lossy()),
            None => format!("{stem}.{number}"),
        };
        self.path.with_file_name(name)
    }

    /// Begins a new file. Where that fails the old one goes on: a long log is better than none.
    fn rotate(&mut self) -> io::Result<()> {
        for number in (1..self.rotation.backups).rev() {
            match std::fs::rename(self.backup(number), self.backup(number + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        match self.rotation.backups {
            0 => std::fs::remove_file(&self.path)?,
            _ => std::fs::rename(&self.path, self.backup(1))?,
        }
        self.file = OpenOptions::new().create(true).append(true).open(&self.path)?;
        self.redirect().map_err(io::Error::other)
    }
}

/// The file that all threads write into, a line at a time.
#[derive(Debug)]
struct LogFile(Mutex<RotatingFile>);

impl LogFile {
    fn lock(&self) -> MutexGuard<'_, RotatingFile> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Write for &LogFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.lock().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.lock().flush()
    }
}

impl Write for RotatingFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let is_full = |max: u64| self.size_bytes > 0 && self.size_bytes + bytes.len() as u64 > max;
        if self.rotation.max_bytes.is_some_and(is_full) {
            // Zero even after a failure: the next try comes after as many bytes, not with every line.
            self.size_bytes = 0;
            if let Err(error) = self.rotate() {
                writeln!(self.file, "can't rotate {}: {error}", self.path.display())?;
            }
        }
        let written = self.file.write(bytes)?;
        self.size_bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters() {
        for good in ["info", "WARN", "off", "info,raylet_uring::workers=debug", "hyper=off , debug"] {
            assert!(is_filter(good), "{good}");
        }
        for (bad, part) in [("loud", "\"loud\" is no level"), ("", "\"\" is no level"), ("a=loud", "a=loud")] {
            let error = parse_filter(bad).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn what_glommio_says_of_buffers_that_nobody_uses_is_left_out_unless_it_is_asked_for() {
        let rings =
            |filter: &str| parse_filter(filter).unwrap().would_enable("glommio::sys::uring", &tracing::Level::WARN);
        assert!(!rings("info") && !rings("debug,raylet_uring::node=trace") && !rings("off"));
        assert!(rings("info,glommio=debug"));
        let others = parse_filter("info").unwrap();
        assert!(others.would_enable("glommio::executor", &tracing::Level::WARN));
    }

    /// What a format makes of an error and a debug message, in a file.
    fn written(format: LogFormat) -> String {
        let (_dir, file) = rotated(0);
        let path = file.path.clone();
        let file = RotatingFile { rotation: Rotation { max_bytes: None, backups: 0 }, ..file };
        let subscriber = tracing_subscriber::registry().with(lines(format, Some(Arc::new(LogFile(Mutex::new(file))))));
        tracing::subscriber::with_default(subscriber, || {
            tracing::error!(worker = 7, "it ended");
            tracing::debug!("and more");
        });
        std::fs::read_to_string(path).unwrap()
    }

    #[test]
    fn each_format_has_its_lines() {
        let text = written(LogFormat::Text);
        assert!(text.contains("ERROR raylet_uring::observe::log::tests: it ended worker=7\n"), "{text}");
        let json = written(LogFormat::Json);
        let lines: Vec<serde_json::Value> = json.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!((&lines[0]["level"], &lines[0]["fields"]["worker"]), (&"ERROR".into(), &7.into()));
        assert_eq!(lines.len(), 2);
        let json = written(LogFormat::RayJson);
        let first = json.lines().next().unwrap();
        let value: serde_json::Value = serde_json::from_str(first).unwrap();
        let time = value["asctime"].as_str().unwrap();
        let shape: String = time.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
        assert_eq!(shape, "0000-00-00 00:00:00,000");
        let line = value["lineno"].as_u64().unwrap();
        let expected = format!(
            r#"{{"asctime":"{time}","levelname":"E","message":"it ended","component":"raylet","filename":"log.rs","lineno":{line},"worker":7}}"#
        );
        assert_eq!(first, expected);
        assert_eq!(json.lines().count(), 2);
        let journal = written(LogFormat::Journal);
        let expected =
            "<3>raylet_uring::observe::log::tests: it ended worker=7\n<7>raylet_uring::observe::log::tests: and more\n";
        assert_eq!(journal, expected);
    }

    #[test]
    fn formats_are_read_and_the_journal_is_recognised() {
        for format in [LogFormat::Auto, LogFormat::Text, LogFormat::Json, LogFormat::RayJson, LogFormat::Journal] {
            assert_eq!(LogFormat::parse(&format.to_string()), Some(format));
        }
        assert_eq!(LogFormat::parse("xml"), None);
        let stat = rustix::fs::fstat(io::stderr()).unwrap();
        let ours = format!("{}:{}", stat.st_dev, stat.st_ino);
        assert_eq!(LogFormat::Auto.decide(true, Some(&ours)), LogFormat::Journal);
        assert_eq!(LogFormat::Auto.decide(false, Some(&ours)), LogFormat::Text);
        assert_eq!(LogFormat::Json.decide(true, Some(&ours)), LogFormat::Json);
        for other in [None, Some("1:2"), Some("x")] {
            assert_eq!(LogFormat::Auto.decide(true, other), LogFormat::Text);
        }
    }

    #[test]
    fn a_file_that_was_moved_away_is_begun_anew() {
        let (dir, mut file) = rotated(1);
        file.write_all(b"before\n").unwrap();
        std::fs::rename(dir.path().join("raylet.out"), dir.path().join("moved")).unwrap();
        file.write_all(b"b\n").unwrap();
        file.reopen().unwrap();
        file.write_all(b"after 1\n").unwrap();
        let read = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap();
        assert_eq!((read("moved"), read("raylet.out")), ("before\nb\n".to_owned(), "after 1\n".to_owned()));
    }

    #[test]
    fn rotation_as_rays_variables_say() {
        let from = |pairs: &'static [(&str, &str)]| {
            Rotation::from_environment(|n| pairs.iter().find(|p| p.0 == n).map(|p| p.1.to_owned()))
        };
        assert_eq!(from(&[]), Rotation { max_bytes: None, backups: 1 });
        assert_eq!(from(&[("RAY_ROTATION_MAX_BYTES", "0")]).max_bytes, None);
        let both = from(&[("RAY_ROTATION_MAX_BYTES", "100"), ("RAY_ROTATION_BACKUP_COUNT", "3")]);
        assert_eq!(both, Rotation { max_bytes: Some(100), backups: 3 });
    }

    fn rotated(backups: u32) -> (tempfile::TempDir, RotatingFile) {
        let dir = tempfile::tempdir().unwrap();
        let rotation = Rotation { max_bytes: Some(10), backups };
        let file = RotatingFile::open(dir.path().join("raylet.out"), rotation, false).unwrap();
        (dir, file)
    }

    #[test]
    fn files_are_rotated_at_their_size_and_the_oldest_dropped() {
        let (dir, mut file) = rotated(2);
        for line in ["first 9\n", "second\n", "third\n", "fourth\n", "4.5\n"] {
            file.write_all(line.as_bytes()).unwrap();
        }
        let read = |name: &str| std::fs::read_to_string(dir.path().join(name)).ok();
        assert_eq!(read("raylet.out").as_deref(), Some("4.5\n"));
        assert_eq!(read("raylet.1.out").as_deref(), Some("fourth\n"));
        assert_eq!(read("raylet.2.out").as_deref(), Some("third\n"));
        assert_eq!(read("raylet.3.out"), None);
    }

    #[test]
    fn no_backups_and_lines_longer_than_a_file() {
        let (dir, mut file) = rotated(0);
        for line in ["a line longer than a file\n", "next\n"] {
            file.write_all(line.as_bytes()).unwrap();
        }
        assert_eq!(std::fs::read_to_string(dir.path().join("raylet.out")).unwrap(), "next\n");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_rotation_that_fails_leaves_the_log_going() {
        let (dir, mut file) = rotated(1);
        std::fs::create_dir(dir.path().join("raylet.1.out")).unwrap();
        std::fs::write(dir.path().join("raylet.1.out/x"), "").unwrap();
        for line in ["12345678\n", "next\n"] {
            file.write_all(line.as_bytes()).unwrap();
        }
        let text = std::fs::read_to_string(dir.path().join("raylet.out")).unwrap();
        assert!(text.starts_with("12345678\ncan't rotate") && text.ends_with("\nnext\n"), "{text}");
    }
}
