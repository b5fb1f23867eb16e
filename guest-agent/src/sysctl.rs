//! Kernel settings by name.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use crate::failure::Failure;

/// Writes settings of the guest's kernel. Names are as for sysctl(8), with dots or slashes.
pub fn apply(settings: &HashMap<String, String>) -> Result<(), Failure> {
    for (name, value) in settings {
        let path = path(name).ok_or_else(|| Failure::invalid(format!("sysctl {name:?} is not a name")))?;
        fs::write(Path::new("/proc/sys").join(path), value)
            .map_err(|error| Failure::invalid(format!("sysctl {name}={value}: {error}")))?;
    }
    Ok(())
}

/// The file below /proc/sys.
fn path(name: &str) -> Option<String> {
    let path = name.replace('.', "/");
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '_' | '-');
    (path.chars().all(plain) && path.split('/').all(|part| !part.is_empty())).then_some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_files_below_one_directory() {
        assert_eq!(path("net.ipv4.ip_forward").as_deref(), Some("net/ipv4/ip_forward"));
        assert_eq!(path("net/ipv4/ip_forward").as_deref(), Some("net/ipv4/ip_forward"));
        for name in ["", "/etc/passwd", "a..b", "../x", "a\0", "a b"] {
            assert_eq!(path(name), None, "{name:?}");
        }
    }
}
