//! A guest of a few instructions in 64-bit kernel mode: for the probe, and for tests of what lies between KVM and devices.

use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use kvm_bindings::CpuId;
use thiserror::Error;
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace};

use crate::arch::{entry, layout};
use crate::config::HugePages;
use crate::kvm::{self, Exit, KvmError, KvmVcpu, KvmVm, System};
use crate::loader::LoadError;
use crate::memory::{self, GuestRam, MemoryError};

/// Where the code is.
pub const CODE_START: GuestAddress = layout::HIMEM_START;
/// Where code may keep data, aligned to a page.
pub const DATA_START: GuestAddress = GuestAddress(0x10_1000);
const RAM_BYTES: u64 = 2 << 20;

/// A tiny guest can't be made.
#[derive(Debug, Error)]
pub enum TinyGuestError {
    /// KVM.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// Memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// Code or tables.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// Threads or signals.
    #[error("The host refuses a thread")]
    Thread(#[source] std::io::Error),
}

/// A guest with one vCPU and 2 MiB, at its first instruction.
pub struct TinyGuest {
    /// The VM.
    pub kvm: KvmVm,
    /// Its only vCPU.
    pub vcpu: KvmVcpu,
    /// Its memory.
    pub ram: GuestRam,
}

/// How a run ended.
#[derive(Debug, PartialEq, Eq)]
pub enum RunEnd {
    /// The guest wrote to a port.
    Port {
        /// Port.
        port: u16,
        /// First byte.
        value: u8,
        /// Time in the guest.
        time: Duration,
    },
    /// Another exit.
    Failed(String),
    /// Not finished in time.
    Timeout,
}

impl TinyGuest {
    /// Makes a guest that will run `code` at [`CODE_START`] in long mode, privilege level 0, interrupts off.
    pub fn new(system: &System, code: &[u8], cpuid: &CpuId) -> Result<Self, TinyGuestError> {
        let kvm = system.create_vm()?;
        kvm.set_tss_address(layout::KVM_TSS_START)?;
        kvm.create_local_apics()?;
        let ram = memory::create_ram(RAM_BYTES, HugePages::None)?;
        let guest_memory = ram.memory();
        for range in memory::host_ranges(&guest_memory) {
            kvm.add_memory(range)?;
        }
        guest_memory.write_slice(code, CODE_START).map_err(LoadError::from)?;
        entry::write_tables(&guest_memory).map_err(LoadError::from)?;
        let vcpu = kvm.create_vcpu(0)?;
        vcpu.set_cpuid(cpuid)?;
        let mut sregs = vcpu.sregs()?;
        entry::enter_long_mode(&mut sregs);
        vcpu.set_sregs(&sregs)?;
        vcpu.set_regs(&entry::regs(CODE_START))?;
        Ok(Self { kvm, vcpu, ram })
    }

    /// Runs to the first write to a port, or until `limit`.
    pub fn run(mut self, limit: Duration) -> Result<RunEnd, TinyGuestError> {
        kvm::install_kick_handler().map_err(TinyGuestError::Thread)?;
        let (sender, receiver) = mpsc::channel();
        let thread = thread::Builder::new()
            .spawn(move || {
                let registration = self.vcpu.register_for_kicks();
                let start = Instant::now();
                let end = match self.vcpu.run() {
                    Ok(Exit::PortWrite { port, data, .. }) => {
                        RunEnd::Port { port, value: data.first().copied().unwrap_or(0), time: start.elapsed() }
                    }
                    Ok(Exit::Interrupted) => RunEnd::Timeout,
                    Ok(exit) => RunEnd::Failed(format!("{exit:?}")),
                    Err(error) => RunEnd::Failed(format!("{error}: {}", error.source)),
                };
                drop(registration);
                let _ = sender.send(end);
            })
            .map_err(TinyGuestError::Thread)?;
        let deadline = Instant::now() + limit;
        loop {
            let wait = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(20));
            match receiver.recv_timeout(wait) {
                Ok(end) => {
                    let _ = thread.join();
                    return Ok(end);
                }
                Err(mpsc::RecvTimeoutError::Timeout) => kvm::kick(&thread),
                Err(mpsc::RecvTimeoutError::Disconnected) => return Ok(RunEnd::Failed("the thread died".to_owned())),
            }
        }
    }
}
