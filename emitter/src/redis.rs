//! Redis, for authors of buses: from one URL to connections, the slots of a cluster, and publishing.
//!
//! The protocol, TLS, login and Unix sockets come from the `redis` crate. What this module adds:
//!
//! - [`RedisUrl`]: one setting for a server, Sentinels or a cluster, with errors for operators;
//! - [`Endpoint`]: finds the server and returns a [`Connection`] that is checked and ready. It never
//!   uses the crate's defaults that lose messages: a response timeout of 500 ms, Nagle's algorithm, no
//!   keepalive, and connections that subscribe again by themselves;
//! - [`Cluster`]: one task per endpoint that keeps the map of slots.

mod cluster;
mod connect;
mod error;
mod link;
mod publisher;
mod redirect;
mod reply;
mod routing;
mod sentinel;
mod url;

pub use self::{
    cluster::{Cluster, ClusterMap, SlotRange},
    connect::{
        CONNECT_TIMEOUT, Connection, Endpoint, Mode, Purpose, Push, RESPONSE_TIMEOUT, ServerInfo,
        Topology,
    },
    error::ConnectError,
    publisher::{
        Commanding, PublishError, Publisher, PublisherConfig, PublisherState, PublisherStats,
        Publishing, Route,
    },
    redirect::Redirect,
    reply::Reply,
    url::{Address, RedisUrl, UrlError},
};
pub(crate) use self::{
    error::text as error_text,
    link::bytes_of,
    publisher::{PublishingMany, accepted, publish_command, receivers},
};
