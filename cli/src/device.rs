//! `hull device`: drives that are plugged into and unplugged from the VM of a running container.

use std::path::PathBuf;

use anyhow::{Context as _, anyhow};
use hull_sandbox::machine::Device;
use hull_sandbox::{Drive, Machine};

use crate::args::{DeviceAddArgs, DeviceCommand, DeviceLsArgs, DeviceRmArgs};
use crate::context::{self, Context};
use crate::failure::{FAILED, Failure};
use crate::find::find;
use crate::output::{line, print, say};
use crate::table;

/// Most names that are tried for a drive without one.
const MAX_DRIVES: usize = 32;

pub fn device(command: &DeviceCommand, context: &Context) -> Result<u8, Failure> {
    match command {
        DeviceCommand::Add(args) => context::block_on(add(args, context))?,
        DeviceCommand::Rm(args) => context::block_on(remove(args, context))?,
        DeviceCommand::Ls(args) => context::block_on(list(args, context))?,
    }
}

async fn attach(container: &str, context: &Context) -> Result<Machine, Failure> {
    let root = context.runtime()?;
    let records = root.list()?;
    let record = find(&records, container)?;
    Ok(Machine::attach(&root, record).await?)
}

async fn add(args: &DeviceAddArgs, context: &Context) -> Result<u8, Failure> {
    let (path, is_read_only) = image_file(&args.drive)?;
    let machine = attach(&args.container, context).await?;
    let drive_id = match &args.id {
        Some(id) => id.clone(),
        None => free_name(&machine.devices().await?)?,
    };
    let drive = Drive { drive_id, path_on_host: path, is_read_only, ..Drive::default() };
    let device = machine.plug_drive(&drive).await?;
    line(device.name)?;
    Ok(0)
}

async fn remove(args: &DeviceRmArgs, context: &Context) -> Result<u8, Failure> {
    let machine = attach(&args.container, context).await?;
    let mut code = 0;
    for id in &args.ids {
        match machine.unplug_drive(id).await {
            Ok(()) => line(id)?,
            Err(error) => {
                say(Failure::from(error).line());
                code = FAILED;
            }
        }
    }
    Ok(code)
}

async fn list(args: &DeviceLsArgs, context: &Context) -> Result<u8, Failure> {
    let devices = attach(&args.container, context).await?.devices().await?;
    if args.json {
        line(serde_json::to_string_pretty(&devices)?)?;
    } else {
        let row = |device: &Device| {
            vec![device.name.clone(), device.kind.to_string(), device.guest_name.clone(), device.pci_address.clone()]
        };
        let rows: Vec<_> = devices.iter().map(row).collect();
        print(&table::render(&["ID", "KIND", "IN THE GUEST", "PCI ADDRESS"], &rows))?;
    }
    Ok(0)
}

/// `FILE` or `FILE:ro`, absolute, because another process opens it.
fn image_file(text: &str) -> anyhow::Result<(PathBuf, bool)> {
    let (path, is_read_only) = match text.strip_suffix(":ro") {
        Some(path) => (path, true),
        None => (text, false),
    };
    let path = std::fs::canonicalize(path).with_context(|| format!("--drive {path}"))?;
    Ok((path, is_read_only))
}

/// `drive1`, `drive2`, ...: the first that the VM doesn't have.
fn free_name(devices: &[Device]) -> anyhow::Result<String> {
    let mut names = (1..=MAX_DRIVES).map(|number| format!("drive{number}"));
    let free = names.find(|name| devices.iter().all(|device| device.name != *name));
    free.ok_or_else(|| anyhow!("the VM has no room for more drives"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use hull_sandbox::machine::DeviceKind;

    #[test]
    fn a_drive_is_a_file_that_may_be_read_only() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path().to_str().unwrap();
        assert_eq!(image_file(path).unwrap(), (file.path().into(), false));
        assert_eq!(image_file(&format!("{path}:ro")).unwrap(), (file.path().into(), true));
        assert!(image_file("/no/such:ro").unwrap_err().to_string().contains("--drive /no/such"));
    }

    #[test]
    fn names_that_are_taken_are_not_given() {
        let device = |name: &str| Device {
            kind: DeviceKind::Drive,
            name: name.into(),
            pci_address: String::new(),
            guest_name: String::new(),
            number: None,
        };
        assert_eq!(free_name(&[]).unwrap(), "drive1");
        assert_eq!(free_name(&[device("image"), device("drive1"), device("drive3")]).unwrap(), "drive2");
        let all: Vec<_> = (1..=MAX_DRIVES).map(|number| device(&format!("drive{number}"))).collect();
        assert!(free_name(&all).is_err());
    }
}
