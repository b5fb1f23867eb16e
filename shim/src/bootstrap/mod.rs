//! `start`: finds the shim that a container belongs to, or makes one, and tells containerd where it serves.
//!
//! containerd reads standard output and standard error of this action as one answer, until nobody holds them any more: not
//! one other byte may be written, and the daemon must not inherit them.

mod address;
mod answer;
mod daemon;
mod parameters;

use std::io::{self, Write as _};
use std::os::unix::net::UnixListener;

use anyhow::{Context as _, bail};

use crate::args::Args;
use crate::bundle::{Bundle, Role, ShimRecord};

pub use address::Address;
pub use daemon::READY;
use parameters::Parameters;

/// Does the action.
pub fn start(args: &Args) -> anyhow::Result<()> {
    let parameters = Parameters::read(args).context("reading the parameters")?;
    let bundle = Bundle::open(&args.bundle)?;
    let directory = parameters.socket_dir();
    let address = |id: &str| Address::new(directory, &args.address, &args.namespace, id);
    let address = match bundle.role()? {
        Role::Member(sandbox) => {
            let address = address(&sandbox);
            if !address.is_served() {
                bail!("The pod's sandbox {sandbox} does not run");
            }
            bundle.write_record(&ShimRecord::default())?;
            bundle.write_address(&address.to_string())?;
            address
        }
        Role::Single | Role::Sandbox => {
            let address = address(&args.id);
            // First of all: a daemon that nobody knows would stay.
            bundle.write_address(&address.to_string())?;
            if let Some(listener) = listen(&address)? {
                daemon::spawn(args, &bundle, &address, listener).inspect_err(|_| address.remove())?;
            }
            address
        }
    };
    let mut out = io::stdout();
    out.write_all(&answer::answer(&address, &parameters)?)?;
    out.flush()?;
    Ok(())
}

/// A socket at `address`, or `None` if a shim serves there already.
fn listen(address: &Address) -> anyhow::Result<Option<UnixListener>> {
    match address.bind() {
        Ok(listener) => return Ok(Some(listener)),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => (),
        Err(error) => return Err(error).with_context(|| address.to_string()),
    }
    if address.is_served() {
        return Ok(None);
    }
    // Its shim was killed.
    address.remove();
    let listener = address.bind().with_context(|| address.to_string())?;
    Ok(Some(listener))
}
