use super::*;
use proptest::prelude::*;

const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

fn manifest(config_type: &str, layer_type: &str) -> String {
    format!(
        r#"{{"schemaVersion":2,"config":{{"mediaType":"{config_type}","digest":"{DIGEST}","size":2}},
            "layers":[{{"mediaType":"{layer_type}","digest":"{DIGEST}","size":0}}]}}"#
    )
}

fn error(document: &str) -> String {
    parse_document(document.as_bytes(), None).unwrap_err().to_string()
}

#[test]
fn docker_and_oci_manifests_are_read() {
    for (config, layer) in [
        ("application/vnd.oci.image.config.v1+json", "application/vnd.oci.image.layer.v1.tar+zstd"),
        ("application/vnd.docker.container.image.v1+json", "application/vnd.docker.image.rootfs.diff.tar.gzip"),
    ] {
        let document = parse_document(manifest(config, layer).as_bytes(), None).unwrap();
        assert!(matches!(document, Document::Manifest(manifest) if manifest.layers.len() == 1));
    }
}

#[test]
fn what_is_no_image_is_refused_with_a_reason() {
    assert!(error(r#"{"schemaVersion":1,"fsLayers":[]}"#).contains("schema version 1"));
    assert!(error(r#"{"schemaVersion":2}"#).contains("no configuration"));
    assert!(
        error(r#"{"schemaVersion":2,"mediaType":"application/x-other","layers":[]}"#).contains("application/x-other")
    );
    assert!(error(&manifest("application/vnd.wasm.config.v1+json", "x")).contains("Not a container image"));
    let encrypted = manifest(CONFIG_TYPES[0], "application/vnd.oci.image.layer.v1.tar+gzip+encrypted");
    assert!(error(&encrypted).contains("encrypted"));
    assert_eq!(error("{"), "The manifest is malformed");
    let bad_digest = manifest(CONFIG_TYPES[0], LAYER_TYPES[0]).replace(DIGEST, "sha256:../../../etc/passwd");
    assert_eq!(error(&bad_digest), "The manifest is malformed");
}

fn index(platforms: &[(&str, &str)]) -> Index {
    let entries: Vec<String> = platforms
        .iter()
        .map(|(os, architecture)| {
            format!(r#"{{"digest":"{DIGEST}","size":1,"platform":{{"os":"{os}","architecture":"{architecture}"}}}}"#)
        })
        .collect();
    let text = format!(r#"{{"schemaVersion":2,"manifests":[{}]}}"#, entries.join(","));
    match parse_document(text.as_bytes(), None).unwrap() {
        Document::Index(index) => index,
        Document::Manifest(_) => panic!("not an index"),
    }
}

#[test]
fn an_index_is_searched_for_the_platform_and_says_what_it_has() {
    let amd64: Platform = "linux/amd64".parse().unwrap();
    assert!(index(&[("linux", "arm64"), ("linux", "amd64")]).select(&amd64).is_ok());
    let none = index(&[("linux", "s390x"), ("windows", "amd64"), ("unknown", "unknown")]).select(&amd64).unwrap_err();
    assert_eq!(none.to_string(), "No image for linux/amd64; available: linux/s390x, windows/amd64");
    assert!("linux".parse::<Platform>().is_err());
}

#[test]
fn configurations_are_checked() {
    let wanted: Platform = "linux/amd64".parse().unwrap();
    let parse = |text: &str| parse_config(text.as_bytes(), &wanted, &Limits::default());
    assert_eq!(parse("{}").unwrap_err().to_string(), "The image configuration has no rootfs");
    let text = r#"{"architecture":"arm64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}"#;
    assert_eq!(parse(text).unwrap_err().to_string(), "The image is for linux/arm64, not for linux/amd64");
    let docker = r#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]},"history":null,
        "config":{"Env":null,"Cmd":["sh"],"Volumes":null,"ExposedPorts":{"80/tcp":{}},"OnBuild":null,"Entrypoint":null}}"#;
    let config = parse(docker).unwrap();
    assert_eq!(config.configuration.config().as_ref().unwrap().cmd().as_ref().unwrap(), &["sh".to_owned()]);
    let many = format!(r#"{{"rootfs":{{"diff_ids":[{}]}}}}"#, vec![format!("\"{DIGEST}\""); 600].join(","));
    assert_eq!(parse(&many).unwrap_err().to_string(), "The image has more than 512 layers");
}

proptest! {
    #[test]
    fn random_documents_never_panic(text in r#"[\{\}\[\]":,a-z0-9 ]{0,200}"#, bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = parse_document(text.as_bytes(), None);
        let _ = parse_document(&bytes, Some("application/json"));
        let _ = parse_config(text.as_bytes(), &Platform::host(), &Limits::default());
    }
}
