//! The methods that a gRPC server serves: handlers are plain `async` functions over `Rc` state, and nothing has to be `Send`.

use std::collections::hash_map::Entry;
use std::convert::Infallible;
use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Request, Response};
use hyper::body::{Body, Frame, Incoming};
use prost::Message;
use rustc_hash::FxHashMap;
use tokio::sync::mpsc;
use tonic::{Code, Status};

use super::frame::{encode, FrameReader};
use super::meter::{Meter, Meters, Timing};
use super::status;

/// Messages that a streaming handler may be ahead of its client before it has to wait.
pub const STREAM_QUEUE_MESSAGES: usize = 64;

const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");

/// A future of this thread.
pub type LocalFuture<T> = Pin<Box<dyn Future<Output = T>>>;
type Unary = Rc<dyn Fn(Bytes) -> LocalFuture<Result<Bytes, Status>>>;
type Streaming = Box<dyn Fn(Request<Incoming>) -> LocalFuture<Response<ReplyBody>>>;

/// A method that is served.
pub(super) struct Route {
    pub(super) handler: Handler,
    pub(super) needs_auth: bool,
    pub(super) meter: Option<Rc<Meter>>,
}

/// What answers a method.
pub(super) enum Handler {
    /// One message, one reply.
    Unary(Unary),
    /// Streams.
    Streaming(Streaming),
}

impl Handler {
    /// Answers a request as it came in.
    pub(super) fn answer(&self, request: Request<Incoming>) -> LocalFuture<Response<ReplyBody>> {
        match self {
            Self::Streaming(handler) => handler(request),
            Self::Unary(handler) => {
                let handler = handler.clone();
                Box::pin(async move {
                    let reply = match FrameReader::new(request.into_body()).only().await {
                        Ok(message) => handler(message).await,
                        Err(status) => Err(status),
                    };
                    unary_reply(reply)
                })
            }
        }
    }
}

/// The reply to a unary call: a frame with its message, or a status.
fn unary_reply(reply: Result<Bytes, Status>) -> Response<ReplyBody> {
    match reply {
        Ok(message) => {
            let mut response = Response::new(ReplyBody::Unary(Some(message)));
            response.headers_mut().insert(CONTENT_TYPE, GRPC);
            response
        }
        Err(status) => status.into_http(),
    }
}

/// The methods that a server serves, by path (`/package.Service/Method`).
#[derive(Default)]
pub struct Router {
    pub(super) routes: FxHashMap<&'static str, Route>,
}

impl Router {
    /// No methods.
    pub fn new() -> Self {
        Self::default()
    }

    /// Serves a unary method.
    ///
    /// The handler runs to its end even if the client gives up: Ray's handlers change state after they have waited, and
    /// its clients retry.
    ///
    /// # Panics
    /// When the path is already served: two handlers for one method are a mistake in the program.
    #[must_use]
    pub fn unary<Req, Resp, F, Fut>(self, path: &'static str, handler: F) -> Self
    where
        Req: Message + Default + 'static,
        Resp: Message + 'static,
        F: Fn(Req) -> Fut + 'static,
        Fut: Future<Output = Result<Resp, Status>> + 'static,
    {
        self.add(path, true, unary_handler(handler))
    }

    /// Like [`Self::unary`], open to callers without a token.
    ///
    /// # Panics
    /// As [`Self::unary`].
    #[must_use]
    pub fn unary_without_auth<Req, Resp, F, Fut>(self, path: &'static str, handler: F) -> Self
    where
        Req: Message + Default + 'static,
        Resp: Message + 'static,
        F: Fn(Req) -> Fut + 'static,
        Fut: Future<Output = Result<Resp, Status>> + 'static,
    {
        self.add(path, false, unary_handler(handler))
    }

    /// Serves a method whose requests, replies or both are streams.
    ///
    /// `open` sees the call's metadata, and refuses the call or returns the metadata that the reply starts with and the
    /// call's handler; the handler's result ends the stream. A handler is dropped when its client goes away.
    ///
    /// # Panics
    /// As [`Self::unary`].
    #[must_use]
    pub fn streaming<Req, Resp, F, Fut>(self, path: &'static str, needs_auth: bool, open: F) -> Self
    where
        Req: Message + Default + 'static,
        Resp: Message + 'static,
        F: Fn(&HeaderMap, Requests<Req>, Replies<Resp>) -> Result<(HeaderMap, Fut), Status> + 'static,
        Fut: Future<Output = Result<(), Status>> + 'static,
    {
        let open = Rc::new(open);
        let handler: Streaming = Box::new(move |request: Request<Incoming>| {
            let open = open.clone();
            Box::pin(async move {
                let (head, body) = request.into_parts();
                let requests = Requests { reader: FrameReader::new(body), message: PhantomData };
                let (sender, queue) = mpsc::channel(STREAM_QUEUE_MESSAGES);
                match open(&head.headers, requests, Replies { sender, message: PhantomData }) {
                    Ok((metadata, handler)) => stream_reply(metadata, Box::pin(handler), queue),
                    Err(status) => status.into_http(),
                }
            })
        });
        self.add(path, needs_auth, Handler::Streaming(handler))
    }

    fn add(mut self, path: &'static str, needs_auth: bool, handler: Handler) -> Self {
        match self.routes.entry(path) {
            Entry::Vacant(slot) => slot.insert(Route { handler, needs_auth, meter: None }),
            Entry::Occupied(_) => panic!("two handlers for {path}"),
        };
        self
    }

    /// The unary methods, and whether a caller needs a token for each.
    pub fn unary_methods(&self) -> impl Iterator<Item = (&'static str, bool)> + '_ {
        let unary = self.routes.iter().filter(|(_, route)| matches!(route.handler, Handler::Unary(_)));
        unary.map(|(path, route)| (*path, route.needs_auth))
    }

    /// Calls a unary method with a message that came in elsewhere, where the caller's token was looked at too. The reply is a
    /// frame.
    pub fn call(&self, path: &str, message: Bytes) -> LocalFuture<Result<Bytes, Status>> {
        let Some(Route { handler: Handler::Unary(handler), meter, .. }) = self.routes.get(path) else {
            let text = format!("this server has no unary method {path}");
            return Box::pin(std::future::ready(Err(Status::new(Code::Unimplemented, text))));
        };
        let timing = meter.as_ref().map(Timing::start);
        let reply = handler(message);
        Box::pin(async move {
            let reply = reply.await;
            if let Some(timing) = timing {
                timing.end(reply.is_ok());
            }
            reply
        })
    }

    /// Counts the calls of the methods added so far.
    #[must_use]
    pub fn measured(mut self, meters: &Meters) -> Self {
        for (path, route) in &mut self.routes {
            route.meter = meters.of_path(path);
        }
        self
    }
}

fn unary_handler<Req, Resp, F, Fut>(handler: F) -> Handler
where
    Req: Message + Default + 'static,
    Resp: Message + 'static,
    F: Fn(Req) -> Fut + 'static,
    Fut: Future<Output = Result<Resp, Status>> + 'static,
{
    Handler::Unary(Rc::new(move |message| {
        let parsed = parse(message).map(&handler);
        Box::pin(async move { encode(&parsed?.await?) })
    }))
}

/// A message that isn't one gets the status that stock servers return.
pub fn parse<Req: Message + Default>(message: Bytes) -> Result<Req, Status> {
    Req::decode(message).map_err(|_| Status::new(Code::Internal, "Unable to parse request"))
}

/// The requests of a streaming call.
pub struct Requests<Req> {
    reader: FrameReader,
    message: PhantomData<Req>,
}

impl<Req: Message + Default> Requests<Req> {
    /// The next request, or `None` when the client has sent its last.
    ///
    /// # Errors
    /// The status that a broken stream or message amounts to.
    pub async fn next(&mut self) -> Result<Option<Req>, Status> {
        self.reader.next().await?.map(parse).transpose()
    }
}

/// The replies of a streaming call. A handler that is [`STREAM_QUEUE_MESSAGES`] ahead of its client waits in `send`.
pub struct Replies<Resp> {
    sender: mpsc::Sender<Bytes>,
    message: PhantomData<Resp>,
}

impl<Resp: Message> Replies<Resp> {
    /// Sends one reply.
    ///
    /// # Errors
    /// `CANCELLED` when the client has gone, `RESOURCE_EXHAUSTED` when the message is too large.
    pub async fn send(&self, message: &Resp) -> Result<(), Status> {
        let gone = |_| Status::new(Code::Cancelled, "the client has gone");
        self.sender.send(encode(message)?).await.map_err(gone)
    }
}

/// A reply's body. Only hyper handles it.
#[derive(Default)]
pub enum ReplyBody {
    /// No message: the status is in the headers.
    #[default]
    Empty,
    /// One message, then the status OK.
    Unary(Option<Bytes>),
    /// Any number of messages, then the handler's status.
    Stream(StreamReply),
}

/// A stream of replies.
pub struct StreamReply {
    handler: Option<LocalFuture<Result<(), Status>>>,
    queue: mpsc::Receiver<Bytes>,
    status: Option<Status>,
}

fn stream_reply(
    metadata: HeaderMap,
    handler: LocalFuture<Result<(), Status>>,
    queue: mpsc::Receiver<Bytes>,
) -> Response<ReplyBody> {
    let body = StreamReply { handler: Some(handler), queue, status: None };
    let mut response = Response::new(ReplyBody::Stream(body));
    *response.headers_mut() = metadata;
    response.headers_mut().insert(CONTENT_TYPE, GRPC);
    response
}

impl StreamReply {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Frame<Bytes>>> {
        if let Some(handler) = &mut self.handler {
            if let Poll::Ready(result) = handler.as_mut().poll(cx) {
                self.status = Some(result.err().unwrap_or_else(|| Status::ok("")));
                self.handler = None;
            }
        }
        if let Poll::Ready(Some(message)) = self.queue.poll_recv(cx) {
            return Poll::Ready(Some(Frame::data(message)));
        }
        if self.handler.is_some() {
            return Poll::Pending;
        }
        Poll::Ready(self.status.take().map(|status| Frame::trailers(status::fields(&status))))
    }
}

impl Body for ReplyBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let this = self.get_mut();
        let frame = match this {
            Self::Empty => None,
            Self::Unary(message) => match message.take() {
                Some(message) => Some(Frame::data(message)),
                None => {
                    *this = Self::Empty;
                    let mut headers = HeaderMap::with_capacity(1);
                    headers.insert(Status::GRPC_STATUS, HeaderValue::from_static("0"));
                    Some(Frame::trailers(headers))
                }
            },
            Self::Stream(stream) => std::task::ready!(stream.poll(cx)),
        };
        Poll::Ready(frame.map(Ok))
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Empty)
    }
}
