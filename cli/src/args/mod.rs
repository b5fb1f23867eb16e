//! What can be typed.

mod machine;
mod run;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

pub use machine::{DeviceAddArgs, DeviceCommand, DeviceLsArgs, DeviceRmArgs, UpdateArgs};
pub use run::{Init, Network, RunArgs, SecurityOption};

const EXAMPLES: &str = "\
Examples:
  hull run --rm docker.io/library/busybox echo hello
  hull run -it --memory 256m --cpus 0.5 oci:./image sh
  hull doctor

Exit status of `hull run`: that of the command; 128 + n if signal n ended it; 125 if Hull failed;
126 if the command can't be executed; 127 if it was not found; 137 if the VM was killed.";

/// Secure containers, each in its own microVM.
#[derive(Debug, Parser)]
#[command(name = "hull", version, after_help = EXAMPLES, max_term_width = 120, disable_help_subcommand = true, arg_required_else_help = true)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Args)]
pub struct Global {
    /// Image store [default: /var/lib/hull for root, ~/.local/share/hull for others]
    #[arg(long, global = true, value_name = "DIR", env = "HULL_ROOT", hide_env_values = true)]
    pub root: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a command in a new container, in a microVM of its own
    Run(Box<RunArgs>),
    /// Fetch an image into the store
    Pull(PullArgs),
    /// List the images in the store
    Images(ImagesArgs),
    /// Remove images from the store
    Rmi(RmiArgs),
    /// List running containers
    Ps(PsArgs),
    /// Stop running containers
    Stop(StopArgs),
    /// Change limits of running containers and sizes of their VMs
    Update(UpdateArgs),
    /// Plug drives into the VM of a running container, and unplug them
    Device {
        #[command(subcommand)]
        command: DeviceCommand,
    },
    /// Show the guest kernel in use
    Kernel(KernelArgs),
    /// Check whether this machine can run microVMs
    Doctor(DoctorArgs),
    /// Show the version
    Version(VersionArgs),
    /// Print a completion script
    #[command(after_help = "Example:\n  hull completion bash > /etc/bash_completion.d/hull")]
    Completion(CompletionArgs),
    /// Own a container whose terminal may go away
    #[command(name = "__keeper", hide = true)]
    Keeper,
}

/// How an image is fetched.
#[derive(Debug, Clone, Args)]
pub struct FetchArgs {
    /// Speak plain HTTP to the registry (always allowed for loopback addresses)
    #[arg(long)]
    pub plain_http: bool,
    /// Platform of a multi-platform image, such as linux/amd64
    #[arg(long, value_name = "OS/ARCH")]
    pub platform: Option<String>,
}

/// When `hull run` fetches an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Pull {
    /// Only if the store does not have it
    Missing,
    /// Look for a newer one first
    Always,
    /// Fail if the store does not have it
    Never,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  hull pull docker.io/library/busybox:1.36\n  hull pull --plain-http registry.lan:5000/app"
)]
pub struct PullArgs {
    /// Image: NAME[:TAG|@DIGEST], oci:DIR[:TAG], oci-archive:FILE, docker-archive:FILE or rootfs:DIR
    #[arg(value_name = "IMAGE")]
    pub image: String,
    #[command(flatten)]
    pub fetch: FetchArgs,
    /// Print nothing but the image's digest
    #[arg(long, short)]
    pub quiet: bool,
}

#[derive(Debug, Args)]
pub struct ImagesArgs {
    /// Print names only
    #[arg(long, short, conflicts_with = "json")]
    pub quiet: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct RmiArgs {
    /// Also if containers use it; they keep it until they end
    #[arg(long, short)]
    pub force: bool,
    /// Names as `hull images` lists them
    #[arg(value_name = "IMAGE", required = true)]
    pub images: Vec<String>,
}

#[derive(Debug, Args)]
pub struct PsArgs {
    /// Print identifiers only
    #[arg(long, short, conflicts_with = "json")]
    pub quiet: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Accepted as in Docker; a container that has ended leaves nothing to list
    #[arg(long, short)]
    pub all: bool,
}

#[derive(Debug, Args)]
pub struct StopArgs {
    /// Name or identifier (or the beginning of one)
    #[arg(value_name = "CONTAINER", required = true)]
    pub containers: Vec<String>,
    /// Seconds until it is killed [default: the container's --stop-timeout, or 10]
    #[arg(long, short = 't', value_name = "SECONDS")]
    pub time: Option<u32>,
    /// Signal to send instead of the container's stop signal
    #[arg(long, short, value_name = "SIGNAL")]
    pub signal: Option<String>,
}

#[derive(Debug, Args)]
pub struct KernelArgs {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Exit status: 0 if microVMs can run here, 1 if not.")]
pub struct DoctorArgs {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct VersionArgs {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct CompletionArgs {
    /// Shell
    #[arg(value_enum)]
    pub shell: CompletionShell,
}

/// Shells that the completion script can be made for.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum CompletionShell {
    Bash,
    Zsh,
    Fish,
}

#[cfg(test)]
#[path = "args_test.rs"]
mod tests;
