//! The calls of `ray.rpc.NodeManagerService` that an owner makes for its leases, straight on HTTP/2.
//!
//! A gRPC library's layers cost more for each call than a fast raylet does, and on a small machine generator and raylet
//! share the cores: what the generator spends is missing in the rate that is measured.

use http::header::{HeaderMap, HeaderValue, AUTHORIZATION, CONTENT_TYPE, TE};
use http::{Method, Request, Uri, Version};
use prost::bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::Message;
use raylet_uring::ray::proto;
use raylet_uring::ray::rpc::auth::Auth;
use tokio::net::TcpStream;

use crate::LoadError;

/// Flag byte and length in front of a gRPC message.
const PREFIX_BYTES: usize = 5;

/// What the peer may send before it is told that it was read, for a stream and for the connection: replies are small,
/// so that this never holds one up.
const WINDOW_BYTES: u32 = 4 << 20;

/// A connection to a raylet.
#[derive(Clone, Debug)]
pub struct NodeManager {
    requests: h2::client::SendRequest<Bytes>,
    authority: String,
    authorization: Option<HeaderValue>,
}

impl NodeManager {
    /// Connects to the raylet at `host:port`; the connection lives in a task of the current `LocalSet`.
    pub async fn connect(address: &str, auth: &Auth) -> Result<Self, LoadError> {
        let what = || format!("connecting to the raylet at {address}");
        let socket = TcpStream::connect(address).await.map_err(LoadError::io(what()))?;
        socket.set_nodelay(true).map_err(LoadError::io("switching Nagle's algorithm off"))?;
        let (requests, connection) = h2::client::Builder::new()
            .initial_window_size(WINDOW_BYTES)
            .initial_connection_window_size(WINDOW_BYTES)
            .handshake(socket)
            .await
            .map_err(|source| LoadError::Http2 { what: what(), source })?;
        // A connection that breaks fails the calls on it, which say so.
        tokio::task::spawn_local(async move { drop(connection.await) });
        Ok(Self {
            requests,
            authority: address.to_owned(),
            authorization: auth.token().map(|token| token.header_value()),
        })
    }

    /// Asks for a worker. Answered when it is granted, refused or cancelled, not before.
    pub async fn request_worker_lease(
        &self,
        request: &proto::RequestWorkerLeaseRequest,
    ) -> Result<proto::RequestWorkerLeaseReply, LoadError> {
        self.call("RequestWorkerLease", request).await
    }

    /// Gives a worker back.
    pub async fn return_worker_lease(
        &self,
        request: &proto::ReturnWorkerLeaseRequest,
    ) -> Result<proto::ReturnWorkerLeaseReply, LoadError> {
        self.call("ReturnWorkerLease", request).await
    }

    /// Takes a request back that has not been answered.
    pub async fn cancel_worker_lease(
        &self,
        request: &proto::CancelWorkerLeaseRequest,
    ) -> Result<proto::CancelWorkerLeaseReply, LoadError> {
        self.call("CancelWorkerLease", request).await
    }

    async fn call<Q: Message, R: Message + Default>(&self, method: &'static str, message: &Q) -> Result<R, LoadError> {
        let broken = |source| LoadError::Http2 { what: method.to_owned(), source };
        let mut requests = self.requests.clone().ready().await.map_err(broken)?;
        let (response, mut body) = requests.send_request(self.head(method)?, false).map_err(broken)?;
        body.send_data(framed(message), true).map_err(broken)?;
        let (head, mut body) = response.await.map_err(broken)?.into_parts();
        let mut reply = BytesMut::new();
        while let Some(data) = body.data().await {
            let data = data.map_err(broken)?;
            body.flow_control().release_capacity(data.len()).map_err(broken)?;
            reply.extend_from_slice(&data);
        }
        let trailers = body.trailers().await.map_err(broken)?;
        check_status(method, trailers.as_ref().unwrap_or(&head.headers))?;
        unframed(method, reply.freeze())
    }

    fn head(&self, method: &'static str) -> Result<Request<()>, LoadError> {
        let path = format!("/ray.rpc.NodeManagerService/{method}");
        let uri = Uri::builder().scheme("http").authority(self.authority.as_str()).path_and_query(path);
        let mut head = Request::new(());
        *head.method_mut() = Method::POST;
        *head.version_mut() = Version::HTTP_2;
        *head.uri_mut() = uri.build().map_err(|_| LoadError::Setting {
            setting: "--address",
            expected: "host:port",
            got: self.authority.clone(),
        })?;
        let headers = head.headers_mut();
        headers.insert(TE, HeaderValue::from_static("trailers"));
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        if let Some(authorization) = &self.authorization {
            headers.insert(AUTHORIZATION, authorization.clone());
        }
        Ok(head)
    }
}

fn framed<Q: Message>(message: &Q) -> Bytes {
    let length = message.encoded_len();
    let mut frame = BytesMut::with_capacity(PREFIX_BYTES + length);
    frame.put_u8(0);
    frame.put_u32(length as u32);
    message.encode_raw(&mut frame);
    frame.freeze()
}

fn unframed<R: Message + Default>(method: &'static str, mut frame: Bytes) -> Result<R, LoadError> {
    let bad = |message: String| LoadError::Call { method, code: None, message };
    if frame.len() < PREFIX_BYTES {
        return Err(bad(format!("a reply of {} bytes", frame.len())));
    }
    let (flag, length) = (frame.get_u8(), frame.get_u32() as usize);
    if flag != 0 || length != frame.len() {
        let got = frame.len();
        return Err(bad(format!("a reply with flag {flag} and {got} bytes, expected flag 0 and {length}")));
    }
    R::decode(frame).map_err(|error| bad(error.to_string()))
}

fn check_status(method: &'static str, headers: &HeaderMap) -> Result<(), LoadError> {
    let text = |name| headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
    match text("grpc-status") {
        Some(code) if code == "0" => Ok(()),
        code => Err(LoadError::Call { method, code, message: text("grpc-message").unwrap_or_default() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_survives_its_frame() {
        let request = proto::CancelWorkerLeaseRequest { lease_id: Bytes::from_static(&[3; 32]) };
        let frame = framed(&request);
        assert_eq!(&frame[..PREFIX_BYTES], &[0, 0, 0, 0, 34]);
        let back: proto::CancelWorkerLeaseRequest = unframed("test", frame).expect("valid");
        assert_eq!(back, request);
    }

    #[test]
    fn a_cut_or_compressed_frame_is_refused() {
        let request = proto::CancelWorkerLeaseRequest { lease_id: Bytes::from_static(&[3; 32]) };
        let frame = framed(&request);
        let mut compressed = BytesMut::from(&frame[..]);
        compressed[0] = 1;
        for bad in [frame.slice(..3), frame.slice(..20), compressed.freeze()] {
            let outcome = unframed::<proto::CancelWorkerLeaseRequest>("test", bad);
            assert!(matches!(outcome, Err(LoadError::Call { .. })));
        }
    }

    #[test]
    fn only_status_zero_is_success() {
        let with = |code: &'static str| {
            HeaderMap::from_iter([("grpc-status".parse().expect("a name"), HeaderValue::from_static(code))])
        };
        assert!(check_status("test", &with("0")).is_ok());
        let refused = check_status("test", &with("16")).expect_err("refused");
        assert!(refused.to_string().contains("16"), "{refused}");
        assert!(check_status("test", &HeaderMap::new()).is_err());
    }
}
