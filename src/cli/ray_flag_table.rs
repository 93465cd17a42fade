//! The table of Ray's flags, and the pages that its help flags print.

use std::fmt::Write as _;

use super::gflags::{flag, Flag, Kind, Values, BUILT_IN};

/// The raylet's own flags (Ray 2.60: last block of `raylet --helpfull`).
pub const RAY_FLAGS: &[Flag] = &[
    flag("cgroup_path", Kind::String, "", "cgroup v2 directory under which system and worker processes are kept apart"),
    flag("cluster_id", Kind::String, "", "the cluster's id: 56 hexadecimal digits (required)"),
    flag("cpp_worker_command", Kind::String, "", "command that starts a C++ worker"),
    flag("dashboard_agent_command", Kind::String, "", "command that starts the dashboard agent; empty: none"),
    flag("dashboard_agent_listen_port", Kind::Int32, "0", "HTTP port of the dashboard agent; 0: the agent chooses"),
    flag("enable_resource_isolation", Kind::Bool, "false", "keep system and worker processes apart through cgroup v2"),
    flag("fallback_directory", Kind::String, "", "directory for objects that the store has no room for"),
    flag("gcs_address", Kind::String, "", "host:port of the GCS (required)"),
    flag("head", Kind::Bool, "false", "this is the head node"),
    flag("huge_pages", Kind::Bool, "false", "back the object store with huge pages of 2 MiB"),
    flag("java_worker_command", Kind::String, "", "command that starts a Java worker"),
    flag("labels", Kind::String, "", "the node's labels: a JSON object of strings"),
    flag("log_dir", Kind::String, "", "directory of the session's logs"),
    flag("max_worker_port", Kind::Int32, "0", "highest port that workers bind; 0: 65535 where there is a lowest"),
    flag("maximum_startup_concurrency", Kind::Int32, "1", "workers that may start at once"),
    flag("metrics_agent_port", Kind::Int32, "-1", "gRPC port of the dashboard agent; 0 or -1: the agent chooses"),
    flag("metrics_export_port", Kind::Int32, "1", "Prometheus port of the dashboard agent; 0: the agent chooses"),
    flag("min_worker_port", Kind::Int32, "0", "lowest port that workers bind; 0: any port"),
    flag("native_library_path", Kind::String, "", "directory of the libraries of C++ workers"),
    flag("node_id", Kind::String, "", "the node's id: 56 hexadecimal digits (required)"),
    flag("node_ip_address", Kind::String, "", "the address that this node announces (required)"),
    flag("node_manager_port", Kind::Int32, "-1", "TCP port of the node manager; 0 or -1: any port"),
    flag("node_name", Kind::String, "", "the name that the user gave to the node"),
    flag("num_prestart_python_workers", Kind::Int32, "0", "Python workers to start before they are asked for"),
    flag("object_manager_port", Kind::Int32, "-1", "TCP port of the object manager; 0 or -1: any port"),
    flag("object_store_memory", Kind::Int64, "-1", "size of the object store in bytes (required)"),
    flag("plasma_directory", Kind::String, "/dev/shm", "directory in which stock Ray keeps the object store"),
    flag("python_worker_command", Kind::String, "", "command that starts a Python worker (required)"),
    flag("ray_debugger_external", Kind::Int32, "0", "1: debuggers of workers listen on every address"),
    flag("raylet_socket_name", Kind::String, "", "Unix socket for workers and drivers (required)"),
    flag("resource_dir", Kind::String, "", "directory of the session's runtime environments"),
    flag("runtime_env_agent_command", Kind::String, "", "command that starts the runtime-env agent; empty: none"),
    flag("runtime_env_agent_port", Kind::Int32, "0", "HTTP port of the runtime-env agent; 0: the agent chooses"),
    flag("session_dir", Kind::String, "", "directory of the session (required)"),
    flag("session_name", Kind::String, "", "name of the session"),
    flag(
        "static_resource_list",
        Kind::String,
        "",
        "the node's resources: name,quantity,name,quantity (bytes for memory)",
    ),
    flag("stderr_filepath", Kind::String, "", "file for standard error; empty: not redirected"),
    flag("stdout_filepath", Kind::String, "", "file for standard output and the log; empty: not redirected"),
    flag("store_socket_name", Kind::String, "", "Unix socket of the object store (required)"),
    flag("system_pids", Kind::String, "", "processes of the system, for resource isolation (comma-separated)"),
    flag(
        "system_reserved_cpu_weight",
        Kind::Int64,
        "-1",
        "cpu.weight of system processes, 1 to 10000, for resource isolation",
    ),
    flag(
        "system_reserved_memory_bytes",
        Kind::Int64,
        "-1",
        "memory.min of system processes in bytes, for resource isolation",
    ),
    flag("temp_dir", Kind::String, "", "Ray's temporary directory"),
    flag("worker_port_list", Kind::String, "", "ports that workers bind (comma-separated); wins over the range"),
];

/// The text that a help or version flag asks for.
pub(super) fn answer(values: &Values) -> Option<String> {
    let built_in = ["helpfull", "help"].iter().any(|f| values.is_on(f));
    let own = ["helpshort", "helppackage"].iter().any(|f| values.is_on(f));
    if let Some(word) = values.given("tab_completion_word").filter(|w| !w.is_empty()) {
        let word = word.trim_start_matches('-');
        let hits = RAY_FLAGS.iter().chain(BUILT_IN).filter(|f| f.name.starts_with(word));
        return Some(hits.map(|f| format!("--{}\n", f.name)).collect());
    }
    if values.is_on("version") {
        return Some(format!("raylet (raylet-uring {}, for Ray 2.60.0)\n", env!("CARGO_PKG_VERSION")));
    }
    if built_in {
        return Some(help(RAY_FLAGS.iter().chain(BUILT_IN)));
    }
    if own || values.given("helpon").is_some_and(|source| source == "main") {
        return Some(help(RAY_FLAGS.iter()));
    }
    if let Some(part) = values.given("helpmatch").or(values.given("helpon")) {
        return Some(help(RAY_FLAGS.iter().chain(BUILT_IN).filter(|f| f.name.contains(part))));
    }
    values.is_on("helpxml").then(|| help_xml(RAY_FLAGS.iter().chain(BUILT_IN)))
}

fn help<'a>(flags: impl Iterator<Item = &'a Flag>) -> String {
    let mut text =
        String::from("raylet: the node service of a Ray cluster (raylet-uring). Flags take one dash or two.\n\n");
    for flag in flags {
        let default = if flag.kind == Kind::String { format!("{:?}", flag.default) } else { flag.default.to_owned() };
        let _ = writeln!(text, "    -{} ({}) type: {} default: {default}", flag.name, flag.help, flag.kind.name());
    }
    text
}

fn help_xml<'a>(flags: impl Iterator<Item = &'a Flag>) -> String {
    let escape = |text: &str| text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    let mut text = String::from("<?xml version=\"1.0\"?>\n<AllFlags>\n<program>raylet</program>\n");
    for flag in flags {
        let _ = writeln!(
            text,
            "<flag><name>{}</name><meaning>{}</meaning><default>{}</default><type>{}</type></flag>",
            flag.name,
            escape(flag.help),
            escape(flag.default),
            flag.kind.name()
        );
    }
    text.push_str("</AllFlags>\n");
    text
}
