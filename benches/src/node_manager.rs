//! The calls of `ray.rpc.NodeManagerService` that an owner makes for its leases.

use std::time::Duration;

use http::uri::PathAndQuery;
use raylet_uring::ray::proto;
use raylet_uring::ray::rpc::auth::{Auth, AuthError};
use tonic::client::Grpc;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::Request;
use tonic_prost::ProstCodec;

use crate::LoadError;

/// Time for a connection to come up.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A connection to a raylet.
#[derive(Clone, Debug)]
pub struct NodeManager {
    channel: Channel,
    authorization: Option<MetadataValue<Ascii>>,
}

impl NodeManager {
    /// Connects to the raylet at `host:port`.
    pub async fn connect(address: &str, auth: &Auth) -> Result<Self, LoadError> {
        let endpoint = Endpoint::from_shared(format!("http://{address}"))
            .map_err(|source| LoadError::Address {
                address: address.to_owned(),
                source,
            })?
            .tcp_nodelay(true)
            .connect_timeout(CONNECT_TIMEOUT);
        let channel = endpoint
            .connect()
            .await
            .map_err(|source| LoadError::Connect {
                address: address.to_owned(),
                source,
            })?;
        let authorization = auth
            .token()
            .map(|token| MetadataValue::try_from(token.header_value().as_bytes()))
            .transpose()
            .map_err(|_| AuthError::NotAHeader)?;
        Ok(Self {
            channel,
            authorization,
        })
    }

    /// Asks for a worker. Answered when it is granted, refused or cancelled, not before.
    pub async fn request_worker_lease(
        &self,
        request: proto::RequestWorkerLeaseRequest,
    ) -> Result<proto::RequestWorkerLeaseReply, LoadError> {
        const PATH: &str = "/ray.rpc.NodeManagerService/RequestWorkerLease";
        self.call("RequestWorkerLease", PATH, request).await
    }

    /// Gives a worker back.
    pub async fn return_worker_lease(
        &self,
        request: proto::ReturnWorkerLeaseRequest,
    ) -> Result<proto::ReturnWorkerLeaseReply, LoadError> {
        const PATH: &str = "/ray.rpc.NodeManagerService/ReturnWorkerLease";
        self.call("ReturnWorkerLease", PATH, request).await
    }

    /// Takes a request back that has not been answered.
    pub async fn cancel_worker_lease(
        &self,
        request: proto::CancelWorkerLeaseRequest,
    ) -> Result<proto::CancelWorkerLeaseReply, LoadError> {
        const PATH: &str = "/ray.rpc.NodeManagerService/CancelWorkerLease";
        self.call("CancelWorkerLease", PATH, request).await
    }

    async fn call<Q, R>(
        &self,
        method: &'static str,
        path: &'static str,
        message: Q,
    ) -> Result<R, LoadError>
    where
        Q: prost::Message + 'static,
        R: prost::Message + Default + 'static,
    {
        let failed = |status| LoadError::Call {
            method,
            status: Box::new(status),
        };
        let mut grpc = Grpc::new(self.channel.clone());
        grpc.ready()
            .await
            .map_err(|error| failed(tonic::Status::from_error(error.into())))?;
        let mut request = Request::new(message);
        if let Some(authorization) = &self.authorization {
            request
                .metadata_mut()
                .insert("authorization", authorization.clone());
        }
        let codec = ProstCodec::<Q, R>::default();
        grpc.unary(request, PathAndQuery::from_static(path), codec)
            .await
            .map(tonic::Response::into_inner)
            .map_err(failed)
    }
}
