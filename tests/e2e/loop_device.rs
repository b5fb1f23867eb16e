//! Files of the host as block devices.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const PROGRAMS: &str = "/usr/sbin:/sbin:/usr/bin:/bin";

/// A loop device over a file. It must be free of other users when it is dropped.
pub struct LoopDevice {
    pub path: PathBuf,
    file: PathBuf,
}

impl LoopDevice {
    pub fn attach(file: &Path) -> Self {
        let output = losetup(&["--find", "--show", file.to_str().unwrap()]);
        assert!(output.status.success(), "{output:?}");
        let path = String::from_utf8(output.stdout).unwrap().trim_end().into();
        Self { path, file: file.to_owned() }
    }

    /// Its number.
    pub fn number(&self) -> (u32, u32) {
        let number =
            fs::read_to_string(Path::new("/sys/block").join(self.path.file_name().unwrap()).join("dev")).unwrap();
        let (major, minor) = number.trim_end().split_once(':').unwrap();
        (major.parse().unwrap(), minor.parse().unwrap())
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let output = losetup(&["-d", self.path.to_str().unwrap()]);
        if !std::thread::panicking() {
            assert!(output.status.success(), "{output:?}");
            // One that is in use is only marked, and goes when it is free.
            assert_eq!(attached(&self.file), Vec::<String>::new(), "somebody uses it");
        }
    }
}

fn losetup(args: &[&str]) -> Output {
    Command::new("losetup").args(args).env("PATH", PROGRAMS).output().unwrap()
}

/// Files on loop devices that are below a path.
pub fn attached(path: &Path) -> Vec<String> {
    let blocks = fs::read_dir("/sys/block").unwrap().flatten();
    let files = blocks.filter_map(|block| fs::read_to_string(block.path().join("loop/backing_file")).ok());
    files.filter(|file| Path::new(file.trim_end()).starts_with(path)).collect()
}

/// Makes an ext4 image with what is in a directory.
pub fn make_ext4(image: &Path, tree: &Path, bytes: u64) {
    fs::File::create(image).unwrap().set_len(bytes).unwrap();
    let mut command = Command::new("mkfs.ext4");
    command.args(["-q", "-d"]).arg(tree).arg(image);
    assert!(command.env("PATH", PROGRAMS).status().unwrap().success());
}

/// Content of a file in an ext4 image that nobody has mounted.
pub fn file_in(image: &Path, file: &str) -> String {
    let mut command = Command::new("debugfs");
    command.args(["-R", &format!("cat {file}")]).arg(image).env("PATH", PROGRAMS);
    String::from_utf8(command.output().unwrap().stdout).unwrap()
}
