use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use super::*;

/// Writes all bytes.
async fn write_all(sink: &Fd, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let count = write(sink, bytes).await?;
        bytes = bytes.get(count..).unwrap_or_default();
    }
    Ok(())
}

fn fd(fd: impl Into<OwnedFd>) -> Fd {
    crate::sys::register(fd.into()).expect("register")
}

/// A non-blocking end for the task and a blocking one for the test.
fn socket() -> (Fd, UnixStream) {
    let (ours, theirs) = UnixStream::pair().expect("socketpair");
    ours.set_nonblocking(true).expect("non-blocking");
    (fd(ours), theirs)
}

fn pipe() -> (OwnedFd, OwnedFd) {
    nix::unistd::pipe2(nix::fcntl::OFlag::O_NONBLOCK).expect("pipe")
}

fn run<T>(test: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime").block_on(test)
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|i| (i * 7 % 251) as u8).collect()
}

#[test]
fn output_larger_than_every_buffer_arrives_complete_at_a_slow_reader() {
    run(async {
        let bytes = pattern(3 << 20);
        let (source, mut writer) = socket();
        let (sink, mut reader) = socket();
        let expected = bytes.clone();
        std::thread::spawn(move || writer.write_all(&bytes));
        let read = std::thread::spawn(move || {
            let mut all = Vec::new();
            std::thread::sleep(Duration::from_millis(50));
            reader.read_to_end(&mut all).map(|_| all)
        });
        let (_end, ended) = watch::channel(false);
        let (sender, drained) = watch::channel(false);
        output(source, Some(sink), ended, sender).await;
        assert!(*drained.borrow());
        assert!(read.join().expect("reader").expect("read") == expected);
    });
}

#[test]
fn a_pipe_is_spliced_to_a_socket_without_loss() {
    run(async {
        let bytes = pattern(1 << 20);
        let (source, writer) = pipe();
        let (sink, mut reader) = socket();
        let expected = bytes.clone();
        let writer = fd(writer);
        let write = tokio::spawn(async move { write_all(&writer, &bytes).await });
        let read = std::thread::spawn(move || {
            let mut all = Vec::new();
            reader.read_to_end(&mut all).map(|_| all)
        });
        let (_end, ended) = watch::channel(false);
        output(fd(source), Some(sink), ended, watch::channel(false).0).await;
        write.await.expect("writer").expect("write");
        assert!(read.join().expect("reader").expect("read") == expected);
    });
}

#[test]
fn output_of_an_ended_process_counts_as_complete_while_another_holds_it() {
    run(async {
        let (source, held_open) = pipe();
        let (sink, _reader) = socket();
        nix::unistd::write(&held_open, b"left behind").expect("write");
        let (_end, ended) = watch::channel(true);
        let (sender, mut drained) = watch::channel(false);
        let task = tokio::spawn(output(fd(source), Some(sink), ended, sender));
        drained.wait_for(|drained| *drained).await.expect("drained");
        assert!(!task.is_finished(), "the stream stays open");
    });
}

#[test]
fn a_reader_that_goes_gives_the_process_a_broken_pipe() {
    run(async {
        let (source, writer) = pipe();
        let (sink, reader) = socket();
        drop(reader);
        let (_end, ended) = watch::channel(false);
        let task = tokio::spawn(output(fd(source), Some(sink), ended, watch::channel(false).0));
        let written = write_all(&fd(writer), &pattern(1 << 20)).await;
        assert_eq!(written.map_err(|error| error.kind()), Err(io::ErrorKind::BrokenPipe));
        task.await.expect("output");
    });
}

#[test]
fn close_delivers_what_was_sent_and_then_ends_the_input() {
    run(async {
        let (source, mut writer) = socket();
        let (reader, sink) = pipe();
        writer.write_all(b"last words").expect("write");
        let close = Arc::new(Notify::new());
        close.notify_one();
        input(source, fd(sink), close).await;
        let mut text = [0; 64];
        let count = nix::unistd::read(&reader, &mut text).expect("read");
        assert_eq!(&text[..count], b"last words");
        assert_eq!(nix::unistd::read(&reader, &mut text), Ok(0));
    });
}

#[test]
fn end_of_the_host_stream_ends_the_input() {
    run(async {
        let (source, writer) = socket();
        let (reader, sink) = pipe();
        drop(writer);
        input(source, fd(sink), Arc::new(Notify::new())).await;
        assert_eq!(nix::unistd::read(&reader, &mut [0; 8]), Ok(0));
    });
}

#[test]
fn a_terminal_that_is_closed_while_its_input_is_full_ends_the_input() {
    let (sender, finished) = std::sync::mpsc::channel();
    // On a thread of its own: a task that spins can't be timed out in its runtime.
    std::thread::spawn(move || {
        run(async {
            let mut mode =
                nix::sys::termios::tcgetattr(nix::pty::openpty(None, None).expect("terminal").slave).expect("mode");
            nix::sys::termios::cfmakeraw(&mut mode);
            let pty = nix::pty::openpty(None, &mode).expect("terminal");
            let flags = nix::fcntl::OFlag::O_NONBLOCK | nix::fcntl::OFlag::O_RDWR;
            nix::fcntl::fcntl(&pty.master, nix::fcntl::FcntlArg::F_SETFL(flags)).expect("non-blocking");
            let (source, mut writer) = socket();
            std::thread::spawn(move || {
                let _ = writer.write_all(&pattern(1 << 20));
                // Only the terminal may end the input.
                std::mem::forget(writer);
            });
            while nix::unistd::write(&pty.master, &[0; 4096]).is_ok() {}
            drop(pty.slave);
            input(source, fd(pty.master), Arc::new(Notify::new())).await;
        });
        sender.send(())
    });
    finished.recv_timeout(Duration::from_secs(60)).expect("the input ends");
}
