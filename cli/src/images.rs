//! Images: `hull pull`, `hull images`, `hull rmi`, and the fetch of `hull run`.

use std::path::PathBuf;

use anyhow::Context as _;
use hull_image::{GetOptions, Image, ImageConfiguration, ImageReference, PullPolicy, Store};
use serde_json::json;

use crate::args::{ImagesArgs, Pull, PullArgs, RmiArgs};
use crate::context::{self, Context};
use crate::failure::{FAILED, Failure};
use crate::output::{line, print, say};
use crate::progress::Display;
use crate::run::{request_to_end, signal_code};
use crate::table;

/// How an image is to be fetched.
#[derive(Debug, Clone)]
pub struct Fetch {
    pub pull: Pull,
    pub plain_http: bool,
    pub platform: Option<String>,
    /// Also without a terminal, say what happens.
    pub lines: bool,
}

/// An image that stays in the store while this lives.
#[derive(Debug)]
pub struct Fetched {
    pub config: ImageConfiguration,
    pub erofs: PathBuf,
    image: Image,
}

/// Gets an image into the store. An interrupt stops that, and leaves nothing half-done.
pub async fn fetch(name: &str, how: &Fetch, context: &Context) -> Result<Fetched, Failure> {
    let reference: ImageReference = name.parse()?;
    let options = GetOptions {
        pull: match how.pull {
            Pull::Missing => PullPolicy::Missing,
            Pull::Always => PullPolicy::Always,
            Pull::Never => PullPolicy::Never,
        },
        plain_http: how.plain_http,
        platform: how.platform.as_deref().map(str::parse).transpose().context("--platform")?,
        ..GetOptions::default()
    };
    let store = Store::open(&context.store_root)?;
    let display = Display::new(how.lines);
    let image = tokio::select! {
        image = store.get(&reference, &options, &display) => image?,
        signal = request_to_end() => {
            return Err(Failure::message(signal_code(signal), format!("{name}: interrupted")));
        }
    };
    Ok(Fetched { config: image.config.clone(), erofs: image.erofs.clone(), image })
}

pub fn pull(args: &PullArgs, context: &Context) -> Result<u8, Failure> {
    let how = Fetch {
        pull: Pull::Always,
        plain_http: args.fetch.plain_http,
        platform: args.fetch.platform.clone(),
        lines: !args.quiet,
    };
    let fetched = context::block_on(fetch(&args.image, &how, context))??;
    match args.quiet {
        true => line(&fetched.image.manifest_digest)?,
        false => line(format_args!(
            "{}\ndigest: {}\nsize: {}",
            fetched.image.name,
            fetched.image.manifest_digest,
            table::size(fetched.image.size_bytes)
        ))?,
    }
    Ok(0)
}

pub fn list(args: &ImagesArgs, context: &Context) -> Result<u8, Failure> {
    let records = Store::open(&context.store_root)?.list()?;
    if args.json {
        let images: Vec<_> = records
            .iter()
            .map(|record| {
                json!({
                    "name": record.name,
                    "digest": record.manifest_digest,
                    "platform": record.platform,
                    "size_bytes": record.size_bytes,
                    "updated": record.updated,
                })
            })
            .collect();
        line(serde_json::to_string_pretty(&images)?)?;
    } else if args.quiet {
        records.iter().try_for_each(|record| line(&record.name))?;
    } else {
        let now_s = table::now_s();
        let rows: Vec<_> = records
            .iter()
            .map(|record| {
                vec![
                    record.name.clone(),
                    short_digest(&record.manifest_digest),
                    record.platform.clone(),
                    table::ago(now_s, record.updated),
                    table::size(record.size_bytes),
                ]
            })
            .collect();
        print(&table::render(&["IMAGE", "DIGEST", "PLATFORM", "UPDATED", "SIZE"], &rows))?;
    }
    Ok(0)
}

pub fn remove(args: &RmiArgs, context: &Context) -> Result<u8, Failure> {
    let store = Store::open(&context.store_root)?;
    let mut code = 0;
    for name in &args.images {
        match store.remove(name, args.force) {
            Ok(_) => line(format_args!("removed: {name}"))?,
            Err(error) => {
                say(Failure::new(FAILED, error).line());
                code = FAILED;
            }
        }
    }
    Ok(code)
}

/// Twelve digits, as people know them from Docker.
fn short_digest(digest: &str) -> String {
    let hex = digest.split_once(':').map_or(digest, |(_, hex)| hex);
    hex.chars().take(12).collect()
}
