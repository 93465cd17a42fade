//! `grpc.health.v1.Health`, by which the GCS decides whether this node lives.
//!
//! A stock raylet serves under its node id in hexadecimal digits and under the empty name, and answers any other name
//! with `NOT_FOUND` (observed on Ray 2.60). Nobody needs a token to ask.

use std::rc::Rc;

use http::HeaderMap;
use rustc_hash::FxHashMap;
use tokio::sync::watch;
use tonic::{Code, Status};

use super::router::Router;
use crate::ray::proto::health::health_check_response::ServingStatus;
use crate::ray::proto::health::{HealthCheckRequest, HealthCheckResponse};

/// The serving status of each service name.
#[derive(Clone)]
pub struct Health {
    statuses: Rc<watch::Sender<FxHashMap<String, ServingStatus>>>,
}

impl Health {
    /// Knows the empty name, which stands for the whole server, as serving.
    pub fn new() -> Self {
        let statuses = FxHashMap::from_iter([(String::new(), ServingStatus::Serving)]);
        Self { statuses: Rc::new(watch::channel(statuses).0) }
    }

    /// Sets a name's status. Watchers are told.
    pub fn set(&self, service: &str, serving: bool) {
        let status = if serving { ServingStatus::Serving } else { ServingStatus::NotServing };
        self.statuses.send_modify(|statuses| {
            statuses.insert(service.to_owned(), status);
        });
    }

    /// Sets every name to not serving: the first step of stopping.
    pub fn stop(&self) {
        self.statuses.send_modify(|statuses| {
            statuses.values_mut().for_each(|status| *status = ServingStatus::NotServing);
        });
    }

    /// Adds the service to a router.
    #[must_use]
    pub fn serve_on(&self, router: Router) -> Router {
        let check = self.statuses.clone();
        let watch = self.statuses.clone();
        router
            .unary_without_auth("/grpc.health.v1.Health/Check", move |request: HealthCheckRequest| {
                let status = check.borrow().get(&request.service).copied();
                async move {
                    let unknown = || Status::new(Code::NotFound, "service name unknown");
                    status.map(reply).ok_or_else(unknown)
                }
            })
            .streaming("/grpc.health.v1.Health/Watch", false, move |_, mut requests, replies| {
                let mut statuses = watch.subscribe();
                let handler = async move {
                    let no_request = || Status::new(Code::Internal, "missing message");
                    let request: HealthCheckRequest = requests.next().await?.ok_or_else(no_request)?;
                    let mut told = None;
                    loop {
                        let now = statuses.borrow_and_update().get(&request.service).copied();
                        let now = now.unwrap_or(ServingStatus::ServiceUnknown);
                        if told.replace(now) != Some(now) {
                            replies.send(&reply(now)).await?;
                        }
                        if statuses.changed().await.is_err() {
                            return Ok(());
                        }
                    }
                };
                Ok((HeaderMap::new(), handler))
            })
    }
}

impl Default for Health {
    fn default() -> Self {
        Self::new()
    }
}

fn reply(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse { status: status.into() }
}
