//! Flags of the commands that change running containers and their VMs.

use clap::builder::RangedU64ValueParser;
use clap::{Args, Subcommand};
use hull_sandbox::parse::{Cpus, MemorySize};
use hull_sandbox::{MAX_DRIVE_ID_BYTES, is_identifier};

use super::run::{PidsLimit, cpus, memory_limit, pids_limit, vm_memory};

const UPDATE_EXAMPLES: &str = "\
Examples:
  hull update --cpus 2 --memory 1g web
  hull update --vcpus 4 web
  hull update --vm-memory 2g web

The VM follows its container's limits up, as far as `hull run --max-vcpus` and `--max-memory` let it; down it
goes when it is told to.";

#[derive(Debug, Args)]
#[command(after_help = UPDATE_EXAMPLES)]
pub struct UpdateArgs {
    /// Memory limit, such as 50m or 2g; at least 6m
    #[arg(long, short, value_name = "SIZE", value_parser = memory_limit)]
    pub memory: Option<MemorySize>,
    /// Processor time limit, in processors, such as 0.5
    #[arg(long, value_name = "NUMBER", allow_negative_numbers = true, value_parser = cpus)]
    pub cpus: Option<Cpus>,
    /// Limit of processes; 0 or -1 for none
    #[arg(long, value_name = "NUMBER", allow_negative_numbers = true, value_parser = pids_limit)]
    pub pids_limit: Option<PidsLimit>,
    /// Processors of the VM in use
    #[arg(long, value_name = "NUMBER", value_parser = RangedU64ValueParser::<u8>::new().range(1..=64))]
    pub vcpus: Option<u8>,
    /// Memory of the VM, from that of its start to its --max-memory
    #[arg(long, value_name = "SIZE", value_parser = vm_memory)]
    pub vm_memory: Option<MemorySize>,
    /// Name or identifier (or the beginning of one)
    #[arg(value_name = "CONTAINER", required = true)]
    pub containers: Vec<String>,
}

impl UpdateArgs {
    /// Nothing shall change.
    pub fn is_empty(&self) -> bool {
        let Self { memory, cpus, pids_limit, vcpus, vm_memory, containers: _ } = self;
        memory.is_none() && cpus.is_none() && pids_limit.is_none() && vcpus.is_none() && vm_memory.is_none()
    }
}

#[derive(Debug, Subcommand)]
pub enum DeviceCommand {
    /// Plug a drive; prints its identifier
    #[command(after_help = "Example:\n  hull device add --drive data.img:ro web")]
    Add(DeviceAddArgs),
    /// Unplug drives that are not in use
    Rm(DeviceRmArgs),
    /// List the devices that the guest has and that can come and go
    Ls(DeviceLsArgs),
}

#[derive(Debug, Args)]
pub struct DeviceAddArgs {
    /// Raw disk image or block device; with :ro the guest can't write to it
    #[arg(long, value_name = "FILE[:ro]")]
    pub drive: String,
    /// Its identifier, which is also its serial number [default: drive1, drive2, ...]
    #[arg(long, value_name = "ID", value_parser = drive_id)]
    pub id: Option<String>,
    /// Name or identifier of the container (or the beginning of one)
    #[arg(value_name = "CONTAINER")]
    pub container: String,
}

#[derive(Debug, Args)]
pub struct DeviceRmArgs {
    /// Name or identifier of the container (or the beginning of one)
    #[arg(value_name = "CONTAINER")]
    pub container: String,
    /// Identifiers as `hull device ls` lists them
    #[arg(value_name = "ID", required = true, value_parser = drive_id)]
    pub ids: Vec<String>,
}

#[derive(Debug, Args)]
pub struct DeviceLsArgs {
    /// Name or identifier of the container (or the beginning of one)
    #[arg(value_name = "CONTAINER")]
    pub container: String,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// What fits into the serial number of a virtio disk.
fn drive_id(text: &str) -> Result<String, String> {
    match is_identifier(text, MAX_DRIVE_ID_BYTES) {
        true => Ok(text.into()),
        false => Err(format!("an identifier has 1 to {MAX_DRIVE_ID_BYTES} letters, digits, - and _")),
    }
}
