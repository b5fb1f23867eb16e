//! The parts of a configuration: set before the start, devices also plugged and unplugged later.
//!
//! A new device is an implementation of [`Single`], or of [`Item`] and perhaps [`Hotplug`] here, and its rows in the table of routes.

use serde::de::DeserializeOwned;
use serde_json::json;

use super::fault::{self, Fault};
use super::http::Response;
use super::routes::{Answer, Call, printable};
use crate::config::{
    Balloon, BootSource, ConfigError, Console, Drive, Entropy, MemoryHotplug, NetworkInterface, Pmem, Share, VmConfig,
    Vsock, Watchdog,
};
use crate::devices::{DeviceError, Kind};
use crate::instance::Instance;
use crate::pci::PciSlot;
use crate::vm::Vm;

/// A part that there is once.
pub(super) trait Single: DeserializeOwned {
    /// Its name in the configuration.
    const NAME: &'static str;

    /// Puts it into the configuration.
    fn set(self, config: &mut VmConfig);

    /// Checks it when the check of the whole configuration doesn't.
    fn check(&self) -> Result<(), ConfigError> {
        Ok(())
    }
}

impl Single for BootSource {
    const NAME: &'static str = "boot-source";

    fn set(self, config: &mut VmConfig) {
        config.boot_source = self;
    }

    // An empty one counts as none in a configuration that is still put together.
    fn check(&self) -> Result<(), ConfigError> {
        self.validate()
    }
}

impl Single for Vsock {
    const NAME: &'static str = "vsock";

    fn set(self, config: &mut VmConfig) {
        config.vsock = Some(self);
    }
}

impl Single for Entropy {
    const NAME: &'static str = "entropy";

    fn set(self, config: &mut VmConfig) {
        config.entropy = Some(self);
    }
}

impl Single for Console {
    const NAME: &'static str = "console";

    fn set(self, config: &mut VmConfig) {
        config.console = Some(self);
    }
}

impl Single for Balloon {
    const NAME: &'static str = "balloon";

    fn set(self, config: &mut VmConfig) {
        config.balloon = Some(self);
    }
}

impl Single for Watchdog {
    const NAME: &'static str = "watchdog";

    fn set(self, config: &mut VmConfig) {
        config.watchdog = Some(self);
    }
}

impl Single for MemoryHotplug {
    const NAME: &'static str = "memory-hotplug";

    fn set(self, config: &mut VmConfig) {
        config.memory_hotplug = Some(self);
    }
}

/// A device of which there may be several, told apart by their names.
pub(super) trait Item: DeserializeOwned + Clone {
    /// Name of their list in the configuration.
    const LIST: &'static str;

    /// Its name.
    fn id(&self) -> &str;

    /// All of the configuration.
    fn list(config: &mut VmConfig) -> &mut Vec<Self>;
}

/// An [`Item`] that a running VM can get and lose.
pub(super) trait Hotplug: Item {
    /// What they are on the bus.
    const KIND: Kind;

    /// Plugs it.
    fn plug(&self, vm: &mut Vm) -> Result<PciSlot, DeviceError>;

    /// Refuses what is possible at the start only.
    fn check_hotplug(&self) -> Result<(), Fault> {
        Ok(())
    }
}

impl Item for Drive {
    const LIST: &'static str = "drives";

    fn id(&self) -> &str {
        &self.drive_id
    }

    fn list(config: &mut VmConfig) -> &mut Vec<Self> {
        &mut config.drives
    }
}

impl Hotplug for Drive {
    const KIND: Kind = Kind::Drive;

    fn plug(&self, vm: &mut Vm) -> Result<PciSlot, DeviceError> {
        vm.devices_mut().plug_drive(self)
    }

    fn check_hotplug(&self) -> Result<(), Fault> {
        if self.is_root_device {
            return Err(Fault::bad("Field is_root_device: the guest has its root already"));
        }
        Ok(())
    }
}

impl Item for NetworkInterface {
    const LIST: &'static str = "network-interfaces";

    fn id(&self) -> &str {
        &self.iface_id
    }

    fn list(config: &mut VmConfig) -> &mut Vec<Self> {
        &mut config.network_interfaces
    }
}

impl Hotplug for NetworkInterface {
    const KIND: Kind = Kind::Network;

    fn plug(&self, vm: &mut Vm) -> Result<PciSlot, DeviceError> {
        let vcpus = vm.vcpu_count().try_into().unwrap_or(u8::MAX);
        vm.devices_mut().plug_interface(self, vcpus)
    }
}

impl Item for Share {
    const LIST: &'static str = "shares";

    fn id(&self) -> &str {
        &self.tag
    }

    fn list(config: &mut VmConfig) -> &mut Vec<Self> {
        &mut config.shares
    }
}

impl Hotplug for Share {
    const KIND: Kind = Kind::Share;

    fn plug(&self, vm: &mut Vm) -> Result<PciSlot, DeviceError> {
        vm.devices_mut().plug_share(self)
    }
}

impl Item for Pmem {
    const LIST: &'static str = "pmem";

    fn id(&self) -> &str {
        &self.id
    }

    fn list(config: &mut VmConfig) -> &mut Vec<Self> {
        &mut config.pmem
    }
}

/// PUT of a [`Single`]: before the start only.
pub(super) fn put_single<T: Single>(call: Call<'_>) -> Answer {
    if call.instance.vm().is_some() {
        return Err(Fault::after_start());
    }
    let part: T = fault::parse(call.body)?;
    part.check().map_err(|error| without_prefix(error, &format!("{}.", T::NAME)))?;
    let config = call.instance.with_change(|config| part.set(config));
    call.instance.set_config(config.map_err(|error| without_prefix(error, &format!("{}.", T::NAME)))?);
    Ok(Response::done())
}

/// PUT of an [`Item`] that can't be plugged: a new one or a new version of the one with this name, before the start only.
pub(super) fn put_item_before_start<T: Item>(call: Call<'_>) -> Answer {
    if call.instance.vm().is_some() {
        return Err(Fault::after_start());
    }
    let item: T = fault::parse(call.body)?;
    check_id(call.id, item.id())?;
    let Changed { config, .. } = with_item(call.instance, &item);
    call.instance.set_config(config?);
    Ok(Response::done())
}

/// PUT of a [`Hotplug`]: a new one or a new version of the one with this name; in a running VM a new one is plugged.
pub(super) fn put_item<T: Hotplug>(call: Call<'_>) -> Answer {
    let item: T = fault::parse(call.body)?;
    check_id(call.id, item.id())?;
    let Changed { config, exists } = with_item(call.instance, &item);
    if call.instance.vm().is_some() && exists {
        return Err(Fault::conflict(format!("There is a {} {} already; delete it first", T::KIND, printable(call.id))));
    }
    let config = config?;
    let Some(vm) = call.instance.vm_mut() else {
        call.instance.set_config(config);
        return Ok(Response::done());
    };
    item.check_hotplug()?;
    let slot = item.plug(vm)?;
    call.instance.set_config(config);
    // For the guest: it has to look for new devices, and whoever asks it to may want to know which one is new.
    Ok(Response::ok(json!({ "pci_address": slot.to_string() })))
}

/// A configuration with another item.
struct Changed {
    /// If it is valid.
    config: Result<VmConfig, ConfigError>,
    /// There was one of the same name, which is replaced.
    exists: bool,
}

fn with_item<T: Item>(instance: &Instance, item: &T) -> Changed {
    let (mut index, mut exists) = (0, false);
    let config = instance.with_change(|config| {
        let list = T::list(config);
        index = list.iter().position(|other| other.id() == item.id()).unwrap_or(list.len());
        match list.get_mut(index) {
            Some(other) => {
                exists = true;
                *other = item.clone();
            }
            None => list.push(item.clone()),
        }
    });
    Changed { config: config.map_err(|error| without_prefix(error, &format!("{}[{index}].", T::LIST))), exists }
}

/// DELETE of a [`Hotplug`]: out of the configuration, and out of a running VM if its driver has let go of it, or with `?force=true`.
pub(super) fn delete_item<T: Hotplug>(call: Call<'_>) -> Answer {
    let mut found = false;
    let config = call.instance.with_change(|config| {
        T::list(config).retain(|item| item.id() != call.id);
    });
    if let Some(device) = call.instance.vm().and_then(|vm| vm.devices().find(T::KIND, call.id)) {
        found = true;
        let in_use = call.instance.vm().is_some_and(|vm| vm.devices().root().is_active(device.slot));
        if in_use && !is_forced(call.query)? {
            return Err(Fault::conflict(format!(
                "The guest still uses it: have it write 1 to /sys/bus/pci/devices/{}/remove first, or add ?force=true",
                device.slot
            )));
        }
    }
    let in_config = T::list(&mut call.instance.config().clone()).iter().any(|item| item.id() == call.id);
    if !found && !in_config {
        return Err(Fault::missing(format!("There is no {} {}", T::KIND, printable(call.id))));
    }
    if let Some(vm) = call.instance.vm_mut() {
        vm.devices_mut().unplug(T::KIND, call.id)?;
    }
    call.instance.set_config(config?);
    Ok(Response::done())
}

/// The name stands in the path and in the body.
pub(super) fn check_id(path: &str, body: &str) -> Result<(), Fault> {
    if path == body {
        return Ok(());
    }
    let (path, body) = (printable(path), printable(body));
    Err(Fault::bad(format!("The id from the path [{path}] does not match the id from the body [{body}]!")))
}

fn is_forced(query: &str) -> Result<bool, Fault> {
    match query {
        "" | "force=false" => Ok(false),
        "force=true" => Ok(true),
        other => Err(Fault::bad(format!("Unknown query {}: only force=true is known", printable(other)))),
    }
}

/// The error of a part, which knows its place in the configuration, for someone who sees only the part.
pub(super) fn without_prefix(error: ConfigError, prefix: &str) -> ConfigError {
    match error {
        ConfigError::Value { field, problem } => {
            let field = field.strip_prefix(prefix).map(str::to_owned).unwrap_or(field);
            ConfigError::Value { field, problem }
        }
        other => other,
    }
}
