//! Tiny guests on this machine's KVM. Any KVM will do: kernel code may be interpreted.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests stop at the first surprise")]

use std::io::Write as _;
use std::time::{Duration, Instant};

use vm_memory::GuestAddress;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::*;
use crate::interrupt::{Fabric, Gsi, MsiMessage};
use crate::memory::ConfigPages;
use crate::pci::ConfigSpaceMemory;
use crate::tiny_guest::{RunEnd, TinyGuest};

const NOTHING_THERE: u64 = 0x3000_0000;
const READ_ONLY_PAGES: u64 = 0x2000_0000;
/// `out 0x10, al`
const OUT: [u8; 2] = [0xe6, 0x10];

/// None, said loudly, where there is no KVM.
fn system(test: &str) -> Option<System> {
    match System::open_checked() {
        Ok(system) => Some(system),
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "SKIPPED {test}: {error}");
            None
        }
    }
}

fn guest(system: &System, code: &[u8]) -> TinyGuest {
    TinyGuest::new(system, code, &system.supported_cpuid().unwrap()).unwrap()
}

#[test]
fn a_port_write_arrives_with_its_width_and_value() {
    let Some(system) = system("a_port_write_arrives_with_its_width_and_value") else { return };
    // mov eax, 0x1234; mov dx, 0x600; out dx, ax
    let mut guest = guest(&system, &[0xb8, 0x34, 0x12, 0, 0, 0x66, 0xba, 0x00, 0x06, 0x66, 0xef]);
    match guest.vcpu.run().unwrap() {
        Exit::PortWrite { port: 0x600, width: 2, data: [0x34, 0x12] } => {}
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_port_read_gets_what_the_monitor_says() {
    let Some(system) = system("a_port_read_gets_what_the_monitor_says") else { return };
    // in al, 0x60; out 0x10, al
    let mut guest = guest(&system, &[0xe4, 0x60, OUT[0], OUT[1]]);
    match guest.vcpu.run().unwrap() {
        Exit::PortRead { port: 0x60, width: 1, data } => data.fill(0x5a),
        other => panic!("{other:?}"),
    }
    match guest.vcpu.run().unwrap() {
        Exit::PortWrite { port: 0x10, data: [0x5a], .. } => {}
        other => panic!("{other:?}"),
    }
}

#[test]
fn memory_that_is_not_there_is_mmio() {
    let Some(system) = system("memory_that_is_not_there_is_mmio") else { return };
    // mov edi, NOTHING_THERE; mov eax, 0x12345678; mov [rdi], eax; mov eax, [rdi]; out 0x10, al
    let code = [0xbf, 0, 0, 0, 0x30, 0xb8, 0x78, 0x56, 0x34, 0x12, 0x89, 0x07, 0x8b, 0x07, OUT[0], OUT[1]];
    let mut guest = guest(&system, &code);
    match guest.vcpu.run().unwrap() {
        Exit::MmioWrite { address: NOTHING_THERE, data: [0x78, 0x56, 0x34, 0x12] } => {}
        other => panic!("{other:?}"),
    }
    match guest.vcpu.run().unwrap() {
        Exit::MmioRead { address: NOTHING_THERE, data } => data.copy_from_slice(&[0x77, 0, 0, 0]),
        other => panic!("{other:?}"),
    }
    match guest.vcpu.run().unwrap() {
        Exit::PortWrite { data: [0x77], .. } => {}
        other => panic!("{other:?}"),
    }
}

#[test]
fn read_only_pages_are_read_without_an_exit_and_written_with_one() {
    let Some(system) = system("read_only_pages_are_read_without_an_exit_and_written_with_one") else { return };
    // mov edi, READ_ONLY_PAGES; mov eax, [rdi]; out 0x10, al; mov [rdi], eax
    let mut guest = guest(&system, &[0xbf, 0, 0, 0, 0x20, 0x8b, 0x07, OUT[0], OUT[1], 0x89, 0x07]);
    let pages = ConfigPages::new().unwrap();
    pages.store(0, &[0x42, 0, 0, 0]);
    guest.kvm.add_read_only_memory(pages.host_range(GuestAddress(READ_ONLY_PAGES))).unwrap();
    match guest.vcpu.run().unwrap() {
        Exit::PortWrite { data: [0x42], .. } => {}
        other => panic!("{other:?}"),
    }
    match guest.vcpu.run().unwrap() {
        Exit::MmioWrite { address: READ_ONLY_PAGES, data: [0x42, 0, 0, 0] } => {}
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_doorbell_of_any_width_rings_without_an_exit() {
    let Some(system) = system("a_doorbell_of_any_width_rings_without_an_exit") else { return };
    // mov edi, NOTHING_THERE; mov [rdi], ax; mov [rdi], eax; out 0x10, al; mov [rdi], eax
    let code = [0xbf, 0, 0, 0, 0x30, 0x66, 0x89, 0x07, 0x89, 0x07, OUT[0], OUT[1], 0x89, 0x07];
    let mut guest = guest(&system, &code);
    let fabric = guest.kvm.fabric();
    let doorbell = EventFd::new(EFD_NONBLOCK).unwrap();
    fabric.attach_doorbell(GuestAddress(NOTHING_THERE), &doorbell).unwrap();
    assert!(matches!(guest.vcpu.run().unwrap(), Exit::PortWrite { .. }));
    assert_eq!(doorbell.read().unwrap(), 2);
    fabric.detach_doorbell(GuestAddress(NOTHING_THERE), &doorbell).unwrap();
    assert!(matches!(guest.vcpu.run().unwrap(), Exit::MmioWrite { .. }), "detached");
}

/// Enables the x2APIC, says so at port 0x11, then polls for a pending vector of 32 to 63: port 0x10 if there is one, 0x12 if not.
const WAIT_FOR_INTERRUPT: &[u8] = &[
    0xb9, 0x1b, 0, 0, 0, // mov ecx, IA32_APIC_BASE
    0x0f, 0x32, // rdmsr
    0x0d, 0x00, 0x0c, 0, 0, // or eax, enable | x2APIC
    0x0f, 0x30, // wrmsr
    0xb9, 0x0f, 0x08, 0, 0, // mov ecx, spurious vector register
    0xb8, 0xff, 0x01, 0, 0, // mov eax, software enable | 0xff
    0x31, 0xd2, // xor edx, edx
    0x0f, 0x30, // wrmsr
    0xe6, 0x11, // out 0x11, al
    0xbb, 0x20, 0x4e, 0, 0, // mov ebx, 20000
    0xb9, 0x21, 0x08, 0, 0, // mov ecx, interrupt request register, vectors 32 to 63
    0x0f, 0x32, // again: rdmsr
    0x85, 0xc0, // test eax, eax
    0x75, 0x06, // jnz there
    0xff, 0xcb, // dec ebx
    0x75, 0xf6, // jnz again
    0xe6, 0x12, // out 0x12, al
    0xe6, 0x10, // there: out 0x10, al
];

fn port_of(guest: &mut TinyGuest) -> u16 {
    match guest.vcpu.run().unwrap() {
        Exit::PortWrite { port, .. } => port,
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_interrupt_arrives_once_it_has_a_message() {
    let Some(system) = system("an_interrupt_arrives_once_it_has_a_message") else { return };
    let message = MsiMessage { address: 0xfee0_0000, data: 0x21 };
    for (route, port) in [(Some(message), 0x10), (None, 0x12)] {
        let mut guest = guest(&system, WAIT_FOR_INTERRUPT);
        let fabric = guest.kvm.fabric();
        let irqfd = EventFd::new(EFD_NONBLOCK).unwrap();
        let gsi = fabric.attach_interrupt(&irqfd).unwrap();
        fabric.route_msi(gsi, Some(MsiMessage { data: 0x31, ..message })).unwrap();
        fabric.route_msi(gsi, route).unwrap();
        assert_eq!(port_of(&mut guest), 0x11);
        irqfd.write(1).unwrap();
        assert_eq!(port_of(&mut guest), port, "route {route:?}");
        fabric.detach_interrupt(gsi, &irqfd).unwrap();
    }
}

#[test]
fn interrupts_are_given_out_once_and_come_back() {
    let Some(system) = system("interrupts_are_given_out_once_and_come_back") else { return };
    let vm = system.create_vm().unwrap();
    vm.create_local_apics().unwrap();
    let fabric = vm.fabric();
    let events: Vec<_> = (0..3).map(|_| EventFd::new(EFD_NONBLOCK).unwrap()).collect();
    let gsis: Vec<_> = events.iter().map(|event| fabric.attach_interrupt(event).unwrap()).collect();
    assert_eq!(gsis, [Gsi(0), Gsi(1), Gsi(2)]);
    fabric.detach_interrupt(Gsi(1), &events[1]).unwrap();
    assert!(fabric.route_msi(Gsi(1), None).is_err(), "not attached any more");
    assert!(fabric.detach_interrupt(Gsi(1), &events[1]).is_err());
    assert_eq!(fabric.attach_interrupt(&events[1]).unwrap(), Gsi(1));
}

#[test]
fn a_triple_fault_is_a_shutdown() {
    let Some(system) = system("a_triple_fault_is_a_shutdown") else { return };
    // ud2, without an interrupt descriptor table
    let mut guest = guest(&system, &[0x0f, 0x0b]);
    let exit = guest.vcpu.run().unwrap();
    assert!(matches!(exit, Exit::Shutdown), "{exit:?}");
}

#[test]
fn a_kick_ends_an_endless_loop() {
    let Some(system) = system("a_kick_ends_an_endless_loop") else { return };
    let start = Instant::now();
    let end = guest(&system, &[0xeb, 0xfe]).run(Duration::from_millis(50)).unwrap();
    assert_eq!(end, RunEnd::Timeout);
    assert!(start.elapsed() < Duration::from_secs(5));
}

#[test]
fn a_kick_before_the_entry_is_not_lost() {
    let Some(system) = system("a_kick_before_the_entry_is_not_lost") else { return };
    install_kick_handler().unwrap();
    let mut guest = guest(&system, &[0xeb, 0xfe]);
    let (registered, is_registered) = std::sync::mpsc::channel();
    let (go, gone) = std::sync::mpsc::channel::<()>();
    let thread = std::thread::spawn(move || {
        let registration = guest.vcpu.register_for_kicks();
        registered.send(()).unwrap();
        gone.recv().unwrap();
        let interrupted = matches!(guest.vcpu.run().unwrap(), Exit::Interrupted);
        drop(registration);
        interrupted
    });
    is_registered.recv().unwrap();
    kick(&thread);
    std::thread::sleep(Duration::from_millis(20));
    go.send(()).unwrap();
    assert!(thread.join().unwrap(), "an endless loop was entered and left");
}

#[test]
fn statistics_count_exits_where_the_kernel_has_them() {
    let Some(system) = system("statistics_count_exits_where_the_kernel_has_them") else { return };
    let mut guest = guest(&system, &[0xe4, 0x60, OUT[0], OUT[1]]);
    let Some(statistics) = guest.vcpu.statistics() else {
        let _ = writeln!(
            std::io::stderr(),
            "SKIPPED statistics_count_exits_where_the_kernel_has_them: no KVM_GET_STATS_FD"
        );
        return;
    };
    guest.vcpu.run().unwrap();
    let exits = statistics.read().into_iter().find(|(name, _)| name == "exits");
    assert!(exits.is_some_and(|(_, count)| count > 0));
}

#[test]
fn a_refused_msr_is_told_apart_from_an_error() {
    let Some(system) = system("a_refused_msr_is_told_apart_from_an_error") else { return };
    let guest = guest(&system, &OUT);
    assert!(!guest.vcpu.set_msr(0xdead_beef, 1).unwrap());
}
