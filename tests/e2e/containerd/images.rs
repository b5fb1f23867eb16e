//! Images and snapshots: what `ctr images` and `ctr snapshots` do when Hull runs the containers.

use std::fs;
use std::process::Command;

use super::harness::{Containerd, HULL, RUNC, scenarios};
use crate::harness::image;
use crate::registry::Registry;

scenarios! {
    an_image_is_pulled_from_a_registry_and_run,
    what_a_container_has_changed_is_what_the_snapshot_differs_in,
}

pub fn an_image_is_pulled_from_a_registry_and_run(containerd: &Containerd) {
    let registry = Registry::start();
    registry.push(&image("layers"), "fleet/layers:1.0");
    let name = registry.reference("fleet/layers:1.0");
    containerd.ctr(["images", "pull", "--plain-http", &name]).ok();
    drop(registry);
    for runtime in [RUNC, HULL] {
        let id = containerd.id();
        let script = "cat /data/kept /data/replaced; ls /data";
        let run = containerd.ctr(["run", "--rm", "--runtime", runtime, &name, &id, "sh", "-c", script]);
        assert_eq!(run.ok(), "layer 1\nlayer 3\nkept\nopaque\nreplaced\n", "{runtime}");
    }
    containerd.ctr(["images", "rm", &name]).ok();
}

fn what_a_container_has_changed_is_what_the_snapshot_differs_in(containerd: &Containerd) {
    let script = "echo new >/new; chmod 640 /new; chown 12:34 /new; mkdir /etc/more; ln -s new /link; rm /etc/group; \
         echo more >>/etc/passwd";
    let [runc, hull] = [RUNC, HULL].map(|runtime| {
        let args = containerd.run_args(runtime, &[], &["sh", "-c", script]);
        containerd.ctr(&args).ok();
        let id = &args[args.len() - 4];
        let diff = containerd.path("diff");
        fs::write(&diff, containerd.ctr(["snapshots", "diff", id]).stdout).unwrap();
        let tar = |flags: &[&str]| {
            let output = Command::new("tar").args(flags).arg("--file").arg(&diff).output().unwrap();
            assert!(output.status.success(), "{runtime}: {}", String::from_utf8_lossy(&output.stderr));
            String::from_utf8(output.stdout).unwrap()
        };
        let text = tar(&["--extract", "--gzip", "--to-stdout"]);
        let list = tar(&["--list", "--gzip", "--verbose", "--numeric-owner"]);
        // Without the times.
        let mut list: Vec<_> = list
            .lines()
            .map(|line| {
                line.split_whitespace().enumerate().filter(|(at, _)| ![3, 4].contains(at)).map(|(_, word)| word)
            })
            .map(|words| words.collect::<Vec<_>>().join(" "))
            .collect();
        list.sort();
        containerd.ctr(["container", "rm", id]).ok();
        (text, list)
    });
    assert!(hull.0.contains("new\n") && hull.1.iter().any(|line| line.ends_with("etc/.wh.group")), "{hull:?}");
    assert_eq!(hull, runc);
}
