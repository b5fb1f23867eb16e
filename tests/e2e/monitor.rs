//! `hull-vmm` without `hull` in front: a machine of its own, with other guests than the agent.

use std::fs;
use std::path::{Path, PathBuf};

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::harness::{PATIENCE, Run, noise, wait_for};
use crate::vmm_harness::{Started, Vm};

/// A guest that counts on its console until it is stopped.
const COUNTING: &str = "i=0; while :; do i=$((i + 1)); say tick $i; usleep 100000; done";

#[test]
fn a_machine_of_32_mib_boots_and_powers_off() {
    let (run, console) = Vm::with_init("say $(grep MemTotal /proc/meminfo); poweroff -f").memory_mib(32).run();
    run.ok();
    let kib: u64 = console.split_whitespace().nth(1).unwrap_or_else(|| panic!("{console:?}")).parse().unwrap();
    assert!(kib < 32 << 10, "{console}");
}

#[test]
fn sixty_four_processors_come_up() {
    let vm = Vm::with_init("say $(nproc) of $(cat /sys/devices/system/cpu/present); poweroff -f");
    let vm = vm.memory_mib(256).set("/machine-config/vcpu_count", json!(64)).start();
    // All of them take turns on two processors of the testbed.
    let (run, console) = vm.finish_within(3 * PATIENCE);
    run.ok();
    assert!(console.contains("64 of 0-63"), "{console}");
}

#[test]
fn the_control_socket_tells_holds_and_stops() {
    let mut vm = Vm::with_init(COUNTING).control().start();
    vm.wait_for("tick 3\r\n");
    tells(&vm);
    refuses(&vm);

    let state = |state: &str| vm.request("PATCH", "/vm", &json!({ "state": state }).to_string());
    assert_eq!(state("Paused"), (204, Value::Null));
    assert_eq!(state("Paused"), (204, Value::Null), "already paused");
    assert_eq!(vm.get("/")["state"], "Paused");
    let (console, numbers) = (vm.console(), vm.get("/stats")["vcpus"].clone());
    // Twenty steps of a guest that goes on.
    std::thread::sleep(std::time::Duration::from_secs(2));
    assert_eq!(vm.console(), console, "goes on while paused");
    assert_eq!(vm.get("/stats")["vcpus"], numbers, "goes on while paused");

    assert_eq!(state("Resumed"), (204, Value::Null));
    assert_eq!(state("Resumed"), (204, Value::Null), "already running");
    assert_eq!(vm.get("/vm")["state"], "Running");
    let last = ticks(&console).last().copied().unwrap();
    wait_for("the guest to go on", || ticks(&vm.console()).contains(&(last + 3)));
    let counted = ticks(&vm.console());
    assert!(counted.windows(2).all(|pair| pair[0] + 1 == pair[1]), "lost or repeated: {counted:?}");

    assert_eq!(vm.request("PUT", "/actions", r#"{"action_type": "Stop"}"#), (204, Value::Null));
    let control = vm.path("control");
    let (run, _) = vm.finish();
    run.ok();
    assert!(!control.exists());
}

/// The numbers in the complete lines of a counting guest.
fn ticks(console: &str) -> Vec<u64> {
    let complete = console.rsplit_once('\n').map_or("", |(complete, _)| complete);
    complete.lines().filter_map(|line| line.strip_prefix("tick ")?.trim().parse().ok()).collect()
}

fn tells(vm: &Started) {
    let info = vm.get("/");
    assert_eq!((&info["app_name"], &info["id"], &info["state"]), (&json!("Hull"), &json!("tested"), &json!("Running")));
    assert!(info["vmm_version"].is_string(), "{info}");
    assert_eq!(vm.get("/vm"), json!({ "state": "Running", "vcpu_count": 1, "mem_size_mib": 64 }));

    let stats = vm.get("/stats");
    assert_eq!(stats["vcpus"].as_array().unwrap().len(), 1, "{stats}");
    let memory = |name: &str| stats["memory"][name].as_u64().unwrap();
    assert!(memory("guest_resident_kib") > 1024 && memory("guest_resident_kib") <= 64 << 10, "{stats}");
    assert_eq!(memory("resident_kib"), memory("guest_resident_kib") + memory("overhead_kib"), "{stats}");
    let phases = stats["phases"].as_array().unwrap();
    let names: Vec<_> = phases.iter().map(|phase| phase["phase"].as_str().unwrap()).collect();
    assert_eq!(names, ["monitor_started", "memory_ready", "kernel_loaded", "devices_ready", "guest_entered"]);
    assert!(phases.is_sorted_by_key(|phase| phase["at_ns"].as_u64().unwrap()), "{stats}");
}

/// Requests that can't be answered: the answer says what is wrong, and changes nothing.
fn refuses(vm: &Started) {
    for (method, path, body, status, words) in [
        ("PATCH", "/vm", "{", 400, "EOF"),
        ("PATCH", "/vm", "", 400, "no body"),
        ("PATCH", "/vm", r#"{"state": "Paused"} {}"#, 400, "trailing"),
        ("PATCH", "/vm", r#"{"state": "Paused", "speed": 2}"#, 400, "speed"),
        ("PATCH", "/vm", r#"{"state": "Flying"}"#, 400, "Field state"),
        ("PATCH", "/vm", r#"{}"#, 400, "state"),
        ("PUT", "/actions", r#"{"action_type": 7}"#, 400, "Field action_type"),
        ("GET", "/nothing", "", 404, "/nothing"),
        ("GET", "/vm/", "", 404, "/vm/"),
        ("DELETE", "/vm", "", 405, "DELETE"),
        ("PUT", "/", "", 405, "PUT"),
    ] {
        let (answered, fault) = vm.request(method, path, body);
        assert_eq!(answered, status, "{method} {path} {body}: {fault}");
        let message = fault["fault_message"].as_str().unwrap();
        assert!(message.contains(words), "{method} {path} {body}: {message}");
    }
    assert_eq!(vm.get("/vm")["state"], "Running");
}

#[test]
fn sigterm_ends_a_running_and_a_paused_machine_without_a_trace() {
    for paused in [false, true] {
        let vm = Vm::with_init(COUNTING).control();
        let vsock = vm.path("vsock");
        let mut vm = vm.set("/vsock", json!({ "guest_cid": 3, "uds_path": vsock })).start();
        vm.wait_for("tick 1\r\n");
        assert!(vsock.exists());
        if paused {
            assert_eq!(vm.request("PATCH", "/vm", r#"{"state": "Paused"}"#).0, 204);
        }
        vm.signal(Signal::SIGTERM);
        let (run, _) = vm.finish();
        run.ok();
        assert_eq!(run.stderr, "", "paused: {paused}");
    }
}

#[test]
fn debians_stock_kernel_boots_from_its_bzimage() {
    // It has no virtio console of its own; what init writes to the kernel's log comes out at the early serial port.
    let init = |end: &str| {
        Vm::with_init(&format!(r#"echo "<0>init on $(uname -r)" >/dev/kmsg; {end}"#))
            .kernel(&debian_kernel())
            .boot_args("keep_bootcon")
            .memory_mib(256)
    };
    let version = debian_kernel().file_name().unwrap().to_string_lossy().replace("vmlinuz-", "");
    let (run, console) = init("poweroff -f").run();
    run.ok();
    assert!(console.contains(&format!("init on {version}")), "{console}");
    let (run, console) = init("reboot -f").run();
    run.fails(3, &["reset"]);
    assert!(console.contains(&format!("init on {version}")), "{console}");
}

/// The newest of Debian's kernels on this machine.
fn debian_kernel() -> PathBuf {
    let mut kernels: Vec<_> = fs::read_dir("/boot")
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            name.starts_with("vmlinuz-") && name.ends_with("-amd64")
        })
        .collect();
    kernels.sort();
    kernels.pop().expect("no /boot/vmlinuz-*-amd64: install Debian's package linux-image-amd64")
}

#[test]
fn a_reboot_in_the_guest_is_status_3() {
    let (run, _) = Vm::with_init("reboot -f").run();
    run.fails(3, &["reset"]);
}

#[test]
fn a_panic_in_the_guest_is_status_4_with_the_end_of_the_console() {
    let (run, console) = Vm::with_init("say last words; exit 7").events().run();
    run.fails(4, &["panic", "Attempted to kill init"]);
    assert!(console.contains("last words"), "{console}");
    let end = exited(&run);
    assert_eq!(end["cause"], "panic");
    let tail = end["console_tail"].as_str().unwrap();
    assert!(tail.contains("last words\n") && tail.contains("Kernel panic"), "{tail}");
}

#[test]
fn a_triple_fault_is_status_5() {
    let vm = Vm::with_kernel(Path::new("/")).events();
    let kernel = vm.path("kernel");
    fs::write(&kernel, invalid_instruction()).unwrap();
    let (run, _) = vm.kernel(&kernel).run();
    run.fails(5, &["triple fault"]);
    assert_eq!(exited(&run)["cause"], "triple_fault");
}

/// The last line of the event stream.
pub fn exited(run: &Run) -> Value {
    let text = run.text();
    let last: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    assert_eq!(last["event"], "exited", "{text}");
    last
}

/// A kernel of one invalid instruction: nothing can take the exception, as there is no interrupt table.
fn invalid_instruction() -> Vec<u8> {
    const START: u64 = 1 << 20;
    const OFFSET: u64 = 64 + 56;
    const UD2: [u8; 2] = [0x0f, 0x0b];
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    let mut word = |value: u64, bytes: usize| file.extend(&value.to_le_bytes()[..bytes]);
    // ELF header: executable, x86-64, version, entry, program headers, section headers, flags, sizes and counts.
    for (value, bytes) in [(2, 2), (62, 2), (1, 4), (START, 8), (64, 8), (0, 8), (0, 4), (64, 2), (56, 2), (1, 2)] {
        word(value, bytes);
    }
    word(0, 6);
    // Program header: loadable, executable, offset, virtual and physical address, sizes, alignment.
    let size = UD2.len() as u64;
    let linked = 0xffff_ffff_8000_0000 + START;
    for (value, bytes) in [(1, 4), (5, 4), (OFFSET, 8), (linked, 8), (START, 8), (size, 8), (size, 8), (1, 8)] {
        word(value, bytes);
    }
    file.extend(UD2);
    file
}

#[test]
fn devices_work_again_after_the_guest_reset_and_rebound_them() {
    let content = noise(1 << 20);
    let vm = Vm::with_init(
        r#"sum() { say "$1 $(sha256sum /dev/vda | cut -d ' ' -f 1)"; }
        rebind() { echo $1 >/sys/bus/virtio/drivers/$2/unbind; [ -e $3 ] && say $3 stays; echo $1 >/sys/bus/virtio/drivers/$2/bind; }
        sum before
        dd if=/dev/zero of=/dev/vda bs=512 count=1 seek=2047 conv=fsync 2>/dev/null
        sum written
        for round in 1 2 3; do
            rebind $(basename $(readlink -f /sys/block/vda/device)) virtio_blk /dev/vda
            sum again
        done
        dd if=/dev/zero of=/dev/vda bs=512 count=1 conv=fsync 2>/dev/null
        for path in /sys/bus/virtio/drivers/virtio_rng/virtio*; do rebind ${path##*/} virtio_rng /none; done
        say random $(head -c 100 /dev/hwrng | wc -c)
        poweroff -f"#,
    );
    let disk = tempfile::NamedTempFile::new().unwrap();
    fs::write(disk.path(), &content).unwrap();
    let drive = json!({ "drive_id": "data", "path_on_host": disk.path() });
    let (run, console) = vm.set("/drives", json!([drive])).set("/entropy", json!({})).run();
    run.ok();

    let mut expected = content;
    let sum = |bytes: &[u8]| hex::encode(Sha256::digest(bytes));
    let before = sum(&expected);
    expected[2047 * 512..].fill(0);
    let written = sum(&expected);
    expected[..512].fill(0);
    assert!(fs::read(disk.path()).unwrap() == expected, "the disk's file differs");
    let lines: Vec<_> = console.lines().collect();
    let again = format!("again {written}");
    assert_eq!(
        lines,
        [&format!("before {before}"), &format!("written {written}"), &again, &again, &again, "random 100"],
        "{console}"
    );
}

#[test]
fn huge_pages_are_taken_at_start_and_given_back_and_must_be_there() {
    const MEMORY_MIB: u64 = 64;
    const PAGES: u64 = MEMORY_MIB / 2;
    let vm = |init: &str, mib: u64| {
        Vm::with_init(init).control().memory_mib(mib).set("/machine-config/huge_pages", json!("2M"))
    };
    let pool = Pool::reserve(0);
    let too_much = 2 * (free_huge_pages() + 16);
    let (run, _) = vm("poweroff -f", too_much).run();
    run.fails(1, &["huge pages", &format!("{}", too_much / 2), "nr_hugepages"]);

    pool.resize(PAGES);
    let before = free_huge_pages();
    let mut vm = vm(COUNTING, MEMORY_MIB).start();
    vm.wait_for("tick 1\r\n");
    assert_eq!(before - free_huge_pages(), PAGES, "the whole memory is reserved");
    assert!(huge_pages("HugePages_Free") < before, "the guest's pages come from the pool");
    assert_eq!(vm.request("PUT", "/actions", r#"{"action_type": "Stop"}"#).0, 204);
    vm.finish().0.ok();
    assert_eq!(free_huge_pages(), before, "given back");
    assert_eq!(huge_pages("HugePages_Free"), before, "given back");
}

/// Pages of the host's pool beyond those that were there; taken back at the end.
struct Pool {
    had: u64,
}

impl Pool {
    const FILE: &str = "/proc/sys/vm/nr_hugepages";

    fn reserve(more: u64) -> Self {
        let pool = Self { had: huge_pages("HugePages_Total") };
        pool.resize(more);
        pool
    }

    fn resize(&self, more: u64) {
        let wanted = self.had + more;
        if let Err(error) = fs::write(Self::FILE, wanted.to_string()) {
            panic!("this test reserves huge pages and has to run as root: {}: {error}", Self::FILE);
        }
        let has = huge_pages("HugePages_Total");
        assert!(has >= wanted, "the host's kernel reserves only {has} of {wanted} huge pages: its memory is full");
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let _ = fs::write(Self::FILE, self.had.to_string());
    }
}

/// Huge pages that nobody has or has a right to.
fn free_huge_pages() -> u64 {
    huge_pages("HugePages_Free") - huge_pages("HugePages_Rsvd")
}

fn huge_pages(name: &str) -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("the host's kernel has no huge pages: no {name} in /proc/meminfo"))
        .trim()
        .parse()
        .unwrap()
}
