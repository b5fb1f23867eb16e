//! From a [`VmConfig`] to a [`Vm`], in order. Nothing is left half made: an error drops what there is.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kvm_bindings::CpuId;
use thiserror::Error;
use vm_memory::{GuestAddress, GuestAddressSpace, GuestMemoryMmap};

use crate::arch::cpuid::Topology;
use crate::arch::{acpi, cpuid, entry, layout, msr};
use crate::bus::{Bus, RangeError};
use crate::config::{self, VmConfig};
use crate::console::ConsoleLog;
use crate::device::{Alarm, KeyboardReset, Power, Serial};
use crate::devices::{DeviceError, Devices};
use crate::kvm::{KvmError, KvmVcpu, KvmVm, OpenError, System, install_kick_handler};
use crate::loader::{self, LoadError, LoadedKernel};
use crate::memory::{self, ConfigPages, GuestRam, HostRange, MemoryError};
use crate::pci::{PciError, PciRoot};
use crate::report::BootPhase;
use crate::resident::ResidentMemory;
use crate::vcpu::{Gate, Turn, VcpuContext, VcpuThread};
use crate::vm::{EndSignal, Vm};

/// How long the vCPU threads of a VM that can't be built may take to end. They never entered the guest.
const ABANDON_TIMEOUT: Duration = Duration::from_secs(2);

/// A VM can't be built.
#[derive(Debug, Error)]
pub enum BuildError {
    /// No KVM, or not enough of it.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// KVM refuses a step.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// No memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// Nothing to boot.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// ACPI tables.
    #[error(transparent)]
    Acpi(#[from] acpi::AcpiError),
    /// CPUID.
    #[error(transparent)]
    Cpuid(#[from] cpuid::CpuidError),
    /// Two devices at one address.
    #[error(transparent)]
    Bus(#[from] RangeError),
    /// PCI bus.
    #[error(transparent)]
    Pci(#[from] PciError),
    /// Devices.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// Console log.
    #[error("Can't open the console's log file")]
    ConsoleLog(#[source] io::Error),
    /// Too many vCPUs for this host.
    #[error("The host's KVM allows at most {0} vCPUs")]
    TooManyVcpus(usize),
    /// Memory ends behind the last address of this host's processors.
    #[error("Guest memory would end at {end_gib} GiB, but this host's guests have only {bits} address bits")]
    AddressSpace {
        /// End of the last piece of memory.
        end_gib: u64,
        /// Width of a physical address.
        bits: u32,
    },
    /// Threads or file descriptors.
    #[error("The host refuses {what}")]
    Host {
        /// What was asked for.
        what: &'static str,
        /// Its answer.
        source: io::Error,
    },
}

/// Builds a VM; `end` will hear of its end, `on_phase` hears of each step that is done.
///
/// Whoever waits for `alarm` calls [`Vm::check_watchdog`] when it rings.
pub fn build(
    config: &VmConfig,
    end: &Arc<EndSignal>,
    alarm: &Arc<Alarm>,
    mut on_phase: impl FnMut(BootPhase),
) -> Result<Vm, BuildError> {
    // What the user gave comes first: its errors are the frequent ones.
    let (kernel_file, kernel_bytes) = loader::open_regular("Kernel", &config.boot_source.kernel_image_path)?;
    let console = open_console(config)?;
    let system = System::open_checked()?;
    let vcpu_count = config.machine_config.all_vcpus();
    if usize::from(vcpu_count) > system.max_vcpus() {
        return Err(BuildError::TooManyVcpus(system.max_vcpus()));
    }
    let kvm = system.create_vm()?;
    kvm.set_tss_address(layout::KVM_TSS_START)?;
    kvm.create_local_apics()?;

    let ram_bytes = u64::from(config.machine_config.mem_size_mib) << 20;
    let ram = memory::create_ram(ram_bytes, config.machine_config.huge_pages)?;
    let mut guest_memory = memory::host_ranges(&ram.memory());
    for range in &guest_memory {
        kvm.add_memory(*range)?;
    }
    on_phase(BootPhase::MemoryReady);

    let kernel = load(config, &ram.memory(), kernel_file, kernel_bytes, ram_bytes)?;
    on_phase(BootPhase::KernelLoaded);

    let mut devices = plug_devices(config, &kvm, &ram, &console)?;
    if let Some(watchdog) = &config.watchdog {
        devices.plug_watchdog(watchdog, Arc::clone(alarm))?;
    }
    on_phase(BootPhase::DevicesReady);

    let context = Arc::new(VcpuContext {
        ports: ports(&console, end)?,
        mmio: mmio(devices.root())?,
        end: Arc::clone(end),
        console,
        gate: Gate::new(),
    });
    guest_memory.extend(devices.mapped());
    let supported = system.supported_cpuid()?;
    check_address_space(&supported, &guest_memory)?;
    let resident = ResidentMemory::new(guest_memory).map_err(host("/proc/self/smaps"))?;
    let vcpus = start_vcpus(&system, &supported, &kvm, vcpu_count, &kernel, &context)?;
    Ok(Vm::new(kvm, context, vcpus, devices, config.machine_config.mem_size_mib, resident))
}

fn host(what: &'static str) -> impl FnOnce(io::Error) -> BuildError {
    move |source| BuildError::Host { what, source }
}

/// The processor must be able to name every address.
fn check_address_space(supported: &CpuId, memory: &[HostRange]) -> Result<(), BuildError> {
    let bits = cpuid::physical_address_bits(supported);
    let end = memory.iter().map(|range| range.guest.0.saturating_add(range.size)).max().unwrap_or(0);
    match 1u64.checked_shl(bits) {
        Some(limit) if end > limit => Err(BuildError::AddressSpace { end_gib: end.div_ceil(1 << 30), bits }),
        _ => Ok(()),
    }
}

fn open_console(config: &VmConfig) -> Result<Arc<ConsoleLog>, BuildError> {
    let log = match &config.console {
        Some(console) => ConsoleLog::open(console).map_err(BuildError::ConsoleLog)?,
        None => ConsoleLog::in_memory(),
    };
    Ok(Arc::new(log))
}

/// Puts kernel, initramfs and all tables into guest memory.
fn load(
    config: &VmConfig,
    memory: &GuestMemoryMmap,
    mut kernel_file: File,
    kernel_bytes: u64,
    ram_bytes: u64,
) -> Result<LoadedKernel, BuildError> {
    let source = &config.boot_source;
    let kernel = loader::load_kernel(memory, &mut kernel_file, kernel_bytes)?;
    let initrd = source.initrd_path.as_deref().map(|path| loader::load_initrd(memory, &kernel, path)).transpose()?;
    let words = config.machine_config.kernel_words().into_iter();
    let words = words
        .chain(config::root_device_words(&config.drives))
        .chain(device_words(config))
        .chain([source.boot_args.clone()]);
    let words: Vec<_> = words.collect();
    let command_line = loader::command_line(config.console.is_some(), words.join(" ").trim_end())?;
    let rsdp = acpi::write_tables(memory, config.machine_config.all_vcpus())?;
    loader::write_boot_params(memory, &kernel, initrd, &command_line, ram_bytes, rsdp)?;
    entry::write_tables(memory).map_err(LoadError::from)?;
    Ok(kernel)
}

/// Words for the command line that devices need. The user's come behind them.
fn device_words(config: &VmConfig) -> impl Iterator<Item = String> {
    // Plugged memory is for movable pages, which can be unplugged again, up to three times the other memory; beyond that it serves the
    // kernel too, which would otherwise run out of memory in a small VM that grows far.
    let online = config.memory_hotplug.is_some().then_some("memory_hotplug.online_policy=auto-movable");
    let root = config.pmem.iter().position(|device| device.root_device).map(|index| {
        let access = if config.pmem.get(index).is_some_and(|device| device.read_only) { "ro" } else { "rw" };
        format!("root=/dev/pmem{index} {access}")
    });
    online.map(str::to_owned).into_iter().chain(root)
}

/// Makes the PCI bus and its devices, in the order in which the guest shall find them.
fn plug_devices(
    config: &VmConfig,
    kvm: &KvmVm,
    ram: &GuestRam,
    console: &Arc<ConsoleLog>,
) -> Result<Devices, BuildError> {
    let pages = Arc::new(ConfigPages::new()?);
    kvm.add_read_only_memory(pages.host_range(GuestAddress(layout::ECAM_START)))?;
    let root = PciRoot::new(pages, layout::BAR_WINDOW, Arc::new(kvm.fabric()), ram.clone())?;
    let mut devices = Devices::new(root, config.machine_config.vcpu_count);
    if let Some(config) = &config.console {
        devices.plug_console(config, console)?;
    }
    for drive in &config.drives {
        devices.plug_drive(drive)?;
    }
    for interface in &config.network_interfaces {
        devices.plug_interface(interface, config.machine_config.vcpu_count)?;
    }
    for share in &config.shares {
        devices.plug_share(share)?;
    }
    if let Some(vsock) = &config.vsock {
        devices.plug_vsock(vsock)?;
    }
    if config.entropy.is_some() {
        devices.plug_entropy()?;
    }
    if let Some(balloon) = &config.balloon {
        devices.plug_balloon(balloon)?;
    }
    if let Some(memory) = &config.memory_hotplug {
        devices.plug_memory(memory, &config.machine_config, ram, Arc::new(kvm.slots()))?;
    }
    for pmem in &config.pmem {
        devices.plug_pmem(pmem, &config.machine_config, Arc::new(kvm.slots()))?;
    }
    Ok(devices)
}

fn ports(console: &Arc<ConsoleLog>, end: &Arc<EndSignal>) -> Result<Bus, BuildError> {
    let range = |start: u16, count: u16| u64::from(start)..u64::from(start) + u64::from(count);
    let mut bus = Bus::default();
    bus.insert(range(layout::SERIAL_PORT, layout::SERIAL_PORTS), Arc::new(Serial::new(console.clone())))?;
    let power = Arc::new(Power::new(end.clone(), console.clone()));
    bus.insert(range(layout::POWER_PORT, layout::POWER_PORTS), power.clone())?;
    bus.insert(range(layout::KEYBOARD_COMMAND_PORT, 1), Arc::new(KeyboardReset(power)))?;
    Ok(bus)
}

fn mmio(devices: &Arc<PciRoot>) -> Result<Bus, BuildError> {
    let mut bus = Bus::default();
    bus.insert(layout::ECAM_START..layout::ECAM_START + layout::ECAM_BYTES, devices.ecam_face())?;
    bus.insert(layout::BAR_WINDOW, devices.bar_face())?;
    Ok(bus)
}

fn start_vcpus(
    system: &System,
    supported: &CpuId,
    kvm: &KvmVm,
    count: u8,
    kernel: &LoadedKernel,
    context: &Arc<VcpuContext>,
) -> Result<Vec<VcpuThread>, BuildError> {
    install_kick_handler().map_err(host("a signal handler"))?;
    let tsc_deadline = system.has_tsc_deadline_timer();
    let mut threads = Vec::with_capacity(usize::from(count));
    for id in 0..count {
        let thread = kvm.create_vcpu(id).map_err(BuildError::from).and_then(|vcpu| {
            let topology = Topology { id: u32::from(id), count: u32::from(count) };
            set_up_vcpu(&vcpu, supported, topology, tsc_deadline, kernel)?;
            VcpuThread::spawn(id, vcpu, context.clone()).map_err(host("a vCPU thread"))
        });
        match thread {
            Ok(thread) => threads.push(thread),
            Err(error) => {
                // Those that wait at the gate would keep the VM's memory and devices for ever.
                context.gate.set(Turn::Stop);
                let deadline = Instant::now() + ABANDON_TIMEOUT;
                for thread in threads {
                    let _ = VcpuThread::join(thread, deadline);
                }
                return Err(error);
            }
        }
    }
    Ok(threads)
}

fn set_up_vcpu(
    vcpu: &KvmVcpu,
    supported: &CpuId,
    topology: Topology,
    tsc_deadline: bool,
    kernel: &LoadedKernel,
) -> Result<(), BuildError> {
    let cpuid = cpuid::for_vcpu(supported, topology, tsc_deadline)?;
    vcpu.set_cpuid(&cpuid)?;
    // The guest will enable all states that it finds. A host whose hardware doesn't trap that write (QEMU's emulated SVM) would lose it
    // at the next exit, so it is KVM's value from the start.
    let states = cpuid::extended_states(&cpuid);
    if states != 0
        && let Err(error) = vcpu.set_xcr0(states)
    {
        crate::log::line(&format!("{error} with {states:#x}: {}; going on with its reset value", error.source));
    }
    for (index, value) in msr::START_VALUES {
        if !vcpu.set_msr(*index, *value)? {
            crate::log::line(&format!("KVM refuses MSR {index:#x}; going on with its reset value"));
        }
    }
    // Others wait for their INIT and SIPI in KVM.
    if topology.id == 0 {
        let mut sregs = vcpu.sregs()?;
        entry::enter_long_mode(&mut sregs);
        vcpu.set_sregs(&sregs)?;
        vcpu.set_regs(&entry::regs(kernel.entry))?;
    }
    Ok(())
}
