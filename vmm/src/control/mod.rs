//! The control socket: HTTP/1.1 with JSON over a Unix socket, served by the main thread without ever waiting for a client.

mod http;
mod memory;
mod routes;
mod server;

pub use routes::Api;
pub use server::{ControlError, ControlServer};
