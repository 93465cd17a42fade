//! The syntax of gflags, which Ray's executables use: one or two dashes, `-` and `_` alike in names, booleans bare or
//! negated by a leading `no`, values after `=` or as the next argument, and the flags that gflags itself adds.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use super::closest::closest;

/// How deep `--flagfile` may name further flag files, so that a file which names itself is an error, not a hang.
pub const MAX_FLAGFILE_DEPTH: usize = 8;

/// What a flag takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `--x`, `--nox`, `--x=true`.
    Bool,
    /// A decimal number or `0x` and hexadecimal, 32 bits.
    Int32,
    /// A decimal number or `0x` and hexadecimal, 64 bits.
    Int64,
    /// Anything.
    String,
}

impl Kind {
    /// The word that gflags uses in its help.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Bool => "bool",
            Kind::Int32 => "int32",
            Kind::Int64 => "int64",
            Kind::String => "string",
        }
    }

    fn expected(self) -> &'static str {
        match self {
            Kind::Bool => "true or false",
            Kind::Int32 => "a whole number of 32 bits",
            Kind::Int64 => "a whole number of 64 bits",
            Kind::String => "a value",
        }
    }
}

/// One flag.
#[derive(Debug, Clone, Copy)]
pub struct Flag {
    /// The name, with underscores.
    pub name: &'static str,
    /// What it takes.
    pub kind: Kind,
    /// The value where the flag isn't given, as text.
    pub default: &'static str,
    /// One line for the help.
    pub help: &'static str,
}

/// The flags that gflags adds to every executable (Ray 2.60: first three blocks of `raylet --helpfull`).
pub const BUILT_IN: &[Flag] = &[
    flag("flagfile", Kind::String, "", "read further flags from these files (comma-separated), one flag a line"),
    flag("fromenv", Kind::String, "", "take these flags (comma-separated) from the environment variables FLAGS_<name>"),
    flag("tryfromenv", Kind::String, "", "as --fromenv, but a missing variable is no error"),
    flag("undefok", Kind::String, "", "names (comma-separated) that may be given although there is no such flag"),
    flag("tab_completion_columns", Kind::Int32, "80", "width of the answer to --tab_completion_word"),
    flag("tab_completion_word", Kind::String, "", "print the flags that begin like this word, and exit"),
    flag("help", Kind::Bool, "false", "print all flags, and exit"),
    flag("helpfull", Kind::Bool, "false", "print all flags, and exit"),
    flag("helpshort", Kind::Bool, "false", "print the raylet's own flags, and exit"),
    flag("helppackage", Kind::Bool, "false", "print the raylet's own flags, and exit"),
    flag("helpmatch", Kind::String, "", "print the flags whose name contains this text, and exit"),
    flag("helpon", Kind::String, "", "print the flags of this source (main), and exit"),
    flag("helpxml", Kind::Bool, "false", "print all flags as XML, and exit"),
    flag("version", Kind::Bool, "false", "print the version, and exit"),
];

/// A table row.
pub const fn flag(name: &'static str, kind: Kind, default: &'static str, help: &'static str) -> Flag {
    Flag { name, kind, default, help }
}

/// A command line that can't be used. Each says what was expected, what was there, and what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FlagError {
    /// No flag of this name.
    #[error("unknown flag --{name}{}", hint(.closest))]
    Unknown {
        /// The name as given.
        name: String,
        /// The known flag that looks most like it.
        closest: Option<&'static str>,
    },
    /// A word that belongs to no flag.
    #[error("unexpected argument {argument:?}: every argument is a flag, `--name=value`; quote a value with spaces as a whole")]
    Unexpected {
        /// The word.
        argument: String,
    },
    /// The last flag has no value.
    #[error("--{name} has no value: expected {expected} after `=` or as the next argument")]
    MissingValue {
        /// The flag.
        name: &'static str,
        /// What it takes.
        expected: &'static str,
    },
    /// A value that isn't what the flag takes.
    #[error("--{name}: expected {expected}, got {got:?}")]
    BadValue {
        /// The flag.
        name: &'static str,
        /// What it takes.
        expected: String,
        /// What was given.
        got: String,
    },
    /// Flags without which a raylet can't work.
    #[error("missing flags: {}. Ray passes them to its raylet; to run a node without Ray, call the binary by its own name, raylet-uring", list(.names))]
    Missing {
        /// Their names.
        names: Vec<&'static str>,
    },
    /// Flags that don't fit together.
    #[error("{0}")]
    Conflict(String),
    /// A flag file that can't be read.
    #[error("--flagfile: can't read {path}: {source}")]
    FlagFile {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Flag files that name one another.
    #[error("--flagfile: {path} is nested more than {MAX_FLAGFILE_DEPTH} deep; does a file name itself?")]
    FlagFileDepth {
        /// The file.
        path: PathBuf,
    },
    /// `--fromenv` names a variable that isn't set.
    #[error("--fromenv: the environment has no {variable}; set it, or use --tryfromenv")]
    FromEnvironment {
        /// The variable.
        variable: String,
    },
}

fn hint(closest: &Option<&'static str>) -> String {
    match closest {
        Some(name) => format!("; did you mean --{name}? --helpfull lists all"),
        None => "; --helpfull lists all".to_owned(),
    }
}

fn list(names: &[&'static str]) -> String {
    names.iter().map(|n| format!("--{n}")).collect::<Vec<_>>().join(", ")
}

/// The values of the flags that were given, as text that fits the flag's kind.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Values {
    given: BTreeMap<&'static str, String>,
}

impl Values {
    /// The text of a flag where it was given.
    pub fn given(&self, name: &str) -> Option<&str> {
        self.given.get(name).map(String::as_str)
    }

    /// Whether a boolean flag is on.
    pub fn is_on(&self, name: &str) -> bool {
        self.given(name) == Some("true")
    }
}

/// Looks up `FLAGS_<name>` for `--fromenv`.
pub type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Reads a command line (without the program's name) against a table of flags. The last of repeated flags wins.
///
/// # Errors
/// Everything in [`FlagError`] but `Missing` and `Conflict`, which are for the caller to find.
pub fn parse(table: &[Flag], arguments: &[String], environment: Environment) -> Result<Values, FlagError> {
    let mut reader =
        Reader { table, environment, values: Values::default(), unknown: Vec::new(), tolerated: BTreeSet::new() };
    reader.read(arguments, 0)?;
    let Reader { values, unknown, tolerated, .. } = reader;
    match unknown.into_iter().find(|name| !tolerated.contains(name)) {
        Some(name) => {
            let names = table.iter().chain(BUILT_IN).map(|f| f.name);
            Err(FlagError::Unknown { closest: closest(&name, names), name })
        }
        None => Ok(values),
    }
}

struct Reader<'a> {
    table: &'a [Flag],
    environment: Environment<'a>,
    values: Values,
    /// Unknown flags, reported at the end because a later `--undefok` may name them.
    unknown: Vec<String>,
    tolerated: BTreeSet<String>,
}

impl Reader<'_> {
    fn find(&self, name: &str) -> Option<Flag> {
        self.table.iter().chain(BUILT_IN).find(|f| f.name == name).copied()
    }

    fn read(&mut self, arguments: &[String], depth: usize) -> Result<(), FlagError> {
        let mut rest = arguments.iter();
        while let Some(argument) = rest.next() {
            let Some(body) = argument.strip_prefix("--").or_else(|| argument.strip_prefix('-')) else {
                return Err(FlagError::Unexpected { argument: argument.clone() });
            };
            if body.is_empty() {
                // "--" ends the flags, and a raylet takes nothing else.
                return match rest.next() {
                    Some(extra) => Err(FlagError::Unexpected { argument: extra.clone() }),
                    None if argument == "--" => Ok(()),
                    None => Err(FlagError::Unexpected { argument: argument.clone() }),
                };
            }
            let (name, value) = match body.split_once('=') {
                Some((name, value)) => (name.replace('-', "_"), Some(value.to_owned())),
                None => (body.replace('-', "_"), None),
            };
            let (flag, value) = match (self.find(&name), value) {
                (Some(flag), Some(value)) => (flag, value),
                (Some(flag), None) if flag.kind == Kind::Bool => (flag, "true".to_owned()),
                (Some(flag), None) => {
                    let missing = FlagError::MissingValue { name: flag.name, expected: flag.kind.expected() };
                    (flag, rest.next().ok_or(missing)?.clone())
                }
                (None, None) => match name.strip_prefix("no").and_then(|n| self.find(n)) {
                    Some(flag) if flag.kind == Kind::Bool => (flag, "false".to_owned()),
                    _ => {
                        self.unknown.push(name);
                        continue;
                    }
                },
                (None, Some(_)) => {
                    self.unknown.push(name);
                    continue;
                }
            };
            self.set(flag, value, depth)?;
        }
        Ok(())
    }

    fn set(&mut self, flag: Flag, value: String, depth: usize) -> Result<(), FlagError> {
        let value = normal_form(flag, value)?;
        match flag.name {
            "flagfile" => self.read_flag_files(&value, depth)?,
            "fromenv" => self.read_environment(&value, true, depth)?,
            "tryfromenv" => self.read_environment(&value, false, depth)?,
            "undefok" => {
                for name in names_in(&value) {
                    self.tolerated.insert(format!("no{name}"));
                    self.tolerated.insert(name);
                }
            }
            _ => {
                self.values.given.insert(flag.name, value);
            }
        }
        Ok(())
    }

    fn read_flag_files(&mut self, files: &str, depth: usize) -> Result<(), FlagError> {
        for path in files.split(',').filter(|f| !f.is_empty()).map(PathBuf::from) {
            if depth >= MAX_FLAGFILE_DEPTH {
                return Err(FlagError::FlagFileDepth { path });
            }
            let text = std::fs::read_to_string(&path).map_err(|source| FlagError::FlagFile { path, source })?;
            let flags: Vec<String> =
                text.lines().map(str::trim).filter(|l| l.starts_with('-')).map(str::to_owned).collect();
            self.read(&flags, depth + 1)?;
        }
        Ok(())
    }

    fn read_environment(&mut self, names: &str, must_exist: bool, depth: usize) -> Result<(), FlagError> {
        for name in names_in(names) {
            let Some(flag) = self.find(&name) else {
                self.unknown.push(name);
                continue;
            };
            let variable = format!("FLAGS_{name}");
            match (self.environment)(&variable) {
                Some(value) => self.set(flag, value, depth)?,
                None if must_exist => return Err(FlagError::FromEnvironment { variable }),
                None => {}
            }
        }
        Ok(())
    }
}

fn names_in(list: &str) -> impl Iterator<Item = String> + '_ {
    list.split(',').map(str::trim).filter(|n| !n.is_empty()).map(|n| n.trim_start_matches('-').replace('-', "_"))
}

/// Checks a value against its flag's kind and brings it to one form: "true"/"false", or a decimal number.
fn normal_form(flag: Flag, value: String) -> Result<String, FlagError> {
    let bad = |got: &str| FlagError::BadValue {
        name: flag.name,
        expected: flag.kind.expected().to_owned(),
        got: got.to_owned(),
    };
    match flag.kind {
        Kind::String => Ok(value),
        Kind::Bool => match value.to_ascii_lowercase().as_str() {
            "1" | "t" | "true" | "y" | "yes" => Ok("true".to_owned()),
            "0" | "f" | "false" | "n" | "no" => Ok("false".to_owned()),
            _ => Err(bad(&value)),
        },
        Kind::Int32 | Kind::Int64 => {
            let number = integer(value.trim_start()).ok_or_else(|| bad(&value))?;
            if flag.kind == Kind::Int32 && i32::try_from(number).is_err() {
                return Err(bad(&value));
            }
            Ok(number.to_string())
        }
    }
}

/// Numbers as gflags reads them: decimal, or hexadecimal after `0x`, with a sign.
fn integer(text: &str) -> Option<i64> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if !digits.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    let magnitude = match digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")) {
        Some(hex) => i128::from_str_radix(hex, 16).ok()?,
        None => digits.parse::<i128>().ok()?,
    };
    i64::try_from(if negative { -magnitude } else { magnitude }).ok()
}

#[cfg(test)]
#[path = "gflags_tests.rs"]
mod tests;
