//! `linux.cgroupsPath`: a path, or the three words by which runtimes ask systemd for a cgroup.

use std::path::PathBuf;

/// Where systemd puts what names no slice.
const DEFAULT_SLICE: &str = "system.slice";
/// The slice above all.
const ROOT_SLICE: &str = "-.slice";
/// The kernel's bound on names.
const MAX_NAME_BYTES: usize = 255;
/// Levels of directories.
const MAX_PARTS: usize = 64;

/// The path relative to the top of a hierarchy. It has no `..` in it, and at least one part.
pub fn relative(cgroups_path: &str) -> Option<PathBuf> {
    let parts = match cgroups_path.split(':').collect::<Vec<_>>().as_slice() {
        [slice, prefix, name] => systemd(slice, prefix, name)?,
        [_] => cgroups_path.split('/').filter(|part| !part.is_empty()).map(str::to_owned).collect(),
        _ => return None,
    };
    let valid = (1..=MAX_PARTS).contains(&parts.len()) && parts.iter().all(|part| is_name(part));
    valid.then(|| parts.iter().collect())
}

fn is_name(part: &str) -> bool {
    part != "." && part != ".." && part.len() <= MAX_NAME_BYTES && !part.contains(['/', '\0', '\n']) && !part.is_empty()
}

/// The directories of a unit: its slice with those above it, then the unit, which is a scope unless it is a slice itself.
fn systemd(slice: &str, prefix: &str, name: &str) -> Option<Vec<String>> {
    if name.is_empty() {
        return None;
    }
    let mut parts = match slice {
        "" => slices(DEFAULT_SLICE)?,
        slice => slices(slice)?,
    };
    parts.push(match (name.ends_with(".slice"), prefix) {
        (true, _) => name.to_owned(),
        (false, "") => format!("{name}.scope"),
        (false, prefix) => format!("{prefix}-{name}.scope"),
    });
    Some(parts)
}

/// The dashes in a slice's name say what it is in: `a-b.slice` is `a.slice/a-b.slice` (systemd.slice(5)).
fn slices(slice: &str) -> Option<Vec<String>> {
    if slice == ROOT_SLICE {
        return Some(Vec::new());
    }
    let name = slice.strip_suffix(".slice")?;
    let mut words = Vec::new();
    let mut parts = Vec::new();
    for word in name.split('-') {
        if word.is_empty() {
            return None;
        }
        words.push(word);
        parts.push(format!("{}.slice", words.join("-")));
    }
    Some(parts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn paths_are_relative_to_the_top() {
        let path = |text: &str| relative(text).map(|path| path.display().to_string());
        assert_eq!(path("/kubepods/burstable/pod1/c").unwrap(), "kubepods/burstable/pod1/c");
        assert_eq!(path("a//b/").unwrap(), "a/b");
        for wrong in ["", "/", "/a/../b", "/./a", "/a\nb", "a:b", "a:b:c:d", &"x".repeat(256), &"/x".repeat(65)] {
            assert_eq!(path(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn the_words_for_systemd_are_slices_and_a_scope() {
        let path = |text: &str| relative(text).map(|path| path.display().to_string());
        let pod = "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1_2.slice";
        let named = path("kubepods-burstable-pod1_2.slice:cri-containerd:c").unwrap();
        assert_eq!(named, format!("{pod}/cri-containerd-c.scope"));
        assert_eq!(path(":p:c").unwrap(), "system.slice/p-c.scope");
        assert_eq!(path("-.slice::c").unwrap(), "c.scope");
        assert_eq!(path("a.slice:p:a-b.slice").unwrap(), "a.slice/a-b.slice");
        for wrong in
            ["a:p:c", "a-.slice:p:c", "-a.slice:p:c", ".slice:p:c", "a.slice:p:", "a.slice:p:c/d", "a/b.slice:p:c"]
        {
            assert_eq!(path(wrong), None, "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn no_text_leads_out(text in "[a-c./:-]{0,40}|\\PC{0,40}") {
            if let Some(path) = relative(&text) {
                prop_assert!(path.components().all(|part| matches!(part, std::path::Component::Normal(_))));
            }
        }
    }
}
