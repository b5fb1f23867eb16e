//! Raw arguments of `hull run` become a request that makes sense.

use std::env;
use std::fs::File;
use std::io::Read;
use std::num::NonZeroU8;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow, bail};
use hull_sandbox::parse::{Cpus, EnvVar, MemorySize, parse_env_file};
use hull_sandbox::spec::{CapabilitySet, ContainerOptions};
use hull_sandbox::{runtime_dir, sizing};

use crate::args::{Init, Network, RunArgs, SecurityOption};
use crate::images::Fetch;

const MAX_ENV_FILE_BYTES: u64 = 1 << 20;

/// What `hull run` was asked to do.
#[derive(Debug)]
pub struct Request {
    /// Image as the user named it.
    pub image: String,
    pub fetch: Fetch,
    /// Name, if the user gave one.
    pub name: Option<String>,
    pub interactive: bool,
    pub use_init: bool,
    pub options: ContainerOptions,
    pub kernel: Option<PathBuf>,
    pub initramfs: Option<PathBuf>,
    pub vcpus: u8,
    pub max_vcpus: u8,
    /// Whether a VM that hangs is ended.
    pub watchdog: bool,
    pub vm_memory_mib: u32,
    pub max_memory_mib: u32,
    pub stop_timeout_s: u32,
    pub timings: bool,
}

pub fn validate(args: RunArgs) -> anyhow::Result<Request> {
    refuse_what_does_not_exist_yet(&args)?;
    let env = environment(&args)?;
    let mut words = args.image_and_command.into_iter();
    let image = words.next().ok_or_else(|| anyhow!("an image is needed"))?;
    let options = ContainerOptions {
        id: runtime_dir::new_id()?,
        command: words.collect(),
        entrypoint: args.entrypoint,
        env,
        workdir: args.workdir,
        user: args.user,
        hostname: args.hostname,
        terminal: args.tty,
        read_only: args.read_only,
        capabilities: CapabilitySet::new(&args.cap_add, &args.cap_drop),
        // Of options that contradict one another the last counts.
        seccomp_unconfined: last(&args.security_opt, |option| match option {
            SecurityOption::SeccompUnconfined => Some(true),
            SecurityOption::SeccompDefault => Some(false),
            SecurityOption::NoNewPrivileges(_) => None,
        }),
        no_new_privileges: last(&args.security_opt, |option| match option {
            SecurityOption::NoNewPrivileges(wanted) => Some(wanted),
            _ => None,
        }),
        ulimits: args.ulimit,
        sysctls: args.sysctl,
        tmpfs: args.tmpfs,
        memory: args.memory,
        cpus: args.cpus,
        pids_limit: args.pids_limit.and_then(|limit| limit.0),
        stop_signal: args.stop_signal,
    };
    if let (Some(vm), Some(limit)) = (args.vm_memory, args.memory) {
        container_fits(vm, limit)?;
    }
    if let (Some(vcpus), Some(cpus)) = (args.vcpus, args.cpus) {
        enough_processors(vcpus, cpus)?;
    }
    let sizes = sizing::Defaults::default();
    let vcpus = sizes.vcpus(args.vcpus.and_then(NonZeroU8::new), args.cpus);
    if let Some(max) = args.max_vcpus.filter(|max| *max < vcpus) {
        bail!("--max-vcpus {max} is less than the {vcpus} processors of the start");
    }
    let vm_memory_mib = sizes.memory_mib(args.vm_memory, args.memory);
    if let Some(max) = args.max_memory.filter(|max| max.mib_rounded_up() < vm_memory_mib) {
        bail!("--max-memory {max} is less than the {vm_memory_mib} MiB of the start; --vm-memory makes that smaller");
    }
    Ok(Request {
        image,
        fetch: Fetch {
            pull: args.pull,
            plain_http: args.fetch.plain_http,
            platform: args.fetch.platform,
            lines: false,
        },
        name: args.name.map(|name| name.to_string()),
        interactive: args.interactive,
        use_init: args.init == Some(Init::True),
        kernel: args.kernel.map(|path| guest_file("--kernel", &path)).transpose()?,
        initramfs: args.initrd.map(|path| guest_file("--initrd", &path)).transpose()?,
        vcpus,
        max_vcpus: args.max_vcpus.unwrap_or(vcpus),
        watchdog: args.watchdog,
        vm_memory_mib,
        max_memory_mib: args.max_memory.map_or(vm_memory_mib, MemorySize::mib_rounded_up),
        stop_timeout_s: args.stop_timeout,
        timings: args.timings,
        options,
    })
}

fn last(options: &[SecurityOption], pick: impl Fn(SecurityOption) -> Option<bool>) -> bool {
    options.iter().rev().find_map(|option| pick(*option)).unwrap_or(false)
}

/// Flags that Docker users will type and that must not be ignored in silence.
fn refuse_what_does_not_exist_yet(args: &RunArgs) -> anyhow::Result<()> {
    let Network::None = args.network;
    if args.detach {
        bail!("--detach does not exist yet; with -it, Ctrl-P Ctrl-Q leaves a container running");
    }
    if !args.publish.is_empty() {
        bail!("--publish does not exist yet; containers have no network so far");
    }
    if !args.volume.is_empty() || !args.mount.is_empty() {
        bail!("--volume and --mount do not exist yet; --tmpfs and standard input do");
    }
    if args.privileged {
        bail!("--privileged does not exist; --cap-add ALL gives every capability inside the VM");
    }
    Ok(())
}

fn container_fits(vm: MemorySize, limit: MemorySize) -> anyhow::Result<()> {
    if vm.bytes() < limit.bytes() {
        bail!("--vm-memory {vm} is less than the container's --memory {limit}; leave one of them out");
    }
    Ok(())
}

fn enough_processors(vcpus: u8, cpus: Cpus) -> anyhow::Result<()> {
    if cpus.rounded_up() > vcpus {
        bail!("--vcpus {vcpus} is less than the container's --cpus; leave --vcpus out");
    }
    Ok(())
}

/// Files first, then flags, as in Docker. A name alone passes this process's value on.
fn environment(args: &RunArgs) -> anyhow::Result<Vec<EnvVar>> {
    let mut variables = Vec::new();
    for path in &args.env_file {
        let content = read_env_file(path).with_context(|| format!("--env-file {}", path.display()))?;
        variables.extend(parse_env_file(&content).with_context(|| format!("--env-file {}", path.display()))?);
    }
    variables.extend_from_slice(&args.env);
    for variable in &mut variables {
        if variable.value.is_none() {
            variable.value = env::var(&variable.name).ok();
        }
    }
    Ok(variables)
}

fn read_env_file(path: &Path) -> anyhow::Result<String> {
    let mut content = String::new();
    File::open(path)?.take(MAX_ENV_FILE_BYTES + 1).read_to_string(&mut content)?;
    if content.len() as u64 > MAX_ENV_FILE_BYTES {
        bail!("larger than 1 MiB");
    }
    Ok(content)
}

/// Absolute, because another process opens it.
fn guest_file(flag: &str, path: &Path) -> anyhow::Result<PathBuf> {
    let absolute = path.canonicalize().with_context(|| format!("{flag} {}", path.display()))?;
    if !absolute.is_file() {
        bail!("{flag} {} is not a file", path.display());
    }
    Ok(absolute)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Cli, Command};
    use clap::Parser;

    fn request(args: &[&str]) -> anyhow::Result<Request> {
        let cli = Cli::try_parse_from(["hull", "run"].iter().chain(args)).unwrap();
        match cli.command {
            Command::Run(args) => validate(*args),
            _ => unreachable!(),
        }
    }

    #[test]
    fn the_vm_follows_the_containers_limits() {
        let request = request(&["-m", "50m", "--cpus", "0.5", "img"]).unwrap();
        assert_eq!(request.vm_memory_mib, 114);
        assert_eq!(request.vcpus, 1);
    }

    #[test]
    fn a_vm_that_is_smaller_than_its_container_is_refused() {
        let error = enough_processors(1, "1.5".parse().unwrap()).unwrap_err();
        assert!(error.to_string().contains("--vcpus 1 is less"));
        enough_processors(2, "1.5".parse().unwrap()).unwrap();
        let error = request(&["--vcpus", "2", "--max-vcpus", "1", "img"]).unwrap_err();
        assert!(error.to_string().contains("--max-vcpus 1 is less"));
        assert_eq!(request(&["--vcpus", "2", "img"]).unwrap().max_vcpus, 2);
        let error = request(&["--memory", "50m", "--max-memory", "113m", "img"]).unwrap_err();
        assert!(error.to_string().contains("--max-memory 113 MiB is less than the 114 MiB of the start"), "{error}");
        assert_eq!(request(&["--memory", "50m", "--max-memory", "1g", "img"]).unwrap().max_memory_mib, 1024);
        assert_eq!(request(&["--memory", "50m", "img"]).unwrap().max_memory_mib, 114);
        let error = request(&["--vm-memory", "64m", "--memory", "65m", "img"]).unwrap_err();
        assert!(error.to_string().contains("--vm-memory 64 MiB is less"));
    }

    #[test]
    fn what_does_not_exist_yet_is_refused_by_name() {
        for (args, word) in [
            (vec!["-d", "img"], "--detach"),
            (vec!["-p", "80:80", "img"], "--publish"),
            (vec!["-v", "/a:/b", "img"], "--volume"),
            (vec!["--privileged", "img"], "--privileged"),
        ] {
            assert!(request(&args).unwrap_err().to_string().contains(word));
        }
    }

    #[test]
    fn flags_count_over_files_and_names_pass_the_callers_value_on() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "A=file\nPATH\nHULL_NO_SUCH\n").unwrap();
        let request = request(&["-e", "A=flag", "--env-file", file.path().to_str().unwrap(), "img"]).unwrap();
        let env = &request.options.env;
        assert_eq!(env.last().unwrap().value.as_deref(), Some("flag"));
        assert_eq!(env[1].value, env::var("PATH").ok());
        assert_eq!(env[2].value, None);
    }

    #[test]
    fn the_last_security_option_counts() {
        let options = |args: &[&str]| request(args).unwrap().options;
        let both = options(&["--security-opt", "seccomp=unconfined", "--security-opt=no-new-privileges:true", "img"]);
        assert!(both.seccomp_unconfined && both.no_new_privileges);
        let args = ["--security-opt", "seccomp=unconfined", "--security-opt", "seccomp=default", "img"];
        assert!(!options(&args).seccomp_unconfined);
    }

    #[test]
    fn files_that_are_missing_are_named() {
        let error = request(&["--kernel", "/no/such", "img"]).unwrap_err();
        assert!(error.to_string().contains("--kernel /no/such"));
        let error = request(&["--env-file", "/no/such", "img"]).unwrap_err();
        assert!(error.to_string().contains("/no/such"));
    }
}
