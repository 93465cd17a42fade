use super::super::gflags::BUILT_IN;
use super::*;

const ID: &str = "540ade94a7ad625d7ba123d8e26d778f2b88a0db882b5c17c764113c";

/// The command line that `ray.init()` of Ray 2.60 makes (services.py start_raylet), with shorter commands.
fn stock() -> Vec<String> {
    [
        "--raylet_socket_name=/tmp/ray/s/sockets/raylet",
        "--store_socket_name=/tmp/ray/s/sockets/plasma_store",
        "--object_manager_port=0",
        "--min_worker_port=0",
        "--max_worker_port=0",
        "--node_manager_port=0",
        &format!("--node_id={ID}"),
        "--node_ip_address=192.0.2.2",
        "--maximum_startup_concurrency=2",
        "--static_resource_list=node:192.0.2.2,1.0,node:__internal_head__,1.0,CPU,2,memory,22482653184,object_store_memory,209715200",
        "--python_worker_command=/usr/bin/python3 setup.py \"/a dir/default_worker.py\" --metrics-agent-port=0 RAY_WORKER_DYNAMIC_OPTION_PLACEHOLDER",
        "--java_worker_command=",
        "--cpp_worker_command=",
        "--native_library_path=/ray/cpp/lib",
        "--temp_dir=/tmp/ray",
        "--session_dir=/tmp/ray/s",
        "--log_dir=/tmp/ray/s/logs",
        "--resource_dir=/tmp/ray/s/runtime_resources",
        "--metrics-agent-port=0",
        "--metrics_export_port=0",
        "--runtime_env_agent_port=0",
        "--object_store_memory=209715200",
        "--plasma_directory=/dev/shm",
        "--fallback_directory=/tmp/ray/s",
        "--ray-debugger-external=0",
        "--gcs-address=192.0.2.2:42969",
        "--session-name=s",
        "--labels={\"ray.io/zone\": \"a\"}",
        &format!("--cluster-id={ID}"),
        "--stdout_filepath=/tmp/ray/s/logs/raylet.out",
        "--stderr_filepath=/tmp/ray/s/logs/raylet.err",
        "--head",
        "--num_prestart_python_workers=2",
        "--dashboard_agent_command=/usr/bin/python3 agent.py --grpc-port=0",
        "--runtime_env_agent_command=/usr/bin/python3 main.py",
        "--node-name=192.0.2.2",
    ]
    .map(str::to_owned)
    .to_vec()
}

fn with(extra: &[&str]) -> Result<RayFlags, FlagError> {
    let arguments: Vec<String> = stock().into_iter().chain(extra.iter().map(|a| (*a).to_owned())).collect();
    match RayFlags::parse(&arguments, &|_| None)? {
        RayRequest::Run(flags) => Ok(*flags),
        RayRequest::Print(text) => panic!("printed {text}"),
    }
}

fn error(extra: &[&str]) -> String {
    with(extra).unwrap_err().to_string()
}

#[test]
fn the_command_line_of_stock_ray() {
    let flags = with(&[]).unwrap();
    assert_eq!(flags.raylet_socket_name, PathBuf::from("/tmp/ray/s/sockets/raylet"));
    assert_eq!((flags.node_id[0], flags.node_id[27]), (0x54, 0x3c));
    assert_eq!(flags.node_ip_address.to_string(), "192.0.2.2");
    assert_eq!(flags.gcs_address, "192.0.2.2:42969");
    assert_eq!(flags.resources["CPU"], 2.0);
    assert_eq!(flags.resources["memory"], 22482653184.0);
    assert_eq!(flags.resources["node:__internal_head__"], 1.0);
    assert_eq!(flags.resources.len(), 5);
    assert_eq!(flags.labels["ray.io/zone"], "a");
    assert_eq!(flags.python_worker_command[2], "/a dir/default_worker.py");
    assert_eq!(flags.python_worker_command.len(), 5);
    assert!(flags.java_worker_command.is_empty());
    assert_eq!(flags.object_store_memory_bytes, 209715200);
    assert_eq!(flags.worker_ports, WorkerPorts::Any);
    assert!(flags.head && !flags.huge_pages && !flags.ray_debugger_external);
    assert_eq!(flags.stderr_filepath, Some(PathBuf::from("/tmp/ray/s/logs/raylet.err")));
    assert_eq!(flags.resource_isolation, None);
    assert_eq!((flags.maximum_startup_concurrency, flags.num_prestart_python_workers), (2, 2));
}

#[test]
fn defaults_are_those_of_the_table() {
    let required: Vec<String> = stock()
        .into_iter()
        .filter(|a| REQUIRED.iter().any(|r| a.replace('-', "_").starts_with(&format!("__{r}="))))
        .collect();
    assert_eq!(required.len(), REQUIRED.len());
    let RayRequest::Run(flags) = RayFlags::parse(&required, &|_| None).unwrap() else { panic!("printed") };
    assert_eq!(flags.plasma_directory, PathBuf::from("/dev/shm"));
    assert_eq!(flags.object_manager_port, 0, "-1 means any port");
    assert_eq!(flags.metrics_export_port, 1);
    assert_eq!(flags.stdout_filepath, None);
    assert!(flags.resources.is_empty() && flags.labels.is_empty());
}

#[test]
fn missing_flags_are_named() {
    let arguments: Vec<String> =
        stock().into_iter().filter(|a| !a.starts_with("--node_id") && !a.starts_with("--gcs-address")).collect();
    let error = RayFlags::parse(&arguments, &|_| None).unwrap_err().to_string();
    assert!(error.starts_with("missing flags: --node_id, --gcs_address."), "{error}");
    assert!(error.contains("raylet-uring"), "{error}");
}

#[test]
fn bad_values_say_what_was_expected_and_given() {
    for (flag, message) in [
        ("--node_id=12ab", "--node_id: expected 56 hexadecimal digits, got \"12ab\""),
        ("--node_ip_address=here", "--node_ip_address: expected an IP address, got \"here\""),
        ("--gcs_address=host", "--gcs_address: expected host:port, got \"host\""),
        ("--gcs_address=host:0", "--gcs_address: expected host:port, got \"host:0\""),
        ("--node_manager_port=65536", "--node_manager_port: expected a port from 0 to 65535, or -1, got \"65536\""),
        ("--object_store_memory=0", "--object_store_memory: expected a whole number of at least 1, got \"0\""),
        ("--maximum_startup_concurrency=0", "--maximum_startup_concurrency: expected a whole number of at least 1, got \"0\""),
        ("--labels=[1]", "--labels: expected a JSON object of strings, got \"[1]\""),
        ("--worker_port_list=1,0", "--worker_port_list: expected ports from 1 to 65535, separated by commas, got \"1,0\""),
        (
            "--static_resource_list=CPU,2,memory",
            "--static_resource_list: expected a quantity after each name (`CPU,2,memory,123`); \"memory\" has none, got \"CPU,2,memory\"",
        ),
        ("--static_resource_list=CPU,-1", "--static_resource_list: expected for \"CPU\" a number of at least 0, got \"CPU,-1\""),
        ("--static_resource_list=CPU,NaN", "--static_resource_list: expected for \"CPU\" a number of at least 0, got \"CPU,NaN\""),
        (
            "--static_resource_list=CPU,1,CPU,2",
            "--static_resource_list: expected each resource once and with a name; \"CPU\" isn't, got \"CPU,1,CPU,2\"",
        ),
        (
            "--cpp_worker_command=a 'b",
            "--cpp_worker_command: expected a command line (a ' at byte 2 is never closed), got \"a 'b\"",
        ),
    ] {
        assert_eq!(error(&[flag]), message);
    }
}

#[test]
fn worker_ports_from_a_list_or_a_range() {
    let ports = |extra: &[&str]| with(extra).unwrap().worker_ports;
    assert_eq!(ports(&["--worker_port_list=10002, 10000"]), WorkerPorts::List(vec![10002, 10000]));
    assert_eq!(
        ports(&["--min_worker_port=10000", "--max_worker_port=10002"]),
        WorkerPorts::List(vec![10000, 10001, 10002])
    );
    assert_eq!(ports(&["--min_worker_port=65535"]), WorkerPorts::List(vec![65535]));
    assert_eq!(ports(&["--worker_port_list=7", "--min_worker_port=9"]), WorkerPorts::List(vec![7]), "the list wins");
    assert!(error(&["--min_worker_port=3", "--max_worker_port=2"]).contains("no port is left"));
    assert!(error(&["--max_worker_port=2"]).contains("without --min_worker_port"));
}

#[test]
fn resource_isolation_wants_its_settings() {
    let on = ["--enable-resource-isolation", "--cgroup-path=/sys/fs/cgroup/ray", "--system-reserved-cpu-weight=500"];
    let rest = ["--system-reserved-memory-bytes=1024", "--system-pids=1,22"];
    let isolation = with(&[&on[..], &rest[..]].concat()).unwrap().resource_isolation.unwrap();
    assert_eq!(isolation.system_pids, [1, 22]);
    assert_eq!((isolation.system_reserved_cpu_weight, isolation.system_reserved_memory_bytes), (500, 1024));
    assert!(error(&on[..1]).starts_with("--cgroup_path: expected a directory"));
    assert!(error(&on).starts_with("--system_reserved_memory_bytes: expected a whole number of at least 0, got \"-1\""));
    assert!(error(&[&on[..2], &["--system-reserved-cpu-weight=10001"]].concat()).contains("from 1 to 10000"));
}

#[test]
fn help_and_version_print_and_win_over_missing_flags() {
    let print = |flag: &str| match RayFlags::parse(&[flag.to_owned()], &|_| None).unwrap() {
        RayRequest::Print(text) => text,
        RayRequest::Run(_) => panic!("{flag} ran"),
    };
    for flag in RAY_FLAGS.iter().chain(BUILT_IN) {
        assert!(print("--helpfull").contains(&format!("    -{} (", flag.name)), "{}", flag.name);
        assert!(print("-helpxml").contains(&format!("<name>{}</name>", flag.name)));
    }
    assert!(!print("--helpshort").contains("-flagfile"));
    assert!(
        print("--helpmatch=socket").contains("-store_socket_name") && !print("--helpmatch=socket").contains("-labels")
    );
    assert!(print("--version").contains(env!("CARGO_PKG_VERSION")));
    assert_eq!(print("--tab_completion_word=--session"), "--session_dir\n--session_name\n");
}

#[test]
fn an_unknown_flag_names_the_closest() {
    assert!(error(&["--raylet-socket-nme=3"]).contains("did you mean --raylet_socket_name?"));
}

#[test]
fn the_error_file_is_found_in_a_broken_command_line() {
    let find = |arguments: &[&str]| stderr_filepath(&arguments.iter().map(|a| (*a).to_owned()).collect::<Vec<_>>());
    assert_eq!(find(&["--bad", "--stderr-filepath=/x/err"]), Some(PathBuf::from("/x/err")));
    assert_eq!(find(&["-stderr_filepath", "/x/err"]), Some(PathBuf::from("/x/err")));
    assert_eq!(find(&["stderr_filepath=/x", "--stderr_filepath="]), None);
}
