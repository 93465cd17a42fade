//! Failures on demand: `RAY_testing_rpc_failure`, as Ray 2.60 reads it.
//!
//! The setting is a JSON object. Its keys are the names of client calls (`NodeManagerService.grpc_client.PinObjectIDs`,
//! `ray::rpc::InternalKVGcsService.grpc_client.InternalKVGet`) or `*` for all of them, which then overrides the rest;
//! its values say how many calls fail at most (`num_failures`, negative for no limit), with what probability in percent
//! the request is lost, the reply is lost, or the caller is told of a failure while the call goes on, and how many of
//! each happen for certain first. As in stock processes the calling side alone injects them.

use std::cell::RefCell;
use std::collections::BTreeMap;

use rand::Rng;
use rustc_hash::FxHashMap;
use serde::Deserialize;

/// What happens to one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The request is not sent, and the caller is told `UNAVAILABLE`.
    Request,
    /// The request is sent and its reply awaited and dropped; the caller is told `UNAVAILABLE`.
    Response,
    /// The request is sent, and the caller is told `UNAVAILABLE` at once.
    InFlight,
}

/// Why `RAY_testing_rpc_failure` can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ChaosError {
    /// Not JSON, not an object of objects, or with a key that Ray 2.60 doesn't know.
    #[error("RAY_testing_rpc_failure is not a JSON object of failure settings by method: {0}")]
    Malformed(#[from] serde_json::Error),
    /// Three probabilities that are more than certainty.
    #[error(
        "RAY_testing_rpc_failure: the probabilities of `{method}` add up to {sum_percent} %, at most 100 % is possible"
    )]
    TooLikely {
        /// The key.
        method: String,
        /// What they add up to.
        sum_percent: u64,
    },
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Settings {
    num_failures: i64,
    req_failure_prob: u64,
    resp_failure_prob: u64,
    in_flight_failure_prob: u64,
    num_lower_bound_req_failures: u64,
    num_lower_bound_resp_failures: u64,
    num_lower_bound_in_flight_failures: u64,
}

/// How many certain failures a method has had, by kind.
#[derive(Default)]
struct Certain {
    request: u64,
    response: u64,
    in_flight: u64,
}

struct State {
    by_method: FxHashMap<String, Settings>,
    all: Option<Settings>,
    certain: FxHashMap<String, Certain>,
}

/// The injector of one control thread.
pub struct Chaos {
    state: Option<RefCell<State>>,
}

impl Chaos {
    /// Injects nothing, at the cost of one branch for each call.
    pub fn none() -> Self {
        Self { state: None }
    }

    /// Reads the setting; an empty one means none.
    ///
    /// # Errors
    /// See [`ChaosError`].
    pub fn from_setting(setting: &str) -> Result<Self, ChaosError> {
        if setting.is_empty() {
            return Ok(Self::none());
        }
        let parsed: BTreeMap<String, Settings> = serde_json::from_str(setting)?;
        for (method, s) in &parsed {
            let sum_percent = [s.req_failure_prob, s.resp_failure_prob, s.in_flight_failure_prob]
                .into_iter()
                .fold(0, u64::saturating_add);
            if sum_percent > 100 {
                let method = method.clone();
                return Err(ChaosError::TooLikely { method, sum_percent });
            }
        }
        let all = parsed.get("*").cloned();
        let state = State { by_method: parsed.into_iter().collect(), all, certain: FxHashMap::default() };
        Ok(Self { state: Some(RefCell::new(state)) })
    }

    /// True where no call can fail, so that the caller needn't name its calls.
    pub fn is_none(&self) -> bool {
        self.state.is_none()
    }

    /// What happens to the next call of the client method at `path` (`/package.Service/Method`), if anything.
    pub fn next_failure(&self, path: &str) -> Option<Failure> {
        let mut state = self.state.as_ref()?.borrow_mut();
        let name = client_call_name(path);
        let State { by_method, all, certain } = &mut *state;
        let settings = match all {
            Some(settings) => settings,
            None => by_method.get_mut(&name)?,
        };
        if settings.num_failures == 0 {
            return None;
        }
        let had = certain.entry(name).or_default();
        let failure = certain_failure(settings, had).or_else(|| likely_failure(settings))?;
        settings.num_failures = settings.num_failures.saturating_sub(1);
        Some(failure)
    }
}

fn certain_failure(settings: &Settings, had: &mut Certain) -> Option<Failure> {
    let kinds = [
        (&mut had.request, settings.num_lower_bound_req_failures, Failure::Request),
        (&mut had.response, settings.num_lower_bound_resp_failures, Failure::Response),
        (&mut had.in_flight, settings.num_lower_bound_in_flight_failures, Failure::InFlight),
    ];
    for (count, wanted, failure) in kinds {
        if *count < wanted {
            *count += 1;
            return Some(failure);
        }
    }
    None
}

fn likely_failure(settings: &Settings) -> Option<Failure> {
    let draw = u64::from(rand::rng().next_u32() % 100) + 1;
    let request = settings.req_failure_prob;
    let response = request + settings.resp_failure_prob;
    let in_flight = response + settings.in_flight_failure_prob;
    match draw {
        d if d <= request => Some(Failure::Request),
        d if d <= response => Some(Failure::Response),
        d if d <= in_flight => Some(Failure::InFlight),
        _ => None,
    }
}

/// Ray 2.60's name of a client call. Clients of the GCS carry their C++ namespace in it, the others don't.
fn client_call_name(path: &str) -> String {
    let (full_service, method) = path.trim_start_matches('/').split_once('/').unwrap_or((path, ""));
    let (package, service) = full_service.rsplit_once('.').unwrap_or(("", full_service));
    let of_the_gcs = service.ends_with("GcsService") || service == "ObservabilityPubSubService";
    if of_the_gcs {
        format!("{}::{service}.grpc_client.{method}", package.replace('.', "::"))
    } else {
        format!("{service}.grpc_client.{method}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PIN: &str = "/ray.rpc.NodeManagerService/PinObjectIDs";
    const GET: &str = "/ray.rpc.InternalKVGcsService/InternalKVGet";

    fn draw(chaos: &Chaos, path: &str, calls: usize) -> Vec<Option<Failure>> {
        (0..calls).map(|_| chaos.next_failure(path)).collect()
    }

    #[test]
    fn calls_have_the_names_that_the_wheel_uses() {
        assert_eq!(client_call_name(PIN), "NodeManagerService.grpc_client.PinObjectIDs");
        assert_eq!(client_call_name(GET), "ray::rpc::InternalKVGcsService.grpc_client.InternalKVGet");
        let publish = "/ray.rpc.ObservabilityPubSubService/GcsPublish";
        assert_eq!(client_call_name(publish), "ray::rpc::ObservabilityPubSubService.grpc_client.GcsPublish");
    }

    #[test]
    fn a_limit_ends_the_failures_of_its_method_alone() {
        let setting = r#"{"NodeManagerService.grpc_client.PinObjectIDs":{"num_failures":2,"req_failure_prob":100}}"#;
        let chaos = Chaos::from_setting(setting).expect("valid");
        let expected = [Some(Failure::Request), Some(Failure::Request), None, None];
        assert_eq!(draw(&chaos, PIN, 4), expected);
        assert_eq!(draw(&chaos, GET, 2), [None, None]);
    }

    #[test]
    fn certain_failures_come_first_and_for_each_method_under_the_wildcard() {
        let setting = r#"{"*":{"num_failures":-1,"in_flight_failure_prob":100,"num_lower_bound_req_failures":1,
            "num_lower_bound_resp_failures":1},"ignored":{"num_failures":1}}"#;
        let chaos = Chaos::from_setting(setting).expect("valid");
        let expected = [Failure::Request, Failure::Response, Failure::InFlight, Failure::InFlight].map(Some);
        assert_eq!(draw(&chaos, PIN, 4), expected);
        assert_eq!(draw(&chaos, GET, 4), expected);
    }

    #[test]
    fn probabilities_are_percentages() {
        let setting = r#"{"*":{"num_failures":-1,"req_failure_prob":25,"resp_failure_prob":50}}"#;
        let chaos = Chaos::from_setting(setting).expect("valid");
        let drawn = draw(&chaos, PIN, 4_000);
        let share = |kind| drawn.iter().filter(|d| **d == kind).count();
        assert!((850..1_150).contains(&share(Some(Failure::Request))));
        assert!((1_850..2_150).contains(&share(Some(Failure::Response))));
        assert!((850..1_150).contains(&share(None)));
    }

    #[test]
    fn bad_settings_are_refused() {
        for bad in ["no json", r#"{"a":1}"#, r#"{"a":{"unknown":1}}"#, "[]", r#"{"a":{"num_failures":1.5}}"#] {
            assert!(matches!(Chaos::from_setting(bad), Err(ChaosError::Malformed(_))), "{bad}");
        }
        let sum = r#"{"a":{"req_failure_prob":60,"resp_failure_prob":41}}"#;
        let refused = Chaos::from_setting(sum);
        assert!(matches!(refused, Err(ChaosError::TooLikely { sum_percent: 101, .. })));
        assert!(Chaos::from_setting("").expect("empty").is_none());
    }
}
