//! The command line that containerd writes, in the manner of Go's `flag` package: `-flag value`, `-flag=value`, one dash or
//! two, and the action behind the flags.

use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::{Context as _, bail, ensure};

/// What this process is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Print the version.
    Version,
    /// Print a `RuntimeInfo` message.
    Info,
    /// Make a shim for a container, or find the one of its pod.
    Start,
    /// Clean up what a shim that has gone left behind.
    Delete,
    /// Be the shim: only `start` calls this.
    Serve,
}

/// The command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Args {
    /// What to do.
    pub action: Action,
    /// containerd's namespace.
    pub namespace: String,
    /// containerd's gRPC socket.
    pub address: String,
    /// Program that publishes events where containerd has no ttrpc socket.
    pub publish_binary: PathBuf,
    /// The container; of a daemon its first one, after which it is called.
    pub id: String,
    /// The bundle; empty for the working directory.
    pub bundle: PathBuf,
    /// Where the daemon serves.
    pub socket: String,
    /// Log more.
    pub debug: bool,
}

/// Largest number of arguments that makes sense.
const MAX_ARGUMENTS: usize = 64;

impl Args {
    /// Reads the arguments behind the program's name.
    pub fn parse(args: impl IntoIterator<Item = OsString>) -> anyhow::Result<Self> {
        let mut parsed = Self {
            action: Action::Serve,
            namespace: String::new(),
            address: String::new(),
            publish_binary: PathBuf::new(),
            id: String::new(),
            bundle: PathBuf::new(),
            socket: String::new(),
            debug: false,
        };
        let mut args = args.into_iter().take(MAX_ARGUMENTS);
        while let Some(arg) = args.next() {
            let text = arg.to_str().context("An argument is not UTF-8")?;
            let Some(flag) = text.strip_prefix("--").or_else(|| text.strip_prefix('-')) else {
                parsed.action = action(text)?;
                // As with Go's flags, what stands behind the action is the action's own; there is nothing yet.
                break;
            };
            let (name, value) = match flag.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (flag, None),
            };
            if parsed.switch(name, value.as_deref())? {
                continue;
            }
            let value = match value {
                Some(value) => value,
                None => {
                    let next = args.next().with_context(|| format!("Flag -{name} needs a value"))?;
                    next.into_string().ok().with_context(|| format!("The value of -{name} is not UTF-8"))?
                }
            };
            parsed.set(name, value)?;
        }
        parsed.check()?;
        Ok(parsed)
    }

    /// A flag without a value. False if `name` is none.
    fn switch(&mut self, name: &str, value: Option<&str>) -> anyhow::Result<bool> {
        let on = match value {
            None | Some("true" | "1") => true,
            Some("false" | "0") => false,
            Some(_) => return Ok(false),
        };
        match name {
            "debug" => self.debug = on,
            "v" | "version" if on => self.action = Action::Version,
            "info" if on => self.action = Action::Info,
            "v" | "version" | "info" => (),
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn set(&mut self, name: &str, value: String) -> anyhow::Result<()> {
        match name {
            "namespace" => self.namespace = value,
            "address" => self.address = value,
            "publish-binary" => self.publish_binary = value.into(),
            "id" => self.id = value,
            "bundle" => self.bundle = value.into(),
            "socket" => self.socket = value,
            // Go's shims serve a debugger there; this one has none.
            "debug-socket" => (),
            _ => bail!("Unknown flag -{name}"),
        }
        Ok(())
    }

    fn check(&self) -> anyhow::Result<()> {
        if matches!(self.action, Action::Version | Action::Info) {
            return Ok(());
        }
        ensure!(!self.namespace.is_empty(), "The shim's namespace must not be empty: containerd starts this program");
        ensure!(is_plain(&self.namespace), "{:?} is no namespace", self.namespace);
        ensure!(is_plain(&self.id), "{:?} is no container's identifier", self.id);
        Ok(())
    }
}

#[cfg(test)]
impl Args {
    /// Those of a daemon.
    pub fn sample() -> Self {
        let args = ["-namespace", "default", "-id", "c", "-address", "/run/c.sock"];
        Self::parse(args.map(Into::into)).unwrap()
    }
}

fn action(word: &str) -> anyhow::Result<Action> {
    match word {
        "start" => Ok(Action::Start),
        "delete" => Ok(Action::Delete),
        _ => bail!("Unknown action {word:?}: there are start and delete"),
    }
}

/// containerd's rule for identifiers, as far as paths are concerned.
fn is_plain(text: &str) -> bool {
    const MAX_BYTES: usize = 128;
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    (1..=MAX_BYTES).contains(&text.len()) && text.bytes().all(plain) && text != "." && text != ".."
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> anyhow::Result<Args> {
        Args::parse(args.iter().map(Into::into))
    }

    #[test]
    fn containerd_s_own_command_line_is_understood() {
        let args = parse(&[
            "-namespace",
            "k8s.io",
            "-address",
            "/run/c.sock",
            "-publish-binary",
            "/usr/bin/containerd",
            "-id",
            "a1",
            "-debug",
            "-bundle=/b",
            "start",
        ])
        .unwrap();
        assert_eq!((args.action, args.debug), (Action::Start, true));
        assert_eq!((args.namespace.as_str(), args.id.as_str()), ("k8s.io", "a1"));
        assert_eq!((args.bundle, args.publish_binary), ("/b".into(), "/usr/bin/containerd".into()));
        let args = parse(&["--namespace=n", "--id", "x", "-socket", "s"]).unwrap();
        assert_eq!((args.action, args.socket.as_str()), (Action::Serve, "s"));
    }

    #[test]
    fn version_and_info_need_nothing_else() {
        assert_eq!(parse(&["-v"]).unwrap().action, Action::Version);
        assert_eq!(parse(&["-info"]).unwrap().action, Action::Info);
    }

    #[test]
    fn what_is_wrong_is_said() {
        let wrong = |args: &[&str], word: &str| {
            let text = parse(args).unwrap_err().to_string();
            assert!(text.contains(word), "{args:?}: {text}");
        };
        wrong(&[], "namespace");
        wrong(&["-namespace"], "-namespace");
        wrong(&["-colour", "red"], "-colour");
        wrong(&["-namespace", "n", "-id", "a", "stop"], "stop");
        for id in ["", "..", "a/b", "a b"] {
            wrong(&["-namespace", "n", "-id", id, "start"], "identifier");
        }
    }
}
