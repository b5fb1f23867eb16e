//! A virtual processor: its state, one entry into the guest, and the signal that gets it out again.

use std::cell::Cell;
use std::os::unix::thread::JoinHandleExt;
use std::ptr;
use std::thread::JoinHandle;

use kvm_bindings::{
    CpuId, KVM_EXIT_INTERNAL_ERROR, KVM_EXIT_IO, KVM_EXIT_IO_OUT, Msrs, kvm_msr_entry, kvm_regs, kvm_run, kvm_sregs,
    kvm_xcr, kvm_xcrs,
};
use kvm_ioctls::{VcpuExit, VcpuFd};
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

use super::{KvmError, VcpuStatistics};

/// Why the guest was left.
#[derive(Debug)]
pub enum Exit<'a> {
    /// Read of a port, `width` bytes at a time, several times for a string instruction.
    PortRead {
        /// Port.
        port: u16,
        /// Bytes of one access.
        width: usize,
        /// What the guest gets.
        data: &'a mut [u8],
    },
    /// Write to a port, `width` bytes at a time, several times for a string instruction.
    PortWrite {
        /// Port.
        port: u16,
        /// Bytes of one access.
        width: usize,
        /// What the guest sends.
        data: &'a [u8],
    },
    /// Read of memory where no memory slot is.
    MmioRead {
        /// Guest-physical address.
        address: u64,
        /// What the guest gets.
        data: &'a mut [u8],
    },
    /// Write to memory where no writable memory slot is.
    MmioWrite {
        /// Guest-physical address.
        address: u64,
        /// What the guest sends.
        data: &'a [u8],
    },
    /// The processor was halted (only without a local APIC in the kernel).
    Halt,
    /// Triple fault.
    Shutdown,
    /// The processor refused the guest's state.
    FailEntry {
        /// Reason, specific to the vendor.
        reason: u64,
    },
    /// KVM gave up.
    InternalError {
        /// 1: an instruction that it can't emulate; others are in linux/kvm.h.
        suberror: u32,
    },
    /// A signal, or [`kick`].
    Interrupted,
    /// An exit that is not expected here.
    Unexpected(String),
}

/// A virtual processor of KVM.
pub struct KvmVcpu {
    fd: VcpuFd,
}

impl KvmVcpu {
    pub(super) fn new(fd: VcpuFd) -> Self {
        Self { fd }
    }

    /// Sets the processor's features.
    pub fn set_cpuid(&self, cpuid: &CpuId) -> Result<(), KvmError> {
        self.fd.set_cpuid2(cpuid).map_err(KvmError::of("KVM_SET_CPUID2"))
    }

    /// Sets one model-specific register; tells whether KVM accepted it.
    pub fn set_msr(&self, index: u32, data: u64) -> Result<bool, KvmError> {
        let msrs = Msrs::from_entries(&[kvm_msr_entry { index, data, ..Default::default() }])
            .map_err(|_| KvmError::of("KVM_SET_MSRS")(kvm_ioctls::Error::new(libc::EINVAL)))?;
        Ok(self.fd.set_msrs(&msrs).map_err(KvmError::of("KVM_SET_MSRS"))? == 1)
    }

    /// Sets XCR0, which enables extended processor states.
    pub fn set_xcr0(&self, value: u64) -> Result<(), KvmError> {
        let mut xcrs = kvm_xcrs { nr_xcrs: 1, ..Default::default() };
        xcrs.xcrs[0] = kvm_xcr { xcr: 0, value, ..Default::default() };
        self.fd.set_xcrs(&xcrs).map_err(KvmError::of("KVM_SET_XCRS"))
    }

    /// Reads general registers.
    pub fn regs(&self) -> Result<kvm_regs, KvmError> {
        self.fd.get_regs().map_err(KvmError::of("KVM_GET_REGS"))
    }

    /// Sets general registers.
    pub fn set_regs(&self, regs: &kvm_regs) -> Result<(), KvmError> {
        self.fd.set_regs(regs).map_err(KvmError::of("KVM_SET_REGS"))
    }

    /// Reads segment and control registers.
    pub fn sregs(&self) -> Result<kvm_sregs, KvmError> {
        self.fd.get_sregs().map_err(KvmError::of("KVM_GET_SREGS"))
    }

    /// Sets segment and control registers.
    pub fn set_sregs(&self, sregs: &kvm_sregs) -> Result<(), KvmError> {
        self.fd.set_sregs(sregs).map_err(KvmError::of("KVM_SET_SREGS"))
    }

    /// Tells the guest's clock that it was stopped on purpose, so that its watchdogs stay quiet.
    pub fn note_pause(&self) {
        // Fails when the guest doesn't use kvmclock: then there is nothing to tell.
        let _ = self.fd.kvmclock_ctrl();
    }

    /// KVM's own counters of this vCPU, where the kernel has them (5.15).
    pub fn statistics(&self) -> Option<VcpuStatistics> {
        VcpuStatistics::open(&self.fd)
    }

    /// Makes [`kick`] reach this vCPU while the calling thread runs it. The registration ends with the returned value.
    pub fn register_for_kicks(&mut self) -> KickRegistration {
        let run: *mut kvm_run = self.fd.get_kvm_run();
        KICK_TARGET.set(run);
        KickRegistration { _not_send: std::marker::PhantomData }
    }

    /// Enters the guest. After [`Exit::Interrupted`], an access that the last exit handed out is complete.
    pub fn run(&mut self) -> Result<Exit<'_>, KvmError> {
        // The data of a port access are looked up again below: kvm-ioctls doesn't tell the width.
        let exit = match self.fd.run() {
            Ok(VcpuExit::MmioRead(address, data)) => {
                // SAFETY: the borrow checker can't see that the other arms don't use `self.fd` while `data` lives; the slice is
                // part of the kvm_run page, which is mapped as long as `self`, and `&mut self` is borrowed by the result.
                let data = unsafe { std::slice::from_raw_parts_mut(data.as_mut_ptr(), data.len()) };
                return Ok(Exit::MmioRead { address, data });
            }
            Ok(VcpuExit::MmioWrite(address, data)) => {
                // SAFETY: as above.
                let data = unsafe { std::slice::from_raw_parts(data.as_ptr(), data.len()) };
                return Ok(Exit::MmioWrite { address, data });
            }
            Ok(VcpuExit::IoIn(..) | VcpuExit::IoOut(..)) => None,
            Ok(VcpuExit::InternalError) => None,
            Ok(VcpuExit::Hlt) => Some(Exit::Halt),
            Ok(VcpuExit::Shutdown) => Some(Exit::Shutdown),
            Ok(VcpuExit::FailEntry(reason, _)) => Some(Exit::FailEntry { reason }),
            Ok(VcpuExit::Intr) => Some(Exit::Interrupted),
            Ok(other) => Some(Exit::Unexpected(format!("{other:?}"))),
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {
                self.fd.set_kvm_immediate_exit(0);
                Some(Exit::Interrupted)
            }
            Err(error) => return Err(KvmError::of("KVM_RUN")(error)),
        };
        Ok(exit.unwrap_or_else(|| self.decode()))
    }

    /// Exits whose details are read from the page shared with KVM.
    fn decode(&mut self) -> Exit<'_> {
        let run: &mut kvm_run = self.fd.get_kvm_run();
        match run.exit_reason {
            KVM_EXIT_IO => {
                let page: *mut kvm_run = run;
                // SAFETY: the exit reason tells which member of the union is valid, and KVM put `size * count` bytes at
                // `data_offset` of the mapping, which lives as long as `self`.
                unsafe {
                    let io = (*page).__bindgen_anon_1.io;
                    let width = usize::from(io.size.max(1));
                    let start = page.cast::<u8>().add(usize::try_from(io.data_offset).unwrap_or(0));
                    let len = width * usize::try_from(io.count).unwrap_or(0);
                    if u32::from(io.direction) == KVM_EXIT_IO_OUT {
                        Exit::PortWrite { port: io.port, width, data: std::slice::from_raw_parts(start, len) }
                    } else {
                        Exit::PortRead { port: io.port, width, data: std::slice::from_raw_parts_mut(start, len) }
                    }
                }
            }
            KVM_EXIT_INTERNAL_ERROR => {
                // SAFETY: the exit reason tells which member of the union is valid.
                let suberror = unsafe { run.__bindgen_anon_1.internal.suberror };
                Exit::InternalError { suberror }
            }
            reason => Exit::Unexpected(format!("exit reason {reason}")),
        }
    }
}

thread_local! {
    /// The page that the thread's vCPU shares with KVM; null while the thread runs none.
    static KICK_TARGET: Cell<*mut kvm_run> = const { Cell::new(ptr::null_mut()) };
}

/// Ends a registration for kicks when dropped, on the thread that made it. Drop it before the vCPU.
pub struct KickRegistration {
    _not_send: std::marker::PhantomData<*mut ()>,
}

impl Drop for KickRegistration {
    fn drop(&mut self) {
        KICK_TARGET.set(ptr::null_mut());
    }
}

/// Installs the handler of the signal that [`kick`] sends. Once per process, before vCPU threads start.
pub fn install_kick_handler() -> std::io::Result<()> {
    register_signal_handler(SIGRTMIN(), on_kick).map_err(|e| std::io::Error::from_raw_os_error(e.errno()))
}

/// Makes the vCPU that `thread` runs leave the guest: its current or next [`KvmVcpu::run`] returns [`Exit::Interrupted`].
pub fn kick<T>(thread: &JoinHandle<T>) {
    // SAFETY: the handle hasn't been joined, so the thread's identifier is valid. The signal's handler is async-signal-safe.
    unsafe { libc::pthread_kill(thread.as_pthread_t(), SIGRTMIN()) };
}

/// A signal that comes between two entries would be lost: the flag makes the next entry return at once.
extern "C" fn on_kick(_signal: libc::c_int, _info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    let run = KICK_TARGET.get();
    if !run.is_null() {
        // SAFETY: the page is mapped while the registration lives, and the thread that could end it runs this handler.
        unsafe { ptr::write_volatile(ptr::addr_of_mut!((*run).immediate_exit), 1) };
    }
}
