//! tmpfs mounts such as `/run:size=64m,mode=1777`.

use std::path::{Component, Path};
use std::str::FromStr;

use super::{MemorySize, ParseError};

/// A tmpfs mount of the container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tmpfs {
    /// Absolute path in the container.
    pub path: String,
    /// Mount options in the kernel's form; Docker's `noexec,nosuid,nodev` first.
    pub options: Vec<String>,
}

const FLAGS: [&str; 14] = [
    "ro",
    "rw",
    "exec",
    "noexec",
    "suid",
    "nosuid",
    "dev",
    "nodev",
    "sync",
    "async",
    "atime",
    "noatime",
    "relatime",
    "strictatime",
];

impl FromStr for Tmpfs {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let (path, options) = text.split_once(':').unwrap_or((text, ""));
        let parts_up = Path::new(path).components().any(|part| part == Component::ParentDir);
        if !path.starts_with('/') || path.trim_matches('/').is_empty() || parts_up {
            return Err(ParseError::new(format!("{path:?} is not an absolute path below / for a tmpfs")));
        }
        let mut all = vec!["noexec".to_owned(), "nosuid".to_owned(), "nodev".to_owned()];
        for option in options.split(',').filter(|option| !option.is_empty()) {
            let option = parse_option(option)?;
            // The opposite of a default replaces it.
            if let Some(positive) = ["exec", "suid", "dev"].iter().find(|flag| **flag == option) {
                let negative = format!("no{positive}");
                all.retain(|known| *known != negative);
            }
            all.push(option);
        }
        Ok(Self { path: path.to_owned(), options: all })
    }
}

fn parse_option(option: &str) -> Result<String, ParseError> {
    let wrong = || {
        ParseError::new(format!(
            "{option:?} is not an option of a tmpfs (size, mode, uid, gid, nr_inodes, ro, exec, ...)"
        ))
    };
    let Some((key, value)) = option.split_once('=') else {
        return FLAGS.contains(&option).then(|| option.to_owned()).ok_or_else(wrong);
    };
    match key {
        "size" if value.ends_with('%') => {
            let percent = value.trim_end_matches('%').parse::<u8>().map_err(|_| wrong())?;
            Ok(format!("size={percent}%"))
        }
        "size" => Ok(format!("size={}", value.parse::<MemorySize>()?.bytes())),
        "mode" => {
            let mode = u32::from_str_radix(value, 8).ok().filter(|mode| *mode <= 0o7777);
            mode.map(|mode| format!("mode={mode:o}")).ok_or_else(wrong)
        }
        "uid" | "gid" | "nr_inodes" => {
            let number: u32 = value.parse().map_err(|_| wrong())?;
            Ok(format!("{key}={number}"))
        }
        _ => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn options_are_checked_and_brought_into_the_kernels_form() {
        let tmpfs: Tmpfs = "/run:size=64m,mode=1777,exec".parse().unwrap();
        assert_eq!(tmpfs.path, "/run");
        assert_eq!(tmpfs.options, ["nosuid", "nodev", "size=67108864", "mode=1777", "exec"]);
        assert_eq!("/run".parse::<Tmpfs>().unwrap().options, ["noexec", "nosuid", "nodev"]);
    }

    #[test]
    fn what_is_no_tmpfs_is_refused() {
        for text in [
            "",
            "relative",
            "/",
            "//",
            "/a/../..",
            "/a:bind",
            "/a:size=lots",
            "/a:mode=9",
            "/a:mode=17777",
            "/a:size=0",
        ] {
            assert!(text.parse::<Tmpfs>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_parses_or_is_refused(text in "/[a-z/.:=,0-9%]{0,40}") {
            if let Ok(tmpfs) = text.parse::<Tmpfs>() {
                prop_assert!(tmpfs.path.starts_with('/') && !tmpfs.path.split('/').any(|part| part == ".."));
                prop_assert!(tmpfs.options.iter().all(|option| !option.contains(',')));
            }
        }
    }
}
