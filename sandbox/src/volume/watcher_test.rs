//! With a ttrpc server in this process as guest.

use std::fs;
use std::os::unix::fs::symlink;

use async_trait::async_trait;
use hull_protocol::agent::Empty;
use hull_protocol::agent_ttrpc::{Agent, create_agent};
use tempfile::TempDir;
use tokio::net::UnixStream;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use ttrpc::asynchronous::transport::{Listener, Socket};
use ttrpc::asynchronous::{Client, Server, TtrpcContext};

use super::*;

const QUICK: Pace =
    Pace { quiet: Duration::from_millis(2), patience: Duration::from_millis(20), retry: Duration::from_millis(20) };
/// Much longer than anything of the above.
const LONG: Duration = Duration::from_millis(500);

/// Refuses as often as it is said.
struct Guest {
    told: UnboundedSender<(String, u32, String)>,
    refusals: Mutex<u32>,
}

#[async_trait]
impl Agent for Guest {
    async fn update_volume(&self, _: &TtrpcContext, request: UpdateVolumeRequest) -> ttrpc::Result<Empty> {
        let volume = request.volume.unwrap();
        self.told.send((request.container_id, volume.number, volume.data)).unwrap();
        let mut refusals = lock(&self.refusals);
        if *refusals > 0 {
            *refusals -= 1;
            return Err(ttrpc::Error::RpcStatus(ttrpc::get_status(ttrpc::Code::INTERNAL, "no")));
        }
        Ok(Empty::default())
    }
}

struct Scene {
    volume: TempDir,
    volumes: Volumes,
    agent: AgentClient,
    told: UnboundedReceiver<(String, u32, String)>,
    _server: Server,
}

impl Scene {
    async fn new(refusals: u32) -> Self {
        let (ours, its) = UnixStream::pair().unwrap();
        let (sender, told) = unbounded_channel();
        let guest = Guest { told: sender, refusals: Mutex::new(refusals) };
        let sockets = futures::StreamExt::chain(futures::stream::iter([Ok(its)]), futures::stream::pending());
        let mut server = Server::new()
            .add_listener(Listener::new(Box::pin(sockets)))
            .register_service(create_agent(Arc::new(guest)));
        server.start().await.unwrap();
        let agent = AgentClient::new(Client::new(Socket::new(ours)));
        let scene = Self {
            volume: tempfile::tempdir().unwrap(),
            volumes: Volumes { pace: QUICK, ..Volumes::default() },
            agent,
            told,
            _server: server,
        };
        scene.write("..1");
        scene
    }

    /// Replaces the content as a kubelet does.
    fn write(&self, data: &str) {
        let path = self.volume.path();
        fs::create_dir(path.join(data)).unwrap();
        symlink(data, path.join("..data_tmp")).unwrap();
        fs::rename(path.join("..data_tmp"), path.join("..data")).unwrap();
    }

    fn watch(&self, container: &str, number: u32) -> Watch {
        let candidates = [(number, self.volume.path().to_owned())];
        self.volumes.watch(&self.agent, container, &candidates).unwrap().unwrap()
    }

    async fn next(&mut self) -> (String, u32, String) {
        self.told.recv().await.unwrap()
    }
}

fn told(container: &str, number: u32, data: &str) -> (String, u32, String) {
    (container.into(), number, data.into())
}

#[tokio::test]
async fn the_guest_is_told_of_what_changes_from_the_first_look_on() {
    let mut scene = Scene::new(0).await;
    let watch = scene.watch("a", 3);
    assert_eq!((watch.volumes()[0].number, watch.volumes()[0].data.as_str()), (3, "..1"));
    // Between the look and the container's start.
    scene.write("..2");
    watch.container_is_there();
    assert_eq!(scene.next().await, told("a", 3, "..2"));
    scene.write("..3");
    // What happened before the container was there may be told once more.
    while scene.next().await != told("a", 3, "..3") {}
    // Many at once are one.
    (10..30).for_each(|number| scene.write(&format!("..{number}")));
    while scene.next().await != told("a", 3, "..29") {}
    drop(watch);
    scene.write("..40");
    sleep(LONG).await;
    assert!(scene.told.try_recv().is_err(), "nobody has the volume any more");
}

#[tokio::test]
async fn two_containers_with_one_volume_are_told_until_both_are_gone() {
    let mut scene = Scene::new(0).await;
    let (one, two) = (scene.watch("one", 0), scene.watch("two", 0));
    one.container_is_there();
    two.container_is_there();
    assert_eq!(scene.next().await, told("one", 0, "..1"));
    assert_eq!(scene.next().await, told("two", 0, "..1"));
    drop(one);
    scene.write("..2");
    assert_eq!(scene.next().await, told("two", 0, "..2"));
}

#[tokio::test]
async fn a_guest_that_fails_is_told_again() {
    let mut scene = Scene::new(2).await;
    let watch = scene.watch("a", 0);
    watch.container_is_there();
    for _ in 0..3 {
        assert_eq!(scene.next().await, told("a", 0, "..1"));
    }
    sleep(LONG).await;
    assert!(scene.told.try_recv().is_err(), "it was content");
}

#[tokio::test]
async fn a_guest_that_always_fails_is_left_alone_until_the_next_change() {
    let mut scene = Scene::new(ATTEMPTS).await;
    let watch = scene.watch("a", 0);
    watch.container_is_there();
    for _ in 0..ATTEMPTS {
        assert_eq!(scene.next().await, told("a", 0, "..1"));
    }
    sleep(LONG).await;
    assert!(scene.told.try_recv().is_err());
    scene.write("..2");
    assert_eq!(scene.next().await, told("a", 0, "..2"));
}

#[tokio::test]
async fn other_directories_are_not_watched() {
    let scene = Scene::new(0).await;
    let other = tempfile::tempdir().unwrap();
    let candidates = [(0, other.path().to_owned()), (1, scene.volume.path().to_owned())];
    let watch = scene.volumes.watch(&scene.agent, "a", &candidates).unwrap().unwrap();
    assert_eq!(watch.volumes().iter().map(|volume| volume.number).collect::<Vec<_>>(), [1]);
    assert!(scene.volumes.watch(&scene.agent, "b", &candidates[..1]).unwrap().is_none());
    assert!(scene.volumes.watch(&scene.agent, "c", &[(0, other.path().join("gone"))]).is_err());
}
