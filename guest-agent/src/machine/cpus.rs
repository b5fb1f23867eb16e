//! Processors in use. Those that aren't exist from the start: the kernel's `maxcpus=` keeps them offline.

use std::fs;
use std::path::PathBuf;

use super::Sys;
use crate::failure::{Context, Failure};

/// Most processors that are looked at.
const MAX_CPUS: u32 = 1024;

/// How many processors are in use and how many there are.
pub fn counts(sys: &Sys) -> Result<(u32, u32), Failure> {
    let count = |file| read(sys, file).map(|cpus| u32::try_from(cpus.len()).unwrap_or(u32::MAX));
    Ok((count("online")?, count("present")?))
}

/// Takes processors into use, lowest first, or out of it, highest first, until `count` are. After a failure as many are in
/// use as before. The first processor always is.
pub fn set_online(sys: &Sys, count: u32) -> Result<(), Failure> {
    let (online, present) = (read(sys, "online")?, read(sys, "present")?);
    let wanted = usize::try_from(count).unwrap_or(usize::MAX);
    if wanted == 0 {
        return Err(Failure::invalid("at least one processor has to be in use"));
    }
    if wanted > present.len() {
        return Err(Failure::precondition(format!("the VM has {} processors, not {count}", present.len())));
    }
    let on = wanted > online.len();
    let changes: Vec<u32> = if on {
        let missing = wanted - online.len();
        present.into_iter().filter(|cpu| !online.contains(cpu)).take(missing).collect()
    } else {
        online.iter().rev().copied().take(online.len() - wanted).collect()
    };
    for (done, &cpu) in changes.iter().enumerate() {
        if let Err(failure) = switch(sys, cpu, on) {
            for &cpu in changes.iter().take(done).rev() {
                let _ = switch(sys, cpu, !on);
            }
            return Err(failure);
        }
    }
    Ok(())
}

fn switch(sys: &Sys, cpu: u32, on: bool) -> Result<(), Failure> {
    let action = if on { "use" } else { "stop using" };
    fs::write(directory(sys).join(format!("cpu{cpu}/online")), if on { "1" } else { "0" })
        .context(format!("{action} processor {cpu}"))
}

/// A file that lists processors.
fn read(sys: &Sys, file: &str) -> Result<Vec<u32>, Failure> {
    let path = directory(sys).join(file);
    let text = fs::read_to_string(&path).context(format!("read {}", path.display()))?;
    parse(&text).ok_or_else(|| Failure::internal(format!("{} is no list of processors", path.display())))
}

fn directory(sys: &Sys) -> PathBuf {
    sys.0.join("devices/system/cpu")
}

/// A list such as `0-2,5`, ascending.
fn parse(text: &str) -> Option<Vec<u32>> {
    let mut cpus = Vec::new();
    for part in text.trim().split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        if last >= MAX_CPUS {
            return None;
        }
        cpus.extend(first..=last);
    }
    Some(cpus)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lists_are_read_as_the_kernel_writes_them() {
        assert_eq!(parse("0-2,5\n"), Some(vec![0, 1, 2, 5]));
        assert_eq!(parse("0\n"), Some(vec![0]));
        assert_eq!(parse("\n"), Some(vec![]));
        assert_eq!(parse("0-4294967295"), None);
        assert_eq!(parse("x"), None);
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "[0-9,-]{0,60}|\\PC{0,60}") {
            parse(&text);
        }
    }
}
