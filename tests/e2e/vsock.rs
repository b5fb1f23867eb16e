//! Streams between host processes and a guest: whole, many, both ways, slow ones beside quick ones.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::thread::{self, JoinHandle};

use serde_json::{Value, json};

use crate::guest_pattern as pattern;
use crate::harness::{PATIENCE, soak, wait_for};
use crate::vmm_harness::{Started, Vm};

const TOOL: &str = env!("CARGO_BIN_EXE_hull-vsock-tool");
const MIB: u64 = 1 << 20;

/// 64 MiB, or 1 GiB.
fn transfer_bytes() -> u64 {
    if soak() > 1 { 1 << 30 } else { 64 * MIB }
}

fn streams_at_once() -> u32 {
    if soak() > 1 { 1000 } else { 200 }
}

fn vm(init: &str) -> Vm {
    let vm = Vm::with_init(init).add_file("bin/vsock", Path::new(TOOL)).control().memory_mib(256);
    let vsock = json!({ "guest_cid": 3, "uds_path": vm.path("v") });
    vm.set("/vsock", vsock)
}

fn stop(vm: Started) {
    assert_eq!(vm.request("PUT", "/actions", r#"{"action_type": "Stop"}"#).0, 204);
    vm.finish().0.ok();
}

/// A host process on a port that the guest dials: it serves one stream.
fn serve<T: Send + 'static>(vm: &Vm, port: u32, serve: impl FnOnce(UnixStream) -> T + Send + 'static) -> JoinHandle<T> {
    let path = vm.path(&format!("v_{port}"));
    let listener = UnixListener::bind(&path).unwrap();
    thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        fs::remove_file(path).unwrap();
        serve(stream)
    })
}

fn call(vm: &Started, port: u32) -> BufReader<UnixStream> {
    let mut socket = UnixStream::connect(vm.path("v")).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    writeln!(socket, "CONNECT {port}").unwrap();
    let mut socket = BufReader::new(socket);
    let mut line = String::new();
    socket.read_line(&mut line).unwrap();
    assert!(line.starts_with("OK "), "{line:?}: {}", vm.console());
    socket
}

fn counters(vm: &Started) -> Value {
    let stats = vm.get("/stats");
    let device = stats["devices"].as_array().unwrap().iter().find(|device| device["kind"] == "vsock");
    device.unwrap()["counters"].clone()
}

/// Prints what a transfer cost and checks that it is within bounds: packets come in batches, not one by one.
fn costs(what: &str, before: &Value, after: &Value, bytes: u64, limits_per_mib: (u64, u64)) {
    let grown = |name: &str| after[name].as_u64().unwrap() - before[name].as_u64().unwrap();
    let mib = bytes / MIB;
    let (doorbells, interrupts) = (grown("notifications") / mib, grown("interrupts") / mib);
    println!("{what}: {doorbells} doorbells, {interrupts} interrupts, {} packets a MiB", grown("requests") / mib);
    assert!(doorbells <= limits_per_mib.0 && interrupts <= limits_per_mib.1, "{what}");
}

#[test]
fn much_data_goes_both_ways_and_arrives_whole() {
    let bytes = transfer_bytes();
    let vm = vm(&format!(
        "say begin; say $(vsock send 1000 {bytes} 2>&1); say $(vsock receive 1001 {bytes} 2>&1); sleep 1000"
    ));
    let sink = serve(&vm, 1000, |mut stream| {
        let got = pattern::check(&stream, 1000).unwrap();
        writeln!(stream, "{got}").unwrap();
        got
    });
    let (begin, begun) = std::sync::mpsc::channel();
    let source = serve(&vm, 1001, move |stream| {
        begun.recv().unwrap();
        pattern::write(&stream, 1001, bytes).unwrap();
    });
    let mut vm = vm.start();
    vm.wait_for("begin");
    let before = counters(&vm);
    vm.wait_for(&format!("sent, the host says {bytes}"));
    assert_eq!(sink.join().unwrap(), bytes);
    let between = counters(&vm);
    costs("from the guest", &before, &between, bytes, (32, 32));
    begin.send(()).unwrap();
    vm.wait_for(&format!("received {bytes} of {bytes} bytes"));
    source.join().unwrap();
    costs("to the guest", &between, &counters(&vm), bytes, (32, 32));
    stop(vm);
}

#[test]
fn many_streams_live_at_once_in_both_directions() {
    let count = streams_at_once();
    let vm =
        vm(&format!("ulimit -n 4096; vsock echo 2000 >/dev/console 2>&1 & say $(vsock many 1000 {count} 2>&1); wait"));
    let path = vm.path("v_1000");
    let listener = UnixListener::bind(&path).unwrap();
    let echo = thread::spawn(move || {
        let streams: Vec<_> = (0..count).map(|_| listener.accept().unwrap().0).collect();
        fs::remove_file(path).unwrap();
        for mut stream in &streams {
            let mut number = [0; 4];
            stream.read_exact(&mut number).unwrap();
            stream.write_all(&number).unwrap();
        }
        streams
    });
    let mut vm = vm.start();
    vm.wait_for(&format!("{count} streams at once"));
    drop(echo.join().unwrap());

    wait_for("the guest to listen", || vm.console().contains("listening"));
    let mut calls: Vec<_> = (0..count).map(|_| call(&vm, 2000)).collect();
    for (number, call) in (0..count).zip(&mut calls) {
        call.get_mut().write_all(&number.to_le_bytes()).unwrap();
    }
    for (number, call) in (0..count).zip(&mut calls) {
        let mut answer = [0; 4];
        call.read_exact(&mut answer).unwrap_or_else(|error| panic!("stream {number}: {error}: {}", vm.console()));
        assert_eq!(u32::from_le_bytes(answer), number);
    }
    drop(calls);
    wait_for("all streams to end", || vm.get("/vsock")["streams"]["open"] == 0);
    stop(vm);
}

#[test]
fn a_stalled_reader_holds_up_nobody_else_and_gets_all_in_the_end() {
    let mut vm = vm("vsock echo 2000 >/dev/console").start();
    vm.wait_for("listening");
    let stalled = call(&vm, 2000);
    let mut writer = stalled.get_ref().try_clone().unwrap();
    let sending = thread::spawn(move || {
        pattern::write(&writer, 7, 8 * MIB).unwrap();
        writer.flush().unwrap();
        writer.shutdown(Shutdown::Write).unwrap();
    });
    for round in 0..20u8 {
        let mut quick = call(&vm, 2000);
        quick.get_mut().write_all(&[round]).unwrap();
        let mut answer = [0];
        quick.read_exact(&mut answer).unwrap();
        assert_eq!(answer, [round]);
    }
    assert!(!sending.is_finished(), "the stream never stalled");
    assert_eq!(pattern::check(stalled, 7).unwrap(), 8 * MIB);
    sending.join().unwrap();
    stop(vm);
}

#[test]
fn streams_end_clearly_when_nobody_is_there_and_when_one_side_stops() {
    let vm = vm("say $(vsock send 4000 1 2>&1); say $(vsock half 1000 2>&1); vsock echo 2000 >/dev/console");
    let reader = serve(&vm, 1000, |mut stream| {
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    });
    let mut vm = vm.start();
    vm.wait_for("ECONNRESET");
    vm.wait_for("half closed");
    assert_eq!(reader.join().unwrap(), "still sending");
    vm.wait_for("listening");
    let mut nobody = UnixStream::connect(vm.path("v")).unwrap();
    nobody.set_read_timeout(Some(PATIENCE)).unwrap();
    nobody.write_all(b"CONNECT 3999\n").unwrap();
    assert_eq!(nobody.read(&mut [0; 8]).unwrap(), 0, "end of file instead of OK");
    // The host stops sending first and still gets the answer.
    let mut socket = call(&vm, 2000);
    socket.get_mut().write_all(b"question").unwrap();
    socket.get_ref().shutdown(Shutdown::Write).unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "question");
    assert_eq!(vm.get("/vsock")["streams"]["refused"], 1);
    stop(vm);
}
