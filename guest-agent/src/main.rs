//! The guest agent: PID 1 of the virtual machine, runs OCI containers for the host.
//!
//! One static binary has four roles:
//!
//! | started as | role |
//! |---|---|
//! | PID 1 | the agent: mounts, ttrpc service, reaper ([`agent`]) |
//! | `--create`, `--exec`, `--pid-namespace` | a single-threaded child of the agent that prepares one process ([`helper`]) |
//! | `--init -- COMMAND...` | PID 1 of a container that asked for an init process ([`container_init`]) |

#![cfg_attr(not(test), no_main)]
#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "tests fail loudly"
    )
)]

mod agent;
mod cgroup;
mod container;
mod container_init;
mod dial;
mod failure;
mod forward;
mod helper;
mod identifier;
mod init;
mod layout;
mod machine;
mod names;
mod process;
mod reaper;
mod sandbox;
mod service;
mod sys;
mod sysctl;
mod volume;

/// Called by [`sys`] in place of `main`.
#[cfg_attr(test, allow(dead_code, reason = "tests have their own entry"))]
fn run() -> u8 {
    let started_ns = sys::boot_time_ns();
    let mut arguments = std::env::args_os().skip(1);
    let role = arguments.next();
    match role.as_deref().and_then(|role| role.to_str()) {
        Some(helper::CREATE) => helper::main(helper::Role::Create, arguments),
        Some(helper::EXEC) => helper::main(helper::Role::Exec, arguments),
        Some(helper::PID_NAMESPACE) => helper::main(helper::Role::PidNamespace, arguments),
        Some(container_init::FLAG) => container_init::main(arguments),
        _ if std::process::id() == 1 => agent::main(started_ns),
        _ => {
            eprintln!("hull-agent {}: runs as PID 1 of a Hull virtual machine", env!("CARGO_PKG_VERSION"));
            1
        }
    }
}
