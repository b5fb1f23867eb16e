//! `hull ps`.

use hull_sandbox::SandboxRecord;
use hull_sandbox::runtime_dir::SandboxStatus;

use crate::args::PsArgs;
use crate::context::Context;
use crate::failure::Failure;
use crate::output::{line, print};
use crate::table;

pub fn list(args: &PsArgs, context: &Context) -> Result<u8, Failure> {
    let records = context.runtime()?.list()?;
    if args.json {
        line(serde_json::to_string_pretty(&records)?)?;
    } else if args.quiet {
        records.iter().try_for_each(|record| line(&record.id))?;
    } else {
        print(&text(&records, table::now_s()))?;
    }
    Ok(0)
}

fn text(records: &[SandboxRecord], now_s: u64) -> String {
    let header = ["CONTAINER ID", "IMAGE", "COMMAND", "CREATED", "STATUS", "VCPUS", "MEMORY", "PID", "NAME"];
    let rows: Vec<_> = records.iter().map(|record| row(record, now_s)).collect();
    table::render(&header, &rows)
}

fn row(record: &SandboxRecord, now_s: u64) -> Vec<String> {
    let status = match record.status {
        SandboxStatus::Starting => "starting",
        SandboxStatus::Running => "running",
    };
    vec![
        record.id.clone(),
        record.image.clone(),
        format!("{:?}", shortened(&record.command.join(" "), 20)),
        table::ago(now_s, record.created_s),
        status.into(),
        record.vcpus.to_string(),
        format!("{} MiB", record.memory_mib),
        record.monitor_pid.to_string(),
        record.name.clone(),
    ]
}

fn shortened(text: &str, characters: usize) -> String {
    match text.char_indices().nth(characters) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text.into(),
    }
}
