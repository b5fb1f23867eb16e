//! Streams with clients that are late, slow, gone, or don't close.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::pipe::OpenOptions;
use tokio::time::timeout;

use super::*;

const SOON: Duration = Duration::from_secs(20);

struct Ends {
    dir: tempfile::TempDir,
    stdio: Stdio,
}

impl Ends {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| {
            let path = dir.path().join(name);
            nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
            path.to_str().unwrap().to_owned()
        };
        let stdio = Stdio { stdin: path("in"), stdout: path("out"), stderr: path("err"), terminal: false };
        Self { dir, stdio }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }
}

/// The process's ends of its streams.
struct Guest {
    stdin: UnixStream,
    stdout: UnixStream,
    stderr: UnixStream,
}

fn streams() -> (ProcessStreams, Guest) {
    let pair = || UnixStream::pair().unwrap();
    let ((stdin, a), (stdout, b), (stderr, c)) = (pair(), pair(), pair());
    let streams = ProcessStreams { stdin: Some(stdin), stdout: Some(stdout), stderr: Some(stderr) };
    (streams, Guest { stdin: a, stdout: b, stderr: c })
}

fn owner(loggers: &Loggers) -> Owner<'_> {
    Owner { namespace: "default", container_id: "c", loggers }
}

async fn start(stdio: &Stdio) -> (Pumps, Guest) {
    start_with(stdio, &Loggers::default()).await
}

async fn start_with(stdio: &Stdio, loggers: &Loggers) -> (Pumps, Guest) {
    let (streams, guest) = streams();
    (stdio.open(owner(loggers)).await.unwrap().connect(streams), guest)
}

/// A program for logs, and what it writes to.
fn logger(dir: &tempfile::TempDir, text: &str) -> (Stdio, std::path::PathBuf) {
    use std::os::unix::fs::PermissionsExt;
    let (script, result) = (dir.path().join("log"), dir.path().join("result"));
    std::fs::write(&script, format!("#!/bin/sh\nexec 5>&-\n{text}\n")).unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    let stdout = format!("binary://{}?{}", script.display(), result.display());
    (Stdio { stdout, ..Stdio::default() }, result)
}

#[tokio::test]
async fn output_reaches_a_reader_that_comes_late_and_ends_with_the_process() {
    let ends = Ends::new();
    let (pumps, mut guest) = start(&ends.stdio).await;
    guest.stdout.write_all(b"out").await.unwrap();
    guest.stderr.write_all(b"err").await.unwrap();
    tokio::task::yield_now().await;
    let (out, err) = (ends.path("out"), ends.path("err"));
    let (mut reader, mut other) =
        (OpenOptions::new().open_receiver(out).unwrap(), OpenOptions::new().open_receiver(err).unwrap());
    drop((guest.stdout, guest.stderr));
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let both = async { tokio::join!(reader.read_to_end(&mut stdout), other.read_to_end(&mut stderr)) };
    let (a, b) = timeout(SOON, both).await.unwrap();
    a.and(b).unwrap();
    assert_eq!((stdout.as_slice(), stderr.as_slice()), (&b"out"[..], &b"err"[..]));
    pumps.finish(SOON).await;
}

#[tokio::test]
async fn a_reader_that_goes_away_ends_nothing_and_the_next_gets_what_follows() {
    let ends = Ends::new();
    let (pumps, mut guest) = start(&ends.stdio).await;
    let mut first = OpenOptions::new().open_receiver(ends.path("out")).unwrap();
    guest.stdout.write_all(b"one").await.unwrap();
    let mut bytes = [0; 3];
    timeout(SOON, first.read_exact(&mut bytes)).await.unwrap().unwrap();
    drop(first);
    guest.stdout.write_all(b"two").await.unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    let mut second = OpenOptions::new().open_receiver(ends.path("out")).unwrap();
    timeout(SOON, second.read_exact(&mut bytes)).await.unwrap().unwrap();
    assert_eq!(&bytes, b"two");
    drop(pumps);
}

#[tokio::test]
async fn a_reader_that_does_not_read_holds_up_its_own_stream_only() {
    let ends = Ends::new();
    let (pumps, mut guest) = start(&ends.stdio).await;
    let flood = tokio::spawn(async move {
        let _ = guest.stdout.write_all(&vec![b'x'; 4 << 20]).await;
    });
    let mut err = OpenOptions::new().open_receiver(ends.path("err")).unwrap();
    guest.stderr.write_all(b"still here").await.unwrap();
    let mut bytes = [0; 10];
    timeout(SOON, err.read_exact(&mut bytes)).await.unwrap().unwrap();
    assert!(!flood.is_finished(), "it waits for its reader");
    timeout(SOON, pumps.finish(Duration::ZERO)).await.unwrap();
    timeout(SOON, flood).await.unwrap().unwrap();
}

#[tokio::test]
async fn output_waits_for_its_reader_long_after_the_process() {
    const BYTES: usize = 200_000;
    let ends = Ends::new();
    let (pumps, mut guest) = start(&ends.stdio).await;
    // More than fits into the FIFO.
    guest.stdout.write_all(&vec![b'x'; BYTES]).await.unwrap();
    drop(guest);
    pumps.process_ended();
    tokio::time::sleep(2 * pump::LEFT_BEHIND_GRACE).await;
    let mut reader = OpenOptions::new().open_receiver(ends.path("out")).unwrap();
    let mut bytes = Vec::new();
    timeout(SOON, reader.read_to_end(&mut bytes)).await.unwrap().unwrap();
    assert_eq!(bytes.len(), BYTES);
}

#[tokio::test]
async fn output_that_somebody_left_behind_holds_ends_when_it_is_silent() {
    let ends = Ends::new();
    let (pumps, mut guest) = start(&ends.stdio).await;
    let mut reader = OpenOptions::new().open_receiver(ends.path("out")).unwrap();
    pumps.process_ended();
    guest.stdout.write_all(b"late").await.unwrap();
    let mut bytes = [0; 4];
    timeout(SOON, reader.read_exact(&mut bytes)).await.unwrap().unwrap();
    assert_eq!(timeout(SOON, reader.read(&mut bytes)).await.unwrap().unwrap(), 0, "the end");
    drop(guest);
}

#[tokio::test]
async fn input_ends_when_it_is_closed_here_and_there_and_nothing_of_it_is_lost() {
    let ends = Ends::new();
    let (pumps, mut guest) = start(&ends.stdio).await;
    let mut client = OpenOptions::new().open_sender(ends.path("in")).unwrap();
    client.write_all(b"first ").await.unwrap();
    drop(client);
    // Another client may come as long as nobody has said that this was all.
    let mut client = OpenOptions::new().open_sender(ends.path("in")).unwrap();
    pumps.close_stdin();
    client.write_all(b"second").await.unwrap();
    drop(client);
    let mut bytes = Vec::new();
    timeout(SOON, guest.stdin.read_to_end(&mut bytes)).await.unwrap().unwrap();
    assert_eq!(bytes, b"first second");
}

#[tokio::test]
async fn files_take_both_streams_behind_what_they_hold() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("logs/a");
    let stdio = Stdio { stdout: format!("file://{}", path.display()), ..Stdio::default() };
    for word in ["one", "two"] {
        let (pumps, mut guest) = start(&stdio).await;
        guest.stdout.write_all(word.as_bytes()).await.unwrap();
        drop(guest);
        pumps.finish(SOON).await;
    }
    let (pumps, mut guest) = start(&stdio).await;
    guest.stderr.write_all(b"!").await.unwrap();
    drop(guest);
    pumps.finish(SOON).await;
    assert_eq!(std::fs::read_to_string(path).unwrap(), "onetwo!");
}

#[tokio::test]
async fn a_program_gets_both_streams_and_knows_whose_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let (stdio, result) = logger(&dir, "{ echo $CONTAINER_NAMESPACE $CONTAINER_ID; cat <&3; cat <&4; } >$1");
    let (pumps, mut guest) = start(&stdio).await;
    guest.stdout.write_all(b"out ").await.unwrap();
    guest.stderr.write_all(b"err").await.unwrap();
    drop(guest);
    pumps.finish(SOON).await;
    assert_eq!(std::fs::read_to_string(result).unwrap(), "default c\nout err");
}

#[tokio::test]
async fn a_program_that_is_slow_to_write_is_waited_for_also_without_its_process() {
    let dir = tempfile::tempdir().unwrap();
    let (stdio, result) = logger(&dir, "text=$(cat <&3); sleep 1; echo $text >$1");
    let loggers = Loggers::default();
    timeout(SOON, loggers.ended()).await.unwrap();
    let (pumps, mut guest) = start_with(&stdio, &loggers).await;
    guest.stdout.write_all(b"last words").await.unwrap();
    drop(guest);
    pumps.finish(Duration::from_millis(100)).await;
    drop(pumps);
    timeout(SOON, loggers.ended()).await.unwrap();
    assert_eq!(std::fs::read_to_string(result).unwrap(), "last words\n");
}

#[tokio::test]
async fn what_can_not_be_opened_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let open = async |stdout: &str| {
        let stdio = Stdio { stdout: stdout.into(), ..Stdio::default() };
        stdio.open(owner(&Loggers::default())).await.unwrap_err().to_string()
    };
    let missing = dir.path().join("none");
    assert!(open(missing.to_str().unwrap()).await.contains("none"));
    let regular = dir.path().join("file");
    std::fs::write(&regular, "").unwrap();
    assert!(open(regular.to_str().unwrap()).await.contains("file"));
    assert!(open("tcp://1.2.3.4/").await.contains("tcp"));
    assert!(open("binary:///no/such/program").await.contains("/no/such/program"));
}
