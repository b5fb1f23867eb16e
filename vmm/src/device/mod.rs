//! Platform devices: what a hardware-reduced machine without legacy still has.

mod power;
mod serial;

pub use power::{KeyboardReset, Power};
pub use serial::Serial;
