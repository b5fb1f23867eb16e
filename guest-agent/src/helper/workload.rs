//! The last steps of every process: system call filter, capabilities, and its command.
//!
//! libcontainer would load the filter and drop capabilities before a container waits for its start, and its `exec` has no
//! filter at all. Here both happen at the very end and in one way: the filter needs to allow nothing but the steps that
//! follow it, and it is loaded while the process still may, so that `noNewPrivileges` isn't needed.

use std::collections::HashMap;
use std::ffi::{CString, NulError};
use std::path::{Path, PathBuf};

use libcontainer::syscall::syscall::create_syscall;
use libcontainer::workload::{Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError};
use libcontainer::{capabilities, seccomp};
use nix::errno::Errno;
use nix::unistd::{AccessFlags, Gid, Uid, access, chdir, execve, fchown, isatty, setfsgid, setfsuid};
use oci_spec::runtime::{LinuxCapabilities, LinuxSeccomp, Process, Spec};

use crate::container_init;
use crate::failure::{Context, Failure};
use crate::helper::reply::{Reply, Reporter};
use crate::helper::root::{Root, clean};
use crate::layout;
use crate::sys;

/// What is executed in the end, and with which rights.
#[derive(Clone)]
pub struct Workload {
    args: Vec<String>,
    env: Vec<String>,
    capabilities: LinuxCapabilities,
    no_new_privileges: bool,
    seccomp: Option<LinuxSeccomp>,
    user: Uid,
    cwd: PathBuf,
    /// The command runs under an init process.
    pub use_init: bool,
    /// The container has a new network namespace, whose loopback interface is down.
    pub new_network: bool,
    reporter: Reporter,
}

impl Workload {
    /// The workload of a checked process.
    pub fn new(process: &Process, seccomp: Option<LinuxSeccomp>, reporter: Reporter) -> Self {
        Self {
            args: process.args().clone().unwrap_or_default(),
            env: process.env().clone().unwrap_or_default(),
            capabilities: complete(process.capabilities().as_ref()),
            no_new_privileges: process.no_new_privileges().unwrap_or(false),
            seccomp,
            user: Uid::from_raw(process.user().uid()),
            cwd: clean(process.cwd()),
            use_init: false,
            new_network: false,
            reporter,
        }
    }

    /// Finds the command as the process that runs it; the messages are those that people know from Docker.
    pub fn find(&self) -> Result<PathBuf, Failure> {
        let name = self.args.first().map_or("", String::as_str);
        let fail = |text: &str| format!("exec: {name:?}: {text}");
        if name.contains('/') {
            let path = PathBuf::from(name);
            return match executable(&path) {
                Ok(()) => Ok(path),
                Err(Errno::EACCES) => Err(Failure::denied(fail("permission denied"))),
                Err(Errno::EISDIR) => Err(Failure::denied(fail("is a directory"))),
                Err(error) => Err(Failure::not_found(fail(&format!("stat {name}: {}", describe(error))))),
            };
        }
        let path = self.env.iter().find_map(|entry| entry.strip_prefix("PATH=")).unwrap_or("");
        let mut denied = false;
        for directory in path.split(':').filter(|_| !name.is_empty()) {
            // An empty entry is the working directory.
            let candidate = Path::new(if directory.is_empty() { "." } else { directory }).join(name);
            match executable(&candidate) {
                Ok(()) => return Ok(candidate),
                Err(Errno::EACCES) => denied = true,
                Err(_) => {}
            }
        }
        if denied {
            return Err(Failure::denied(fail("permission denied")));
        }
        Err(Failure::not_found(fail("executable file not found in $PATH")))
    }

    /// Becomes the command. Returns only if that fails, after having reported it.
    pub fn run(&self) -> Failure {
        let failure = match self.execute() {
            Err(failure) => failure,
            Ok(never) => match never {},
        };
        self.reporter.report(&Reply::Failed(failure.clone()));
        failure
    }

    fn execute(&self) -> Result<std::convert::Infallible, Failure> {
        let found = self.find()?;
        let (path, args) = if self.use_init {
            let own = ["hull-init", container_init::FLAG, "--"].map(String::from);
            (PathBuf::from(layout::CONTAINER_INIT), own.into_iter().chain(self.args.iter().cloned()).collect())
        } else {
            (found, self.args.clone())
        };
        let path = CString::new(path.into_os_string().into_encoded_bytes()).context("command")?;
        let (args, env) = (strings(&args).context("command")?, strings(&self.env).context("environment")?);

        sys::reset_signals().context("reset signals")?;
        sys::close_on_exec_from_3().context("close descriptors")?;
        if self.no_new_privileges {
            nix::sys::prctl::set_no_new_privs().context("set no_new_privs")?;
        }
        // A filter needs CAP_SYS_ADMIN or `noNewPrivileges`. With the latter it comes last, and so it may forbid all but execve.
        if !self.no_new_privileges {
            self.load_filter()?;
        }
        capabilities::drop_privileges(&self.capabilities, create_syscall().as_ref())
            .map_err(|error| Failure::internal(format!("set capabilities: {}", chain(&error))))?;
        if self.no_new_privileges {
            self.load_filter()?;
        }
        execve(&path, &args, &env).map_err(|error| {
            let message = format!("exec {}: {}", path.to_string_lossy(), describe(error));
            match error {
                // The interpreter of a script or the loader of a program.
                Errno::ENOENT => Failure::not_found(message),
                Errno::E2BIG => Failure::invalid(message),
                _ => Failure::denied(message),
            }
        })
    }

    /// What a container's first process does as its user, but with all capabilities that the container may have.
    fn prepare(&self) -> Result<(), Failure> {
        self.enter_directory()?;
        self.find()?;
        let stdin = std::io::stdin();
        if isatty(&stdin).unwrap_or(false) {
            // Group tty (5) stays, as the terminal file system has it.
            fchown(&stdin, Some(self.user), None).context("give the terminal to the user")?;
        }
        if self.new_network {
            sys::interface_up("lo").context("bring the loopback interface up")?;
        }
        Ok(())
    }

    /// Enters the working directory. As root first, who a file server asks for where capabilities say nothing to it; a
    /// directory that only the user may enter (on a network file system) is tried again.
    fn enter_directory(&self) -> Result<(), Failure> {
        let (user, group) = (setfsuid(Uid::from_raw(0)), setfsgid(Gid::from_raw(0)));
        let as_root = self.make_and_enter_directory();
        setfsgid(group);
        setfsuid(user);
        // The kernel has taken some away with the root user.
        capabilities::reset_effective(create_syscall().as_ref())
            .map_err(|error| Failure::internal(format!("keep capabilities: {}", chain(&error))))?;
        as_root.or_else(|failure| chdir(&self.cwd).map_err(|_| failure))?;
        refuse_outside(&self.cwd)
    }

    /// One that is missing here is below a mount, which wasn't there when it was made in the root file system: it is made
    /// now, as runc does.
    fn make_and_enter_directory(&self) -> Result<(), Failure> {
        if chdir(&self.cwd) == Err(Errno::ENOENT) {
            Root::open(Path::new("/"))?.make_directory(&self.cwd)?;
        }
        chdir(&self.cwd).map_err(|error| Failure::invalid(format!("working directory {}: {error}", self.cwd.display())))
    }

    fn load_filter(&self) -> Result<(), Failure> {
        let Some(filter) = &self.seccomp else { return Ok(()) };
        seccomp::initialize_seccomp(filter)
            .map(drop)
            .map_err(|error| Failure::invalid(format!("seccomp: {}", chain(&error))))
    }
}

/// libcontainer calls these in the container's first process: the check before it waits for the start, the command after.
impl Executor for Workload {
    fn validate(&self, _: &Spec) -> Result<(), ExecutorValidationError> {
        self.prepare().map_err(|failure| {
            self.reporter.report(&Reply::Failed(failure.clone()));
            ExecutorValidationError::ArgValidationError(failure.message)
        })
    }

    fn setup_envs(&self, _: HashMap<String, String>) -> Result<(), ExecutorSetEnvsError> {
        // The environment is handed to the command, it isn't this process's own.
        Ok(())
    }

    fn exec(&self, _: &Spec) -> Result<(), ExecutorError> {
        Err(ExecutorError::Other(self.run().message))
    }
}

/// Refuses a working directory, `cwd`, that was entered and isn't in the container: a link in /proc of a process that isn't the
/// container's own leads out of it.
pub fn refuse_outside(cwd: &Path) -> Result<(), Failure> {
    match sys::is_inside_root() {
        Ok(true) => Ok(()),
        _ => Err(Failure::invalid(format!("working directory {}: not in the container", cwd.display()))),
    }
}

/// An error with its causes.
pub fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    let mut text = error.to_string();
    for cause in causes.map(ToString::to_string) {
        // Several layers repeat what is below them.
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

/// Sets that are not given are empty: a process has the capabilities that it was given, and no others.
pub fn complete(given: Option<&LinuxCapabilities>) -> LinuxCapabilities {
    let mut all = LinuxCapabilities::default();
    let set =
        |get: fn(&LinuxCapabilities) -> &Option<_>| given.and_then(|given| get(given).clone()).unwrap_or_default();
    all.set_bounding(Some(set(LinuxCapabilities::bounding)))
        .set_effective(Some(set(LinuxCapabilities::effective)))
        .set_permitted(Some(set(LinuxCapabilities::permitted)))
        .set_inheritable(Some(set(LinuxCapabilities::inheritable)))
        .set_ambient(Some(set(LinuxCapabilities::ambient)));
    all
}

fn executable(path: &Path) -> Result<(), Errno> {
    let kind = nix::sys::stat::stat(path)?.st_mode & libc::S_IFMT;
    match kind {
        libc::S_IFREG => access(path, AccessFlags::X_OK),
        libc::S_IFDIR => Err(Errno::EISDIR),
        _ => Err(Errno::EACCES),
    }
}

/// The system's own words in the spelling of Docker's messages.
fn describe(error: Errno) -> String {
    error.desc().to_lowercase()
}

fn strings(texts: &[String]) -> Result<Vec<CString>, NulError> {
    texts.iter().map(|text| CString::new(text.as_str())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn workload(command: &str, path: &Path) -> Workload {
        let (_reader, writer) = nix::unistd::pipe().expect("pipe");
        let mut process = Process::default();
        process
            .set_args(Some(vec![command.to_string()]))
            .set_env(Some(vec![format!("PATH=/nonexistent:{}", path.display())]));
        Workload::new(&process, None, Reporter::new(writer))
    }

    #[test]
    fn commands_are_found_or_the_reason_is_told() {
        let directory = tempfile::tempdir().expect("directory");
        for (name, mode) in [("good", 0o755), ("plain", 0o644)] {
            let file = directory.path().join(name);
            std::fs::write(&file, "").expect("write");
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).expect("mode");
        }
        let find = |name: &str| workload(name, directory.path()).find();
        assert_eq!(find("good"), Ok(directory.path().join("good")));
        assert_eq!(find("plain").map_err(|f| f.code), Err(ttrpc::Code::PERMISSION_DENIED));
        assert_eq!(find("none"), Err(Failure::not_found("exec: \"none\": executable file not found in $PATH")));
        assert_eq!(find("/none"), Err(Failure::not_found("exec: \"/none\": stat /none: no such file or directory")));
        assert_eq!(find("/").map_err(|f| f.code), Err(ttrpc::Code::PERMISSION_DENIED));
        assert_eq!(find("").map_err(|f| f.code), Err(ttrpc::Code::NOT_FOUND));
    }
}
