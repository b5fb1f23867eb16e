//! What the image says, under what the user says.

use oci_spec::image::{Config, ImageConfiguration};

use super::{ContainerOptions, SpecError, parse_signal};

/// Image configuration and options, merged by Docker's rules.
pub(super) struct Merged {
    pub(super) args: Vec<String>,
    pub(super) env: Vec<String>,
    pub(super) workdir: String,
    pub(super) user: String,
    pub(super) stop_signal: i32,
    pub(super) volumes: Vec<String>,
}

pub(super) fn merge(options: &ContainerOptions, image: &ImageConfiguration) -> Result<Merged, SpecError> {
    let config = image.config().clone().unwrap_or_default();
    let workdir =
        [options.workdir.as_ref(), config.working_dir().as_ref()].into_iter().flatten().find(|dir| !dir.is_empty());
    let workdir = workdir.map_or("/", String::as_str);
    if !workdir.starts_with('/') {
        return Err(SpecError::Workdir(workdir.into()));
    }
    let stop_signal = options.stop_signal.as_ref().or(config.stop_signal().as_ref());
    let stop_signal = match stop_signal.filter(|text| !text.is_empty()) {
        None => libc::SIGTERM,
        Some(text) => parse_signal(text).ok_or_else(|| SpecError::StopSignal(text.clone()))?,
    };
    Ok(Merged {
        args: args(options, &config)?,
        env: config.env().clone().unwrap_or_default(),
        workdir: workdir.into(),
        user: options.user.clone().or_else(|| config.user().clone()).unwrap_or_default(),
        stop_signal,
        volumes: config.volumes().clone().unwrap_or_default(),
    })
}

/// Entrypoint, then command. The image's command belongs to the image's entrypoint: another entrypoint loses it.
fn args(options: &ContainerOptions, config: &Config) -> Result<Vec<String>, SpecError> {
    let list = |list: &Option<Vec<String>>| list.clone().unwrap_or_default();
    let mut args = match options.entrypoint.as_deref() {
        None => list(config.entrypoint()),
        Some("") => Vec::new(),
        Some(program) => vec![program.to_owned()],
    };
    if !options.command.is_empty() {
        args.extend_from_slice(&options.command);
    } else if options.entrypoint.is_none() {
        args.extend(list(config.cmd()));
    }
    if args.is_empty() {
        return Err(SpecError::NoCommand);
    }
    Ok(args)
}
