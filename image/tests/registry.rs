//! Pulling from registries: a real one on loopback, and one that misbehaves in every way we thought of.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "tests"
)]

mod fixture;
#[path = "fixture/server.rs"]
mod server;

use std::io::Write;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use fixture::{
    INDEX, MANIFEST, Recorder, TestImage, gzip, image, leftovers, line, noise, read_file, runtime, small, tar,
};
use hull_image::{Clock, Error, GetOptions, Image, Limits, NetworkOptions, Platform, PullPolicy, Store};
use server::{Reply, Request, Server};

struct Fixture {
    dir: tempfile::TempDir,
    store: Store,
    recorder: Recorder,
}

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store")).unwrap();
        Fixture { dir, store, recorder: Recorder::default() }
    }

    fn options(&self) -> GetOptions {
        let network = NetworkOptions {
            connect_timeout: Duration::from_secs(5),
            read_timeout: Duration::from_secs(1),
            retries: 3,
            backoff: Duration::from_millis(5),
            ..NetworkOptions::default()
        };
        GetOptions { network, docker_config: Some(self.dir.path().to_owned()), ..GetOptions::default() }
    }

    fn get_with(&self, reference: &str, options: &GetOptions) -> Result<Image, Error> {
        runtime().block_on(self.store.get(&reference.parse()?, options, &self.recorder))
    }

    fn get(&self, server: &Server) -> Result<Image, Error> {
        self.get_with(&format!("{}/repo/app:tag", server.address), &self.options())
    }

    /// The error line, without the part that is always the same. Nothing may be left in the store.
    fn refused(&self, server: &Server) -> String {
        let text = line(&self.get(server).unwrap_err());
        assert_eq!(leftovers(&self.dir.path().join("store")), Vec::<String>::new());
        let address = server.address.to_string();
        text.replace(&address, "HOST").replace("Cannot pull HOST/repo/app:tag: ", "")
    }
}

/// An image with one large layer.
fn large() -> TestImage {
    let content = tar(&[("hello", b"pulled"), ("noise", &noise(1 << 20))]);
    image(&[(content.clone(), gzip(&content))], &Platform::host().architecture)
}

/// Serves an image well.
fn serve(image: &TestImage, request: &Request) -> Reply {
    if request.path.ends_with("/manifests/tag") {
        return Reply::ok(&image.blobs[&image.manifest]).with("Content-Type", MANIFEST);
    }
    let digest = request.path.rsplit('/').next().unwrap();
    match (image.blobs.get(digest), request.range()) {
        (Some(blob), None) => Reply::ok(blob),
        (Some(blob), Some(from)) => Reply::partial(blob, from),
        (None, _) => Reply::status(404),
    }
}

/// A server that does something else for paths which contain `part`; it is told how often it was asked.
fn faulty(
    image: &TestImage,
    part: &str,
    fault: impl Fn(&Request, Reply, usize) -> Reply + Send + Sync + 'static,
) -> Server {
    let (image, part, count) = (image.clone(), part.to_owned(), AtomicUsize::new(0));
    Server::start(move |request| {
        let reply = serve(&image, request);
        if request.path.contains(&part) { fault(request, reply, count.fetch_add(1, Ordering::SeqCst)) } else { reply }
    })
}

#[test]
fn an_image_is_pulled_once() {
    let fixture = Fixture::new();
    let test_image = large();
    let copy = test_image.clone();
    let server = Server::start(move |request| serve(&copy, request));
    let image = fixture.get(&server).unwrap();
    assert_eq!(read_file(&image, "/hello"), b"pulled");
    assert_eq!(image.manifest_digest, test_image.manifest);
    let requests = server.log.lock().unwrap().len();
    assert_eq!(requests, 3);
    assert_eq!(*fixture.recorder.bytes.lock().unwrap(), test_image.blobs[&test_image.layers[0]].len() as u64);
    assert_eq!(fixture.get(&server).unwrap().erofs, image.erofs);
    assert_eq!(server.log.lock().unwrap().len(), requests, "no network for an image that is there");
    let name = format!("{}/repo/app:tag", server.address);
    fixture.get_with(&name, &GetOptions { pull: PullPolicy::Never, ..fixture.options() }).unwrap();
    fixture.get_with(&name, &GetOptions { pull: PullPolicy::Always, ..fixture.options() }).unwrap();
    assert_eq!(server.count(&test_image.layers[0]), 1, "an unchanged layer is not fetched again");
    let never = fixture.get_with("127.0.0.1:1/x", &GetOptions { pull: PullPolicy::Never, ..fixture.options() });
    assert_eq!(line(&never.unwrap_err()), "Image 127.0.0.1:1/x:latest is not in the store");
}

#[test]
fn a_transfer_that_breaks_is_continued_by_range() {
    let fixture = Fixture::new();
    let image = large();
    let server =
        faulty(&image, &image.layers[0].clone(), |_, reply, n| Reply { cut: (n < 3).then_some(200_000), ..reply });
    assert_eq!(read_file(&fixture.get(&server).unwrap(), "/hello"), b"pulled");
    assert_eq!(server.count(&image.layers[0]), 4);
    assert_eq!(fixture.recorder.messages.lock().unwrap().len(), 3);
    assert_eq!(*fixture.recorder.bytes.lock().unwrap(), image.blobs[&image.layers[0]].len() as u64);
}

#[test]
fn a_registry_without_ranges_is_read_again_from_the_start() {
    let fixture = Fixture::new();
    let image = large();
    let blob = image.blobs[&image.layers[0]].clone();
    let server = faulty(&image, &image.layers[0].clone(), move |_, _, n| Reply {
        cut: (n < 3).then_some(200_000 * (n + 1)),
        ..Reply::ok(&blob)
    });
    assert_eq!(read_file(&fixture.get(&server).unwrap(), "/hello"), b"pulled");
}

#[test]
fn a_registry_that_always_stops_in_mid_blob_is_an_error_and_leaves_nothing() {
    let fixture = Fixture::new();
    let image = large();
    let server = faulty(&image, &image.layers[0].clone(), |_, reply, n| Reply {
        cut: Some(if n == 0 { 1000 } else { 0 }),
        ..reply
    });
    let error = fixture.refused(&server);
    assert!(error.contains("broke 4 times, at last after 1000 of"), "{error}");
    let stalling =
        faulty(&image, &image.layers[0].clone(), |_, reply, _| Reply { cut: Some(1000), stall: true, ..reply });
    let error = Fixture::new().refused(&stalling);
    assert!(error.contains("broke 4 times, at last after") && error.ends_with("timed out"), "{error}");
}

/// Seven seconds pass whenever somebody looks.
fn fast_clock() -> Clock {
    let (start, seconds) = (Instant::now(), AtomicU64::new(0));
    Clock::new(move || start + Duration::from_secs(7 * seconds.fetch_add(1, Ordering::SeqCst)))
}

#[test]
fn a_registry_that_drips_bytes_is_given_up_with_its_rate() {
    let image = large();
    let mut options = Fixture::new().options();
    options.network.clock = fast_clock();
    let drip = |_: &Request, reply: Reply, _| Reply { cut: Some(0), drip: true, ..reply };
    let refused = |part: &str| {
        let fixture = Fixture::new();
        let server = faulty(&image, part, drip);
        let error = fixture.get_with(&format!("{}/repo/app:tag", server.address), &options).unwrap_err();
        assert_eq!(leftovers(&fixture.dir.path().join("store")), Vec::<String>::new());
        let text = line(&error).replace(&server.address.to_string(), "HOST");
        let messages = fixture.recorder.messages.lock().unwrap().clone();
        (text, server.count(part), messages)
    };
    let (error, requests, messages) = refused(&image.layers[0]);
    assert!(error.contains("Registry HOST is too slow: ") && error.contains(" bytes of blob sha256:"), "{error}");
    assert!(error.ends_with(" in 63 seconds"), "{error}");
    assert_eq!((requests, messages.len()), (4, 3));
    assert!(messages[0].contains("transfer is too slow after"), "{messages:?}");
    let (error, ..) = refused("/manifests/");
    assert!(error.contains("Registry HOST is too slow: ") && error.contains(" bytes of the manifest in"), "{error}");
    // Slow, but not that slow.
    let fixture = Fixture::new();
    let copy = image.clone();
    let server = Server::start(move |request| serve(&copy, request));
    fixture.get_with(&format!("{}/repo/app:tag", server.address), &options).unwrap();
    assert_eq!(*fixture.recorder.messages.lock().unwrap(), Vec::<String>::new());
}

/// An image with several layers that differ.
fn layers(count: usize, bytes: usize) -> TestImage {
    let layer = |number: usize| {
        let content = tar(&[(&format!("file{number}"), &noise(bytes + number)), ("last", &[number as u8])]);
        (content.clone(), gzip(&content))
    };
    image(&(0..count).map(layer).collect::<Vec<_>>(), &Platform::host().architecture)
}

/// Lets requests wait for one another: how many are inside, and how many were at most.
#[derive(Default)]
struct Gate {
    state: Mutex<(usize, usize)>,
    changed: Condvar,
    given_up: AtomicBool,
}

impl Gate {
    /// Waits until so many were inside at once; not for ever.
    fn enter(&self, wanted: usize) {
        let mut state = self.state.lock().unwrap();
        state.0 += 1;
        state.1 = state.1.max(state.0);
        self.changed.notify_all();
        let missing = |state: &mut (usize, usize)| state.1 < wanted && !self.given_up.load(Ordering::SeqCst);
        let (state, waited) = self.changed.wait_timeout_while(state, Duration::from_secs(10), missing).unwrap();
        drop(state);
        self.given_up.fetch_or(waited.timed_out(), Ordering::SeqCst);
    }

    fn leave(&self) {
        self.state.lock().unwrap().0 -= 1;
    }

    fn most(&self) -> usize {
        self.state.lock().unwrap().1
    }
}

#[test]
fn three_layers_are_fetched_at_once() {
    let fixture = Fixture::new();
    let image = layers(7, 400_000);
    let gate = Arc::new(Gate::default());
    let (copy, inside) = (image.clone(), gate.clone());
    let server = Server::start(move |request| {
        // Nobody is answered before three have asked.
        let layer = copy.layers.iter().any(|layer| request.path.ends_with(layer.as_str()));
        if layer {
            inside.enter(3);
            std::thread::sleep(Duration::from_millis(20));
            inside.leave();
        }
        serve(&copy, request)
    });
    let mut options = fixture.options();
    options.network.read_timeout = Duration::from_secs(600);
    let pulled = fixture.get_with(&format!("{}/repo/app:tag", server.address), &options).unwrap();
    assert_eq!(gate.most(), 3);
    for number in 0..7 {
        assert_eq!(read_file(&pulled, &format!("/file{number}")), noise(400_000 + number));
    }
    assert_eq!(read_file(&pulled, "/last"), [6], "layers are applied in order");
    let short: Vec<String> = image.layers.iter().map(|layer| layer[7..19].to_owned()).collect();
    assert_eq!(*fixture.recorder.started.lock().unwrap(), short);
    assert_eq!(*fixture.recorder.finished.lock().unwrap(), short);
    let bytes: usize = image.layers.iter().map(|layer| image.blobs[layer].len()).sum();
    assert_eq!(*fixture.recorder.bytes.lock().unwrap(), bytes as u64);
}

#[test]
fn layers_that_find_no_room_to_wait_are_fetched_when_their_turn_comes() {
    let image = layers(4, 3 << 20);
    for max_ahead_bytes in [0, 4 << 20] {
        let (fixture, copy) = (Fixture::new(), image.clone());
        let server = Server::start(move |request| serve(&copy, request));
        let options = GetOptions { limits: Limits { max_ahead_bytes, ..Limits::default() }, ..fixture.options() };
        let pulled = fixture.get_with(&format!("{}/repo/app:tag", server.address), &options).unwrap();
        assert_eq!(read_file(&pulled, "/file3"), noise((3 << 20) + 3));
        assert_eq!(read_file(&pulled, "/last"), [3]);
    }
}

#[test]
fn the_first_layer_that_fails_ends_the_others_at_once() {
    let image = layers(5, 300_000);
    // The first layer never comes to an end; the third is refused.
    let (first, third) = (image.layers[0].clone(), image.layers[2].clone());
    let copy = image.clone();
    let server = Server::start(move |request| match serve(&copy, request) {
        reply if request.path.ends_with(&first) => Reply { cut: Some(1000), stall: true, ..reply },
        _ if request.path.ends_with(&third) => Reply::status(418),
        reply => reply,
    });
    let fixture = Fixture::new();
    let mut options = fixture.options();
    options.network.read_timeout = Duration::from_secs(600);
    let error = line(&fixture.get_with(&format!("{}/repo/app:tag", server.address), &options).unwrap_err());
    assert!(error.contains(&format!("Layer {} cannot be unpacked", image.layers[2])), "{error}");
    assert!(error.contains("answered 418"), "{error}");
    assert_eq!(leftovers(&fixture.dir.path().join("store")), Vec::<String>::new());
    // The other way round: a damaged first layer doesn't wait for a third that never ends.
    let (first, third) = (image.layers[0].clone(), image.layers[2].clone());
    let server = Server::start(move |request| match serve(&image, request) {
        mut reply if request.path.ends_with(&first) => {
            reply.body[2000] ^= 1;
            reply
        }
        reply if request.path.ends_with(&third) => Reply { cut: Some(1000), stall: true, ..reply },
        reply => reply,
    });
    let error = line(&fixture.get_with(&format!("{}/repo/app:tag", server.address), &options).unwrap_err());
    assert!(error.contains("The blob is damaged: its digest is"), "{error}");
    assert_eq!(leftovers(&fixture.dir.path().join("store")), Vec::<String>::new());
}

#[test]
fn wrong_content_is_refused() {
    let image = large();
    let flip = |_: &Request, mut reply: Reply, _| {
        let middle = reply.body.len() / 2;
        reply.body[middle] ^= 1;
        reply
    };
    let error = Fixture::new().refused(&faulty(&image, &image.layers[0].clone(), flip));
    assert!(error.contains("The blob is damaged: its digest is sha256:"), "{error}");
    let error = Fixture::new().refused(&faulty(&image, &image.config.clone(), flip));
    assert!(error.contains("The registry sent sha256:"), "{error}");
    let longer = |_: &Request, mut reply: Reply, _| {
        reply.body.extend([0; 100]);
        reply
    };
    let error = Fixture::new().refused(&faulty(&image, &image.layers[0].clone(), longer));
    assert!(error.contains("is longer than the"), "{error}");
    // A wrong range: what comes is not what was asked for, so the digest differs or the size does.
    let blob = image.blobs[&image.layers[0]].clone();
    let wrong = move |_: &Request, reply: Reply, n| match n {
        0 => Reply { cut: Some(1000), ..reply },
        _ => Reply { headers: vec![("Content-Range", "bytes 1000-1/1".into())], ..Reply::partial(&blob, 999) },
    };
    let error = Fixture::new().refused(&faulty(&image, &image.layers[0].clone(), wrong));
    assert!(error.contains("digest") || error.contains("longer"), "{error}");
}

#[test]
fn a_digest_in_the_reference_is_checked() {
    let fixture = Fixture::new();
    let (image, other) = (small("wanted"), small("other"));
    let bytes = other.blobs[&other.manifest].clone();
    let server = faulty(&image, "/manifests/", move |_, _, _| Reply::ok(&bytes));
    let name = format!("{}/repo/app@{}", server.address, image.manifest);
    let error = line(&fixture.get_with(&name, &fixture.options()).unwrap_err());
    assert!(error.contains(&format!("The registry sent {} instead of {}", other.manifest, image.manifest)), "{error}");
}

#[test]
fn what_the_registry_lacks_is_said() {
    let image = large();
    let missing = |_: &Request, _, _| Reply::status(404);
    assert_eq!(
        Fixture::new().refused(&faulty(&image, "/manifests/", missing)),
        "HOST/repo/app:tag does not exist in the registry"
    );
    assert!(Fixture::new().refused(&faulty(&image, &image.layers[0].clone(), missing)).contains("does not exist"));
    let endless = |_: &Request, _, _| Reply::ok(&vec![b' '; 5 << 20]);
    assert_eq!(
        Fixture::new().refused(&faulty(&image, "/manifests/", endless)),
        "The manifest is larger than 4194304 bytes"
    );
    let schema1 = |_: &Request, _, _| Reply::ok(br#"{"schemaVersion":1,"name":"x","tag":"y","fsLayers":[]}"#);
    assert!(Fixture::new().refused(&faulty(&image, "/manifests/", schema1)).contains("schema version 1"));
    let html = |_: &Request, _, _| Reply::ok(b"<html>captive portal</html>").with("Content-Type", "text/html");
    assert!(Fixture::new().refused(&faulty(&image, "/manifests/", html)).starts_with("The manifest is malformed"));
}

#[test]
fn busy_registries_are_asked_again() {
    let image = small("x");
    let busy = |_: &Request, reply, n| match n {
        0 => Reply::status(429).with("Retry-After", "0"),
        1 => Reply::status(503),
        2 => Reply::status(500),
        _ => reply,
    };
    assert!(Fixture::new().get(&faulty(&image, "/manifests/", busy)).is_ok());
    let always = |status| {
        move |_: &Request, _, _| Reply {
            body: br#"{"errors":[{"code":"X","message":"on fire"}]}"#.to_vec(),
            ..Reply::status(status)
        }
    };
    assert!(Fixture::new().refused(&faulty(&image, "/manifests/", always(429))).contains("too many requests"));
    let error = Fixture::new().refused(&faulty(&image, "/manifests/", always(503)));
    assert!(error.ends_with("answered 503 Service Unavailable: on fire"), "{error}");
    let teapot = faulty(&image, "/manifests/", always(418));
    assert!(Fixture::new().refused(&teapot).contains("418"));
    assert_eq!(teapot.count("/manifests/"), 1, "an error that stays is not repeated");
}

#[test]
fn nobody_listening_is_said_at_once() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let fixture = Fixture::new();
    let error = line(&fixture.get_with(&format!("{address}/x"), &fixture.options()).unwrap_err());
    assert!(error.contains(&format!("Cannot reach registry {address}")) && error.contains("refused"), "{error}");
}

/// A registry that wants a token, from a token server that wants a password.
fn guarded(image: &TestImage, password: &'static str, expires: usize) -> Server {
    let (image, address) = (image.clone(), Arc::new(std::sync::OnceLock::<String>::new()));
    let realm = address.clone();
    let (issued, used) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let server = Server::start(move |request| {
        if request.path.starts_with("/token") {
            let authorised = request.header("authorization") == Some(password)
                || (!request.body.is_empty() && String::from_utf8_lossy(&request.body).contains(password));
            let for_this_repository =
                !request.body.is_empty() || request.path.contains("scope=repository%3Arepo%2Fapp%3Apull");
            if !authorised || !for_this_repository {
                return Reply::status(401);
            }
            let number = issued.fetch_add(1, Ordering::SeqCst) + 1;
            used.store(0, Ordering::SeqCst);
            return Reply::ok(format!(r#"{{"access_token":"secret{number}"}}"#).as_bytes());
        }
        let expected = format!("Bearer secret{}", issued.load(Ordering::SeqCst));
        if request.header("authorization") != Some(&expected) || used.fetch_add(1, Ordering::SeqCst) >= expires {
            let challenge = format!("Bearer realm=\"http://{}/token\",service=\"reg\"", realm.get().unwrap());
            return Reply::status(401).with("WWW-Authenticate", challenge);
        }
        serve(&image, request)
    });
    address.set(server.address.to_string()).unwrap();
    server
}

fn login(fixture: &Fixture, config: &str) {
    std::fs::write(fixture.dir.path().join("config.json"), config).unwrap();
}

#[test]
fn tokens_are_fetched_with_dockers_credentials_and_renewed() {
    let fixture = Fixture::new();
    // user:pass
    let server = guarded(&small("private"), "Basic dXNlcjpwYXNz", 2);
    assert_eq!(
        fixture.refused(&server),
        "Registry HOST denies access to repo/app: it may not exist, or `docker login HOST` is needed"
    );
    login(&fixture, &format!(r#"{{"auths":{{"{}":{{"auth":"dXNlcjpwYXNz"}}}}}}"#, server.address));
    assert_eq!(read_file(&fixture.get(&server).unwrap(), "/hello"), b"private");
    assert_eq!(server.count("/token"), 3, "one refusal, one token, one renewal");
}

#[test]
fn identity_tokens_are_exchanged() {
    let fixture = Fixture::new();
    let server = guarded(&small("private"), "refresh_token=idtoken", 100);
    login(&fixture, &format!(r#"{{"auths":{{"{}":{{"identitytoken":"idtoken"}}}}}}"#, server.address));
    assert!(fixture.get(&server).is_ok());
}

#[test]
fn unusable_challenges_are_refused() {
    let image = small("x");
    let challenge = |text: &'static str| move |_: &Request, _, _| Reply::status(401).with("WWW-Authenticate", text);
    for (text, reason) in [
        ("Negotiate", "no Basic or Bearer challenge"),
        ("Bearer realm=\"file:///etc/passwd\"", "the realm is no web address"),
        ("Bearer realm=\"nonsense\"", "the realm is no URL"),
        ("Basic realm=\"x\"", "docker login"),
    ] {
        let error = Fixture::new().refused(&faulty(&image, "/manifests/", challenge(text)));
        assert!(error.contains(reason), "{error}");
    }
    // A token that would break the header.
    let address = Arc::new(std::sync::OnceLock::<String>::new());
    let realm = address.clone();
    let server = Server::start(move |request| match request.path.starts_with("/token") {
        true => Reply::ok(br#"{"token":"a\r\nX-Injected: 1"}"#),
        false => Reply::status(401)
            .with("WWW-Authenticate", format!("Bearer realm=\"http://{}/token\"", realm.get().unwrap())),
    });
    address.set(server.address.to_string()).unwrap();
    assert!(Fixture::new().refused(&server).ends_with("the token is no valid header"));
}

#[test]
fn an_index_is_followed_to_the_platform() {
    let fixture = Fixture::new();
    let image = small("multi");
    let host = Platform::host().architecture;
    let entries = [image.entry(None, Some(("linux", "s390x"))), image.entry(None, Some(("linux", &host)))];
    let index = serde_json::json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}).to_string();
    let server =
        faulty(&image, "/manifests/tag", move |_, _, _| Reply::ok(index.as_bytes()).with("Content-Type", INDEX));
    assert_eq!(read_file(&fixture.get(&server).unwrap(), "/hello"), b"multi");
    let options = GetOptions { platform: Some("linux/mips".parse().unwrap()), ..fixture.options() };
    let error = fixture.get_with(&format!("{}/repo/app:tag", server.address), &options).unwrap_err();
    assert!(
        line(&error).ends_with(&format!("No image for linux/mips; available: linux/{host}, linux/s390x")),
        "{}",
        line(&error)
    );
}

#[test]
fn a_pull_that_is_given_up_leaves_nothing() {
    let fixture = Fixture::new();
    let image = large();
    let server =
        faulty(&image, &image.layers[0].clone(), |_, reply, _| Reply { cut: Some(100_000), stall: true, ..reply });
    let reference = format!("{}/repo/app:tag", server.address).parse().unwrap();
    let mut options = fixture.options();
    options.network.read_timeout = Duration::from_secs(15);
    let runtime = runtime();
    let given_up = runtime.block_on(async {
        tokio::time::timeout(Duration::from_millis(500), fixture.store.get(&reference, &options, &fixture.recorder))
            .await
    });
    assert!(given_up.is_err());
    // The worker notices that nobody waits any more.
    drop(runtime);
    assert_eq!(leftovers(&fixture.dir.path().join("store")), Vec::<String>::new());
}

/// Debian's registry on a free port, stopped at the end.
struct RealRegistry {
    child: std::process::Child,
    address: String,
    _dir: tempfile::TempDir,
}

impl RealRegistry {
    fn start() -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let address = format!("127.0.0.1:{port}");
        let config = format!(
            "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {address}\n",
            dir.path().join("data").display()
        );
        let path = dir.path().join("config.yml");
        std::fs::write(&path, config).unwrap();
        let child = std::process::Command::new("docker-registry")
            .arg("serve")
            .arg(&path)
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn();
        match child {
            Ok(child) => Some(RealRegistry { child, address, _dir: dir }),
            Err(error) => {
                // Not by `eprintln`, which the test harness hides.
                let _ = writeln!(
                    std::io::stderr(),
                    "SKIPPED: docker-registry cannot run ({error}); install the Debian package docker-registry"
                );
                None
            }
        }
    }

    async fn push(&self, image: &TestImage) {
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        let base = format!("http://{}/v2/repo/app", self.address);
        for attempt in 0.. {
            match http.get(format!("http://{}/v2/", self.address)).send().await {
                Ok(_) => break,
                Err(error) => assert!(attempt < 100, "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        for (digest, bytes) in image.blobs.iter().filter(|(digest, _)| **digest != image.manifest) {
            let begun = http.post(format!("{base}/blobs/uploads/")).send().await.unwrap();
            let mut url = reqwest::Url::parse(begun.headers()["location"].to_str().unwrap()).unwrap();
            url.query_pairs_mut().append_pair("digest", digest);
            let done = http
                .put(url)
                .header("Content-Type", "application/octet-stream")
                .body(bytes.clone())
                .send()
                .await
                .unwrap();
            assert_eq!(done.status(), 201);
        }
        let manifest = image.blobs[&image.manifest].clone();
        let done = http
            .put(format!("{base}/manifests/tag"))
            .header("Content-Type", MANIFEST)
            .body(manifest)
            .send()
            .await
            .unwrap();
        assert_eq!(done.status(), 201, "{}", done.text().await.unwrap());
    }
}

impl Drop for RealRegistry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_real_registry_serves_an_image_by_tag_and_by_digest() {
    let Some(registry) = RealRegistry::start() else { return };
    let fixture = Fixture::new();
    let image = large();
    runtime().block_on(registry.push(&image));
    let by_tag = fixture.get_with(&format!("{}/repo/app:tag", registry.address), &fixture.options()).unwrap();
    assert_eq!(read_file(&by_tag, "/hello"), b"pulled");
    let name = format!("localhost:{}/repo/app@{}", registry.address.rsplit(':').next().unwrap(), image.manifest);
    assert_eq!(fixture.get_with(&name, &fixture.options()).unwrap().erofs, by_tag.erofs);
    let error = fixture.get_with(&format!("{}/repo/app:none", registry.address), &fixture.options()).unwrap_err();
    assert!(line(&error).ends_with("/repo/app:none does not exist in the registry"), "{}", line(&error));
}
