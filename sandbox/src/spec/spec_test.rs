//! Specifications as the agent will read them.

use oci_spec::image::{ConfigBuilder, ImageConfigurationBuilder};
use oci_spec::runtime::{LinuxSeccompAction, Spec};

use super::*;

fn image(entrypoint: &[&str], cmd: &[&str]) -> ImageConfiguration {
    let list = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
    let config = ConfigBuilder::default()
        .entrypoint(list(entrypoint))
        .cmd(list(cmd))
        .env(list(&["PATH=/bin", "A=image"]))
        .working_dir("/srv")
        .user("www")
        .stop_signal("SIGQUIT")
        .volumes(list(&["/data"]))
        .build()
        .unwrap();
    ImageConfigurationBuilder::default().architecture("amd64").os("linux").config(config).build().unwrap()
}

fn options() -> ContainerOptions {
    ContainerOptions { id: "0123456789ab".into(), ..ContainerOptions::default() }
}

fn spec(plan: &ContainerPlan) -> Spec {
    serde_json::from_str(&plan.spec_json).unwrap()
}

#[test]
fn the_image_counts_where_the_user_says_nothing() {
    let plan = plan(&options(), &image(&["/init"], &["serve"])).unwrap();
    assert_eq!(plan.command, ["/init", "serve"]);
    assert_eq!((plan.user.as_str(), plan.stop_signal), ("www", libc::SIGQUIT));
    let process = spec(&plan).process().clone().unwrap();
    assert_eq!(process.cwd().to_str(), Some("/srv"));
    let env = process.env().clone().unwrap();
    assert_eq!(env, ["PATH=/bin", "HOSTNAME=0123456789ab", "A=image"]);
}

#[test]
fn the_user_counts_over_the_image() {
    let options = ContainerOptions {
        command: vec!["x".into()],
        entrypoint: Some("/bin/echo".into()),
        env: vec!["A=user".parse().unwrap(), "PATH".parse().unwrap()],
        workdir: Some("/w".into()),
        user: Some("0".into()),
        hostname: Some("harbour".into()),
        stop_signal: Some("9".into()),
        terminal: true,
        ..options()
    };
    let plan = plan(&options, &image(&["/init"], &["serve"])).unwrap();
    assert_eq!(plan.command, ["/bin/echo", "x"]);
    assert_eq!((plan.user.as_str(), plan.stop_signal), ("0", 9));
    let spec = spec(&plan);
    assert_eq!(spec.hostname().as_deref(), Some("harbour"));
    let env = spec.process().clone().unwrap().env().clone().unwrap();
    assert_eq!(env, ["HOSTNAME=harbour", "TERM=xterm", "A=user"]);
    assert!(plan.files.iter().any(|file| file.path == "/etc/hosts" && file.content.contains("harbour")));
}

#[test]
fn another_entrypoint_loses_the_images_command() {
    let with = |entrypoint: &str, command: &[&str]| {
        let options = ContainerOptions {
            entrypoint: Some(entrypoint.into()),
            command: command.iter().map(|text| (*text).to_owned()).collect(),
            ..options()
        };
        plan(&options, &image(&["/init"], &["serve"])).map(|plan| plan.command)
    };
    assert_eq!(with("sh", &[]), Ok(vec!["sh".into()]));
    assert_eq!(with("", &["ls"]), Ok(vec!["ls".into()]));
    assert_eq!(with("", &[]), Err(SpecError::NoCommand));
}

#[test]
fn what_makes_no_container_is_refused() {
    let refused = |options: ContainerOptions| plan(&options, &image(&[], &["sh"])).map(|_| ()).unwrap_err();
    assert_eq!(refused(ContainerOptions { workdir: Some("w".into()), ..options() }), SpecError::Workdir("w".into()));
    assert_eq!(
        refused(ContainerOptions { stop_signal: Some("SIGNO".into()), ..options() }),
        SpecError::StopSignal("SIGNO".into())
    );
    let tiny = "1m".parse().unwrap();
    assert_eq!(refused(ContainerOptions { memory: Some(tiny), ..options() }), SpecError::Memory(tiny));
}

#[test]
fn limits_and_mounts_arrive_in_the_specification() {
    let options = ContainerOptions {
        read_only: true,
        tmpfs: vec!["/run:size=1m".parse().unwrap(), "/dev/shm:size=2m".parse().unwrap()],
        memory: Some("50m".parse().unwrap()),
        cpus: Some("0.5".parse().unwrap()),
        pids_limit: Some(10),
        ulimits: vec!["nofile=123:456".parse().unwrap()],
        sysctls: vec!["net.ipv4.ip_forward=1".parse().unwrap()],
        ..options()
    };
    let spec = spec(&plan(&options, &image(&[], &["sh"])).unwrap());
    let linux = spec.linux().clone().unwrap();
    let resources = linux.resources().clone().unwrap();
    assert_eq!(resources.memory().unwrap().limit(), Some(50 << 20));
    assert_eq!(resources.cpu().clone().unwrap().quota(), Some(50_000));
    assert_eq!(resources.pids().unwrap().limit(), 10);
    assert_eq!(linux.sysctl().clone().unwrap()["net.ipv4.ip_forward"], "1");
    let mounts = spec.mounts().clone().unwrap();
    let at = |path: &str| mounts.iter().filter(|mount| mount.destination().to_str() == Some(path)).count();
    assert_eq!((at("/run"), at("/dev/shm"), at("/data"), at("/proc")), (1, 1, 1, 1));
    assert!(spec.root().clone().unwrap().readonly().unwrap());
}

#[test]
fn the_seccomp_profile_follows_the_capabilities() {
    let rules = |capabilities: CapabilitySet| {
        let options = ContainerOptions { capabilities, ..options() };
        let spec = spec(&plan(&options, &image(&[], &["sh"])).unwrap());
        spec.linux().clone().unwrap().seccomp().clone().unwrap()
    };
    let allowed = |seccomp: &oci_spec::runtime::LinuxSeccomp, name: &str| {
        seccomp.syscalls().clone().unwrap().iter().any(|rule| {
            rule.action() == LinuxSeccompAction::ScmpActAllow
                && rule.args().is_none()
                && rule.names().iter().any(|known| known == name)
        })
    };
    let default = rules(CapabilitySet::default());
    assert_eq!(default.default_action(), LinuxSeccompAction::ScmpActErrno);
    assert!(allowed(&default, "read") && allowed(&default, "chroot"));
    for name in ["mount", "clone", "reboot", "bpf", "kexec_load", "io_uring_setup", "socket", "keyctl"] {
        assert!(!allowed(&default, name), "{name}");
    }
    let admin = rules(CapabilitySet::new(&["SYS_ADMIN"], &[]));
    assert!(allowed(&admin, "mount") && allowed(&admin, "clone3"));
}

#[test]
fn security_options_arrive_in_the_specification() {
    let options = ContainerOptions { seccomp_unconfined: true, no_new_privileges: true, ..options() };
    let spec = spec(&plan(&options, &image(&[], &["sh"])).unwrap());
    assert!(spec.linux().clone().unwrap().seccomp().is_none());
    assert_eq!(spec.process().clone().unwrap().no_new_privileges(), Some(true));
}

#[test]
fn no_system_call_is_listed_twice() {
    let mut seen = std::collections::HashSet::new();
    for name in syscalls::ALWAYS {
        assert!(seen.insert(name), "{name}");
    }
    for (_, names) in syscalls::WITH_CAPABILITY {
        assert!(names.iter().all(|name| !seen.contains(name)));
    }
}

#[test]
fn signals_have_names_and_numbers() {
    for (text, number) in [("TERM", 15), ("sigkill", 9), ("SIGRTMIN+3", 37), ("15", 15)] {
        assert_eq!(parse_signal(text), Some(number), "{text}");
    }
    for text in ["", "0", "65", "-1", "SIG", "NOPE", "RTMIN+99"] {
        assert_eq!(parse_signal(text), None, "{text}");
    }
}
