//! Compares `openapi.yaml` with the server.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests stop at the first surprise")]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::de::{DeserializeOwned, Deserializer, Visitor};
use serde_json::{Value, json};

use super::super::console::ConsolePatch;
use super::super::drives::DrivePatch;
use super::super::machine::{Action, VmPatch};
use super::super::memory::{BalloonPatch, MemoryPatch, StatisticsPatch};
use super::super::network::InterfacePatch;
use super::super::output::{LoggerConfig, MetricsConfig};
use super::super::sockets::VsockPatch;
use super::ROUTES;
use super::tests::Bench;
use crate::config::{
    Balloon, BootSource, Console, ConsolePort, Drive, Entropy, IdRange, MachineConfig, MemoryHotplug, NetworkInterface,
    Pmem, RateLimiter, Share, TokenBucket, VmConfig, Vsock, Watchdog,
};

/// A schema of something that clients send, and its type.
struct Sent {
    schema: &'static str,
    fields: fn() -> BTreeSet<String>,
    accepts: fn(&Value) -> bool,
}

const fn sent<T: DeserializeOwned>(schema: &'static str) -> Sent {
    Sent { schema, fields: fields_of::<T>, accepts: |value| serde_json::from_value::<T>(value.clone()).is_ok() }
}

const SENT: &[Sent] = &[
    sent::<Action>("Action"),
    sent::<VmPatch>("Vm"),
    sent::<VmConfig>("VmConfig"),
    sent::<BootSource>("BootSource"),
    sent::<MachineConfig>("MachineConfig"),
    sent::<Drive>("Drive"),
    sent::<DrivePatch>("DriveUpdate"),
    sent::<RateLimiter>("RateLimiter"),
    sent::<TokenBucket>("TokenBucket"),
    sent::<NetworkInterface>("NetworkInterface"),
    sent::<InterfacePatch>("NetworkInterfaceUpdate"),
    sent::<Share>("Share"),
    sent::<IdRange>("IdRange"),
    sent::<Vsock>("Vsock"),
    sent::<VsockPatch>("VsockUpdate"),
    sent::<Entropy>("Entropy"),
    sent::<Watchdog>("Watchdog"),
    sent::<Console>("Console"),
    sent::<ConsolePort>("ConsolePort"),
    sent::<ConsolePatch>("ConsoleUpdate"),
    sent::<Balloon>("Balloon"),
    sent::<BalloonPatch>("BalloonUpdate"),
    sent::<StatisticsPatch>("BalloonStatisticsUpdate"),
    sent::<MemoryHotplug>("MemoryHotplug"),
    sent::<MemoryPatch>("MemoryHotplugUpdate"),
    sent::<Pmem>("Pmem"),
    sent::<LoggerConfig>("Logger"),
    sent::<MetricsConfig>("Metrics"),
];

fn document() -> Value {
    serde_yaml_ng::from_str(include_str!("../../openapi.yaml")).unwrap()
}

fn schema<'a>(document: &'a Value, name: &str) -> &'a Value {
    let schema = &document["components"]["schemas"][name];
    assert!(schema.is_object(), "no schema {name}");
    schema
}

fn keys(object: &Value) -> BTreeSet<String> {
    object.as_object().map(|members| members.keys().cloned().collect()).unwrap_or_default()
}

fn words(list: &Value) -> BTreeSet<String> {
    list.as_array().into_iter().flatten().map(|word| word.as_str().unwrap().to_owned()).collect()
}

/// The names of a type's fields, asked from its derived `Deserialize`.
fn fields_of<T: DeserializeOwned>() -> BTreeSet<String> {
    let mut names = Vec::new();
    let _ = T::deserialize(Names(&mut names));
    names.into_iter().map(str::to_owned).collect()
}

struct Names<'a>(&'a mut Vec<&'static str>);

#[derive(Debug)]
struct Asked;

impl fmt::Display for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("asked")
    }
}

impl std::error::Error for Asked {}

impl serde::de::Error for Asked {
    fn custom<T: fmt::Display>(_: T) -> Self {
        Self
    }
}

impl<'de> Deserializer<'de> for Names<'_> {
    type Error = Asked;

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Asked> {
        panic!("only structs have named fields")
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        _: V,
    ) -> Result<V::Value, Asked> {
        self.0.extend(fields);
        Err(Asked)
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 u8 u16 u32 u64 f32 f64 char str string bytes byte_buf option unit unit_struct newtype_struct seq tuple
        tuple_struct map enum identifier ignored_any
    }
}

#[test]
fn the_file_has_the_routes_of_the_table_and_no_others() {
    let document = document();
    let mut described = BTreeSet::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for method in keys(item).iter().filter(|key| *key != "parameters") {
            described.insert((method.to_uppercase(), path.clone()));
        }
    }
    let routes: BTreeSet<_> = ROUTES.iter().map(|row| (row.method.to_owned(), row.path.to_owned())).collect();
    assert_eq!(described, routes);
}

#[test]
fn schemas_have_the_fields_of_the_types() {
    let document = document();
    for Sent { schema: name, fields, .. } in SENT {
        assert_eq!(keys(&schema(&document, name)["properties"]), fields(), "{name}");
    }
}

#[test]
fn exactly_the_required_fields_are_required() {
    let document = document();
    for Sent { schema: name, accepts, .. } in SENT {
        let schema = schema(&document, name);
        // The configuration as a whole is made of the examples of its parts.
        let example = if *name == "VmConfig" { whole_config(&document) } else { schema["example"].clone() };
        assert!(accepts(&example), "{name}: {example}");
        let required = words(&schema["required"]);
        for property in keys(&schema["properties"]) {
            let mut without = example.clone();
            without.as_object_mut().unwrap().remove(&property);
            assert_eq!(accepts(&without), !required.contains(&property), "{name} without {property}");
        }
        let mut with_more = example.clone();
        with_more["zz"] = json!(1);
        assert!(!accepts(&with_more), "{name} takes unknown fields");
    }
}

fn whole_config(document: &Value) -> Value {
    let mut config = json!({});
    for (name, property) in schema(document, "VmConfig")["properties"].as_object().unwrap() {
        let example = |reference: &Value| {
            let name = reference["$ref"].as_str().unwrap().rsplit('/').next().unwrap();
            schema(document, name)["example"].clone()
        };
        config[name] = match (property.get("$ref"), property.get("items")) {
            (Some(_), _) => example(property),
            (None, Some(items)) => json!([example(items)]),
            (None, None) => json!("/run/vm/control"),
        };
    }
    config
}

/// All examples of requests, sent to a server in an order in which they are possible.
#[test]
fn the_examples_are_accepted() {
    let document = document();
    let bench = Bench::new();
    let in_dir = |value: &Value| json!(bench.dir.path().join(value.as_str().unwrap().rsplit('/').next().unwrap()));
    let mut examples = BTreeMap::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let content = &operation["requestBody"]["content"]["application/json"]["schema"]["$ref"];
            let Some(reference) = content.as_str() else { continue };
            let name = reference.rsplit('/').next().unwrap();
            let mut example = schema(&document, name)["example"].clone();
            assert!(!example.is_null(), "{name} has no example");
            for field in ["log_path", "metrics_path", "uds_path"] {
                if example[field].is_string() {
                    example[field] = in_dir(&example[field]);
                }
            }
            let path = path.split('/').map(|segment| match segment.strip_prefix('{') {
                Some(name) => example[name.trim_end_matches('}')].as_str().unwrap().to_owned(),
                None => segment.to_owned(),
            });
            let path = path.collect::<Vec<_>>().join("/");
            examples.insert((method.to_uppercase(), path), example);
        }
    }
    // Sent with a VM, or not at all.
    let pause = examples.remove(&("PATCH".to_owned(), "/vm".to_owned())).unwrap();
    assert!(examples.remove(&("PUT".to_owned(), "/actions".to_owned())).is_some());
    for path in ["/network-interfaces/eth0", "/drives/data", "/hotplug/memory"] {
        assert!(examples.remove(&("PATCH".to_owned(), path.to_owned())).is_some());
    }
    // Would move this process's log.
    examples.get_mut(&("PUT".to_owned(), "/logger".to_owned())).unwrap().as_object_mut().unwrap().remove("log_path");
    let (puts, patches): (Vec<_>, Vec<_>) = examples.iter().partition(|((method, _), _)| method == "PUT");
    for ((method, path), example) in puts.into_iter().chain(patches) {
        let (status, answer) = bench.ask(method, path, &example.to_string());
        assert_eq!(status, 204, "{method} {path} {example}: {answer}");
    }
    let config = bench.ask("GET", "/vm/config", "").1;
    assert!(keys(&config).is_superset(&words(&schema(&document, "VmConfig")["required"])), "{config}");

    let bench = Bench::new();
    if bench.start("the_examples_are_accepted") {
        assert_eq!(bench.ask("PATCH", "/vm", &pause.to_string()).0, 204);
    }
}

#[test]
fn answers_fit_their_schemas() {
    let document = document();
    let bench = Bench::new();
    let image = bench.file("image", &[0; 512]);
    for (target, body) in [
        ("/drives/a", json!({ "drive_id": "a", "path_on_host": image })),
        ("/balloon", json!({ "stats_polling_interval_s": 1 })),
        ("/watchdog", json!({})),
        ("/hotplug/memory", json!({ "total_size_mib": 256 })),
        ("/boot-source", json!({ "kernel_image_path": "/k" })),
        ("/vsock", json!({ "guest_cid": 3, "uds_path": bench.dir.path().join("v") })),
    ] {
        assert_eq!(bench.ask("PUT", target, &body.to_string()).0, 204);
    }
    fits_all(&document, &bench);
    if bench.start("answers_fit_their_schemas") {
        fits_all(&document, &bench);
        let body = json!({ "drive_id": "b", "path_on_host": bench.file("b", &[0; 512]) });
        let (status, plugged) = bench.ask("PUT", "/drives/b", &body.to_string());
        assert_eq!(status, 200, "{plugged}");
        fits(&document, &json!({ "$ref": "#/components/schemas/Plugged" }), &plugged, "PUT /drives/b");
    }
    fits(&document, &json!({ "$ref": "#/components/schemas/Fault" }), &bench.ask("GET", "/x", "").1, "404");
}

fn fits_all(document: &Value, bench: &Bench) {
    for (path, item) in document["paths"].as_object().unwrap() {
        let schema = &item["get"]["responses"]["200"]["content"]["application/json"]["schema"];
        if schema.is_null() {
            continue;
        }
        let (status, answer) = bench.ask("GET", path, "");
        if status == 200 {
            fits(document, schema, &answer, path);
        } else {
            assert_eq!((path.as_str(), status), ("/balloon/statistics", 400), "{answer}");
        }
    }
}

/// Objects have the required members and no others than those described, all the way down.
fn fits(document: &Value, schema_here: &Value, value: &Value, place: &str) {
    if let Some(reference) = schema_here["$ref"].as_str() {
        return fits(document, schema(document, reference.rsplit('/').next().unwrap()), value, place);
    }
    let right_type = match schema_here["type"].as_str().unwrap() {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "integer" => value.is_u64(),
        "boolean" => value.is_boolean(),
        other => panic!("type {other}"),
    };
    assert!(right_type, "{place}: {value}");
    if let Some(choice) = schema_here["enum"].as_array() {
        assert!(choice.contains(value), "{place}: {value}");
    }
    for (index, item) in value.as_array().into_iter().flatten().enumerate() {
        fits(document, &schema_here["items"], item, &format!("{place}[{index}]"));
    }
    let missing: Vec<_> = words(&schema_here["required"]).difference(&keys(value)).cloned().collect();
    assert!(missing.is_empty(), "{place} lacks {missing:?}: {value}");
    for (name, member) in value.as_object().into_iter().flatten() {
        let place = format!("{place}.{name}");
        match (schema_here["properties"].get(name), schema_here.get("additionalProperties")) {
            (Some(schema), _) | (None, Some(schema)) => fits(document, schema, member, &place),
            (None, None) => panic!("{place} is not described"),
        }
    }
}
