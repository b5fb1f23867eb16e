//! Files that name the container and its network.

use crate::container::InjectedFile;

pub(super) fn injected(hostname: &str) -> Vec<InjectedFile> {
    let hosts = format!(
        "127.0.0.1\tlocalhost\n\
         ::1\tlocalhost ip6-localhost ip6-loopback\n\
         fe00::\tip6-localnet\n\
         ff00::\tip6-mcastprefix\n\
         ff02::1\tip6-allnodes\n\
         ff02::2\tip6-allrouters\n\
         127.0.1.1\t{hostname}\n"
    );
    vec![
        file("/etc/hosts", hosts),
        file("/etc/hostname", format!("{hostname}\n")),
        file("/etc/resolv.conf", "# This container has no network.\n".into()),
    ]
}

fn file(path: &str, content: String) -> InjectedFile {
    InjectedFile { path: path.into(), content, mode: 0o644 }
}
