//! Where the parts of an installation are.

use std::env;
use std::path::{Path, PathBuf};

use crate::error::{SandboxError, locate_names};

/// Variable that names the directory of guest kernel and initramfs.
pub const GUEST_DIR_VARIABLE: &str = "HULL_GUEST_DIR";
/// Variable that names the monitor's program.
pub const MONITOR_VARIABLE: &str = "HULL_VMM";

/// The monitor's program: `$HULL_VMM`, else beside this program, else in `../libexec/hull`.
pub fn monitor() -> Result<PathBuf, SandboxError> {
    let candidates = match env::var_os(MONITOR_VARIABLE) {
        Some(path) => vec![path.into()],
        None => program_dir()
            .map(|dir| vec![dir.join("hull-vmm"), dir.join("../libexec/hull/hull-vmm")])
            .unwrap_or_default(),
    };
    first(locate_names::MONITOR, candidates)
}

/// The guest's kernel.
pub fn kernel() -> Result<PathBuf, SandboxError> {
    guest_file(locate_names::KERNEL, "vmlinux")
}

/// The guest's initramfs.
pub fn initramfs() -> Result<PathBuf, SandboxError> {
    guest_file(locate_names::INITRAMFS, "initramfs.cpio")
}

fn guest_file(what: &'static str, name: &str) -> Result<PathBuf, SandboxError> {
    let directories = match env::var_os(GUEST_DIR_VARIABLE) {
        Some(dir) => vec![dir.into()],
        None => program_dir()
            .map(|dir| dir.join("../lib/hull"))
            .into_iter()
            .chain(["/usr/local/lib/hull".into(), "/usr/lib/hull".into()])
            .collect(),
    };
    first(what, directories.iter().map(|dir| dir.join(name)).collect())
}

fn program_dir() -> Option<PathBuf> {
    env::current_exe().ok()?.parent().map(Path::to_owned)
}

fn first(what: &'static str, candidates: Vec<PathBuf>) -> Result<PathBuf, SandboxError> {
    match candidates.iter().find(|path| path.is_file()) {
        Some(path) => Ok(path.canonicalize().unwrap_or_else(|_| path.clone())),
        None => Err(SandboxError::Missing { what, searched: candidates }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_existing_candidate_counts_and_none_names_all() {
        let dir = tempfile::tempdir().unwrap();
        let (missing, present) = (dir.path().join("a"), dir.path().join("b"));
        std::fs::write(&present, "").unwrap();
        let found = first("part", vec![missing.clone(), present.clone()]).unwrap();
        assert_eq!(found, present.canonicalize().unwrap());
        let error = first("part", vec![missing.clone()]).unwrap_err();
        assert!(error.to_string().contains(missing.to_str().unwrap()));
    }
}
