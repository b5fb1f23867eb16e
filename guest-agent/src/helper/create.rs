//! Creates a container by libcontainer.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use hull_protocol::agent::CreateContainerRequest;
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::error::LibcontainerError;
use libcontainer::syscall::syscall::SyscallType;
use nix::unistd::{Gid, Pid, Uid, fchown};
use oci_spec::runtime::Spec;
use protobuf::Message;

use crate::failure::{Context, Failure};
use crate::helper::root::{Root, clean};
use crate::helper::user::Users;
use crate::helper::workload::{Workload, chain};
use crate::helper::{Task, device_nodes, devices, rootfs, shared, specification};
use crate::identifier;
use crate::layout::{self, Bundle};
use crate::sysctl;

/// The specification as it came, which exec'd processes are compared with.
pub const SPECIFICATION: &str = "specification.json";

/// Most files that are injected.
const MAX_FILES: usize = 64;

/// Creates the container of the request and returns the process that waits for the start. The container joins the pid
/// namespace of process `namespace`, if there is one.
pub fn run(task: Task, namespace: Option<&str>) -> Result<Pid, Failure> {
    let request = CreateContainerRequest::parse_from_bytes(&task.request).map_err(Failure::invalid)?;
    let id = identifier::check("container_id", &request.container_id)?;
    let mut spec: Spec = serde_json::from_slice(&request.oci_spec_json)
        .map_err(|error| Failure::invalid(format!("oci_spec_json: {error}")))?;

    let bundle = Bundle::new(id);
    let is_shared = !request.rootfs.shared_path.is_empty();
    if is_shared && request.rootfs.read_only && !request.files.is_empty() {
        return Err(Failure::invalid("files can't be injected into a read-only directory of the host"));
    }
    let mounted = rootfs::mount_root(&bundle, &request.rootfs)?;
    shared::provide_memory(&spec)?;
    let root = Root::open(&mounted)?;
    let joined = namespace.map(|pid| PathBuf::from(format!("/proc/{pid}/ns/pid")));
    let mut extracted = specification::prepare(&mut spec, id, &mounted, request.rootfs.read_only, request.use_init)?;
    specification::join_pid_namespace(&mut spec, joined)?;
    specification::set_user(&mut extracted.process, &request.user, &Users::read(&root)?)?;
    inject(&root, &request)?;
    // As Docker and runc do for a working directory that the image doesn't have, and while the root is writable. What is
    // below a mount is made later (`workload`).
    root.make_directory(&clean(extracted.process.cwd()))?;
    device_nodes::bind_elsewhere(&mut spec, &layout::devices(id))?;
    own_streams(&spec, &extracted.process)?;
    if !is_shared {
        own_root(&spec, &mounted)?;
    }

    let cgroup = specification::make_cgroup(id)?;
    devices::restrict(&cgroup, &extracted.devices)?;
    sysctl::apply(&extracted.network_sysctls)?;

    let mut workload = Workload::new(&extracted.process, extracted.seccomp, task.reporter);
    workload.use_init = request.use_init;
    workload.new_network = extracted.new_network;
    spec.set_process(Some(specification::for_libcontainer(&extracted.process)));
    fs::write(bundle.path().join(SPECIFICATION), &request.oci_spec_json).context("write the bundle")?;
    spec.save(bundle.path().join("config.json")).map_err(|error| Failure::internal(chain(&error)))?;

    let container = ContainerBuilder::new(id.to_string(), SyscallType::default())
        .with_executor(workload)
        .with_console_socket(task.console)
        .with_root_path(layout::STATE)
        .map_err(failure)?
        .as_init(bundle.path())
        .with_systemd(false)
        .build()
        .map_err(failure)?;
    let pid = container.pid().ok_or_else(|| Failure::internal("the container has no process"))?;
    // libcontainer has its own version of the type.
    Ok(Pid::from_raw(pid.as_raw()))
}

fn inject(root: &Root, request: &CreateContainerRequest) -> Result<(), Failure> {
    if request.files.len() > MAX_FILES {
        return Err(Failure::invalid(format!("a container has at most {MAX_FILES} injected files")));
    }
    for file in &request.files {
        root.write(&file.path, &file.content, file.mode)?;
    }
    Ok(())
}

/// Gives the standard streams to the container's user, who may open them again (`/dev/stdout`).
fn own_streams(spec: &Spec, process: &oci_spec::runtime::Process) -> Result<(), Failure> {
    let linux = spec.linux().as_ref();
    let uid = specification::map_id(linux.and_then(|linux| linux.uid_mappings().as_ref()), process.user().uid());
    let gid = specification::map_id(linux.and_then(|linux| linux.gid_mappings().as_ref()), process.user().gid());
    give_streams(uid, gid)
}

/// The root directory belongs to the container's root. (What is below belongs to whom the image says, which a user
/// namespace shows as nobody.)
fn own_root(spec: &Spec, root: &Path) -> Result<(), Failure> {
    let linux = spec.linux().as_ref();
    let uid = specification::map_id(linux.and_then(|linux| linux.uid_mappings().as_ref()), 0);
    let gid = specification::map_id(linux.and_then(|linux| linux.gid_mappings().as_ref()), 0);
    if (uid, gid) == (0, 0) {
        return Ok(());
    }
    nix::unistd::chown(root, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))
        .context("give the root directory to the container")
}

/// Changes the owner of the standard streams that are pipes.
pub fn give_streams(uid: u32, gid: u32) -> Result<(), Failure> {
    let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
    let is_pipe = |mode: u32| mode & libc::S_IFMT == libc::S_IFIFO;
    macro_rules! give {
        ($($stream:expr),*) => {$(
            if nix::sys::stat::fstat($stream).is_ok_and(|stat| is_pipe(stat.st_mode)) {
                fchown($stream, uid, gid).context("give the standard streams to the user")?;
            }
        )*};
    }
    give!(io::stdin(), io::stdout(), io::stderr());
    Ok(())
}

fn failure(error: LibcontainerError) -> Failure {
    let text = chain(&error);
    match error {
        LibcontainerError::Exist => Failure::exists(text),
        LibcontainerError::InvalidID(_)
        | LibcontainerError::InvalidInput(_)
        | LibcontainerError::InvalidSpec(_)
        | LibcontainerError::MissingSpec(_)
        | LibcontainerError::UserNamespace(_)
        | LibcontainerError::NetDevicesError(_)
        | LibcontainerError::Spec(_) => Failure::invalid(text),
        _ => Failure::internal(text),
    }
}
