//! Where an image comes from, as the user types it.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use oci_spec::distribution::{ParseError, Reference};

/// What is wrong with a reference.
#[derive(Debug, thiserror::Error)]
pub enum ReferenceError {
    /// Neither a registry reference nor a known transport.
    #[error(
        "{reference:?} is not an image reference (NAME[:TAG], NAME@DIGEST, oci:DIR[:TAG], oci-archive:FILE[:TAG], docker-archive:FILE[:TAG] or rootfs:DIR)"
    )]
    Registry {
        /// What the user typed.
        reference: String,
        /// Why it was refused.
        source: ParseError,
    },
    /// A transport without a path.
    #[error("{0}: needs a path, as in {0}:PATH")]
    NoPath(&'static str),
    /// A transport with an empty or malformed tag.
    #[error("{tag:?} is not a tag in {reference:?}")]
    BadTag {
        /// What the user typed.
        reference: String,
        /// The part after the last colon.
        tag: String,
    },
}

/// Where an image comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageReference {
    /// A registry, with docker's defaults: `busybox` is `docker.io/library/busybox:latest`.
    Registry(RegistryReference),
    /// `oci:DIR[:TAG]`: an OCI image layout in a directory.
    OciLayout {
        /// The directory with `index.json`.
        dir: PathBuf,
        /// Which image of the layout; may be left out where there is only one.
        tag: Option<String>,
    },
    /// `oci-archive:FILE[:TAG]`: an OCI image layout in a tar file.
    OciArchive {
        /// The tar file.
        file: PathBuf,
        /// Which image of the layout.
        tag: Option<String>,
    },
    /// `docker-archive:FILE[:TAG]`: what `docker save` writes.
    DockerArchive {
        /// The tar file.
        file: PathBuf,
        /// Which image of the archive, as a tag or `name:tag`.
        tag: Option<String>,
    },
    /// `rootfs:DIR`: a directory that is used as root file system as it is.
    RootfsDir(PathBuf),
}

impl FromStr for ImageReference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        if let Some(rest) = text.strip_prefix("oci:") {
            let (dir, tag) = path_and_tag(text, rest, "oci")?;
            return Ok(ImageReference::OciLayout { dir, tag });
        }
        if let Some(rest) = text.strip_prefix("oci-archive:") {
            let (file, tag) = path_and_tag(text, rest, "oci-archive")?;
            return Ok(ImageReference::OciArchive { file, tag });
        }
        if let Some(rest) = text.strip_prefix("docker-archive:") {
            let (file, tag) = path_and_tag(text, rest, "docker-archive")?;
            return Ok(ImageReference::DockerArchive { file, tag });
        }
        match text.strip_prefix("rootfs:") {
            Some("") => Err(ReferenceError::NoPath("rootfs")),
            Some(dir) => Ok(ImageReference::RootfsDir(dir.into())),
            None => text.parse().map(ImageReference::Registry),
        }
    }
}

impl fmt::Display for ImageReference {
    /// The canonical form, the name under which the store keeps the image: paths are made absolute.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (transport, path, tag) = match self {
            ImageReference::Registry(reference) => return reference.fmt(formatter),
            ImageReference::OciLayout { dir, tag } => ("oci", dir, tag),
            ImageReference::OciArchive { file, tag } => ("oci-archive", file, tag),
            ImageReference::DockerArchive { file, tag } => ("docker-archive", file, tag),
            ImageReference::RootfsDir(dir) => ("rootfs", dir, &None),
        };
        write!(formatter, "{transport}:{}", absolute(path).display())?;
        match tag {
            Some(tag) => write!(formatter, ":{tag}"),
            None => Ok(()),
        }
    }
}

fn absolute(path: &Path) -> PathBuf {
    path.canonicalize().or_else(|_| std::path::absolute(path)).unwrap_or_else(|_| path.to_owned())
}

/// Splits `PATH[:TAG]`. A colon before a slash belongs to the path, and so does one in a path that exists.
fn path_and_tag(text: &str, rest: &str, transport: &'static str) -> Result<(PathBuf, Option<String>), ReferenceError> {
    if rest.is_empty() {
        return Err(ReferenceError::NoPath(transport));
    }
    let mut split = rest.split_once(':').map(|(path, tag)| (path, Some(tag))).unwrap_or((rest, None));
    // `docker-archive:FILE:NAME/OTHER:TAG` has slashes after the path; the others have a plain tag.
    if transport != "docker-archive" {
        split = match rest.rsplit_once(':') {
            Some((path, tag)) if !tag.contains('/') => (path, Some(tag)),
            _ => (rest, None),
        };
    }
    if Path::new(rest).exists() {
        split = (rest, None);
    }
    let bad_tag = |tag: &str| ReferenceError::BadTag { reference: text.to_owned(), tag: tag.to_owned() };
    match split {
        ("", _) => Err(ReferenceError::NoPath(transport)),
        (path, None) => Ok((path.into(), None)),
        (path, Some(tag)) if is_tag(tag) => Ok((path.into(), Some(tag.to_owned()))),
        (_, Some(tag)) => Err(bad_tag(tag)),
    }
}

/// OCI layouts allow more than a tag in `ref.name`, but no blanks or control characters.
fn is_tag(tag: &str) -> bool {
    !tag.is_empty() && tag.len() <= 512 && tag.bytes().all(|byte| byte.is_ascii_graphic())
}

/// An image in a registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegistryReference(Reference);

impl RegistryReference {
    /// Registry as written or implied, such as `docker.io` or `localhost:5000`.
    #[must_use]
    pub fn registry(&self) -> &str {
        self.0.registry()
    }

    /// Repository, such as `library/busybox`.
    #[must_use]
    pub fn repository(&self) -> &str {
        self.0.repository()
    }

    /// Tag, if the reference has one; a reference without tag and digest got `latest`.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        self.0.tag()
    }

    /// Digest (`sha256:...`), if the reference has one.
    #[must_use]
    pub fn digest(&self) -> Option<&str> {
        self.0.digest()
    }

    /// As docker prints it: without `docker.io/` and `library/`.
    #[must_use]
    pub fn familiar(&self) -> String {
        let full = self.to_string();
        let short = full.strip_prefix("docker.io/").unwrap_or(&full);
        short.strip_prefix("library/").unwrap_or(short).to_owned()
    }

    /// Host and port to connect to.
    pub(crate) fn host(&self) -> &str {
        match self.0.registry() {
            "docker.io" | "index.docker.io" => "registry-1.docker.io",
            other => other,
        }
    }
}

impl FromStr for RegistryReference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        Reference::try_from(text)
            .map(RegistryReference)
            .map_err(|source| ReferenceError::Registry { reference: text.to_owned(), source })
    }
}

impl fmt::Display for RegistryReference {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> ImageReference {
        text.parse().unwrap()
    }

    #[test]
    fn registry_references_have_dockers_defaults() {
        assert_eq!(parsed("busybox").to_string(), "docker.io/library/busybox:latest");
        assert_eq!(parsed("localhost:5000/a/b:1").to_string(), "localhost:5000/a/b:1");
        let ImageReference::Registry(reference) = parsed("user/app:2") else { panic!("not a registry") };
        assert_eq!(reference.familiar(), "user/app:2");
        assert_eq!(reference.host(), "registry-1.docker.io");
        assert_eq!(reference.tag(), Some("2"));
    }

    #[test]
    fn transports_have_paths_and_tags() {
        let oci =
            |dir: &str, tag: Option<&str>| ImageReference::OciLayout { dir: dir.into(), tag: tag.map(str::to_owned) };
        assert_eq!(parsed("oci:/x/y"), oci("/x/y", None));
        assert_eq!(parsed("oci:/x/y:1.2"), oci("/x/y", Some("1.2")));
        assert_eq!(parsed("oci:/x:1/y"), oci("/x:1/y", None));
        assert_eq!(
            parsed("docker-archive:/f.tar:lib/app:3"),
            ImageReference::DockerArchive { file: "/f.tar".into(), tag: Some("lib/app:3".into()) }
        );
        assert_eq!(parsed("rootfs:/a:b"), ImageReference::RootfsDir("/a:b".into()));
        assert_eq!(parsed("oci:/nowhere/x:1").to_string(), "oci:/nowhere/x:1");
    }

    #[test]
    fn bad_references_name_what_is_wrong() {
        for bad in ["", "UPPER", "oci:", "oci::tag", "oci:/x:", "rootfs:", "a b", "busybox:", "docker-archive:/f: "] {
            let error = bad.parse::<ImageReference>().unwrap_err();
            assert!(!error.to_string().contains('\n'), "{error}");
        }
    }
}
