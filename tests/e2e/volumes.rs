//! ConfigMaps and Secrets: what a kubelet replaces on the host is replaced in the guest, where programs wait for it.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use hull_sandbox::ProcessStreams;
use serde_json::{Value, json};
use tokio::io::AsyncReadExt;

use crate::bundle_harness::{Pod, add_mounts, bind, block_on, line};

const TOOL: &str = env!("CARGO_BIN_EXE_hull-inotify-tool");

/// A volume as a kubelet writes it.
struct Volume(PathBuf);

impl Volume {
    fn new(pod: &Pod, kind: &str) -> Self {
        Self(pod.directory(&format!("pods/1/volumes/kubernetes.io~{kind}/v")))
    }

    /// Replaces its content: a new directory, `..data`, names, and the old directory goes.
    fn write(&self, data: &str, files: impl IntoIterator<Item = (String, String)>) {
        let Self(path) = self;
        fs::create_dir(path.join(data)).unwrap();
        let files: Vec<_> = files.into_iter().collect();
        for (name, content) in &files {
            fs::write(path.join(data).join(name), content).unwrap();
        }
        let old = fs::read_link(path.join("..data")).ok();
        symlink(data, path.join("..data_tmp")).unwrap();
        fs::rename(path.join("..data_tmp"), path.join("..data")).unwrap();
        for (name, _) in &files {
            let _ = symlink(Path::new("..data").join(name), path.join(name));
        }
        for entry in fs::read_dir(path).unwrap().map(|entry| entry.unwrap()) {
            let name = entry.file_name().into_string().unwrap();
            if !name.starts_with("..") && !files.iter().any(|(wanted, _)| *wanted == name) {
                fs::remove_file(entry.path()).unwrap();
            }
        }
        if let Some(old) = old {
            fs::remove_dir_all(path.join(old)).unwrap();
        }
    }

    fn write_key(&self, data: &str, content: &str) {
        self.write(data, [("key".to_owned(), content.to_owned())]);
    }

    fn mounted(&self) -> impl FnOnce(&mut Value) + use<> {
        add_mounts(vec![bind(&self.0, "/etc/config", &["rbind", "rprivate", "ro"])])
    }
}

/// A pod whose image has the program that waits for changes.
async fn pod() -> Pod {
    let pod = Pod::start().await;
    fs::copy(TOOL, pod.host("image/bin/notice")).unwrap();
    pod
}

/// What is said until the process ends.
async fn rest(streams: &mut ProcessStreams) -> Vec<String> {
    let mut text = String::new();
    streams.stdout.as_mut().unwrap().read_to_string(&mut text).await.unwrap();
    text.lines().map(str::to_owned).collect()
}

/// Watches of this process, which is the volumes' owner here.
fn watches() -> usize {
    let infos = fs::read_dir("/proc/self/fdinfo").unwrap().flatten();
    let texts = infos.filter_map(|info| fs::read_to_string(info.path()).ok());
    texts.map(|text| text.matches("inotify wd:").count()).sum()
}

#[test]
fn a_program_in_the_guest_is_told_what_happens_to_its_configuration() {
    block_on(async {
        let pod = pod().await;
        let volume = Volume::new(&pod, "configmap");
        volume.write_key("..2024_1", "one");
        let script = "exec notice /etc/config /etc/config/key two";
        let (container, mut streams) = pod.create("c", script, volume.mounted()).await.unwrap();
        container.start().await.unwrap();
        assert_eq!(line(&mut streams).await, "watching one");
        volume.write("..2024_2", [("key", "two"), ("new", "x")].map(|(name, text)| (name.into(), text.into())));
        let expected =
            ["create ..2024_2", "create ..data_tmp", "moved from ..data_tmp", "moved to ..data", "content two"];
        assert_eq!(rest(&mut streams).await, expected);
        assert_eq!(container.process().wait().await.unwrap().status, 0);
        assert_eq!(watches(), 1);
        container.delete(false).await.unwrap();
        assert_eq!(watches(), 0);

        // The rest of it, and that it can't be written.
        let script =
            "ls -a /etc/config; cat /etc/config/new; echo; echo x 2>/dev/null > /etc/config/..data/key || echo refused";
        let (container, mut streams) = pod.create("c", script, volume.mounted()).await.unwrap();
        container.start().await.unwrap();
        assert_eq!(rest(&mut streams).await, [".", "..", "..2024_2", "..data", "key", "new", "x", "refused"]);
        container.delete(true).await.unwrap();
        pod.end().await;
    });
}

#[test]
fn many_changes_in_a_row_end_with_the_last_for_every_container() {
    block_on(async {
        let pod = pod().await;
        let volume = Volume::new(&pod, "secret");
        volume.write_key("..0", "0");
        let script = "exec notice /etc/config /etc/config/key 20";
        let (one, mut of_one) = pod.create("one", script, volume.mounted()).await.unwrap();
        let (two, mut of_two) = pod.create("two", script, volume.mounted()).await.unwrap();
        for (container, streams) in [(&one, &mut of_one), (&two, &mut of_two)] {
            container.start().await.unwrap();
            assert_eq!(line(streams).await, "watching 0");
        }
        (1..=20).for_each(|number| volume.write_key(&format!("..{number}"), &number.to_string()));
        for (container, streams) in [(&one, &mut of_one), (&two, &mut of_two)] {
            let said = rest(streams).await;
            assert_eq!(said.last().unwrap(), "content 20", "{said:?}");
            assert_eq!(container.process().wait().await.unwrap().status, 0, "{said:?}");
            container.delete(false).await.unwrap();
        }
        pod.end().await;
    });
}

#[test]
fn a_volume_may_have_thousands_of_files_and_goes_with_its_container() {
    block_on(async {
        let pod = pod().await;
        let volume = Volume::new(&pod, "projected");
        let files =
            |text: &'static str| (0..2000).map(move |number| (format!("key-{number}"), format!("{text} {number}")));
        volume.write("..1", files("one"));
        let script = "ls /etc/config | wc -l; cat /etc/config/key-1999; echo; exec notice /etc/config /etc/config/key-1999 'two 1999'";
        let (container, mut streams) = pod.create("c", script, volume.mounted()).await.unwrap();
        container.start().await.unwrap();
        for expected in ["2000", "one 1999", "watching one 1999"] {
            assert_eq!(line(&mut streams).await, expected);
        }
        volume.write("..2", files("two"));
        assert_eq!(rest(&mut streams).await.last().unwrap(), "content two 1999");
        assert_eq!(copies(&pod).await, 1);
        container.delete(true).await.unwrap();
        assert_eq!(copies(&pod).await, 0, "the copy is still in the guest's memory");
        pod.end().await;
    });
}

/// How many containers have copies of volumes in the guest.
async fn copies(pod: &Pod) -> usize {
    let change = |spec: &mut Value| {
        add_mounts(vec![bind(Path::new("/proc"), "/guest", &["rbind"])])(spec);
        for set in ["bounding", "effective", "permitted"] {
            spec["process"]["capabilities"][set].as_array_mut().unwrap().push(json!("CAP_SYS_PTRACE"));
        }
    };
    let mounts = pod.run("look", "cat /guest/1/mountinfo", change).await;
    assert!(mounts.contains(" /run/hull/shared "), "{mounts}");
    mounts.lines().filter(|line| line.contains(" /run/hull/volumes/")).count()
}

#[test]
fn other_volumes_and_single_files_of_a_volume_stay_the_hosts() {
    block_on(async {
        let pod = pod().await;
        let (empty, volume) = (Volume::new(&pod, "empty-dir"), Volume::new(&pod, "configmap"));
        fs::write(empty.0.join("file"), "before").unwrap();
        volume.write_key("..1", "one");
        let mounts = add_mounts(vec![
            bind(&empty.0, "/data", &["rbind", "rw"]),
            bind(&volume.0.join("key"), "/etc/key", &["bind", "ro"]),
        ]);
        let output = pod.run("c", "cat /data/file /etc/key; echo; echo after > /data/file", mounts).await;
        assert_eq!(output, "beforeone\n");
        assert_eq!(fs::read_to_string(empty.0.join("file")).unwrap(), "after\n");
        assert_eq!(watches(), 0);
        pod.end().await;
    });
}
