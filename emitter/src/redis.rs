//! Redis, for authors of buses: from one URL to connections, the slots of a cluster, and
//! publishing.
//!
//! Login, subscriptions and the reading of replies come from the `redis` crate. This module adds:
//!
//! - [`RedisUrl`]: one setting for a server, Sentinels or a cluster, with errors for operators;
//! - [`Endpoint`]: finds the server and returns a [`Connection`] that is checked and
//!   ready. It never uses the crate's defaults that lose messages: a response timeout of
//!   500 ms, Nagle's algorithm, no keepalive, and connections that subscribe again by
//!   themselves;
//! - [`Cluster`]: one task per endpoint that keeps the map of slots;
//! - [`Publisher`]: collects the commands of many callers into few pipelines, and distinguishes
//!   commands that were certainly not executed from those that may have been.
//!
//! Files import downwards only:
//!
//! ```text
//!   publisher ─▶ routing ─▶ link ─▶ queue ─▶ outcome
//!       └───────────┴────────┴─▶ cluster, sentinel ─▶ connect ─▶ wire ─▶ stream, commands
//!                                                        └─▶ slots, reply, error, url
//! ```

mod cluster;
mod commands;
mod connect;
mod error;
mod link;
mod outcome;
mod publisher;
mod queue;
mod redirect;
mod reply;
mod routing;
mod sentinel;
mod slots;
mod stream;
mod url;
mod wire;

pub use self::{
    cluster::Cluster,
    connect::{
        CONNECT_TIMEOUT, Connection, Endpoint, Mode, Multiplexed, Purpose, Push, RESPONSE_TIMEOUT,
        ServerInfo, Topology,
    },
    error::ConnectError,
    outcome::{PublishError, PublisherConfig, PublisherState, PublisherStats},
    publisher::{Commanding, Publisher, Publishing},
    redirect::Redirect,
    reply::{Reply, Value},
    routing::Route,
    slots::{ClusterMap, SlotRange},
    url::{Address, RedisUrl, UrlError},
};
pub(crate) use self::{
    commands::{Commands, Words},
    error::text as error_text,
    outcome::{accepted, receivers},
    publisher::PublishingMany,
};
