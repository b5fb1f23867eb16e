//! Mount options as texts (mount(8)): flags of mount(2), and what the file system itself reads.

use nix::mount::MsFlags;

/// Options that were told apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountOptions {
    /// For the kernel.
    pub flags: MsFlags,
    /// For the file system, in order.
    pub data: Vec<String>,
    /// The source is a file that has to be put on a loop device.
    pub is_loop: bool,
}

/// Names with the flag that they set or clear.
const FLAGS: [(&str, bool, MsFlags); 27] = [
    ("bind", true, MsFlags::MS_BIND),
    ("rbind", true, MsFlags::MS_BIND.union(MsFlags::MS_REC)),
    ("ro", true, MsFlags::MS_RDONLY),
    ("rw", false, MsFlags::MS_RDONLY),
    ("nosuid", true, MsFlags::MS_NOSUID),
    ("suid", false, MsFlags::MS_NOSUID),
    ("nodev", true, MsFlags::MS_NODEV),
    ("dev", false, MsFlags::MS_NODEV),
    ("noexec", true, MsFlags::MS_NOEXEC),
    ("exec", false, MsFlags::MS_NOEXEC),
    ("sync", true, MsFlags::MS_SYNCHRONOUS),
    ("async", false, MsFlags::MS_SYNCHRONOUS),
    ("dirsync", true, MsFlags::MS_DIRSYNC),
    ("noatime", true, MsFlags::MS_NOATIME),
    ("atime", false, MsFlags::MS_NOATIME),
    ("nodiratime", true, MsFlags::MS_NODIRATIME),
    ("diratime", false, MsFlags::MS_NODIRATIME),
    ("relatime", true, MsFlags::MS_RELATIME),
    ("norelatime", false, MsFlags::MS_RELATIME),
    ("strictatime", true, MsFlags::MS_STRICTATIME),
    ("nostrictatime", false, MsFlags::MS_STRICTATIME),
    ("mand", true, MsFlags::MS_MANDLOCK),
    ("nomand", false, MsFlags::MS_MANDLOCK),
    ("silent", true, MsFlags::MS_SILENT),
    ("loud", false, MsFlags::MS_SILENT),
    ("iversion", true, MsFlags::MS_I_VERSION),
    ("defaults", true, MsFlags::empty()),
];

/// Tells options apart; later ones win.
pub fn parse(options: &[String]) -> MountOptions {
    let mut parsed = MountOptions { flags: MsFlags::empty(), data: Vec::new(), is_loop: false };
    for option in options {
        match FLAGS.iter().find(|(name, ..)| name == option) {
            Some((_, set, flag)) => parsed.flags.set(*flag, *set),
            None if option == "loop" => parsed.is_loop = true,
            None => parsed.data.push(option.clone()),
        }
    }
    parsed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_told_from_what_the_file_system_reads() {
        let options = ["ro", "nosuid", "loop", "lowerdir=/a:/b", "rw", "index=off"].map(String::from);
        let parsed = parse(&options);
        assert_eq!(parsed.flags, MsFlags::MS_NOSUID);
        assert_eq!(parsed.data, ["lowerdir=/a:/b", "index=off"]);
        assert!(parsed.is_loop);
    }
}
