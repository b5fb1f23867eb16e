//! How each monitor is started with the same guest.

use std::path::Path;
use std::process::Command;

use anyhow::Result;
use serde_json::json;

use crate::boot::Setup;

/// A virtual machine monitor that boots the guest.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Monitor {
    /// Ours.
    Hull,
    /// QEMU's smallest machine, with PCI because the guest kernel has no other transport.
    QemuMicrovm,
}

/// In the order of the columns; ratios are against the last.
pub const ALL: [Monitor; 2] = [Monitor::Hull, Monitor::QemuMicrovm];

impl Monitor {
    /// For tables and samples.
    pub fn name(self) -> &'static str {
        match self {
            Self::Hull => "hull-vmm",
            Self::QemuMicrovm => "qemu-microvm",
        }
    }

    /// The command that boots `setup`'s guest. The guest dials the ready port through `dir`'s Unix socket (Hull) or the
    /// host's AF_VSOCK (QEMU).
    pub fn command(self, setup: &Setup, dir: &Path) -> Result<Command> {
        match self {
            Self::Hull => hull(setup, dir),
            Self::QemuMicrovm => Ok(qemu(setup)),
        }
    }
}

fn hull(setup: &Setup, dir: &Path) -> Result<Command> {
    let config = json!({
        "boot-source": {
            "kernel_image_path": setup.kernel,
            "initrd_path": setup.initramfs,
            "boot_args": setup.boot_args,
        },
        "machine-config": { "vcpu_count": setup.vcpus, "mem_size_mib": setup.memory_mib },
        "drives": [{ "drive_id": "bench", "path_on_host": setup.disk, "is_read_only": true }],
        "vsock": { "guest_cid": hull_protocol::GUEST_CID, "uds_path": dir.join("vsock") },
        "entropy": {},
        "console": {},
    });
    let path = dir.join("vm.json");
    std::fs::write(&path, config.to_string())?;
    let mut command = Command::new(&setup.hull_vmm);
    command.arg("run").arg("--config").arg(path);
    Ok(command)
}

fn qemu(setup: &Setup) -> Command {
    let mut command = Command::new("qemu-system-x86_64");
    command
        .args(["-M", "microvm,pcie=on,acpi=on,pic=off,pit=off,rtc=off,isa-serial=off"])
        .args(["-enable-kvm", "-cpu", "host,pmu=off", "-nodefaults", "-no-user-config"])
        .args(["-nographic", "-no-reboot", "-serial", "none", "-monitor", "none"])
        .args(["-m", &format!("{}M", setup.memory_mib)])
        .args(["-smp", &setup.vcpus.to_string()])
        .arg("-kernel")
        .arg(&setup.kernel)
        .arg("-initrd")
        .arg(&setup.initramfs)
        .args(["-append", &format!("console=hvc0 loglevel=2 reboot=t panic=-1 {}", setup.boot_args)])
        .arg("-drive")
        .arg(format!("id=bench,file={},format=raw,if=none,readonly=on", setup.disk.display()))
        .args(["-device", "virtio-blk-pci,drive=bench,serial=bench"])
        .args(["-device", "vhost-vsock-pci,guest-cid=3"])
        .args(["-device", "virtio-rng-pci"])
        .args(["-device", "virtio-serial-pci", "-chardev", "null,id=log"])
        .args(["-device", "virtconsole,chardev=log"]);
    command
}
