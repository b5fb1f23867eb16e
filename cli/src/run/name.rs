//! Names for containers that got none.

use hull_sandbox::SandboxRecord;

const FIRST: [&str; 32] = [
    "amber", "ancient", "bold", "bright", "calm", "clear", "copper", "crimson", "distant", "eager", "fair", "gentle",
    "golden", "grand", "green", "hidden", "iron", "keen", "little", "lucky", "merry", "misty", "noble", "northern",
    "patient", "quiet", "royal", "silver", "steady", "stout", "swift", "white",
];
const SECOND: [&str; 32] = [
    "albatross",
    "anchor",
    "ark",
    "barge",
    "beacon",
    "brig",
    "buoy",
    "capstan",
    "clipper",
    "compass",
    "cutter",
    "dinghy",
    "ferry",
    "frigate",
    "galley",
    "gull",
    "harbour",
    "jetty",
    "kayak",
    "keel",
    "lagoon",
    "mast",
    "pelican",
    "pier",
    "pilot",
    "rudder",
    "schooner",
    "sloop",
    "tide",
    "trawler",
    "tug",
    "yawl",
];
const ATTEMPTS: usize = 50;

/// Two words that no running container has; with part of the identifier if that needs too much luck.
pub fn invent(id: &str, running: &[SandboxRecord]) -> String {
    let taken = |name: &str| running.iter().any(|record| record.name == name);
    // The identifier is random already.
    let mut state = u64::from_str_radix(id, 16).unwrap_or(1);
    for _ in 0..ATTEMPTS {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let name = format!("{}_{}", pick(&FIRST, state >> 33), pick(&SECOND, state >> 48));
        if !taken(&name) {
            return name;
        }
    }
    format!("hull_{id}")
}

fn pick<'a>(words: &[&'a str; 32], number: u64) -> &'a str {
    let index = usize::try_from(number % 32).unwrap_or(0);
    words.get(index).copied().unwrap_or("hull")
}

#[cfg(test)]
mod tests {
    use super::*;
    use hull_sandbox::parse::ContainerName;

    #[test]
    fn names_are_valid_and_differ() {
        let names: std::collections::HashSet<_> =
            (0..100).map(|number| invent(&format!("{:012x}", number * 7919), &[])).collect();
        assert!(names.len() > 50);
        assert!(names.iter().all(|name| name.parse::<ContainerName>().is_ok()));
    }
}
