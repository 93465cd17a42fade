//! Statuses that a gRPC port answers with, whoever serves it, and how a status travels.

use http::{HeaderMap, HeaderValue};
use tonic::{Code, Status};

/// A method that is not served.
pub fn no_method(path: &str) -> Status {
    Status::new(Code::Unimplemented, format!("this server has no method {path}"))
}

/// A unary call without a message.
pub fn no_message() -> Status {
    Status::new(Code::Internal, "missing message of a unary call")
}

/// A unary call with too many messages.
pub fn more_than_one_message() -> Status {
    Status::new(Code::Internal, "more than one message in a unary call")
}

/// A body that is shorter than its message.
pub fn ended_within_message() -> Status {
    Status::new(Code::Internal, "stream ended within a message")
}

/// The header fields that say a status.
pub fn fields(status: &Status) -> HeaderMap {
    let mut fields = HeaderMap::with_capacity(3);
    if status.add_header(&mut fields).is_err() {
        // Only metadata that can't travel gets here; the code still can.
        fields.insert(Status::GRPC_STATUS, HeaderValue::from(status.code() as i32));
    }
    fields
}
