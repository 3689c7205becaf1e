//! Requests that wait for a long time, without the memory that HTTP keeps for a request.
//!
//! While a request is in progress, hyper keeps a read buffer and a write buffer of 8 KiB each, and
//! the futures of all layers of the application. A request that is parked needs none of them:
//!
//! ```text
//! hyper ─ request ─▶ layers ─▶ route ─▶ Parking::wait leaves the future of the response
//!   └─ is dropped with the layers; the socket, the future, and what the client sends stay
//!                          ├─ the client goes ─▶ the future is dropped
//!                          └─ response ─▶ a new hyper on the socket reads a request in short form
//!                                         and writes the response; then it serves the next request
//! ```

use std::{
    future::{Future, pending},
    pin::Pin,
};

use axum::{body::Body, response::Response};
use http::Extensions;

use super::http_stream::Handoff;

/// The future of a response.
pub(super) type Waiting = Pin<Box<dyn Future<Output = Response<Body>> + Send>>;

/// Lets a request wait for its response without the memory that its HTTP connection uses otherwise:
/// parked, it costs little more than the future of the response.
///
/// It works for a GET request of HTTP/1.1 whose body, if it has one, has been received,
/// on the listeners of [`Server::serve`](crate::Server::serve). For any other request,
/// the response is awaited in its place.
///
/// ```
/// # use std::time::Duration;
/// # use axum::{body::Body, response::{IntoResponse as _, Response}};
/// # use roomcast::plain::Parking;
/// async fn poll(request: http::Request<Body>) -> Response {
///     let parking = Parking::of(request.extensions());
///     drop(request);
///     let response = async {
///         tokio::time::sleep(Duration::from_secs(1)).await;
///         "nothing new".into_response()
///     };
///     parking.wait(response).await
/// }
/// ```
#[derive(Clone, Debug)]
pub struct Parking(Option<Handoff>);

impl Parking {
    /// That of the request with these extensions.
    pub fn of(extensions: &Extensions) -> Self {
        Self(extensions.get::<Handoff>().cloned())
    }

    /// Waits for the response. If the client goes, the future is dropped.
    ///
    /// The caller's future may be dropped meanwhile, and the response written without it.
    /// So a layer around the caller sees no response: its work must be done in the future.
    pub async fn wait(
        self,
        response: impl Future<Output = Response<Body>> + Send + 'static,
    ) -> Response<Body> {
        let response: Waiting = Box::pin(response);
        match self.0.filter(Handoff::may_park) {
            Some(handoff) => {
                handoff.park(response);
                pending().await
            }
            None => response.await,
        }
    }
}
