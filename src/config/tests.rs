use super::*;

fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(n, v)| (n.to_string(), v.to_string())).collect()
}

fn load(flags: &[(&'static str, &str)], environment: &[(&str, &str)]) -> Result<Config, ConfigError> {
    Config::load(&flags.iter().map(|(n, v)| (*n, v.to_string())).collect(), &map(environment))
}

fn file(text: &str) -> (tempfile::TempDir, String) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("node.toml");
    std::fs::write(&path, text).unwrap();
    let path = path.display().to_string();
    (dir, path)
}

#[test]
fn nothing_set_gives_the_defaults() {
    let config = load(&[], &[]).unwrap();
    assert_eq!((config.cores.clone(), config.hugepages), (CoreChoice::Auto, PageChoice::Auto));
    assert_eq!((config.object_store_memory_bytes, config.warm_reserve_bytes), (None, WARM_RESERVE_DEFAULT_BYTES));
    assert_eq!(config.log, "info");
    assert!(config.worker_nursery);
    assert_eq!(config.runtime_dir, fallback_runtime_dir());
    assert!(SETTINGS.iter().all(|s| config.source(s.name) == Source::Default));
}

#[test]
fn flags_win_over_environment_over_file() {
    let (_dir, path) = file("cores = [0, 1]\nhugepages = \"1G\"\nwarm_reserve_bytes = 4096\nlog = \"debug\"\n");
    let environment = [
        ("RAYLET_URING_CONFIG", path.as_str()),
        ("RAYLET_URING_CORES", "2-3"),
        ("RAYLET_URING_HUGEPAGES", "1"),
        ("RAYLET_URING_WORKER_NURSERY", "0"),
    ];
    let config = load(&[("cores", "5,4")], &environment).unwrap();
    assert_eq!(config.cores, CoreChoice::List(vec![4, 5]));
    assert_eq!(config.source("cores"), Source::Flag("--cores"));
    assert_eq!(config.hugepages, PageChoice::Huge2M);
    assert_eq!(config.source("hugepages"), Source::Environment("RAYLET_URING_HUGEPAGES"));
    assert_eq!(config.warm_reserve_bytes, 4096);
    assert_eq!(config.source("warm_reserve_bytes"), Source::File(path.clone().into()));
    assert_eq!(config.log, "debug");
    assert_eq!(config.source("socket"), Source::Default);
    assert_eq!(config.source("config"), Source::Environment("RAYLET_URING_CONFIG"));
    let text = config.describe();
    assert_eq!(text.lines().count(), SETTINGS.len());
    let line = |name: &str| text.lines().find(|l| l.starts_with(name)).unwrap().split_whitespace().collect::<Vec<_>>();
    assert_eq!(line("cores"), ["cores", "4-5", "flag", "--cores"]);
    assert_eq!(line("warm_reserve_bytes")[1..4], ["4096", "(4.00", "KiB)"]);
    assert_eq!(line("worker_nursery"), ["worker_nursery", "false", "environment", "RAYLET_URING_WORKER_NURSERY"]);
    assert_eq!(line("config"), ["config", &path, "environment", "RAYLET_URING_CONFIG"]);
}

#[test]
fn rays_log_variable_counts_as_environment_below_ours() {
    let ray = ("RAY_BACKEND_LOG_LEVEL", "WARNING");
    let config = load(&[], &[ray]).unwrap();
    assert_eq!((config.log.as_str(), config.source("log")), ("warn", Source::Environment("RAY_BACKEND_LOG_LEVEL")));
    assert_eq!(load(&[], &[ray, ("RAYLET_URING_LOG", "trace")]).unwrap().log, "trace");
    assert_eq!(load(&[("log", "error")], &[ray]).unwrap().log, "error");
    let (_dir, path) = file("log = \"debug\"");
    assert_eq!(load(&[("config", &path)], &[ray]).unwrap().log, "warn");
    let ray = ("RAY_BACKEND_LOG_JSON", "1");
    let config = load(&[], &[ray]).unwrap();
    assert_eq!((config.log_format, config.source("log_format")), (LogFormat::RayJson, Source::Environment(ray.0)));
    assert_eq!(load(&[], &[ray, ("RAYLET_URING_LOG_FORMAT", "json")]).unwrap().log_format, LogFormat::Json);
    // Ray's own processes take nothing but 1 for yes.
    assert_eq!(load(&[], &[("RAY_BACKEND_LOG_JSON", "true")]).unwrap().log_format, LogFormat::Auto);
}

#[test]
fn bad_values_name_the_setting_its_source_and_what_to_write() {
    let message = |flags: &[(&'static str, &str)], environment: &[(&str, &str)]| {
        load(flags, environment).unwrap_err().to_string()
    };
    assert_eq!(
        message(&[("cores", "3-1")], &[]),
        "cores (from flag --cores): expected auto, CPU numbers like 0-3,6, auto:COUNT, numa:NODES or numa:NODES:COUNT, got \"3-1\""
    );
    assert_eq!(
        message(&[], &[("RAYLET_URING_WARM_RESERVE_BYTES", "lots")]),
        "warm_reserve_bytes (from environment RAYLET_URING_WARM_RESERVE_BYTES): expected a size in bytes (`1073741824`) or with a binary unit (`64M`, `1GiB`), got \"lots\""
    );
    assert_eq!(
        message(&[], &[("RAYLET_URING_WORKER_NURSERY", "maybe")]),
        "worker_nursery (from environment RAYLET_URING_WORKER_NURSERY): expected true or false, got \"maybe\""
    );
    assert!(message(&[("hugepages", "8K")], &[]).contains("expected off, 2M, 1G, thp or 4k, got \"8K\""));
    assert!(message(&[("object_store_memory_bytes", "0")], &[]).contains("expected a size"));
    assert!(message(&[("log", "loud")], &[]).contains("expected a level"));
    assert!(message(&[("runtime_dir", "here")], &[]).contains("an absolute path"));
    for cores in ["", "a", "1-", "-1", "1,,2"] {
        assert!(load(&[("cores", cores)], &[]).is_err(), "{cores}");
    }
}

#[test]
fn the_file_is_checked_as_a_whole() {
    let message = |text: &str| {
        let (_dir, path) = file(text);
        let error = load(&[("config", &path), ("cores", "0")], &[]).unwrap_err().to_string();
        error.replace(&path, "FILE")
    };
    assert_eq!(message("coers = \"0\""), "FILE: unknown setting \"coers\"; did you mean \"cores\"?");
    assert!(message("zzz = 1").starts_with("FILE: unknown setting \"zzz\"; known are cores, hugepages,"));
    assert!(message("config = \"other\"").contains("unknown setting \"config\""));
    assert!(message("cores = { a = 1 }").starts_with("cores (from file FILE): expected a string, a number"));
    assert!(message("cores =").starts_with("FILE is not TOML: "));
    let error = load(&[], &[("RAYLET_URING_CONFIG", "/nowhere/x.toml")]).unwrap_err().to_string();
    assert!(error.starts_with("can't read /nowhere/x.toml (from environment RAYLET_URING_CONFIG): "), "{error}");
}

#[test]
fn variables_that_are_no_settings_are_warned_about() {
    let config = load(&[], &[("RAYLET_URING_CORE", "1"), ("RAYLET_URING_CORES", "0"), ("OTHER", "1")]).unwrap();
    assert_eq!(
        config.warnings,
        ["environment variable RAYLET_URING_CORE is no setting; did you mean RAYLET_URING_CORES?"]
    );
}

#[test]
fn page_kinds_in_the_forms_that_people_write() {
    for (text, pages) in [
        ("off", PageChoice::Auto),
        ("True", PageChoice::Huge2M),
        ("2MiB", PageChoice::Huge2M),
        ("1GB", PageChoice::Huge1G),
        ("thp", PageChoice::Thp),
        ("4k", PageChoice::Small),
    ] {
        assert_eq!(load(&[("hugepages", text)], &[]).unwrap().hugepages, pages, "{text}");
    }
}

#[test]
fn the_runtime_directory_is_the_users_own() {
    let dir = tempfile::tempdir().unwrap();
    let xdg = dir.path().to_str().unwrap();
    assert_eq!(default_runtime_dir(Some(xdg)), dir.path().join("raylet-uring"));
    for unusable in [None, Some("relative"), Some("/nowhere/at/all")] {
        assert_eq!(default_runtime_dir(unusable), fallback_runtime_dir());
    }
}

#[test]
fn rays_flags_fill_in_what_nobody_set() {
    let id = "0".repeat(56);
    let arguments: Vec<String> = [
        "--raylet_socket_name=/a",
        "--store_socket_name=/b",
        "--node_ip_address=127.0.0.1",
        "--gcs_address=127.0.0.1:1",
        "--session_dir=/c",
        "--object_store_memory=4096",
        "--python_worker_command=python",
        "--huge_pages",
    ]
    .map(str::to_owned)
    .into_iter()
    .chain([format!("--node_id={id}"), format!("--cluster_id={id}")])
    .collect();
    let request = RayFlags::parse(&arguments, &|_| None).unwrap();
    let crate::cli::ray_flags::RayRequest::Run(flags) = request else { panic!("printed") };
    let mut config = load(&[], &[]).unwrap();
    config.apply_ray_flags(&flags);
    assert_eq!((config.hugepages, config.source("hugepages")), (PageChoice::Huge2M, Source::Flag("--huge_pages")));
    assert_eq!(config.object_store_memory_bytes, Some(4096));
    let mut config = load(&[], &[("RAYLET_URING_HUGEPAGES", "off")]).unwrap();
    config.apply_ray_flags(&flags);
    assert_eq!(config.hugepages, PageChoice::Auto);
}

#[test]
fn peers_are_addresses_each_once() {
    let config = load(&[("peers", "a:1, 10.0.0.2:7480 ,[fd00::2]:7480")], &[]).unwrap();
    assert_eq!(config.peers, ["a:1", "10.0.0.2:7480", "[fd00::2]:7480"]);
    assert_eq!(config.peer_listen, None);
    let (_dir, path) = file("peers = [\"a:1\", \"b:2\"]\npeer_listen = \"127.0.0.1:0\"\n");
    let config = load(&[("config", &path)], &[]).unwrap();
    assert_eq!((config.peers.len(), config.peer_listen.map(|at| at.port())), (2, Some(0)));
    for bad in ["a", "a:", ":1", "a:0", "a:70000", "a:1,a:1", "a b:1", "[fd00::2:1", "fd00::2:1", "http://a:1"] {
        let error = load(&[("peers", bad)], &[]).unwrap_err().to_string();
        assert!(error.contains("peers") && error.contains("host:7480"), "{bad}: {error}");
    }
    let many: Vec<String> = (0..=PEERS_MAX).map(|n| format!("h{n}:1")).collect();
    assert!(load(&[("peers", &many.join(","))], &[]).is_err());
    assert!(load(&[("peer_listen", "localhost:7480")], &[]).is_err(), "a name is no address to listen at");
}
