//! From a bundle to a container.

use std::mem;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hull_protocol::agent::{CreateContainerRequest, RootFilesystem, Volume};
use hull_protocol::{SHARED_DIR, VOLUMES_DIR};
use oci_spec::runtime::Spec;
use protobuf::MessageField;

use super::devices::{BlockDevice, renumber};
use super::{BundleContainer, BundleRoot, Translated, translate};
use crate::block_devices::Key;
use crate::container::{Container, HostParts, ProcessIo, ProcessStreams};
use crate::error::SandboxError;
use crate::sandbox::{Sandbox, Shared};
use crate::shared_dir::{BindMount, ContainerMounts, MOUNTS, ROOTFS};
use crate::volume::{self, Watch};

impl Sandbox {
    /// Makes a container of a bundle of the host, whose process waits for [`Container::start`]. Its file systems are mounted in
    /// the sandbox's shared directory until [`Container::delete`].
    pub async fn create_bundle(&self, bundle: BundleContainer) -> Result<(Container, ProcessStreams), SandboxError> {
        let BundleContainer { id, spec, root, io } = bundle;
        if self.shared().directory.is_none() {
            return Err(SandboxError::NothingShared);
        }
        let mut translated = translate(&id, spec, io.terminal.is_some())?;
        let devices = self.plug(mem::take(&mut translated.block_devices), &mut translated.spec).await?;
        let created = self.create_with(id, root, io, translated, devices.clone()).await;
        if created.is_err() {
            self.shared().block_devices.release(&devices).await;
        }
        created
    }

    /// Plugs all block devices or none, and gives them their numbers in the guest.
    async fn plug(&self, devices: Vec<BlockDevice>, spec: &mut Spec) -> Result<Vec<Key>, SandboxError> {
        let block_devices = &self.shared().block_devices;
        let (mut keys, mut plugged) = (Vec::new(), Vec::new());
        let mut result = Ok(());
        for device in devices {
            match block_devices.acquire(&device.path, device.number, device.is_read_only()).await {
                Ok((key, number)) => {
                    keys.push(key);
                    plugged.push((device, number));
                }
                Err(error) => {
                    result = Err(error);
                    break;
                }
            }
        }
        let result = result.and_then(|()| Ok(renumber(spec, &plugged)?));
        if result.is_err() {
            block_devices.release(&keys).await;
        }
        result.map(|()| keys)
    }

    async fn create_with(
        &self,
        id: String,
        root: BundleRoot,
        io: ProcessIo,
        mut translated: Translated,
        block_devices: Vec<Key>,
    ) -> Result<(Container, ProcessStreams), SandboxError> {
        let host = self.prepare(id.clone(), root, translated.binds, block_devices).await?;
        let volumes = host.volumes.as_ref().map(|watch| watch.volumes().to_vec()).unwrap_or_default();
        use_copies(&id, &mut translated.spec, &volumes);
        let request = CreateContainerRequest {
            rootfs: MessageField::some(RootFilesystem {
                shared_path: format!("{id}/{ROOTFS}"),
                read_only: translated.read_only,
                ..Default::default()
            }),
            container_id: id,
            oci_spec_json: serde_json::to_vec(&translated.spec).map_err(SandboxError::Specification)?,
            sandbox_pid_namespace: translated.sandbox_pid_namespace,
            volumes,
            ..Default::default()
        };
        self.request_container(request, io, Some(host)).await
    }

    /// Mounts in a thread, because a file system may take its time.
    async fn prepare(
        &self,
        id: String,
        root: BundleRoot,
        binds: Vec<BindMount>,
        block_devices: Vec<Key>,
    ) -> Result<HostParts, SandboxError> {
        let shared = Arc::clone(self.shared());
        let work = move || {
            let directory = shared.directory.as_ref().ok_or(SandboxError::NothingShared)?;
            let mounts = directory.mount_container(&id, &root, &binds)?;
            let volumes = watch_volumes(&shared, &id, &mounts, &binds);
            Ok(HostParts { mounts, volumes, block_devices })
        };
        let prepared = tokio::task::spawn_blocking(work).await;
        prepared.unwrap_or_else(|_| Err(SandboxError::Nonsense("mounting")))
    }
}

/// Volumes that can't be watched are shared like other directories: changes are seen, but nobody is told.
fn watch_volumes(shared: &Shared, id: &str, mounts: &ContainerMounts, binds: &[BindMount]) -> Option<Watch> {
    let candidates: Vec<(u32, PathBuf)> = (0..)
        .zip(binds)
        .filter(|(_, bind)| volume::is_candidate(bind))
        .map(|(n, _)| (n, mounts.bind_path(n)))
        .collect();
    shared.volumes.watch(&shared.agent, id, &candidates).unwrap_or_else(|error| {
        tracing::warn!(container = id, %error, "no inotify events for volumes of the container");
        None
    })
}

/// Mounts the copies instead of what is shared.
fn use_copies(id: &str, spec: &mut Spec, volumes: &[Volume]) {
    let shared = |number: u32| Path::new(SHARED_DIR).join(id).join(MOUNTS).join(number.to_string());
    for mount in spec.mounts_mut().iter_mut().flatten() {
        let volume = volumes.iter().find(|volume| mount.source().as_deref() == Some(&shared(volume.number)));
        if let Some(volume) = volume {
            mount.set_source(Some(Path::new(VOLUMES_DIR).join(id).join(volume.number.to_string())));
        }
    }
}
