//! Platform devices: what a hardware-reduced machine without legacy still has.

mod alarm;
mod power;
mod serial;
pub mod watchdog;

pub use alarm::Alarm;
pub use power::{KeyboardReset, Power};
pub use serial::Serial;
