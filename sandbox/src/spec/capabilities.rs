//! Linux capabilities.

use crate::parse::ParseError;

/// All capabilities that Linux has, in the order of their numbers.
const ALL: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// What Docker leaves to a container.
const DEFAULT: [&str; 14] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "NET_RAW",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

const EVERY: &str = "ALL";

/// The capabilities of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CapabilitySet(Vec<&'static str>);

impl Default for CapabilitySet {
    fn default() -> Self {
        Self::new(&[], &[])
    }
}

impl CapabilitySet {
    /// Docker's defaults with `add` and without `drop`; each may be `ALL`. Names without the prefix `CAP_`, from
    /// [`parse_capability`].
    pub fn new(add: &[&'static str], drop: &[&'static str]) -> Self {
        let kept = |name: &&&'static str| {
            if add.contains(&EVERY) {
                return !drop.contains(*name);
            }
            if add.contains(*name) {
                return true;
            }
            DEFAULT.contains(*name) && !drop.contains(*name) && !drop.contains(&EVERY)
        };
        Self(ALL.iter().filter(kept).copied().collect())
    }

    /// With the prefix `CAP_`.
    pub fn names(&self) -> Vec<String> {
        self.0.iter().map(|name| format!("CAP_{name}")).collect()
    }

    /// `name` without the prefix `CAP_` is one of them.
    pub fn contains(&self, name: &str) -> bool {
        self.0.contains(&name)
    }
}

/// A capability's name in any case, with or without `CAP_`, or `ALL`.
pub fn parse_capability(text: &str) -> Result<&'static str, ParseError> {
    let upper = text.to_ascii_uppercase();
    if upper == EVERY {
        return Ok(EVERY);
    }
    let name = upper.strip_prefix("CAP_").unwrap_or(&upper);
    ALL.iter()
        .find(|known| **known == name)
        .copied()
        .ok_or_else(|| ParseError::new(format!("{text:?} is not a Linux capability such as NET_ADMIN, nor ALL")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dockers_rules_for_add_and_drop() {
        assert_eq!(CapabilitySet::default().0.len(), 14);
        assert_eq!(CapabilitySet::new(&[], &["ALL"]).0, Vec::<&str>::new());
        assert_eq!(CapabilitySet::new(&["NET_ADMIN"], &["ALL"]).0, ["NET_ADMIN"]);
        assert_eq!(CapabilitySet::new(&["ALL"], &["SYS_ADMIN"]).0.len(), 40);
        assert!(!CapabilitySet::new(&[], &["CHOWN"]).contains("CHOWN"));
    }

    #[test]
    fn names_come_in_any_form() {
        for text in ["net_admin", "CAP_NET_ADMIN", "cap_net_admin"] {
            assert_eq!(parse_capability(text), Ok("NET_ADMIN"));
        }
        assert_eq!(parse_capability("all"), Ok("ALL"));
        assert!(parse_capability("NO_SUCH").is_err());
    }
}
