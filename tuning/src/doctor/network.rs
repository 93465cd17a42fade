//! TCP: buffers, backlog and ports.

use std::io;

use super::{mib, Check, Subject};

/// Largest TCP buffer that lets one stream fill 100 Gb/s over a round trip of a millisecond.
pub(crate) const TCP_BUFFER_WANTED_BYTES: u64 = 16 << 20;
/// Connections that may wait to be accepted.
pub(crate) const BACKLOG_WANTED: u64 = 1024;
/// Ports for outgoing connections and for workers' servers: each worker of Ray takes some.
const PORTS_WANTED: u64 = 10_000;

pub(super) fn tcp_buffers(subject: &Subject) -> Check {
    let name = "TCP buffers";
    let text = |file: &str| subject.host.text(format!("/proc/sys/net/ipv4/{file}"));
    let third = |file: &str| text(file)?.split_whitespace().nth(2)?.parse::<u64>().ok();
    // The least and the usual size stay as they are, as `tune` leaves them.
    let wider = |file: &str| {
        let text = text(file).unwrap_or_default();
        let first: Vec<&str> = text.split_whitespace().take(2).collect();
        format!("sysctl -w net.ipv4.{file}='{} {TCP_BUFFER_WANTED_BYTES}'", first.join(" "))
    };
    let sizes = [("tcp_rmem", third("tcp_rmem")), ("tcp_wmem", third("tcp_wmem"))];
    let small: Vec<(&str, u64)> = sizes
        .iter()
        .filter_map(|(file, size)| Some((*file, (*size)?)))
        .filter(|(_, size)| *size < TCP_BUFFER_WANTED_BYTES)
        .collect();
    let shown: Vec<String> =
        sizes.iter().filter_map(|(file, size)| Some(format!("{file} up to {}", mib((*size)?)))).collect();
    if small.is_empty() {
        return Check::ok(name, shown.join(", "));
    }
    let least = small.iter().map(|(_, size)| *size).min().unwrap_or(0);
    Check::warning(
        name,
        shown.join(", "),
        format!("one stream between nodes 1 ms apart carries at most {:.1} GB/s", least as f64 / 1e6),
        small.iter().map(|(file, _)| wider(file)),
    )
}

pub(super) fn backlog(subject: &Subject) -> Check {
    let name = "backlog";
    match subject.host.number("/proc/sys/net/core/somaxconn") {
        Some(limit) if limit < BACKLOG_WANTED => Check::warning(
            name,
            format!("{limit} connections may wait to be accepted"),
            "when many workers start at a time, some are refused and try again a second later",
            [format!("sysctl -w net.core.somaxconn={BACKLOG_WANTED}")],
        ),
        limit => Check::ok(name, limit.map_or("not told".to_owned(), |limit| format!("{limit} connections"))),
    }
}

pub(super) fn ports(subject: &Subject) -> Check {
    let name = "ports";
    let mut taken = Vec::new();
    let mut mend = Vec::new();
    for &port in subject.ports {
        if let Err(error) = subject.host.bind(port) {
            let why = match error.kind() {
                io::ErrorKind::AddrInUse => "in use".to_owned(),
                _ => error.to_string(),
            };
            taken.push(format!("{port} ({why})"));
            mend.push(format!("ss -ltnp 'sport = :{port}'"));
        }
    }
    if taken.is_empty() {
        let ports: Vec<String> = subject.ports.iter().map(u16::to_string).collect();
        return Check::ok(name, format!("free: {}", ports.join(", ")));
    }
    let costs = "a cluster that runs already, or one that can't start with its usual ports";
    Check::warning(name, format!("not free: {}", taken.join(", ")), costs, mend)
}

pub(super) fn port_range(subject: &Subject) -> Check {
    let name = "port range";
    let text = subject.host.text("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let mut ends = text.split_whitespace().filter_map(|end| end.parse::<u64>().ok());
    let (Some(first), Some(last)) = (ends.next(), ends.next()) else {
        return Check::ok(name, "not told");
    };
    let count = last.saturating_sub(first) + 1;
    if count >= PORTS_WANTED {
        return Check::ok(name, format!("{first} to {last}"));
    }
    Check::warning(
        name,
        format!("{first} to {last}, {count} ports"),
        "each worker takes several ports; when they run out, workers can't start",
        ["sysctl -w net.ipv4.ip_local_port_range='32768 60999'".to_owned()],
    )
}
