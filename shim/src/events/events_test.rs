//! Events with a containerd that is late, comes back, refuses, or has no ttrpc socket.

use std::path::Path;

use async_trait::async_trait;
use containerd_shim_protos::api::{Empty, ForwardRequest};
use containerd_shim_protos::shim_async::{Events, create_events};
use tokio::sync::mpsc;
use ttrpc::asynchronous::{Server, TtrpcContext};

use super::*;

const SOON: Duration = Duration::from_secs(20);

struct Containerd(mpsc::UnboundedSender<String>);

#[async_trait]
impl Events for Containerd {
    async fn forward(&self, _: &TtrpcContext, request: ForwardRequest) -> ttrpc::Result<Empty> {
        let envelope = request.envelope;
        assert_eq!(envelope.namespace, "default");
        if envelope.topic == "/tasks/oom" {
            return Err(ttrpc::Error::RpcStatus(ttrpc::get_status(ttrpc::Code::INVALID_ARGUMENT, "no")));
        }
        self.0.send(envelope.topic.clone()).unwrap();
        Ok(Empty::default())
    }
}

async fn containerd(path: &Path) -> (Server, mpsc::UnboundedReceiver<String>) {
    let (sender, topics) = mpsc::unbounded_channel();
    let _ = std::fs::remove_file(path);
    let mut server = Server::new()
        .bind(&format!("unix://{}", path.display()))
        .unwrap()
        .register_service(create_events(Arc::new(Containerd(sender))));
    server.start().await.unwrap();
    (server, topics)
}

fn publisher(way: Transport) -> Publisher {
    let queue = EventQueue::default();
    Publisher { task: tokio::spawn(publish(queue.clone(), way)), queue }
}

async fn next(topics: &mut mpsc::UnboundedReceiver<String>) -> String {
    timeout(SOON, topics.recv()).await.unwrap().unwrap()
}

#[tokio::test]
async fn events_wait_for_containerd_in_order_and_survive_its_restart() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ttrpc");
    let publisher = publisher(Transport::socket("default", path.to_str().unwrap()));
    let queue = publisher.queue();
    queue.push(Event::start("c", 1));
    queue.push(Event::oom("c"));
    queue.push(Event::paused("c"));
    let (mut server, mut topics) = containerd(&path).await;
    assert_eq!(next(&mut topics).await, "/tasks/start");
    // The one between them was refused, and held up nobody.
    assert_eq!(next(&mut topics).await, "/tasks/paused");
    server.shutdown().await.unwrap();
    queue.push(Event::resumed("c"));
    queue.push(Event::exec_added("c", "e"));
    let (_server, mut topics) = containerd(&path).await;
    assert_eq!(next(&mut topics).await, "/tasks/resumed");
    assert_eq!(next(&mut topics).await, "/tasks/exec-added");
    timeout(SOON, publisher.finish()).await.unwrap();
}

#[tokio::test]
async fn the_queue_is_bounded_and_the_oldest_give_way() {
    let queue = EventQueue::default();
    for pid in 0..2 * u32::try_from(MAX_WAITING).unwrap() {
        queue.push(Event::start("c", pid));
    }
    assert_eq!(queue.lock().len(), MAX_WAITING);
    // An event that gave way while it was handed over takes no other with it.
    let old = Event::start("c", 0);
    queue.done(&old);
    assert_eq!(queue.lock().len(), MAX_WAITING);
}

#[test]
fn ends_of_processes_give_way_to_nothing_that_a_guest_can_repeat() {
    let queue = EventQueue::default();
    queue.push(Event::start("c", 1));
    queue.push(Event::exit("c", "e", 1, &crate::task::Exit::now(0)));
    for _ in 0..MAX_WAITING {
        queue.push(Event::oom("c"));
    }
    assert_eq!(queue.lock().len(), MAX_WAITING);
    assert_eq!(queue.topics()[..2], ["/tasks/exit", "/tasks/oom"]);
    for _ in 0..MAX_WAITING + 1 {
        queue.push(Event::exit("c", "e", 1, &crate::task::Exit::now(0)));
    }
    assert_eq!(queue.lock().len(), MAX_WAITING, "even of them there is no end otherwise");
}

#[tokio::test]
async fn without_a_socket_a_program_publishes() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let (program, said) = (dir.path().join("publish"), dir.path().join("said"));
    std::fs::write(&program, format!("#!/bin/sh\n{{ echo \"$@\"; wc -c; }} >>{}\n", said.display())).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let args = Args { publish_binary: program, ..Args::sample() };
    let publisher = publisher(Transport::program(&args));
    publisher.queue().push(Event::oom("c"));
    timeout(SOON, publisher.queue().empty()).await.unwrap();
    let said = std::fs::read_to_string(said).unwrap();
    assert!(said.starts_with("--address /run/c.sock publish --topic /tasks/oom --namespace default\n"), "{said}");
    assert!(!said.ends_with("\n0\n"), "the event itself was on standard input: {said}");
}

#[tokio::test]
async fn a_program_that_fails_holds_up_nothing_for_ever() {
    let args = Args { publish_binary: "/bin/false".into(), ..Args::sample() };
    let publisher = publisher(Transport::program(&args));
    publisher.queue().push(Event::oom("c"));
    timeout(SOON, publisher.queue().empty()).await.unwrap();
}
