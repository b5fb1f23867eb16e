//! `hull doctor`: what this machine has and lacks.

use std::io;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::Context as _;
use hull_sandbox::text::one_line;
use hull_sandbox::{SandboxError, locate};
use nix::sys::statvfs::statvfs;
use serde::{Deserialize, Serialize};

use crate::args::DoctorArgs;
use crate::context::Context;
use crate::failure::Failure;
use crate::output::{line, print};
use crate::{kernel, table};

/// Less than this is too little for any image.
const MIN_FREE_BYTES: u64 = 256 << 20;

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Check {
    name: String,
    ok: bool,
    #[serde(default)]
    detail: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    hint: Option<String>,
}

/// What `hull-vmm probe --json` prints.
#[derive(Debug, Deserialize)]
struct ProbeReport {
    checks: Vec<Check>,
    can_run_guests: bool,
}

#[derive(Debug, Serialize)]
struct Report {
    checks: Vec<Check>,
    can_run_vms: bool,
}

pub fn check(args: &DoctorArgs, context: &Context) -> Result<u8, Failure> {
    let report = examine(context);
    match args.json {
        true => line(serde_json::to_string_pretty(&report)?)?,
        false => print(&text(&report))?,
    }
    Ok(u8::from(!report.can_run_vms))
}

fn examine(context: &Context) -> Report {
    let mut checks = Vec::new();
    let monitor = locate::monitor();
    checks.push(located("hull-vmm", &monitor, |path| path.display().to_string()));
    let mut can_run_vms = match &monitor {
        Ok(program) => match probe(program) {
            Ok(report) => {
                checks.extend(report.checks);
                report.can_run_guests
            }
            Err(error) => {
                checks.push(failed("probe", &format!("{error:#}"), "is hull-vmm of this build?"));
                false
            }
        },
        Err(_) => false,
    };
    checks.push(located("guest kernel", &locate::kernel(), described_kernel));
    checks.push(located("guest initramfs", &locate::initramfs(), |path| path.display().to_string()));
    checks.push(runtime_directory(context));
    checks.push(disk_space(&context.store_root));
    can_run_vms &= checks.iter().all(|check| check.ok || ADVISORY.contains(&check.name.as_str()) || is_probes(check));
    Report { checks, can_run_vms }
}

/// Checks of ours whose failure does not keep a VM from running.
const ADVISORY: [&str; 1] = ["disk space"];
const OURS: [&str; 5] = ["hull-vmm", "guest kernel", "guest initramfs", "runtime directory", "disk space"];

/// The monitor weighs its own checks.
fn is_probes(check: &Check) -> bool {
    !OURS.contains(&check.name.as_str()) && check.name != "probe"
}

fn probe(program: &Path) -> anyhow::Result<ProbeReport> {
    let output = Command::new(program)
        .args(["probe", "--json"])
        .stdin(Stdio::null())
        .output()
        .with_context(|| program.display().to_string())?;
    serde_json::from_slice(&output.stdout).with_context(|| {
        let said = one_line(&String::from_utf8_lossy(&output.stderr), 300);
        format!("{} probe: {}: {said}", program.display(), output.status)
    })
}

fn described_kernel(path: &Path) -> String {
    let banner = kernel::banner(path).ok().flatten();
    let version = banner.as_deref().and_then(kernel::release).unwrap_or("unknown version");
    format!("{} ({version})", path.display())
}

fn located<P: AsRef<Path>>(name: &str, found: &Result<P, SandboxError>, describe: impl Fn(&Path) -> String) -> Check {
    match found {
        Ok(path) => passed(name, describe(path.as_ref())),
        Err(error) => failed(name, &error.to_string(), error.hint().unwrap_or_default()),
    }
}

fn runtime_directory(context: &Context) -> Check {
    let path = context.runtime_root.display();
    match context.runtime().and_then(|root| root.list()) {
        Ok(running) => passed("runtime directory", format!("{path}, {} running", running.len())),
        Err(error) => {
            let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
            failed("runtime directory", &format!("{error}: {cause}"), error.hint().unwrap_or_default())
        }
    }
}

fn disk_space(store_root: &Path) -> Check {
    match free_bytes(store_root) {
        Ok(free) => {
            let detail = format!("{} free for images in {}", table::size(free), store_root.display());
            match free >= MIN_FREE_BYTES {
                true => passed("disk space", detail),
                false => failed("disk space", &detail, "remove images with `hull rmi` or choose another --root"),
            }
        }
        Err(error) => failed("disk space", &format!("{}: {error}", store_root.display()), "choose another --root"),
    }
}

/// Of the file system that the store is on, or will be on.
fn free_bytes(path: &Path) -> io::Result<u64> {
    let existing = path.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    let stat = statvfs(existing)?;
    Ok(stat.blocks_available().saturating_mul(stat.fragment_size()))
}

fn passed(name: &str, detail: String) -> Check {
    Check { name: name.into(), ok: true, detail, hint: None }
}

fn failed(name: &str, detail: &str, hint: &str) -> Check {
    Check {
        name: name.into(),
        ok: false,
        detail: one_line(detail, 500),
        hint: (!hint.is_empty()).then(|| hint.to_owned()),
    }
}

fn text(report: &Report) -> String {
    let mut text = String::new();
    let width = report.checks.iter().map(|check| check.name.chars().count()).max().unwrap_or(0);
    for check in &report.checks {
        let mark = if check.ok { "ok  " } else { "FAIL" };
        text.push_str(&format!("{mark}  {:<width$}  {}\n", check.name, check.detail));
        if let Some(hint) = check.hint.as_ref().filter(|_| !check.ok) {
            text.push_str(&format!("      {:<width$}  hint: {hint}\n", ""));
        }
    }
    text.push_str(match report.can_run_vms {
        true => "microVMs can run on this machine\n",
        false => "microVMs can NOT run on this machine\n",
    });
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_check_shows_its_hint() {
        let report = Report {
            checks: vec![passed("a", "fine".into()), failed("long name", "no\nway", "do this")],
            can_run_vms: false,
        };
        assert_eq!(
            text(&report),
            "ok    a          fine\nFAIL  long name  no way\n                 hint: do this\nmicroVMs can NOT run on this machine\n"
        );
    }

    #[test]
    fn the_probes_report_is_read() {
        let json = r#"{"checks":[{"name":"/dev/kvm","ok":true,"detail":"there","hint":null}],"can_run_guests":true}"#;
        let report: ProbeReport = serde_json::from_str(json).unwrap();
        assert!(report.can_run_guests && report.checks[0].hint.is_none());
    }

    #[test]
    fn free_space_is_that_of_the_nearest_existing_directory() {
        assert!(free_bytes(Path::new("/no/such/directory")).is_ok());
    }
}
