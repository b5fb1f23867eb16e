//! `hull kernel`: which kernel boots in the VMs.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use hull_sandbox::locate;
use serde_json::json;

use crate::args::KernelArgs;
use crate::failure::Failure;
use crate::output::line;

/// More than any kernel has.
const MAX_KERNEL_BYTES: u64 = 512 << 20;
const MAX_BANNER_BYTES: usize = 512;

pub fn show(args: &KernelArgs) -> Result<u8, Failure> {
    let path = locate::kernel()?;
    let version = banner(&path).ok().flatten();
    match args.json {
        true => line(json!({ "path": path, "version": version.as_deref().and_then(release), "banner": version }))?,
        false => {
            line(format_args!("path:    {}", path.display()))?;
            line(format_args!("version: {}", version.as_deref().and_then(release).unwrap_or("unknown")))?;
            line(format_args!("build:   {}", version.as_deref().unwrap_or("unknown")))?;
        }
    }
    Ok(0)
}

/// The line that the kernel prints first, which stands in its read-only data.
pub fn banner(path: &Path) -> io::Result<Option<String>> {
    let mut image = Vec::new();
    File::open(path)?.take(MAX_KERNEL_BYTES).read_to_end(&mut image)?;
    Ok(find_banner(&image))
}

/// `6.12.1` of `Linux version 6.12.1 (...)`.
pub fn release(banner: &str) -> Option<&str> {
    banner.strip_prefix("Linux version ")?.split_whitespace().next()
}

fn find_banner(image: &[u8]) -> Option<String> {
    const START: &[u8] = b"Linux version ";
    let mut from = 0;
    while let Some(rest) = image.get(from..) {
        let at = from + rest.windows(START.len()).position(|window| window == START)?;
        let text: Vec<u8> = image
            .iter()
            .skip(at)
            .take(MAX_BANNER_BYTES)
            .copied()
            .take_while(|byte| byte.is_ascii_graphic() || *byte == b' ')
            .collect();
        // The format string of /proc/version begins the same way.
        if text.get(START.len()).is_some_and(u8::is_ascii_digit) {
            return String::from_utf8(text).ok();
        }
        from = at + START.len();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_banner_is_found_behind_the_format_string() {
        let image = b"\x7fELF\0Linux version %s (%s)\n\0..Linux version 6.12.9 (a@b) #1 SMP\n\0rest";
        let banner = find_banner(image).unwrap();
        assert_eq!(banner, "Linux version 6.12.9 (a@b) #1 SMP");
        assert_eq!(release(&banner), Some("6.12.9"));
        assert_eq!(find_banner(b"nothing"), None);
        assert_eq!(find_banner(b"Linux version "), None);
    }
}
