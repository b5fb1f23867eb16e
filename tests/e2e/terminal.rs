//! `-t`: a real terminal on both sides.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::{Child, Stdio};
use std::sync::mpsc;

use nix::pty::{Winsize, openpty};

use crate::harness::{Hull, PATIENCE, image, wait_for};

/// A `hull run -it` on a pseudo-terminal.
struct Terminal {
    child: Child,
    master: File,
    output: mpsc::Receiver<u8>,
    seen: String,
}

impl Terminal {
    fn start(hull: &Hull, columns: u16, rows: u16, command: &[&str]) -> Self {
        Self::start_with(hull, &[], columns, rows, command)
    }

    fn start_with(hull: &Hull, flags: &[&str], columns: u16, rows: u16, command: &[&str]) -> Self {
        let size = winsize(columns, rows);
        let pty = openpty(Some(&size), None).unwrap();
        let slave = |fd: &OwnedFd| Stdio::from(fd.try_clone().unwrap());
        let image = image("busybox");
        let mut args = vec!["run", "-it"];
        args.extend_from_slice(flags);
        args.push(&image);
        args.extend_from_slice(command);
        let mut hull_command = hull.command(&args);
        hull_command.stdin(slave(&pty.slave)).stdout(slave(&pty.slave)).stderr(slave(&pty.slave));
        let child = hull_command.spawn().unwrap();
        drop(hull_command);
        drop(pty.slave);
        let master = File::from(pty.master);
        let mut reader = master.try_clone().unwrap();
        let (sender, output) = mpsc::channel();
        std::thread::spawn(move || {
            let mut byte = [0];
            while reader.read_exact(&mut byte).is_ok() && sender.send(byte[0]).is_ok() {}
        });
        Self { child, master, output, seen: String::new() }
    }

    fn expect(&mut self, text: &str) {
        while !self.seen.contains(text) {
            let byte = self.output.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("{text:?} in {:?}", self.seen));
            self.seen.push(byte.into());
        }
        let end = self.seen.find(text).unwrap() + text.len();
        self.seen.drain(..end);
    }

    fn send(&mut self, text: &str) {
        self.master.write_all(text.as_bytes()).unwrap();
    }

    fn resize(&self, columns: u16, rows: u16) {
        let size = winsize(columns, rows);
        set_size(&self.master, &size);
        let pid = nix::unistd::Pid::from_raw(self.child.id().try_into().unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGWINCH).unwrap();
    }

    fn is_raw(&self) -> bool {
        let flags = nix::sys::termios::tcgetattr(self.master.as_fd()).unwrap();
        !flags.local_flags.contains(nix::sys::termios::LocalFlags::ICANON)
    }
}

fn winsize(columns: u16, rows: u16) -> Winsize {
    Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }
}

nix::ioctl_write_ptr_bad!(tiocswinsz, libc::TIOCSWINSZ, Winsize);

#[allow(unsafe_code, reason = "no safe wrapper sets a window size")]
fn set_size(terminal: &File, size: &Winsize) {
    // SAFETY: the descriptor is open and `size` outlives the call, which only reads it.
    unsafe { tiocswinsz(terminal.as_raw_fd(), size) }.unwrap();
}

#[test]
fn the_terminal_has_the_callers_size_and_follows_a_resize() {
    let hull = Hull::new();
    let mut terminal = Terminal::start(&hull, 91, 33, &["sh"]);
    terminal.expect("# ");
    terminal.send("stty size; echo do''ne\r");
    terminal.expect("33 91");
    terminal.expect("done");
    terminal.resize(120, 45);
    // The size travels on its own way: ask until it is there.
    terminal.send("until [ \"$(stty size)\" = '45 120' ]; do sleep 0.2; done; echo re''sized\r");
    terminal.expect("resized");
    terminal.send("exit 7\r");
    assert_eq!(terminal.child.wait().unwrap().code(), Some(7));
    assert!(!terminal.is_raw(), "the terminal is restored");
}

#[test]
fn the_terminal_is_its_users_and_the_init_process_gives_it_to_the_command() {
    let hull = Hull::new();
    let script = "stty -echo; echo by-name >/dev/pts/0; stat -c 'owner %u' /dev/pts/0; exit 4";
    let mut terminal = Terminal::start_with(&hull, &["--init", "-u", "1000"], 80, 24, &["sh", "-c", script]);
    terminal.expect("by-name");
    terminal.expect("owner 1000");
    assert_eq!(terminal.child.wait().unwrap().code(), Some(4));
}

#[test]
fn ctrl_c_reaches_the_foreground_job_and_not_hull() {
    let hull = Hull::new();
    let mut terminal = Terminal::start(&hull, 80, 24, &["sh"]);
    terminal.expect("# ");
    terminal.send("sleep 600; echo st''opped\r");
    terminal.expect("sleep 600");
    std::thread::sleep(std::time::Duration::from_secs(2));
    terminal.send("\x03");
    terminal.expect("# ");
    terminal.send("echo al''ive; exit\r");
    terminal.expect("alive");
    terminal.child.wait().unwrap();
}

#[test]
fn the_detach_keys_leave_the_container_running() {
    let hull = Hull::new();
    let mut terminal = Terminal::start_with(&hull, &["--name", "anchored"], 80, 24, &["sh"]);
    terminal.expect("# ");
    terminal.send("\x10\x11");
    assert_eq!(terminal.child.wait().unwrap().code(), Some(0));
    assert!(!terminal.is_raw(), "the terminal is restored");
    assert!(hull.hull(["ps"]).ok().contains("anchored"));
    hull.hull(["stop", "anchored"]).ok();
    assert!(!hull.hull(["ps"]).ok().contains("anchored"));
}

/// Starts a command whose terminal is raw and silent: lines don't matter, and nothing that is typed comes back.
fn start_raw(hull: &Hull, flags: &[&str], script: &str) -> Terminal {
    let script = format!("stty raw -echo; echo u''p; {script}");
    let mut terminal = Terminal::start_with(hull, flags, 80, 24, &["sh", "-c", &script]);
    terminal.expect("up");
    wait_for("the terminal to be raw", || terminal.is_raw());
    terminal
}

fn paste(length: usize) -> String {
    "0123456789abcdef".repeat(length / 16)
}

#[test]
fn the_detach_keys_get_through_a_paste_that_nobody_reads() {
    let hull = Hull::new();
    let mut terminal = start_raw(&hull, &["--name", "deaf"], "exec sleep 600");
    // More than the credit and all that is between the keeper and the container.
    terminal.send(&paste(768 << 10));
    terminal.send("\x10\x11");
    assert_eq!(terminal.child.wait().unwrap().code(), Some(0));
    assert!(!terminal.is_raw(), "the terminal is restored");
    assert!(hull.hull(["ps"]).ok().contains("deaf"));
    hull.hull(["stop", "-t", "1", "deaf"]).ok();
}

#[test]
fn a_resize_gets_through_a_paste_that_nobody_reads() {
    let hull = Hull::new();
    let script = "until [ \"$(stty size)\" = '45 120' ]; do sleep 0.2; done; echo re''sized; exit 7";
    let mut terminal = start_raw(&hull, &[], script);
    // More than the terminal, the connection and the credit take; the container also ends with all that unread.
    terminal.send(&paste(1 << 20));
    terminal.resize(120, 45);
    terminal.expect("resized");
    assert_eq!(terminal.child.wait().unwrap().code(), Some(7));
}

#[test]
fn a_paste_to_a_slow_reader_arrives_complete() {
    let hull = Hull::new();
    let read = "dd bs=65536 count=1 iflag=fullblock 2>/dev/null";
    let script = format!("for i in $(seq 16); do sleep 1; {read}; done | md5sum");
    let mut terminal = start_raw(&hull, &[], &script);
    terminal.send(&paste(1 << 20));
    // Of the same bytes.
    terminal.expect("14d785daab3823736c981ca82a750c98");
    assert_eq!(terminal.child.wait().unwrap().code(), Some(0));
}

#[test]
fn a_terminal_is_refused_when_there_is_none() {
    Hull::new().hull(["run", "-it", &image("busybox"), "sh"]).fails(125, &["tty"]);
}
