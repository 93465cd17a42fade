//! Shell completions and man pages, made from the command line's own description for packages.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use clap::CommandFactory;
use clap_complete::Shell;

use super::own::Cli;

/// Shells that completions are made for, by the names of their files in a package.
const SHELLS: [(Shell, &str); 3] =
    [(Shell::Bash, "raylet-uring.bash"), (Shell::Zsh, "_raylet-uring"), (Shell::Fish, "raylet-uring.fish")];

/// A file that can't be made.
#[derive(Debug, thiserror::Error)]
#[error("{path} can't be written: {source}")]
pub struct GenerateError {
    path: PathBuf,
    source: io::Error,
}

/// Writes completions and a man page for each command into `directory`. Gives the exit status 0.
///
/// # Errors
/// [`GenerateError`].
pub fn generate(directory: &Path) -> Result<i32, GenerateError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| GenerateError { path, source }
    };
    fs::create_dir_all(directory).map_err(failed(directory))?;
    let mut command = Cli::command();
    for (shell, name) in SHELLS {
        let mut text = Vec::new();
        clap_complete::generate(shell, &mut command, "raylet-uring", &mut text);
        let path = directory.join(name);
        fs::write(&path, text).map_err(failed(&path))?;
    }
    clap_mangen::generate_to(command, directory).map_err(failed(directory))?;
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_visible_command_is_completed_and_described() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(generate(directory.path()).unwrap(), 0);
        let read =
            |name: &str| fs::read_to_string(directory.path().join(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
        let completions: Vec<String> = SHELLS.iter().map(|(_, name)| read(name)).collect();
        for command in Cli::command().get_subcommands().filter(|command| !command.is_hide_set()) {
            let name = command.get_name();
            assert!(completions.iter().all(|text| text.contains(name)), "{name}");
            let page = read(&format!("raylet-uring-{name}.1"));
            assert!(page.contains(".SH OPTIONS"), "{page}");
        }
        assert!(read("raylet-uring.1").contains("hugepages"));
        let error = generate(Path::new("/proc/no/such")).unwrap_err().to_string();
        assert!(error.contains("/proc/no/such"), "{error}");
    }
}
