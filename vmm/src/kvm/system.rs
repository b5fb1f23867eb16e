//! `/dev/kvm` itself.

use std::ffi::CStr;
use std::io;

use kvm_bindings::{CpuId, KVM_API_VERSION, KVM_MAX_CPUID_ENTRIES, MsrList};
use kvm_ioctls::{Cap, Kvm};
use thiserror::Error;

use super::{KvmError, KvmVm};

const DEVICE: &CStr = c"/dev/kvm";

/// What Hull needs of KVM, with the names of the kernel's documentation (Documentation/virt/kvm/api.rst).
pub const REQUIRED_CAPABILITIES: &[(Cap, &str)] = &[
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::SetTssAddr, "KVM_CAP_SET_TSS_ADDR"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
    (Cap::MpState, "KVM_CAP_MP_STATE"),
    (Cap::ReadonlyMem, "KVM_CAP_READONLY_MEM"),
    (Cap::SplitIrqchip, "KVM_CAP_SPLIT_IRQCHIP"),
    (Cap::IrqRouting, "KVM_CAP_IRQ_ROUTING"),
    (Cap::Irqfd, "KVM_CAP_IRQFD"),
    (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
    (Cap::IoeventfdNoLength, "KVM_CAP_IOEVENTFD_NO_LENGTH"),
    (Cap::SignalMsi, "KVM_CAP_SIGNAL_MSI"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
];

/// `/dev/kvm` can't be used.
#[derive(Debug, Error)]
pub enum OpenError {
    /// No such device.
    #[error("/dev/kvm: not found; load the module kvm_intel or kvm_amd and enable virtualization in the firmware")]
    Missing,
    /// No access.
    #[error("/dev/kvm: permission denied; add yourself to group kvm")]
    Permission,
    /// Something else.
    #[error("/dev/kvm: can't open")]
    Other(#[source] io::Error),
    /// Not the stable API.
    #[error("/dev/kvm: API version {0}, but only 12 is known")]
    ApiVersion(i32),
    /// Old or special kernel.
    #[error(transparent)]
    Capabilities(#[from] MissingCapabilities),
}

/// Capabilities that this host's KVM lacks.
#[derive(Debug, Error)]
#[error("/dev/kvm: this kernel lacks {}", .0.join(", "))]
pub struct MissingCapabilities(pub Vec<&'static str>);

/// An open `/dev/kvm`.
pub struct System {
    kvm: Kvm,
}

impl System {
    /// Opens `/dev/kvm` and checks its version. Most callers want [`System::open_checked`].
    pub fn open() -> Result<Self, OpenError> {
        let kvm = Kvm::new_with_path(DEVICE).map_err(|error| match error.errno() {
            libc::ENOENT | libc::ENXIO | libc::ENODEV => OpenError::Missing,
            libc::EACCES | libc::EPERM => OpenError::Permission,
            errno => OpenError::Other(io::Error::from_raw_os_error(errno)),
        })?;
        let version = kvm.get_api_version();
        if u32::try_from(version) != Ok(KVM_API_VERSION) {
            return Err(OpenError::ApiVersion(version));
        }
        Ok(Self { kvm })
    }

    /// Opens `/dev/kvm` and checks that it has all that a VM needs.
    pub fn open_checked() -> Result<Self, OpenError> {
        let system = Self::open()?;
        let missing = system.missing_capabilities();
        if !missing.is_empty() {
            return Err(MissingCapabilities(missing).into());
        }
        Ok(system)
    }

    /// Names of the [`REQUIRED_CAPABILITIES`] that this KVM lacks.
    pub fn missing_capabilities(&self) -> Vec<&'static str> {
        REQUIRED_CAPABILITIES
            .iter()
            .filter(|(capability, _)| !self.kvm.check_extension(*capability))
            .map(|(_, name)| *name)
            .collect()
    }

    /// Most vCPUs of one VM.
    pub fn max_vcpus(&self) -> usize {
        self.kvm.get_max_vcpus()
    }

    /// Whether the local APIC's timer has the TSC-deadline mode; it isn't part of the supported CPUID.
    pub fn has_tsc_deadline_timer(&self) -> bool {
        self.kvm.check_extension(Cap::TscDeadlineTimer)
    }

    /// CPUID leaves that KVM can give to a guest.
    pub fn supported_cpuid(&self) -> Result<CpuId, KvmError> {
        self.kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(KvmError::of("KVM_GET_SUPPORTED_CPUID"))
    }

    /// MSRs that KVM keeps for a guest.
    pub fn msr_index_list(&self) -> Result<MsrList, KvmError> {
        self.kvm.get_msr_index_list().map_err(KvmError::of("KVM_GET_MSR_INDEX_LIST"))
    }

    /// Makes an empty VM.
    pub fn create_vm(&self) -> Result<KvmVm, KvmError> {
        // A signal may interrupt the creation, which can take long on a busy host.
        for _ in 0..10 {
            match self.kvm.create_vm() {
                Ok(fd) => return Ok(KvmVm::new(fd)),
                Err(error) if error.errno() == libc::EINTR => {}
                Err(error) => return Err(KvmError::of("KVM_CREATE_VM")(error)),
            }
        }
        Err(KvmError::of("KVM_CREATE_VM")(kvm_ioctls::Error::new(libc::EINTR)))
    }
}
