//! OCI hooks that run on the host: programs that are told about the container on their standard input.
//!
//! Source: OCI runtime specification, config.md "POSIX-platform Hooks" and runtime.md "State".

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use oci_spec::runtime::{Hook, Hooks};
use serde::Serialize;
use thiserror::Error;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use crate::text::one_line;

/// A hook without a limit of its own may take this long: somebody waits for the container.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(120);
/// How long what a hook said may take to arrive after its end.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// How much of what a hook says is kept.
const MAX_SAID_BYTES: u64 = 4 << 10;

/// A hook failed.
#[derive(Debug, Error)]
pub enum HookError {
    /// It can't be started, or not talked to.
    #[error("The {kind} hook {path} can't be run")]
    Run {
        /// Which kind.
        kind: HookKind,
        /// Its program.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It ended with a status.
    #[error("The {kind} hook {path} failed ({status}): {said}")]
    Failed {
        /// Which kind.
        kind: HookKind,
        /// Its program.
        path: PathBuf,
        /// How it ended.
        status: ExitStatus,
        /// The end of what it wrote to standard error.
        said: String,
    },
    /// It was killed because it took too long.
    #[error("The {kind} hook {path} took longer than {} seconds and was killed", .limit.as_secs())]
    Timeout {
        /// Which kind.
        kind: HookKind,
        /// Its program.
        path: PathBuf,
        /// How long it had.
        limit: Duration,
    },
}

/// When a hook runs. `createContainer` and `startContainer` are not among them: they run in the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HookKind {
    /// After the namespaces exist, before the container's process. Deprecated, and what Docker uses.
    Prestart,
    /// Likewise.
    CreateRuntime,
    /// After the process was started.
    Poststart,
    /// After the container was deleted.
    Poststop,
}

impl std::fmt::Display for HookKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Prestart => "prestart",
            Self::CreateRuntime => "createRuntime",
            Self::Poststart => "poststart",
            Self::Poststop => "poststop",
        })
    }
}

/// What a hook is told.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HookState {
    oci_version: String,
    id: String,
    status: &'static str,
    /// A process in the namespaces of the host that the container counts as being in: the monitor. 0 when it is gone.
    pid: u32,
    bundle: PathBuf,
    #[serde(skip_serializing_if = "HashMap::is_empty")]
    annotations: HashMap<String, String>,
}

impl HookState {
    /// The container with this identifier and bundle directory; `pid` is a process in its network namespace.
    pub fn new(id: &str, bundle: &Path, pid: u32, annotations: &HashMap<String, String>) -> Self {
        Self {
            oci_version: oci_spec::runtime::VERSION.to_owned(),
            id: id.to_owned(),
            status: "creating",
            pid,
            bundle: bundle.to_owned(),
            annotations: annotations.clone(),
        }
    }
}

/// Runs the hooks of one kind, one after the other. The first that fails ends it, except after the container's end: then all of
/// them run, and failures are logged only.
pub async fn run(hooks: &Hooks, kind: HookKind, state: &HookState) -> Result<(), HookError> {
    #[allow(deprecated, reason = "Docker's network depends on prestart")]
    let (list, status) = match kind {
        HookKind::Prestart => (hooks.prestart(), "created"),
        HookKind::CreateRuntime => (hooks.create_runtime(), "creating"),
        HookKind::Poststart => (hooks.poststart(), "running"),
        HookKind::Poststop => (hooks.poststop(), "stopped"),
    };
    let pid = if kind == HookKind::Poststop { 0 } else { state.pid };
    let state = HookState { status, pid, ..state.clone() };
    for hook in list.iter().flatten() {
        match run_one(hook, kind, &state).await {
            Err(error) if kind == HookKind::Poststop => tracing::warn!("{error}"),
            result => result?,
        }
    }
    Ok(())
}

async fn run_one(hook: &Hook, kind: HookKind, state: &HookState) -> Result<(), HookError> {
    let path = hook.path().clone();
    let failed = |source| HookError::Run { kind, path: path.clone(), source };
    let mut child = spawn(hook).map_err(failed)?;
    let limit =
        hook.timeout().and_then(|seconds| u64::try_from(seconds).ok()).map_or(DEFAULT_TIMEOUT, Duration::from_secs);
    let told = serde_json::to_vec(state).map_err(|error| failed(error.into()))?;
    match timeout(limit, attend(&mut child, &told)).await {
        Ok(Ok((status, _))) if status.success() => Ok(()),
        Ok(Ok((status, said))) => Err(HookError::Failed { kind, path, status, said: one_line(&said, 500) }),
        Ok(Err(error)) => Err(failed(error)),
        Err(_) => {
            let _ = child.kill().await;
            Err(HookError::Timeout { kind, path, limit })
        }
    }
}

fn spawn(hook: &Hook) -> io::Result<Child> {
    let mut command = Command::new(hook.path());
    if let Some([name, arguments @ ..]) = hook.args().as_deref() {
        command.arg0(name).args(arguments);
    }
    let variables = hook.env().iter().flatten().filter_map(|entry| entry.split_once('='));
    command.env_clear().envs(variables);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true).spawn()
}

/// Tells it, hears it, and waits for its end.
async fn attend(child: &mut Child, told: &[u8]) -> io::Result<(ExitStatus, String)> {
    let (stdin, stderr) = (child.stdin.take(), child.stderr.take());
    let tell = async {
        if let Some(mut stdin) = stdin {
            // One that doesn't want to know has closed it.
            let _ = stdin.write_all(told).await;
        }
    };
    let mut said = Vec::new();
    let hear = async {
        if let Some(mut stderr) = stderr {
            let _ = (&mut stderr).take(MAX_SAID_BYTES).read_to_end(&mut said).await;
            // The rest is let through, so that it doesn't die of a closed pipe.
            let _ = tokio::io::copy(&mut stderr, &mut tokio::io::sink()).await;
        }
    };
    let status = {
        let talk = async { tokio::join!(tell, hear) };
        tokio::pin!(talk);
        // A descendant may hold its standard error: the end of the process is what counts.
        let (status, has_said_all) = tokio::select! {
            status = child.wait() => (status?, false),
            _ = &mut talk => (child.wait().await?, true),
        };
        if !status.success() && !has_said_all {
            // What it said last may still be on its way.
            let _ = timeout(LAST_WORDS, talk).await;
        }
        status
    };
    Ok((status, String::from_utf8_lossy(&said).into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::runtime::HookBuilder;

    fn hooks(script: &str, timeout: Option<i64>) -> Hooks {
        let arguments = ["sh", "-c", script].map(String::from);
        let mut hook = HookBuilder::default()
            .path("/bin/sh")
            .args(arguments)
            .env(["PATH=/usr/bin:/bin".to_owned(), "NAME=value".to_owned()]);
        if let Some(seconds) = timeout {
            hook = hook.timeout(seconds);
        }
        let list = vec![hook.build().unwrap()];
        let mut hooks = Hooks::default();
        hooks.set_create_runtime(Some(list.clone())).set_poststop(Some(list));
        hooks
    }

    fn state() -> HookState {
        HookState::new("c1", Path::new("/bundle"), 77, &HashMap::from([("key".to_owned(), "value".to_owned())]))
    }

    #[tokio::test]
    async fn a_hook_is_told_the_state_and_has_its_own_environment_only() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        let script = format!(
            "cat >{0}; echo >>{0}; env | grep -v ^PWD | grep -v ^_ | grep -v SHLVL | sort >>{0}",
            out.display()
        );
        run(&hooks(&script, None), HookKind::CreateRuntime, &state()).await.unwrap();
        let text = std::fs::read_to_string(out).unwrap();
        let (json, environment) = text.split_once('\n').unwrap();
        let json: serde_json::Value = serde_json::from_str(json).unwrap();
        assert_eq!((json["id"].as_str(), json["pid"].as_u64()), (Some("c1"), Some(77)));
        assert_eq!((json["status"].as_str(), json["bundle"].as_str()), (Some("creating"), Some("/bundle")));
        assert_eq!(json["annotations"]["key"], "value");
        assert_eq!(environment, "NAME=value\nPATH=/usr/bin:/bin\n");
    }

    #[tokio::test]
    async fn a_hook_that_fails_is_an_error_with_what_it_said_but_not_after_the_end() {
        let hooks = hooks("echo no network >&2; exit 3", None);
        let error = run(&hooks, HookKind::CreateRuntime, &state()).await.unwrap_err();
        assert_eq!(error.to_string(), "The createRuntime hook /bin/sh failed (exit status: 3): no network");
        run(&hooks, HookKind::Poststop, &state()).await.unwrap();
    }

    #[tokio::test]
    async fn a_hook_that_hangs_or_talks_without_end_is_bounded() {
        let error = run(&hooks("exec sleep 1000", Some(1)), HookKind::CreateRuntime, &state()).await.unwrap_err();
        assert!(matches!(error, HookError::Timeout { .. }), "{error}");
        let talk = "head -c 1000000 /dev/zero | tr '\\0' 'x' >&2; exit 1";
        let error = run(&hooks(talk, None), HookKind::CreateRuntime, &state()).await.unwrap_err();
        assert!(error.to_string().len() < 700, "{}", error.to_string().len());
    }

    #[tokio::test]
    async fn a_descendant_that_keeps_the_streams_open_does_not_hold_up_the_container() {
        let hooks = hooks("sleep 1000 & echo $! >&2; exit 0", Some(60));
        run(&hooks, HookKind::CreateRuntime, &state()).await.unwrap();
    }

    #[tokio::test]
    async fn a_program_that_is_missing_is_named() {
        let mut hook = Hook::default();
        hook.set_path(PathBuf::from("/no/such/hook"));
        let mut hooks = Hooks::default();
        hooks.set_poststart(Some(vec![hook]));
        let error = run(&hooks, HookKind::Poststart, &state()).await.unwrap_err();
        assert_eq!(error.to_string(), "The poststart hook /no/such/hook can't be run");
    }
}
