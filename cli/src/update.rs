//! `hull update`: other limits for containers that run, and other sizes for their VMs.

use hull_sandbox::machine::{Limits, MachineState};
use hull_sandbox::{Machine, RuntimeRoot, SandboxError, SandboxRecord, sizing};

use crate::args::UpdateArgs;
use crate::context::{self, Context};
use crate::failure::{FAILED, Failure};
use crate::find::find;
use crate::output::{line, say};

pub fn update(args: &UpdateArgs, context: &Context) -> Result<u8, Failure> {
    if args.is_empty() {
        return Err(Failure::message(FAILED, "nothing to update; see `hull update --help`"));
    }
    let root = context.runtime()?;
    let mut code = 0;
    for wanted in &args.containers {
        match context::block_on(update_one(&root, wanted, args))? {
            Ok(()) => line(wanted)?,
            Err(failure) => {
                say(failure.line());
                code = FAILED;
            }
        }
    }
    Ok(code)
}

async fn update_one(root: &RuntimeRoot, wanted: &str, args: &UpdateArgs) -> Result<(), Failure> {
    let records = root.list()?;
    let record = find(&records, wanted)?;
    let machine = Machine::attach(root, record).await?;
    let before = machine.state().await?;
    let goal = Goal::new(args, record, before)?;
    // A VM that grows does so before its container may use more; one that shrinks when the container may use less.
    if let Err(error) = carry_out(&machine, root, record, &goal, before).await {
        if goal.more_cpus(before) {
            let _ = machine.set_cpus(cpu_count(before.online_cpus)).await;
        }
        return Err(error);
    }
    Ok(())
}

async fn carry_out(
    machine: &Machine,
    root: &RuntimeRoot,
    record: &SandboxRecord,
    goal: &Goal,
    before: MachineState,
) -> Result<(), Failure> {
    let grows = goal.memory_mib.is_some_and(|mib| mib > record.memory_mib);
    if goal.more_cpus(before) {
        set_cpus(machine, root, record, goal).await?;
    }
    if grows {
        set_memory(machine, root, record, goal).await?;
    }
    if goal.limits != Limits::default() {
        let limited = machine.update_container(&record.id, goal.limits).await;
        if let Err(error) = limited {
            if grows {
                let _ = set_memory(machine, root, record, &Goal { memory_mib: Some(record.memory_mib), ..*goal }).await;
            }
            return Err(error.into());
        }
    }
    if !goal.more_cpus(before) {
        set_cpus(machine, root, record, goal).await?;
    }
    if !grows {
        set_memory(machine, root, record, goal).await?;
    }
    Ok(())
}

async fn set_cpus(
    machine: &Machine,
    root: &RuntimeRoot,
    record: &SandboxRecord,
    goal: &Goal,
) -> Result<(), SandboxError> {
    let Some(count) = goal.cpus else { return Ok(()) };
    machine.set_cpus(count).await?;
    root.change_record(&record.id, |record| record.vcpus = count)
}

async fn set_memory(machine: &Machine, root: &RuntimeRoot, record: &SandboxRecord, goal: &Goal) -> Result<(), Failure> {
    let Some(mib) = goal.memory_mib else { return Ok(()) };
    let change = machine.set_memory(mib).await?;
    root.change_record(&record.id, |record| record.memory_mib = change.now_mib)?;
    if change.now_mib > change.asked_mib {
        let (now, asked) = (change.now_mib, change.asked_mib);
        let text = format!("the guest gave back memory down to {now} MiB only, not to {asked} MiB: the rest is in use");
        return Err(Failure::message(FAILED, text));
    }
    Ok(())
}

/// What shall be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Goal {
    cpus: Option<u8>,
    memory_mib: Option<u32>,
    limits: Limits,
}

impl Goal {
    /// A VM follows its container's limits up only: down it goes when it is asked to.
    fn new(args: &UpdateArgs, record: &SandboxRecord, now: MachineState) -> anyhow::Result<Self> {
        let online = cpu_count(now.online_cpus);
        let cpus = match (args.vcpus, args.cpus) {
            (Some(vcpus), Some(cpus)) if cpus.rounded_up() > vcpus => {
                anyhow::bail!("--vcpus {vcpus} is less than the container's --cpus; leave --vcpus out")
            }
            (Some(vcpus), _) => Some(vcpus),
            (None, cpus) => cpus.map(|cpus| cpus.rounded_up()).filter(|needed| *needed > online),
        };
        if let (Some(vm), Some(limit)) = (args.vm_memory, args.memory)
            && vm.bytes() < limit.bytes()
        {
            anyhow::bail!("--vm-memory {vm} is less than the container's --memory {limit}; leave one of them out");
        }
        let needed = args.memory.map(|limit| sizing::Defaults::default().memory_mib(None, Some(limit)));
        let memory_mib = match args.vm_memory {
            Some(asked) => Some(asked.mib_rounded_up()),
            None => needed.filter(|needed| *needed > record.memory_mib),
        };
        let limits = Limits {
            memory_bytes: args.memory.map(|size| i64::try_from(size.bytes()).unwrap_or(i64::MAX)),
            cpu_quota_us: args.cpus.map(|cpus| cpus.quota_us()),
            pids: args.pids_limit.map(|limit| limit.0.map_or(-1, i64::from)),
        };
        if let Some(cpus) = cpus
            && u32::from(cpus) > now.present_cpus
        {
            let most = now.present_cpus;
            anyhow::bail!("the VM has at most {most} processors, not {cpus}; start it with --max-vcpus {cpus}");
        }
        if let Some(mib) = memory_mib.filter(|mib| *mib > record.max_memory_mib.max(record.memory_mib)) {
            let most = record.max_memory_mib;
            anyhow::bail!("the VM has at most {most} MiB, not {mib}; start it with --max-memory {mib}m");
        }
        Ok(Self { cpus, memory_mib, limits })
    }

    fn more_cpus(&self, before: MachineState) -> bool {
        self.cpus.is_some_and(|cpus| u32::from(cpus) > before.online_cpus)
    }
}

fn cpu_count(count: u32) -> u8 {
    u8::try_from(count).unwrap_or(u8::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Cli, Command};
    use crate::find::tests::record;
    use clap::Parser;

    fn goal(args: &[&str]) -> anyhow::Result<Goal> {
        let cli = Cli::try_parse_from(["hull", "update"].iter().chain(args).chain(&["web"])).unwrap();
        let Command::Update(args) = cli.command else { unreachable!() };
        let state = MachineState { online_cpus: 2, present_cpus: 4, memory_total_bytes: 0, memory_available_bytes: 0 };
        Goal::new(&args, &SandboxRecord { memory_mib: 256, max_memory_mib: 1024, ..record("ab1", "web") }, state)
    }

    #[test]
    fn the_vm_follows_its_container_up_but_not_down() {
        let up = goal(&["--cpus", "1", "--memory", "512m"]).unwrap();
        assert_eq!((up.cpus, up.memory_mib), (None, Some(512 + 8 + 64)));
        assert_eq!((up.limits.cpu_quota_us, up.limits.memory_bytes), (Some(100_000), Some(512 << 20)));
        let down = goal(&["--cpus", "0.5", "--memory", "50m", "--pids-limit", "-1"]).unwrap();
        assert_eq!((down.cpus, down.memory_mib, down.limits.pids), (None, None, Some(-1)));
        let asked = goal(&["--vcpus", "1", "--vm-memory", "128m"]).unwrap();
        assert_eq!((asked.cpus, asked.memory_mib, asked.limits), (Some(1), Some(128), Limits::default()));
    }

    #[test]
    fn what_can_not_be_is_refused_before_anything_changes() {
        assert!(goal(&["--vcpus", "5"]).unwrap_err().to_string().contains("at most 4 processors"));
        assert!(goal(&["--vcpus", "1", "--cpus", "2"]).unwrap_err().to_string().contains("--vcpus 1 is less"));
        assert!(goal(&["--vm-memory", "64m", "--memory", "65m"]).unwrap_err().to_string().contains("is less"));
        for args in [["--vm-memory", "1025m"], ["--memory", "947m"]] {
            let error = goal(&args).unwrap_err().to_string();
            assert!(error.contains("at most 1024 MiB") && error.contains("--max-memory 1025m"), "{error}");
        }
        assert_eq!(goal(&["--memory", "946m"]).unwrap().memory_mib, Some(1024));
    }
}
