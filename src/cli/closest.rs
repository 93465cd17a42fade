//! The known name that a mistyped one was probably meant to be.

/// Names less alike than this (Jaro-Winkler, 0 to 1) are no help.
const LIKENESS_MIN: f64 = 0.75;

/// The known name that looks most like `name`, where one does.
pub fn closest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    known
        .map(|candidate| (strsim::jaro_winkler(name, candidate), candidate))
        .filter(|(likeness, _)| *likeness >= LIKENESS_MIN)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::closest;

    #[test]
    fn a_slip_finds_its_name_and_nonsense_finds_none() {
        let known = ["raylet_socket_name", "store_socket_name", "node_id"];
        assert_eq!(closest("raylet_socket_nme", known.into_iter()), Some("raylet_socket_name"));
        assert_eq!(closest("nodeid", known.into_iter()), Some("node_id"));
        assert_eq!(closest("zzzz", known.into_iter()), None);
    }
}
