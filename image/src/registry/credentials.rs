//! Credentials from docker's `config.json` and its credential helpers.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use base64::Engine as _;
use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Largest `config.json` and largest answer of a helper.
const MAX_BYTES: u64 = 1 << 20;
/// A helper may ask the user something, but not for ever.
const HELPER_TIMEOUT: Duration = Duration::from_secs(60);
/// The name under which docker keeps Docker Hub's credentials.
const DOCKER_HUB: &str = "https://index.docker.io/v1/";

/// Why credentials can't be read.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// The file can't be read.
    #[error("Cannot read {path}")]
    Read {
        /// Docker's configuration.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The file isn't what docker writes.
    #[error("{path} is malformed")]
    Malformed {
        /// Docker's configuration.
        path: PathBuf,
        /// The cause.
        source: serde_json::Error,
    },
    /// An `auth` entry isn't `base64(user:password)`.
    #[error("The credentials for {0} in docker's configuration are malformed")]
    BadEntry(String),
    /// The helper can't be started, or doesn't answer.
    #[error("Credential helper {helper} cannot be run")]
    Helper {
        /// Program name.
        helper: String,
        /// The cause.
        source: std::io::Error,
    },
    /// The helper failed.
    #[error("Credential helper {helper} failed: {message}")]
    HelperFailed {
        /// Program name.
        helper: String,
        /// What it says.
        message: String,
    },
}

/// How to authenticate.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Credentials {
    Anonymous,
    Password {
        user: String,
        password: String,
    },
    /// An OAuth2 refresh token, exchanged at the token server.
    IdentityToken(String),
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct DockerConfig {
    #[serde(default)]
    auths: HashMap<String, AuthEntry>,
    #[serde(default)]
    creds_store: Option<String>,
    #[serde(default)]
    cred_helpers: HashMap<String, String>,
}

#[derive(Default, Deserialize)]
struct AuthEntry {
    #[serde(default)]
    auth: String,
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
    #[serde(default)]
    identitytoken: String,
}

#[derive(Deserialize)]
struct HelperReply {
    #[serde(rename = "Username")]
    username: String,
    #[serde(rename = "Secret")]
    secret: String,
}

/// Credentials for a registry, in docker's order: its own helper, the general store, the file.
pub(super) async fn load(registry: &str, config_dir: Option<&Path>) -> Result<Credentials, CredentialsError> {
    let Some(path) = config_path(config_dir) else { return Ok(Credentials::Anonymous) };
    let config = read_config(&path)?;
    let keys = keys(registry);
    let helper = keys.iter().find_map(|key| config.cred_helpers.get(key)).or(config.creds_store.as_ref());
    if let Some(helper) = helper.filter(|helper| !helper.is_empty()) {
        // Docker asks for the Hub by its historic URL and for others by host.
        let key = keys.first().map_or(registry, String::as_str);
        if let Some(credentials) = ask_helper(helper, key).await? {
            return Ok(credentials);
        }
    }
    for key in &keys {
        if let Some(entry) = config.auths.get(key) {
            return from_entry(key, entry);
        }
    }
    Ok(Credentials::Anonymous)
}

fn config_path(config_dir: Option<&Path>) -> Option<PathBuf> {
    let dir = match config_dir {
        Some(dir) => dir.to_owned(),
        None => match std::env::var_os("DOCKER_CONFIG").filter(|dir| !dir.is_empty()) {
            Some(dir) => dir.into(),
            None => Path::new(&std::env::var_os("HOME").filter(|home| !home.is_empty())?).join(".docker"),
        },
    };
    Some(dir.join("config.json"))
}

fn read_config(path: &Path) -> Result<DockerConfig, CredentialsError> {
    use std::io::Read as _;
    let failed = |source| CredentialsError::Read { path: path.to_owned(), source };
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(DockerConfig::default()),
        Err(error) => return Err(failed(error)),
    };
    let mut bytes = Vec::new();
    file.take(MAX_BYTES).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Ok(DockerConfig::default());
    }
    serde_json::from_slice(&bytes).map_err(|source| CredentialsError::Malformed { path: path.to_owned(), source })
}

/// Names under which a registry's credentials may stand.
fn keys(registry: &str) -> Vec<String> {
    let mut keys = Vec::new();
    if matches!(registry, "docker.io" | "index.docker.io" | "registry-1.docker.io") {
        keys.push(DOCKER_HUB.to_owned());
        keys.extend(["docker.io", "index.docker.io", "registry-1.docker.io"].map(str::to_owned));
    } else {
        keys.push(registry.to_owned());
    }
    for scheme in ["https", "http"] {
        for tail in ["", "/", "/v1/", "/v2/"] {
            keys.push(format!("{scheme}://{registry}{tail}"));
        }
    }
    keys
}

fn from_entry(key: &str, entry: &AuthEntry) -> Result<Credentials, CredentialsError> {
    if !entry.identitytoken.is_empty() {
        return Ok(Credentials::IdentityToken(entry.identitytoken.clone()));
    }
    if !entry.username.is_empty() {
        let (user, password) = (entry.username.clone(), entry.password.clone());
        return Ok(Credentials::Password { user, password });
    }
    // `docker login` with a store leaves empty entries.
    if entry.auth.is_empty() {
        return Ok(Credentials::Anonymous);
    }
    let bad = || CredentialsError::BadEntry(key.to_owned());
    let decoded = base64::engine::general_purpose::STANDARD.decode(entry.auth.trim()).map_err(|_| bad())?;
    let text = String::from_utf8(decoded).map_err(|_| bad())?;
    let (user, password) = text.split_once(':').ok_or_else(bad)?;
    Ok(Credentials::Password { user: user.to_owned(), password: password.trim_end_matches('\0').to_owned() })
}

/// Runs `docker-credential-NAME get`; `None` if it has nothing for the registry.
async fn ask_helper(name: &str, key: &str) -> Result<Option<Credentials>, CredentialsError> {
    let helper = format!("docker-credential-{name}");
    let failed = |source| CredentialsError::Helper { helper: helper.clone(), source };
    if name.contains('/') {
        return Err(failed(std::io::ErrorKind::InvalidInput.into()));
    }
    let run = run_helper(&helper, key);
    let timed_out = |_| failed(std::io::ErrorKind::TimedOut.into());
    let (success, output) = tokio::time::timeout(HELPER_TIMEOUT, run).await.map_err(timed_out)?.map_err(failed)?;
    if !success {
        let message = crate::tree::printable(String::from_utf8_lossy(&output).trim().as_bytes());
        // The text that docker's helpers and docker agree on.
        if message.contains("credentials not found") {
            return Ok(None);
        }
        return Err(CredentialsError::HelperFailed { helper, message });
    }
    let reply: Result<HelperReply, _> = serde_json::from_slice(&output);
    match reply {
        Ok(reply) if reply.username == "<token>" => Ok(Some(Credentials::IdentityToken(reply.secret))),
        Ok(reply) => Ok(Some(Credentials::Password { user: reply.username, password: reply.secret })),
        Err(_) => Err(CredentialsError::HelperFailed { helper, message: "malformed answer".to_owned() }),
    }
}

async fn run_helper(helper: &str, key: &str) -> std::io::Result<(bool, Vec<u8>)> {
    let mut child = tokio::process::Command::new(helper)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .kill_on_drop(true)
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        // A helper that doesn't read its input may have closed it already.
        let _ = stdin.write_all(format!("{key}\n").as_bytes()).await;
    }
    let mut output = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        stdout.take(MAX_BYTES).read_to_end(&mut output).await?;
    }
    Ok((child.wait().await?.success(), output))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load_from(config: &str, registry: &str) -> Result<Credentials, CredentialsError> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.json"), config).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(load(registry, Some(dir.path())))
    }

    fn password(user: &str, password: &str) -> Credentials {
        Credentials::Password { user: user.to_owned(), password: password.to_owned() }
    }

    #[test]
    fn the_file_is_searched_under_the_names_docker_uses() {
        let config = r#"{"auths":{"https://index.docker.io/v1/":{"auth":"dTpwOng="},"reg:5000":{"auth":"YTpi"},
            "https://old.example/v2/":{"username":"n","password":"w"},"t":{"identitytoken":"tok"},"empty":{}}}"#;
        assert!(load_from(config, "docker.io").unwrap() == password("u", "p:x"));
        assert!(load_from(config, "reg:5000").unwrap() == password("a", "b"));
        assert!(load_from(config, "old.example").unwrap() == password("n", "w"));
        assert!(load_from(config, "t").unwrap() == Credentials::IdentityToken("tok".to_owned()));
        assert!(load_from(config, "empty").unwrap() == Credentials::Anonymous);
        assert!(load_from(config, "other").unwrap() == Credentials::Anonymous);
        assert!(load_from("", "other").unwrap() == Credentials::Anonymous);
    }

    #[test]
    fn bad_configurations_are_errors_without_secrets() {
        assert!(load_from("{", "x").err().unwrap().to_string().ends_with("config.json is malformed"));
        let error = load_from(r#"{"auths":{"x":{"auth":"c2VjcmV0"}}}"#, "x").err().unwrap();
        assert_eq!(error.to_string(), "The credentials for x in docker's configuration are malformed");
        let error = load_from(r#"{"credHelpers":{"x":"none-such"}}"#, "x").err().unwrap();
        assert_eq!(error.to_string(), "Credential helper docker-credential-none-such cannot be run");
        let error = load_from(r#"{"credsStore":"../x"}"#, "x").err().unwrap();
        assert!(error.to_string().contains("cannot be run"));
    }
}
