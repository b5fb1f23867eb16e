//! The library's server over one directory.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use nix::unistd::{getegid, geteuid};
use virtiofsd::descriptor_utils::{Reader, Writer};
use virtiofsd::passthrough::{CachePolicy, Config, PassthroughFs};

use super::gate::Gate;
use super::{ShareError, confine, ids};
use crate::config::{self, ShareCache};
use crate::panics;

/// Names and attributes with `cache: auto`.
const SHORT: Duration = Duration::from_secs(1);
/// Names and attributes with `cache: always`.
const LONG: Duration = Duration::from_secs(86400);

/// A directory to be served, held open: what happens to its path later doesn't matter.
pub struct Directory {
    config: config::Share,
    root: File,
    /// `/proc/self/fd`, which can't be reached any more from a root inside of the directory.
    proc_self_fd: File,
    max_open_files: u64,
}

/// What became of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Handled {
    /// Done. The reply has so many bytes, 0 if there is none.
    Reply(u32),
    /// The library panicked: nothing it holds can be relied on.
    Gone,
}

impl Directory {
    /// Opens it, without rights to read.
    pub fn open(config: &config::Share, max_open_files: u64) -> Result<Self, ShareError> {
        let open =
            |path: &Path| OpenOptions::new().read(true).custom_flags(libc::O_PATH | libc::O_DIRECTORY).open(path);
        let root = open(&config.path_on_host).map_err(|source| ShareError::Open {
            tag: config.tag.clone(),
            path: config.path_on_host.clone(),
            source,
        })?;
        let proc_self_fd = open("/proc/self/fd".as_ref()).map_err(ShareError::Proc)?;
        Ok(Self { config: config.clone(), root, proc_self_fd, max_open_files })
    }

    /// Makes a server with no files open, and makes this thread one that can serve: see [`confine::enter`].
    pub fn serve(&self) -> io::Result<Server> {
        let proc_self_fd = self.proc_self_fd.try_clone()?;
        confine::enter(self.root.as_fd())?;
        let files = PassthroughFs::new(self.library_config(proc_self_fd))?;
        Ok(Server(virtiofsd::server::Server::new(Gate::new(files, self.config.is_read_only))))
    }

    fn library_config(&self, proc_self_fd: File) -> Config {
        let config = &self.config;
        let (cache_policy, timeout) = match config.cache {
            ShareCache::Never => (CachePolicy::Never, Duration::ZERO),
            ShareCache::Auto => (CachePolicy::Auto, SHORT),
            ShareCache::Always => (CachePolicy::Always, LONG),
        };
        let (uid, gid) = (geteuid(), getegid());
        let own = |id: u32| (!uid.is_root()).then_some(id);
        Config {
            entry_timeout: timeout,
            attr_timeout: timeout,
            cache_policy,
            writeback: config.writeback,
            // The working directory of the thread, opened when the guest mounts.
            root_dir: ".".to_owned(),
            xattr: config.xattr,
            proc_sfd_rawfd: Some(proc_self_fd),
            // One request for a directory instead of one for each name in it; useless where nothing is kept.
            readdirplus: config.cache != ShareCache::Never,
            // Shared mappings work without a cache too.
            allow_mmap: true,
            uid_map: ids::library_map(&config.uid_map, own(uid.as_raw())),
            gid_map: ids::library_map(&config.gid_map, own(gid.as_raw())),
            guest_fd_limit: self.max_open_files,
            ..Config::default()
        }
    }
}

/// Serves requests on the thread that made it.
pub struct Server(virtiofsd::server::Server<Gate>);

impl Server {
    /// Does what a request says and writes the reply.
    pub fn handle(&self, request: Reader<'_>, reply: Writer<'_>) -> Handled {
        // The gate keeps what is known to panic away from the library. This is for what isn't known: a guest may lose its own
        // device by that, but not stop the thread without anybody noticing.
        match panics::contain(|| self.0.handle_message(request, reply, None::<&mut ()>)) {
            Some(Ok(bytes)) => Handled::Reply(u32::try_from(bytes).unwrap_or(u32::MAX)),
            // Not understood.
            Some(Err(_)) => Handled::Reply(0),
            None => Handled::Gone,
        }
    }
}
