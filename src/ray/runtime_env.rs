//! Client of the runtime-env agent: HTTP on the node itself, Ray's protobuf messages as bodies.
//!
//! The agent counts references per environment. `get_or_create` takes one for the worker that is about to start, and
//! `release` gives it back when that worker is gone, as the stock worker pool does; a job that asked for its environment
//! at its start (`eager_install`) holds one more until it ends. The agent deletes what nobody refers to.
//! (Ray 2.60 `runtime_env_agent.proto`; paths and headers in `ray/_private/runtime_env/agent/main.py`.)

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{HeaderValue, AUTHORIZATION, CONTENT_TYPE};
use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::{Client, Error as TransportError};
use hyper_util::rt::TokioExecutor;
use prost::Message;
use raylet_shard::ids::JobId;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::ray::agents::{Agent, AgentManager, AgentState};
use crate::ray::proto;
use crate::workers::command::has_runtime_env;
use crate::workers::process::ProcessKey;

/// Requests at the agent at a time: it is one Python thread, and each may run `pip`.
const MAX_IN_FLIGHT: usize = 10;
/// Requests that wait for their turn. Each belongs to a worker start, of which a node has far fewer under way.
const MAX_WAITING: usize = 10_000;
/// The most bytes of a reply. A context is a few KiB of JSON, an error text may hold the output of `pip`.
const MAX_REPLY_BYTES: usize = 16 * 1024 * 1024;
/// The most bytes of a refusal's text that are passed on.
const MAX_REFUSAL_CHARS: usize = 500;
/// First pause before a request is sent again; each further one is twice as long, up to the retry interval.
const FIRST_RETRY: Duration = Duration::from_millis(50);
/// How often the agent tries to build an environment before it gives up (`RUNTIME_ENV_RETRY_TIMES`).
const AGENT_ATTEMPTS: u32 = 3;
/// What the agent may take besides building: queueing behind the same environment for another worker, and answering.
const AGENT_SLACK: Duration = Duration::from_secs(120);

/// Why an environment is not to be had.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeEnvError {
    /// The node runs no agent.
    #[error(
        "this node has no runtime-env agent, so that no worker with a runtime_env can be started on it: install Ray \
         with `pip install \"ray[default]\"`"
    )]
    NoAgent,
    /// The agent failed, and the node is going down with it.
    #[error("the runtime-env agent of this node has failed; see runtime_env_agent.log")]
    AgentFailed,
    /// No answer within the time that an agent has to come up.
    #[error("the runtime-env agent at {agent} could not be reached within {timeout:?}: {reason}")]
    Unreachable {
        /// Its address.
        agent: SocketAddr,
        /// `agent_register_timeout_ms`.
        timeout: Duration,
        /// What the last attempt met.
        reason: String,
    },
    /// The agent did not answer.
    #[error("the runtime-env agent gave no answer for {0:?}, longer than the setup timeout allows")]
    Timeout(Duration),
    /// The agent answered with an HTTP error.
    #[error("the runtime-env agent refused the request with {status}: {text}")]
    Refused {
        /// HTTP status; 401 and 403 mean that the token of this node is not the agent's.
        status: StatusCode,
        /// Its explanation.
        text: String,
    },
    /// The answer makes no sense.
    #[error("the runtime-env agent's answer can't be read: {0}")]
    BadReply(String),
    /// The agent tried and failed. The text is for the user: it is what `RuntimeEnvSetupError` shows.
    #[error("{0}")]
    Failed(String),
    /// Too many requests wait already.
    #[error("{MAX_WAITING} requests wait for the runtime-env agent already")]
    Busy,
}

/// Where the agent is and how to talk to it.
#[derive(Clone, Debug)]
pub struct RuntimeEnvSettings {
    /// Address of the node.
    pub node_ip: IpAddr,
    /// Value of the `authorization` header, where the cluster uses tokens.
    pub authorization: Option<HeaderValue>,
    /// `agent_register_timeout_ms`: how long an agent that doesn't answer is tried.
    pub register_timeout: Duration,
    /// `agent_manager_retry_interval_ms`: the longest pause between tries.
    pub retry_interval: Duration,
}

/// The client. Clones share connections, limits and the jobs' references.
#[derive(Clone)]
pub struct RuntimeEnvClient {
    inner: Rc<Inner>,
}

struct Inner {
    settings: RuntimeEnvSettings,
    agents: AgentManager,
    http: Client<HttpConnector, Full<Bytes>>,
    in_flight: Semaphore,
    waiting: Cell<usize>,
    /// Environments that processes hold. As many as the process table has processes, at most.
    processes: RefCell<HashMap<ProcessKey, String>>,
    /// Environments that jobs hold besides their workers.
    jobs: RefCell<HashMap<JobId, String>>,
}

/// An environment that was built for a worker, and the reference that was taken to it. The reference is given back when this is
/// dropped, because the worker could not be started, or when the worker that holds it has ended.
pub struct Built {
    client: RuntimeEnvClient,
    environment: String,
    context: String,
}

impl Built {
    /// What the worker is started with.
    pub fn context(&self) -> &str {
        &self.context
    }

    /// Lets a process hold the reference until its end ([`RuntimeEnvClient::process_ended`]).
    pub fn held_by(mut self, process: ProcessKey) {
        let environment = std::mem::take(&mut self.environment);
        if has_runtime_env(&environment) {
            self.client.inner.processes.borrow_mut().insert(process, environment);
        }
    }
}

impl Drop for Built {
    fn drop(&mut self) {
        self.client.release(&self.environment);
    }
}

/// One request's place in the queue.
struct Place<'a>(&'a Cell<usize>);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

impl RuntimeEnvClient {
    /// A client of the agent that `agents` runs. Sends nothing yet.
    pub fn new(settings: RuntimeEnvSettings, agents: AgentManager) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        // A node-local listener answers a connect at once or not at all.
        connector.set_connect_timeout(Some(Duration::from_secs(5)));
        let http = Client::builder(TokioExecutor::new()).pool_max_idle_per_host(MAX_IN_FLIGHT).build(connector);
        let inner = Inner {
            settings,
            agents,
            http,
            in_flight: Semaphore::new(MAX_IN_FLIGHT),
            waiting: Cell::new(0),
            processes: RefCell::default(),
            jobs: RefCell::default(),
        };
        Self { inner: Rc::new(inner) }
    }

    /// Has the environment built, where it isn't, for a worker that is to be started in it.
    ///
    /// # Errors
    /// As [`Self::get_or_create`].
    pub async fn for_worker(&self, job: JobId, info: &proto::RuntimeEnvInfo) -> Result<Built, RuntimeEnvError> {
        let context = self.get_or_create(job, info).await?;
        Ok(Built { client: self.clone(), environment: info.serialized_runtime_env.clone(), context })
    }

    /// Has the environment built, where it isn't, and takes a reference to it for one worker. Returns the context that
    /// the worker is started with. A reference is taken only where this succeeds; [`Self::release`] gives it back.
    ///
    /// # Errors
    /// See [`RuntimeEnvError`]. [`RuntimeEnvError::Failed`] is the user's to fix, the others the node's.
    pub async fn get_or_create(&self, job: JobId, info: &proto::RuntimeEnvInfo) -> Result<String, RuntimeEnvError> {
        let config = info.runtime_env_config.clone().unwrap_or_default();
        let limit = build_limit(config.setup_timeout_seconds);
        let request = proto::GetOrCreateRuntimeEnvRequest {
            serialized_runtime_env: info.serialized_runtime_env.clone(),
            runtime_env_config: Some(config),
            // In hexadecimal: the agent names its log file for the job by it.
            job_id: job.to_string().into_bytes().into(),
            source_process: String::new(),
        };
        let reply: proto::GetOrCreateRuntimeEnvReply = self.call("/get_or_create_runtime_env", &request, limit).await?;
        match proto::AgentRpcStatus::try_from(reply.status) {
            Ok(proto::AgentRpcStatus::Ok) => Ok(reply.serialized_runtime_env_context),
            _ => Err(RuntimeEnvError::Failed(reply.error_message)),
        }
    }

    /// Gives back one reference, in the background: to be called once for each success of [`Self::get_or_create`].
    pub fn release(&self, serialized_runtime_env: &str) {
        if !has_runtime_env(serialized_runtime_env) {
            return;
        }
        let client = self.clone();
        let environment = serialized_runtime_env.to_owned();
        tokio::task::spawn_local(async move {
            if let Err(error) = client.delete_if_possible(environment).await {
                tracing::warn!(%error, "a reference to a runtime environment stays with the agent");
            }
        });
    }

    /// A process has ended: gives back what it held, if anything.
    pub fn process_ended(&self, process: ProcessKey) {
        let held = self.inner.processes.borrow_mut().remove(&process);
        if let Some(environment) = held {
            self.release(&environment);
        }
    }

    /// A job has started: builds its environment ahead of its first worker if it asked for that.
    pub fn job_started(&self, job: JobId, config: &proto::JobConfig) {
        let Some(info) = config.runtime_env_info.clone() else {
            return;
        };
        let eager = info.runtime_env_config.as_ref().is_some_and(|config| config.eager_install);
        if !eager || !has_runtime_env(&info.serialized_runtime_env) || self.holds(job) {
            return;
        }
        self.inner.jobs.borrow_mut().insert(job, info.serialized_runtime_env.clone());
        let client = self.clone();
        tokio::task::spawn_local(async move {
            match client.get_or_create(job, &info).await {
                // The job may have ended meanwhile; then nobody else gives this reference back.
                Ok(_) if !client.holds(job) => client.release(&info.serialized_runtime_env),
                Ok(_) => tracing::info!(%job, "runtime environment of the job built ahead"),
                Err(error) => {
                    client.inner.jobs.borrow_mut().remove(&job);
                    tracing::warn!(%job, %error, "runtime environment of the job not built ahead");
                }
            }
        });
    }

    /// A job has ended: gives back what it held.
    pub fn job_finished(&self, job: JobId) {
        let held = self.inner.jobs.borrow_mut().remove(&job);
        if let Some(environment) = held {
            self.release(&environment);
        }
    }

    fn holds(&self, job: JobId) -> bool {
        self.inner.jobs.borrow().contains_key(&job)
    }

    async fn delete_if_possible(&self, serialized_runtime_env: String) -> Result<(), RuntimeEnvError> {
        let request =
            proto::DeleteRuntimeEnvIfPossibleRequest { serialized_runtime_env, source_process: "raylet".into() };
        let limit = Some(AGENT_SLACK);
        let reply: proto::DeleteRuntimeEnvIfPossibleReply =
            self.call("/delete_runtime_env_if_possible", &request, limit).await?;
        match proto::AgentRpcStatus::try_from(reply.status) {
            Ok(proto::AgentRpcStatus::Ok) => Ok(()),
            _ => Err(RuntimeEnvError::Failed(reply.error_message)),
        }
    }

    /// One exchange with the agent. Sent again, within the time that an agent has to come up, as long as no answer began;
    /// an agent that has answered is never asked twice.
    async fn call<R: Message + Default>(
        &self,
        path: &'static str,
        request: &impl Message,
        limit: Option<Duration>,
    ) -> Result<R, RuntimeEnvError> {
        let _place = self.take_place()?;
        let agent = self.agent().await?;
        let body = Bytes::from(request.encode_to_vec());
        // The semaphore is never closed.
        let _turn = self.inner.in_flight.acquire().await.map_err(|_| RuntimeEnvError::AgentFailed)?;
        let timeout = self.inner.settings.register_timeout;
        let deadline = Instant::now() + timeout;
        let mut pause = FIRST_RETRY;
        loop {
            let reason = match within(limit, self.exchange(agent, path, body.clone())).await? {
                Ok(reply) => return R::decode(reply).map_err(|e| RuntimeEnvError::BadReply(e.to_string())),
                Err(Attempt::Final(error)) => return Err(error),
                Err(Attempt::Again(error)) => error.to_string(),
            };
            if self.inner.agents.state(Agent::RuntimeEnv) == AgentState::Failed {
                return Err(RuntimeEnvError::AgentFailed);
            }
            if Instant::now() + pause >= deadline {
                return Err(RuntimeEnvError::Unreachable { agent, timeout, reason });
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(self.inner.settings.retry_interval);
        }
    }

    fn take_place(&self) -> Result<Place<'_>, RuntimeEnvError> {
        let waiting = &self.inner.waiting;
        if waiting.get() >= MAX_WAITING {
            return Err(RuntimeEnvError::Busy);
        }
        waiting.set(waiting.get() + 1);
        Ok(Place(waiting))
    }

    /// The agent's address, once it has announced itself.
    async fn agent(&self) -> Result<SocketAddr, RuntimeEnvError> {
        match self.inner.agents.settled(Agent::RuntimeEnv).await {
            AgentState::Absent => return Err(RuntimeEnvError::NoAgent),
            AgentState::Failed => return Err(RuntimeEnvError::AgentFailed),
            AgentState::Starting | AgentState::Ready => {}
        }
        // -1 is an agent that doesn't serve.
        let port = u16::try_from(self.inner.agents.ports().runtime_env).map_err(|_| RuntimeEnvError::NoAgent)?;
        Ok(SocketAddr::new(self.inner.settings.node_ip, port))
    }

    async fn exchange(&self, agent: SocketAddr, path: &str, body: Bytes) -> Result<Bytes, Attempt> {
        let mut request = Request::post(format!("http://{agent}{path}"))
            .header(CONTENT_TYPE, "application/octet-stream")
            .body(Full::new(body))
            .map_err(|e| Attempt::bad_reply(&e))?;
        if let Some(authorization) = &self.inner.settings.authorization {
            request.headers_mut().insert(AUTHORIZATION, authorization.clone());
        }
        let response = self.inner.http.request(request).await.map_err(Attempt::Again)?;
        let status = response.status();
        let limited = Limited::new(response.into_body(), MAX_REPLY_BYTES).collect().await;
        let body = limited.map_err(|e| match e.downcast_ref::<LengthLimitError>() {
            Some(_) => Attempt::bad_reply(&format!("it has more than {MAX_REPLY_BYTES} bytes")),
            None => Attempt::bad_reply(&e),
        })?;
        let body = body.to_bytes();
        if status == StatusCode::OK {
            return Ok(body);
        }
        let text = String::from_utf8_lossy(&body).chars().take(MAX_REFUSAL_CHARS).collect();
        Err(Attempt::Final(RuntimeEnvError::Refused { status, text }))
    }
}

/// How an attempt failed.
enum Attempt {
    /// Before the agent answered: it may be starting.
    Again(TransportError),
    /// With or after its answer.
    Final(RuntimeEnvError),
}

impl Attempt {
    fn bad_reply(error: &impl ToString) -> Self {
        Attempt::Final(RuntimeEnvError::BadReply(error.to_string()))
    }
}

/// How long building may take: what the user allows for each of the agent's attempts; `None` where that is -1, for no
/// limit. Ray fills in 600 s where the user says nothing.
fn build_limit(setup_timeout_s: i32) -> Option<Duration> {
    let seconds = u64::try_from(setup_timeout_s).ok()?;
    Some(Duration::from_secs(seconds) * AGENT_ATTEMPTS + AGENT_SLACK)
}

async fn within<T>(limit: Option<Duration>, work: impl Future<Output = T>) -> Result<T, RuntimeEnvError> {
    match limit {
        Some(limit) => tokio::time::timeout(limit, work).await.map_err(|_| RuntimeEnvError::Timeout(limit)),
        None => Ok(work.await),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn building_may_take_what_the_user_allows_each_attempt() {
        assert_eq!(build_limit(600), Some(Duration::from_secs(3 * 600 + 120)));
        assert_eq!(build_limit(-1), None);
    }
}
