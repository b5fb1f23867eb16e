//! Flags of `hull run`, under the names that Docker users know.

use std::path::PathBuf;

use clap::builder::RangedU64ValueParser;
use clap::{Args, ValueEnum};
use hull_sandbox::parse::{ContainerName, Cpus, EnvVar, MemorySize, ParseError, Sysctl, Tmpfs, Ulimit};
use hull_sandbox::sizing;
use hull_sandbox::spec::parse_capability;

use super::{FetchArgs, Pull};

const EXAMPLES: &str = "\
Examples:
  hull run --rm busybox echo hello
  hull run -it --name work --memory 512m --cpus 2 debian bash
  tar c src | hull run -i --rm busybox tar t
  hull run --read-only --tmpfs /tmp:size=64m --cap-drop ALL oci:./image
  hull run --rm --timings oci:./image true

With -it, Ctrl-P Ctrl-Q detaches: the container goes on and `hull ps` lists it.
A container that has ended leaves nothing behind, with or without --rm.";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES, disable_help_flag = true, override_usage = "hull run [OPTIONS] IMAGE [COMMAND] [ARG...]")]
pub struct RunArgs {
    /// Print help
    #[arg(long, action = clap::ArgAction::HelpShort)]
    pub help: Option<bool>,

    /// Connect standard input
    #[arg(long, short, help_heading = "Process")]
    pub interactive: bool,
    /// Give the command a terminal
    #[arg(long, short, help_heading = "Process")]
    pub tty: bool,
    /// Set an environment variable; NAME alone passes the caller's value on
    #[arg(long, short, value_name = "NAME[=VALUE]", help_heading = "Process")]
    pub env: Vec<EnvVar>,
    /// Read environment variables from a file
    #[arg(long, value_name = "FILE", help_heading = "Process")]
    pub env_file: Vec<PathBuf>,
    /// Working directory
    #[arg(long, short, value_name = "DIR", help_heading = "Process")]
    pub workdir: Option<String>,
    /// User and group, by name or number
    #[arg(long, short, value_name = "USER[:GROUP]", help_heading = "Process")]
    pub user: Option<String>,
    /// Replace the image's entrypoint
    #[arg(long, value_name = "COMMAND", help_heading = "Process")]
    pub entrypoint: Option<String>,
    /// Run an init process that reaps zombies and forwards signals
    #[arg(long, value_name = "WHEN", num_args = 0..=1, require_equals = true, default_missing_value = "true", help_heading = "Process", hide_possible_values = true)]
    pub init: Option<Init>,
    /// Signal that asks the command to stop
    #[arg(long, value_name = "SIGNAL", help_heading = "Process")]
    pub stop_signal: Option<String>,
    /// Seconds that `hull stop` waits before it kills
    #[arg(long, value_name = "SECONDS", default_value_t = 10, help_heading = "Process")]
    pub stop_timeout: u32,

    /// Name of the container [default: two words]
    #[arg(long, help_heading = "Container")]
    pub name: Option<ContainerName>,
    /// Host name [default: the container's identifier]
    #[arg(long, short = 'h', value_name = "NAME", value_parser = host_name, help_heading = "Container")]
    pub hostname: Option<String>,
    /// Accepted as in Docker; nothing is kept anyway
    #[arg(long, help_heading = "Container")]
    pub rm: bool,
    /// Make the root file system read-only
    #[arg(long, help_heading = "Container")]
    pub read_only: bool,
    /// Mount a tmpfs
    #[arg(long, value_name = "PATH[:OPTIONS]", help_heading = "Container")]
    pub tmpfs: Vec<Tmpfs>,
    /// Network of the container; `none` is the only one so far
    #[arg(long, alias = "net", default_value = "none", help_heading = "Container")]
    pub network: Network,

    /// Memory limit, such as 50m or 2g; at least 6m
    #[arg(long, short, value_name = "SIZE", value_parser = memory_limit, help_heading = "Limits")]
    pub memory: Option<MemorySize>,
    /// Processor time limit, in processors, such as 0.5
    #[arg(long, value_name = "NUMBER", allow_negative_numbers = true, value_parser = cpus, help_heading = "Limits")]
    pub cpus: Option<Cpus>,
    /// Limit of processes; 0 or -1 for none
    #[arg(long, value_name = "NUMBER", allow_negative_numbers = true, value_parser = pids_limit, help_heading = "Limits")]
    pub pids_limit: Option<PidsLimit>,
    /// Resource limit, such as nofile=1024:2048
    #[arg(long, value_name = "NAME=SOFT[:HARD]", help_heading = "Limits")]
    pub ulimit: Vec<Ulimit>,
    /// Kernel parameter of the container's namespaces
    #[arg(long, value_name = "NAME=VALUE", help_heading = "Limits")]
    pub sysctl: Vec<Sysctl>,
    /// Give a capability (or ALL) to the container
    #[arg(long, value_name = "NAME", value_parser = parse_capability, help_heading = "Limits")]
    pub cap_add: Vec<&'static str>,
    /// Take a capability (or ALL) from the container
    #[arg(long, value_name = "NAME", value_parser = parse_capability, help_heading = "Limits")]
    pub cap_drop: Vec<&'static str>,
    /// seccomp=unconfined, seccomp=default or no-new-privileges
    #[arg(long, value_name = "OPTION", help_heading = "Limits")]
    pub security_opt: Vec<SecurityOption>,

    /// When to fetch the image
    #[arg(long, value_enum, default_value_t = Pull::Missing, help_heading = "Image")]
    pub pull: Pull,
    #[command(flatten, next_help_heading = "Image")]
    pub fetch: FetchArgs,

    /// Guest kernel to boot instead of Hull's own
    #[arg(long, value_name = "FILE", help_heading = "Virtual machine")]
    pub kernel: Option<PathBuf>,
    /// Guest initramfs to boot instead of Hull's own
    #[arg(long, value_name = "FILE", help_heading = "Virtual machine")]
    pub initrd: Option<PathBuf>,
    /// Processors of the VM, 1 to 64 [default: enough for --cpus]
    #[arg(long, value_name = "NUMBER", value_parser = RangedU64ValueParser::<u8>::new().range(1..=64), help_heading = "Virtual machine")]
    pub vcpus: Option<u8>,
    /// Memory of the VM, at least 40m [default: --memory and what the VM needs itself]
    #[arg(long, value_name = "SIZE", value_parser = vm_memory, help_heading = "Virtual machine")]
    pub vm_memory: Option<MemorySize>,
    /// Memory that `hull update` can grow the VM to, up to 1t [default: that of the start]
    #[arg(long, value_name = "SIZE", value_parser = vm_memory, help_heading = "Virtual machine")]
    pub max_memory: Option<MemorySize>,
    /// Processors that `hull update` can take into use, up to 64 [default: those of the start]
    #[arg(long, value_name = "NUMBER", value_parser = RangedU64ValueParser::<u8>::new().range(1..=64), help_heading = "Virtual machine")]
    pub max_vcpus: Option<u8>,
    /// End the VM when it hangs: when its agent was silent for 30 s
    #[arg(long, help_heading = "Virtual machine")]
    pub watchdog: bool,
    /// Show how long each phase of the start took
    #[arg(long, help_heading = "Virtual machine")]
    pub timings: bool,

    #[arg(long, short, hide = true)]
    pub detach: bool,
    #[arg(long, short, hide = true, value_name = "PORTS")]
    pub publish: Vec<String>,
    #[arg(long, short, hide = true, value_name = "VOLUME")]
    pub volume: Vec<String>,
    #[arg(long, hide = true, value_name = "MOUNT")]
    pub mount: Vec<String>,
    #[arg(long, hide = true)]
    pub privileged: bool,

    /// Image, then the command and its arguments [default: the image's own]
    #[arg(value_name = "IMAGE [COMMAND] [ARG...]", required = true, num_args = 1.., trailing_var_arg = true)]
    pub image_and_command: Vec<String>,
}

/// Whether an init process is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Init {
    True,
    False,
}

/// What `--security-opt` knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SecurityOption {
    SeccompUnconfined,
    SeccompDefault,
    NoNewPrivileges(bool),
}

impl std::str::FromStr for SecurityOption {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // Docker takes a colon too.
        match text.replacen(':', "=", 1).as_str() {
            "seccomp=unconfined" => Ok(Self::SeccompUnconfined),
            "seccomp=default" | "seccomp=builtin" => Ok(Self::SeccompDefault),
            "no-new-privileges" | "no-new-privileges=true" => Ok(Self::NoNewPrivileges(true)),
            "no-new-privileges=false" => Ok(Self::NoNewPrivileges(false)),
            _ => Err("known are seccomp=unconfined, seccomp=default and no-new-privileges".into()),
        }
    }
}

/// Networks that exist so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Network {
    None,
}

impl std::str::FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "none" => Ok(Self::None),
            other => Err(format!("network {other:?} does not exist yet; `none` is the only one so far")),
        }
    }
}

/// A limit of processes, or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PidsLimit(pub Option<u32>);

pub(super) fn pids_limit(text: &str) -> Result<PidsLimit, String> {
    match text.parse::<i64>() {
        // Docker takes both.
        Ok(-1 | 0) => Ok(PidsLimit(None)),
        Ok(number) => match u32::try_from(number) {
            Ok(limit @ 1..) => Ok(PidsLimit(Some(limit))),
            _ => Err(format!("the limit must be from 1 to {}, or 0 or -1 for none", u32::MAX)),
        },
        Err(_) => Err("a number is needed".into()),
    }
}

pub(super) fn cpus(text: &str) -> Result<Cpus, String> {
    let cpus: Cpus = text.parse().map_err(|error: ParseError| error.to_string())?;
    let most = sizing::max_cpus();
    match cpus.rounded_up() <= most {
        true => Ok(cpus),
        false => Err(format!("the number must be from 0.01 to {most}, the processors that a VM can have here")),
    }
}

pub(super) fn memory_limit(text: &str) -> Result<MemorySize, String> {
    let size: MemorySize = text.parse().map_err(|error: ParseError| error.to_string())?;
    let bytes = |mib: u32| u64::from(mib) << 20;
    if size.bytes() < bytes(sizing::MIN_LIMIT_MIB) {
        return Err(format!("a container needs at least {}m", sizing::MIN_LIMIT_MIB));
    }
    if size.bytes() > bytes(sizing::MAX_LIMIT_MIB) {
        return Err(format!("a container has at most {}m", sizing::MAX_LIMIT_MIB));
    }
    Ok(size)
}

pub(super) fn vm_memory(text: &str) -> Result<MemorySize, String> {
    let size: MemorySize = text.parse().map_err(|error: ParseError| error.to_string())?;
    match size.mib_rounded_up() {
        ..sizing::MIN_MEMORY_MIB => Err(format!("a VM needs at least {}m", sizing::MIN_MEMORY_MIB)),
        sizing::MIN_MEMORY_MIB..=1_048_576 => Ok(size),
        _ => Err("a VM has at most 1t".into()),
    }
}

fn host_name(text: &str) -> Result<String, String> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    match (1..=63).contains(&text.len()) && text.bytes().all(plain) {
        true => Ok(text.into()),
        false => Err("a host name has 1 to 63 letters, digits, - and .".into()),
    }
}
