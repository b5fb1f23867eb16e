//! Changes with a monitor and a guest that are played by this process.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use hull_protocol::PROTOCOL_VERSION;
use hull_protocol::agent::*;
use hull_protocol::agent_ttrpc::{Agent, create_agent};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use ttrpc::asynchronous::transport::Listener;
use ttrpc::asynchronous::{Server, TtrpcContext};

use super::{Machine, MemoryChange};
use crate::runtime_dir::{RuntimeDir, RuntimeRoot, SandboxRecord, SandboxStatus};
use crate::{AgentErrorKind, Drive, SandboxError};

const ID: &str = "0123456789ab";

/// What both sides have, and how they behave.
#[derive(Default)]
pub(crate) struct World {
    /// Requests to the monitor and calls to the agent, in order.
    log: Vec<String>,
    /// On the bus.
    plugged: bool,
    /// The guest's driver serves it.
    active: bool,
    guest: Manners,
    paused: bool,
    /// DELETE fails.
    stubborn: bool,
    memory: u64,
    /// The guest goes no further, neither up nor down.
    memory_wall: u64,
    /// The guest's processes use so much of what is plugged.
    memory_used: u64,
}

#[derive(Clone, Copy, Default, PartialEq)]
pub(crate) enum Manners {
    #[default]
    Good,
    /// Doesn't find the device.
    Blind,
    /// Never answers, having done what it was asked to.
    Silent,
    /// Says that it is in use.
    Busy,
}

type Shared = Arc<Mutex<World>>;

pub(crate) struct Scene {
    world: Shared,
    root: RuntimeRoot,
    record: SandboxRecord,
    _held: RuntimeDir,
    _dir: tempfile::TempDir,
}

impl Scene {
    pub(crate) async fn new(world: World) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = RuntimeRoot::open(dir.path()).unwrap();
        let record = SandboxRecord {
            id: ID.into(),
            name: "test".into(),
            image: "none".into(),
            command: Vec::new(),
            created_s: 0,
            status: SandboxStatus::Running,
            owner_pid: 0,
            monitor_pid: 0,
            vcpus: 1,
            memory_mib: 128,
            max_memory_mib: 1100,
            stop_signal: 15,
            stop_timeout_s: 10,
        };
        let held = root.create(&record).unwrap();
        let world = Arc::new(Mutex::new(world));
        serve_guest(held.path(), Arc::clone(&world)).await;
        serve_monitor(held.path(), Arc::clone(&world));
        Self { world, root, record, _held: held, _dir: dir }
    }

    pub(crate) async fn machine(&self) -> Machine {
        let machine = Machine::attach(&self.root, &self.record).await.unwrap();
        Machine { limit: Duration::from_millis(300), patience: Duration::from_millis(300), ..machine }
    }

    /// From now on.
    pub(crate) fn behave(&self, guest: Manners) {
        self.world.lock().unwrap().guest = guest;
    }

    /// What was asked for since the last look.
    pub(crate) fn log(&self) -> Vec<String> {
        let mut log = std::mem::take(&mut self.world.lock().unwrap().log);
        log.retain(|line| line != "GET /vm");
        log
    }

    pub(crate) fn is_clean(&self) -> bool {
        let world = self.world.lock().unwrap();
        !world.plugged && !world.active
    }
}

struct Guest(Shared);

impl Guest {
    fn note(&self, line: String) -> Manners {
        let mut world = self.0.lock().unwrap();
        world.log.push(line);
        world.guest
    }
}

fn refusal<T>(code: ttrpc::Code, text: &str) -> ttrpc::Result<T> {
    Err(ttrpc::Error::RpcStatus(ttrpc::get_status(code, text)))
}

fn disk(name: String, pci_address: String) -> Device {
    Device {
        kind: DeviceKind::DEVICE_KIND_DRIVE.into(),
        name,
        pci_address,
        guest_name: "vdb".into(),
        ..Default::default()
    }
}

#[async_trait]
impl Agent for Guest {
    async fn hello(&self, _: &TtrpcContext, _: HelloRequest) -> ttrpc::Result<HelloResponse> {
        Ok(HelloResponse { protocol_version: PROTOCOL_VERSION, ..Default::default() })
    }

    async fn plug_device(&self, _: &TtrpcContext, request: PlugDeviceRequest) -> ttrpc::Result<Device> {
        let manners = self.note(format!("plug {} {}", request.name, request.pci_address));
        if manners == Manners::Blind {
            return refusal(ttrpc::Code::NOT_FOUND, "there is no device");
        }
        self.0.lock().unwrap().active = true;
        if manners == Manners::Silent {
            std::future::pending::<()>().await;
        }
        Ok(disk(request.name, request.pci_address))
    }

    async fn unplug_device(&self, _: &TtrpcContext, request: UnplugDeviceRequest) -> ttrpc::Result<Device> {
        match self.note(format!("unplug {}", request.name)) {
            Manners::Silent => std::future::pending().await,
            Manners::Busy => return refusal(ttrpc::Code::FAILED_PRECONDITION, "in use: it is mounted"),
            Manners::Blind => return refusal(ttrpc::Code::NOT_FOUND, "no such device"),
            Manners::Good => {}
        }
        self.0.lock().unwrap().active = false;
        Ok(disk(request.name, "0000:00:05.0".into()))
    }

    async fn set_online_cpus(
        &self,
        _: &TtrpcContext,
        request: SetOnlineCpusRequest,
    ) -> ttrpc::Result<MachineStateResponse> {
        Ok(MachineStateResponse { online_cpus: request.count, present_cpus: 4, ..Default::default() })
    }

    async fn machine_state(&self, _: &TtrpcContext, _: Empty) -> ttrpc::Result<MachineStateResponse> {
        let world = self.0.lock().unwrap();
        // And of the memory from the start 32 MiB are not in use.
        let available = (world.memory + 32).saturating_sub(world.memory_used) << 20;
        Ok(MachineStateResponse { memory_available_bytes: available, ..Default::default() })
    }
}

async fn serve_guest(dir: &Path, world: Shared) {
    let listener = UnixListener::bind(dir.join("v")).unwrap();
    let sockets = futures::stream::unfold(listener, |listener| async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.read_exact(&mut [0; 13]).await.unwrap();
        stream.write_all(b"OK 77\n").await.unwrap();
        Some((Ok(stream), listener))
    });
    let mut server =
        Server::new().add_listener(Listener::new(sockets)).register_service(create_agent(Arc::new(Guest(world))));
    server.start().await.unwrap();
    tokio::spawn(async move {
        std::future::pending::<()>().await;
        drop(server);
    });
}

fn serve_monitor(dir: &Path, world: Shared) {
    let listener = UnixListener::bind(dir.join("api")).unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            answer(stream, &world).await;
        }
    });
}

async fn answer(mut stream: UnixStream, world: &Shared) {
    let mut request = vec![0; 4096];
    let length = stream.read(&mut request).await.unwrap();
    let text = String::from_utf8_lossy(&request[..length]).into_owned();
    let (line, body) = (text.split(" HTTP").next().unwrap(), text.split_once("\r\n\r\n").unwrap().1);
    let answer = world.lock().unwrap().monitor(line, body);
    let (status, body) = answer;
    let text = format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len());
    stream.write_all(text.as_bytes()).await.unwrap();
}

impl World {
    /// Nothing is plugged yet.
    pub(crate) fn with(guest: Manners) -> Self {
        Self { guest, ..Self::default() }
    }

    fn monitor(&mut self, line: &str, body: &str) -> (u16, String) {
        self.log.push(line.into());
        let fault = |text: &str| format!("{{\"fault_message\":\"{text}\"}}");
        match line {
            "GET /vm" => (200, format!("{{\"state\":\"{}\"}}", if self.paused { "Paused" } else { "Running" })),
            "PUT /drives/extra" if self.plugged => (409, fault("There is a drive extra already")),
            "PUT /drives/extra" => {
                self.plugged = true;
                (200, "{\"pci_address\":\"0000:00:05.0\"}".into())
            }
            _ if line.starts_with("DELETE") && self.stubborn => (500, fault("no")),
            "DELETE /drives/extra" if !self.plugged => (404, fault("There is no drive extra")),
            "DELETE /drives/extra" if self.active => (409, fault("The guest still uses it")),
            "DELETE /drives/extra" | "DELETE /drives/extra?force=true" => {
                (self.plugged, self.active) = (false, false);
                (204, String::new())
            }
            "GET /machine-config" => (200, "{\"mem_size_mib\":128}".into()),
            "PATCH /hotplug/memory" => {
                self.log.push(body.into());
                let digits: String = body.chars().filter(char::is_ascii_digit).collect();
                let wanted: u64 = digits.parse().unwrap();
                let way = if wanted > self.memory {
                    self.memory..=self.memory_wall.max(self.memory)
                } else {
                    self.memory_wall.min(self.memory)..=self.memory
                };
                self.memory = wanted.clamp(*way.start(), *way.end());
                (204, String::new())
            }
            "GET /hotplug/memory" => {
                let (memory, wanted) = (self.memory, 0);
                let sizes = format!("\"plugged_size_mib\":{memory},\"requested_size_mib\":{wanted}");
                (200, format!("{{\"total_size_mib\":1024,\"block_size_mib\":2,{sizes}}}"))
            }
            _ => (404, fault("There is no such path")),
        }
    }
}

fn extra() -> Drive {
    Drive { drive_id: "extra".into(), path_on_host: "/disk".into(), ..Drive::default() }
}

#[tokio::test]
async fn a_drive_is_plugged_on_both_sides_and_unplugged_by_the_guest_first() {
    let scene = Scene::new(World::default()).await;
    let machine = scene.machine().await;
    let device = machine.plug_drive(&extra()).await.unwrap();
    assert_eq!((device.guest_name.as_str(), device.pci_address.as_str()), ("vdb", "0000:00:05.0"));
    assert_eq!(scene.log(), ["PUT /drives/extra", "plug extra 0000:00:05.0"]);
    machine.unplug_drive("extra").await.unwrap();
    assert_eq!(scene.log(), ["unplug extra", "DELETE /drives/extra"]);
    assert!(scene.is_clean());
}

#[tokio::test]
async fn a_drive_that_the_guest_does_not_find_is_taken_back() {
    let scene = Scene::new(World { guest: Manners::Blind, ..World::default() }).await;
    let error = scene.machine().await.plug_drive(&extra()).await.unwrap_err();
    let SandboxError::NotTaken { what, source } = error else { panic!("{error}") };
    assert_eq!((what.as_str(), source.to_string().as_str()), ("drive extra", "there is no device"));
    assert_eq!(scene.log().last().unwrap(), "DELETE /drives/extra");
    assert!(scene.is_clean());
}

#[tokio::test]
async fn a_guest_that_took_the_drive_but_does_not_answer_loses_it() {
    let scene = Scene::new(World { guest: Manners::Silent, ..World::default() }).await;
    let error = scene.machine().await.plug_drive(&extra()).await.unwrap_err();
    let SandboxError::NotTaken { source, .. } = error else { panic!("{error}") };
    assert!(source.to_string().contains("did not answer"), "{source}");
    let expected = ["DELETE /drives/extra", "unplug extra", "DELETE /drives/extra?force=true"];
    assert_eq!(scene.log()[2..], expected);
    assert!(scene.is_clean());
}

#[tokio::test]
async fn a_monitor_that_refuses_is_where_it_ends() {
    let scene = Scene::new(World { plugged: true, ..World::default() }).await;
    let error = scene.machine().await.plug_drive(&extra()).await.unwrap_err();
    assert!(matches!(&error, SandboxError::Control(refusal) if refusal.status == Some(409)), "{error}");
    assert_eq!(scene.log(), ["PUT /drives/extra"]);
}

#[tokio::test]
async fn a_drive_in_use_stays() {
    let world = World { plugged: true, active: true, guest: Manners::Busy, ..World::default() };
    let scene = Scene::new(world).await;
    let error = scene.machine().await.unplug_drive("extra").await.unwrap_err();
    assert!(
        matches!(&error, SandboxError::Agent(error) if error.kind == AgentErrorKind::FailedPrecondition),
        "{error}"
    );
    assert_eq!(scene.log(), ["unplug extra"]);
}

#[tokio::test]
async fn a_drive_that_the_monitor_keeps_is_given_back_to_the_guest() {
    let scene = Scene::new(World { plugged: true, active: true, stubborn: true, ..World::default() }).await;
    scene.machine().await.unplug_drive("extra").await.unwrap_err();
    assert_eq!(scene.log(), ["unplug extra", "DELETE /drives/extra", "plug extra 0000:00:05.0"]);
    assert!(scene.world.lock().unwrap().active);
}

#[tokio::test]
async fn names_that_are_no_names_reach_nobody() {
    let scene = Scene::new(World::default()).await;
    let machine = scene.machine().await;
    for name in ["", "a/b", "../vm", "a?force=true", "a b", "ä"] {
        assert!(matches!(machine.unplug_drive(name).await, Err(SandboxError::NoDevice { .. })), "{name}");
    }
    assert!(scene.log().is_empty());
    let blind = Scene::new(World { guest: Manners::Blind, ..World::default() }).await;
    let error = blind.machine().await.unplug_drive("extra").await.unwrap_err();
    assert!(matches!(error, SandboxError::NoDevice { .. }), "{error}");
}

#[tokio::test]
async fn a_paused_vm_is_called_paused() {
    let scene = Scene::new(World { guest: Manners::Silent, ..World::default() }).await;
    let machine = scene.machine().await;
    scene.world.lock().unwrap().paused = true;
    let error = machine.plug_drive(&extra()).await.unwrap_err();
    assert!(matches!(&error, SandboxError::NotTaken { source, .. } if matches!(**source, SandboxError::Paused)));
    assert!(matches!(Machine::attach(&scene.root, &scene.record).await, Err(SandboxError::Paused)));
}

#[tokio::test]
async fn a_vm_whose_container_starts_is_left_alone() {
    let scene = Scene::new(World::default()).await;
    let record = SandboxRecord { status: SandboxStatus::Starting, ..scene.record.clone() };
    assert!(matches!(Machine::attach(&scene.root, &record).await, Err(SandboxError::NotRunning(_))));
}

#[tokio::test]
async fn processors_are_as_the_guest_says() {
    let scene = Scene::new(World::default()).await;
    let state = scene.machine().await.set_cpus(3).await.unwrap();
    assert_eq!((state.online_cpus, state.present_cpus), (3, 4));
}

#[tokio::test]
async fn memory_grows_in_whole_blocks_and_shrinks_as_far_as_the_guest_lets_it() {
    let scene = Scene::new(World { memory_wall: 512, ..World::default() }).await;
    let machine = scene.machine().await;
    let grown = machine.set_memory(128 + 511).await.unwrap();
    assert_eq!(grown, MemoryChange { asked_mib: 640, now_mib: 640 });
    scene.world.lock().unwrap().memory_wall = 300;
    let shrunk = machine.set_memory(128).await.unwrap();
    assert_eq!(shrunk, MemoryChange { asked_mib: 128, now_mib: 428 });
    // The guest is not left trying.
    let log = scene.log();
    assert_eq!(log.iter().rfind(|line| line.starts_with('{')).unwrap(), "{\"requested_size_mib\":300}");
}

#[tokio::test]
async fn memory_in_use_is_not_asked_for() {
    let scene = Scene::new(World { memory_wall: 512, ..World::default() }).await;
    let machine = scene.machine().await;
    machine.set_memory(640).await.unwrap();
    {
        let mut world = scene.world.lock().unwrap();
        (world.memory_wall, world.memory_used) = (0, 333);
    }
    let shrunk = machine.set_memory(128).await.unwrap();
    assert_eq!((shrunk.asked_mib, shrunk.now_mib.div_ceil(64)), (128, (128_u32 + 333).div_ceil(64)));
    assert!(shrunk.now_mib >= 128 + 333, "{shrunk:?}");
}

#[tokio::test]
async fn memory_that_the_guest_does_not_take_is_taken_back() {
    let scene = Scene::new(World { memory_wall: 100, ..World::default() }).await;
    let error = scene.machine().await.set_memory(640).await.unwrap_err();
    let SandboxError::MemoryNotTaken { asked_mib, reached_mib } = error else { panic!("{error}") };
    assert_eq!((asked_mib, reached_mib), (640, 228));
    assert_eq!(scene.log().iter().rfind(|line| line.starts_with('{')).unwrap(), "{\"requested_size_mib\":0}");
}

#[tokio::test]
async fn memory_beyond_what_is_possible_is_refused() {
    let scene = Scene::new(World::default()).await;
    let machine = scene.machine().await;
    // The device has more than the VM shall have: it comes in large units.
    for size_mib in [127, 1101] {
        let error = machine.set_memory(size_mib).await.unwrap_err();
        assert!(matches!(error, SandboxError::MemoryRange { least_mib: 128, most_mib: 1100 }), "{error}");
    }
    assert!(scene.log().iter().all(|line| !line.starts_with("PATCH")));
}
