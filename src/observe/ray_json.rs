//! Log lines in the form that Ray's C++ processes write with `RAY_BACKEND_LOG_JSON=1`: one JSON object each, with the members
//! `asctime` (local time), `levelname` (its first letter), `message`, `component`, `filename`, `lineno`, and then the fields of
//! the message (seen in what Ray 2.60's raylet writes).

use std::fmt;

use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, Writer};
use tracing_subscriber::fmt::time::{ChronoLocal, FormatTime};
use tracing_subscriber::fmt::FmtContext;
use tracing_subscriber::registry::LookupSpan;

/// Ray's name for whatever a raylet says.
const COMPONENT: &str = "raylet";

/// Writes each event as one line of Ray's JSON.
pub struct RayJsonLine {
    time: ChronoLocal,
}

impl Default for RayJsonLine {
    fn default() -> Self {
        Self { time: ChronoLocal::new("%Y-%m-%d %H:%M:%S,%3f".to_owned()) }
    }
}

impl<S, N> FormatEvent<S, N> for RayJsonLine
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let metadata = event.metadata();
        writer.write_str("{\"asctime\":\"")?;
        self.time.format_time(&mut writer)?;
        write!(writer, "\",\"levelname\":\"{}\"", letter(*metadata.level()))?;
        let file = metadata.file().and_then(|path| path.rsplit('/').next());
        member(&mut writer, "message", &Value::String(fields.message))?;
        member(&mut writer, "component", &COMPONENT.into())?;
        member(&mut writer, "filename", &file.unwrap_or(metadata.target()).into())?;
        member(&mut writer, "lineno", &metadata.line().into())?;
        for (name, value) in &fields.others {
            member(&mut writer, name, value)?;
        }
        writeln!(writer, "}}")
    }
}

/// The letter by which Ray's log names a level (spdlog's short names).
fn letter(level: Level) -> char {
    match level {
        Level::ERROR => 'E',
        Level::WARN => 'W',
        Level::INFO => 'I',
        Level::DEBUG => 'D',
        Level::TRACE => 'T',
    }
}

fn member(writer: &mut Writer<'_>, name: &str, value: &Value) -> fmt::Result {
    write!(writer, ",{}:{value}", Value::from(name))
}

/// What an event says.
#[derive(Default)]
struct Fields {
    message: String,
    others: Map<String, Value>,
}

impl Fields {
    fn put(&mut self, field: &Field, value: impl Into<Value>) {
        self.others.insert(field.name().to_owned(), value.into());
    }
}

impl Visit for Fields {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value);
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "message" => value.clone_into(&mut self.message),
            _ => self.put(field, value),
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.record_str(field, &format!("{value:?}"));
    }
}
