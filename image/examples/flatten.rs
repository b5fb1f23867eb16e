//! `flatten REFERENCE OUT`: makes an EROFS file of an image, with a line of statistics.

use std::process::ExitCode;

use hull_image::{GetOptions, ImageReference, Progress, Store};

struct Lines;

impl Progress for Lines {
    fn started(&self, item: &str, total_bytes: Option<u64>) {
        eprintln!("{item}: {} bytes", total_bytes.unwrap_or_default());
    }
    fn advanced(&self, _item: &str, _bytes: u64) {}
    fn finished(&self, item: &str) {
        eprintln!("{item}: done");
    }
    fn message(&self, text: &str) {
        eprintln!("{text}");
    }
}

fn run(reference: &str, out: &str) -> Result<(), Box<dyn std::error::Error>> {
    let reference: ImageReference = reference.parse()?;
    let out = std::path::Path::new(out);
    let parent = out.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(std::path::Path::new("."));
    let dir = tempfile::tempdir_in(parent)?;
    let store = Store::open(dir.path())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let started = std::time::Instant::now();
    let image = runtime.block_on(store.get(&reference, &GetOptions::default(), &Lines))?;
    eprintln!("{} {}: {} bytes in {:?}", image.name, image.manifest_digest, image.size_bytes, started.elapsed());
    std::fs::rename(&image.erofs, out)?;
    Ok(())
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, reference, out] = arguments.as_slice() else {
        eprintln!("usage: flatten REFERENCE OUT");
        return ExitCode::from(2);
    };
    match run(reference, out) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let mut text = error.to_string();
            let mut cause = error.source();
            while let Some(current) = cause {
                text.push_str(&format!(": {current}"));
                cause = current.source();
            }
            eprintln!("{text}");
            ExitCode::FAILURE
        }
    }
}
