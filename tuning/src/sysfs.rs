//! Reading the kernel's small text files.

use std::fs;
use std::path::Path;

/// The file's text without the final newline; `None` if it can't be read, which callers treat as "the kernel doesn't say".
pub(crate) fn text(path: impl AsRef<Path>) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

/// The file's text as a number.
pub(crate) fn number(path: impl AsRef<Path>) -> Option<u64> {
    text(path)?.parse().ok()
}

/// The value in bytes of a `Name:  123 kB` line, as in /proc/meminfo, a node's meminfo or smaps.
pub(crate) fn kib_line_bytes(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let (_, value) = line.split_once(name).filter(|(before, _)| before.is_empty() || before.ends_with(' '))?;
        let value = value.strip_prefix(':')?.trim();
        value.strip_suffix("kB").map_or(value, str::trim_end).parse::<u64>().ok().map(|kib| kib << 10)
    })
}

/// A kernel list such as `0-3,8`; `None` if it is not one.
pub(crate) fn index_list(text: &str) -> Option<Vec<u32>> {
    let mut indices = Vec::new();
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (first.parse::<u32>().ok()?, last.parse::<u32>().ok()?);
        indices.extend(first..=last);
    }
    Some(indices)
}

/// The selected word of a kernel choice file: `never` of `always madvise [never]`.
pub(crate) fn selected(text: &str) -> Option<&str> {
    let (_, rest) = text.split_once('[')?;
    rest.split_once(']').map(|(word, _)| word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_lines_and_choices_are_read() {
        assert_eq!(index_list("0-2,5"), Some(vec![0, 1, 2, 5]));
        assert_eq!(index_list(""), Some(vec![]));
        assert_eq!(index_list("a-b"), None);
        assert_eq!(selected("always inherit [never]"), Some("never"));
        assert_eq!(selected("never"), None);
        let meminfo = "MemTotal:       2 kB\nNode 0 MemFree:  3 kB\nShmemPmdMapped:     2048 kB\n";
        assert_eq!(kib_line_bytes(meminfo, "MemTotal"), Some(2048));
        assert_eq!(kib_line_bytes(meminfo, "MemFree"), Some(3072));
        assert_eq!(kib_line_bytes(meminfo, "PmdMapped"), None);
    }
}
