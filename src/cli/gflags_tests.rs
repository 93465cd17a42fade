use super::*;

const TABLE: &[Flag] = &[
    flag("a_name", Kind::String, "", "text"),
    flag("port", Kind::Int32, "-1", "number"),
    flag("size", Kind::Int64, "-1", "number"),
    flag("head", Kind::Bool, "false", "switch"),
];

fn read(arguments: &[&str]) -> Result<Values, FlagError> {
    let arguments: Vec<String> = arguments.iter().map(|a| (*a).to_owned()).collect();
    parse(TABLE, &arguments, &|name| (name == "FLAGS_port").then(|| "77".to_owned()))
}

#[test]
fn dashes_and_underscores_and_both_ways_to_give_a_value() {
    for form in [&["--a_name=x"][..], &["-a-name=x"], &["--a-name", "x"], &["-a_name", "x"]] {
        assert_eq!(read(form).unwrap().given("a_name"), Some("x"), "{form:?}");
    }
    assert_eq!(read(&["--a_name=x=y --z"]).unwrap().given("a_name"), Some("x=y --z"));
    assert_eq!(read(&["--a_name="]).unwrap().given("a_name"), Some(""));
    assert_eq!(read(&["--a_name=1", "--a-name=2"]).unwrap().given("a_name"), Some("2"));
}

#[test]
fn booleans_bare_negated_and_with_a_value() {
    assert!(read(&["--head"]).unwrap().is_on("head"));
    assert!(read(&["-head=YES"]).unwrap().is_on("head"));
    assert!(!read(&["--head", "--nohead"]).unwrap().is_on("head"));
    assert!(!read(&["--head=0"]).unwrap().is_on("head"));
    // The word after a boolean isn't its value.
    assert!(matches!(read(&["--head", "true"]), Err(FlagError::Unexpected { argument }) if argument == "true"));
    assert_eq!(read(&["--head=maybe"]).unwrap_err().to_string(), "--head: expected true or false, got \"maybe\"");
}

#[test]
fn numbers_in_both_bases_and_in_range() {
    assert_eq!(read(&["--port=0x1F90"]).unwrap().given("port"), Some("8080"));
    assert_eq!(read(&["--port", "-1"]).unwrap().given("port"), Some("-1"));
    assert_eq!(read(&["--size=9223372036854775807"]).unwrap().given("size"), Some("9223372036854775807"));
    for bad in ["2147483648", "12x", "", "--5", "9223372036854775808", "0x"] {
        assert!(matches!(read(&[&format!("--port={bad}")]), Err(FlagError::BadValue { name: "port", .. })), "{bad}");
    }
}

#[test]
fn an_unknown_flag_names_the_closest_known_one() {
    let error = read(&["--prot=1"]).unwrap_err().to_string();
    assert!(error.starts_with("unknown flag --prot; did you mean --port?"), "{error}");
    let error = read(&["--qqqqqqqqqqqqq"]).unwrap_err().to_string();
    assert_eq!(error, "unknown flag --qqqqqqqqqqqqq; --helpfull lists all");
    assert!(read(&["--prot=1", "--undefok=prot"]).is_ok());
    assert!(matches!(read(&["--noport"]), Err(FlagError::Unknown { .. })), "only booleans are negated");
}

#[test]
fn a_flag_at_the_end_wants_its_value() {
    let error = read(&["--port"]).unwrap_err().to_string();
    assert_eq!(error, "--port has no value: expected a whole number of 32 bits after `=` or as the next argument");
}

#[test]
fn nothing_but_flags() {
    assert!(matches!(read(&["x"]), Err(FlagError::Unexpected { .. })));
    assert!(matches!(read(&["-"]), Err(FlagError::Unexpected { .. })));
    assert!(matches!(read(&["--", "x"]), Err(FlagError::Unexpected { .. })));
    assert!(read(&["--"]).is_ok());
}

#[test]
fn flags_from_files_and_from_the_environment() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("flags");
    std::fs::write(&file, "# comment\n--a-name=from file\n\n  --head\n").unwrap();
    let values = read(&[&format!("--flagfile={}", file.display()), "--fromenv=port"]).unwrap();
    assert_eq!(values.given("a_name"), Some("from file"));
    assert!(values.is_on("head"));
    assert_eq!(values.given("port"), Some("77"));
    assert!(matches!(read(&["--fromenv=size"]), Err(FlagError::FromEnvironment { .. })));
    assert_eq!(read(&["--tryfromenv=size"]).unwrap().given("size"), None);
    std::fs::write(&file, format!("--flagfile={}", file.display())).unwrap();
    assert!(matches!(read(&[&format!("--flagfile={}", file.display())]), Err(FlagError::FlagFileDepth { .. })));
    assert!(matches!(read(&["--flagfile=/nowhere/at/all"]), Err(FlagError::FlagFile { .. })));
}
