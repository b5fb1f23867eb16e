//! What PID 1 does before it serves, and when it ends.

pub mod clock;
pub mod command_line;
pub mod mounts;
pub mod power;
pub mod system;
pub mod watchdog;
