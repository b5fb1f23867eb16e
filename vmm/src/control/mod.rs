//! The control API: HTTP/1.1 with JSON on a Unix socket, shaped like Firecracker's.
//!
//! `http` turns bytes into requests, `server` has the connections, `routes` is the table of what can be asked; the handlers are in
//! files of their own: `resources` for the parts of a configuration, `machine` for the VM as a whole, `console`, `drives`, `memory`,
//! `network` and `sockets` for changes of such devices, `output` for log and metrics.

mod console;
mod drives;
mod fault;
pub mod http;
mod machine;
mod memory;
mod network;
mod output;
mod resources;
mod routes;
mod server;
mod sockets;

pub use self::output::MetricsFile;
pub use self::routes::Api;
#[cfg(feature = "testing")]
pub use self::routes::answer;
pub use self::server::{ControlError, ControlServer};
