//! The program around the library: configuration, logging, the internal port, the demo page.
//!
//! It belongs to the `roomcast` binary and not to the library, so the compiler ensures that only
//! public names of the library are used. It depends on neither protocol nor transport.

mod access;
mod admin;
mod api;
mod auth;
mod build;
mod clock;
mod cluster;
mod config;
mod demo;
mod doctor;
mod doors;
mod drain;
mod emit;
mod file_limit;
mod hooks;
mod limits;
mod line_limit;
mod log_client;
mod logging;
mod namespaces;
mod notify;
mod object;
mod operations;
mod options;
mod origins;
mod outbound;
mod policy;
mod presence;
mod private_names;
#[cfg(target_os = "linux")]
mod process;
mod redis;
mod redis_commands;
mod relay;
mod reload;
mod rooms;
mod run;
mod session;
mod settings;
mod tls;
mod token;
mod traces;
mod user_limit;
mod values;
mod vitals;

pub(crate) use config::{Config, ConfigJob, Job, command, parse};
pub(crate) use doctor::doctor;
pub(crate) use drain::drain;
pub(crate) use emit::emit;
pub(crate) use file_limit::raise as raise_file_limit;
pub(crate) use logging::Log;
pub(crate) use options::print_table;
pub(crate) use run::{RunError, check, run, runtime};
pub(crate) use settings::{default_file, show};
pub(crate) use token::print_token;
