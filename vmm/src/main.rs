//! `hull-vmm`: one process per VM.

use std::cell::RefCell;
use std::error::Error;
use std::fs::File;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::error::ErrorKind;
use clap::{Args, CommandFactory, Parser, Subcommand};
use hull_vmm::cleanup::Cleanup;
use hull_vmm::config::{self, VmConfig};
use hull_vmm::control::ControlServer;
use hull_vmm::device::Alarm;
use hull_vmm::event_loop::{self, Outcome};
use hull_vmm::events::EventStream;
use hull_vmm::instance::Instance;
use hull_vmm::log::one_line;
use hull_vmm::report::{BootPhase, ExitCause, ExitReport};
use hull_vmm::vm::{EndSignal, Ending};
use hull_vmm::{fd, log, memory, panics};

/// Most open files: what vsock connections need, and 65,000 for each share's files that the guest knows; some must be left for the
/// control socket whatever the guest opens. Nothing in the monitor is sized by it.
const MAX_FILES: u64 = 1 << 20;

/// The descriptors of a killed front door close one after the other: that of the configuration before that of the events.
const CONFIG_GRACE: Duration = Duration::from_secs(1);

/// Hull's virtual machine monitor: runs one VM.
#[derive(Debug, Parser)]
#[command(name = "hull-vmm", version, about, after_help = EXIT_STATUS)]
#[command(args_conflicts_with_subcommands = true, arg_required_else_help = true)]
struct Cli {
    #[command(flatten)]
    firecracker: FirecrackerArgs,
    #[command(subcommand)]
    command: Option<Command>,
}

/// The command line of Firecracker, for programs that start one.
#[derive(Debug, Args)]
struct FirecrackerArgs {
    /// The same as `run --api-sock PATH`, as Firecracker spells it
    #[arg(long, value_name = "PATH")]
    api_sock: Option<PathBuf>,
    /// Name of the VM
    #[arg(long, default_value = DEFAULT_ID, value_parser = vm_name, requires = "api_sock")]
    id: String,
    /// Start with this configuration
    #[arg(long, value_name = "FILE", requires = "api_sock")]
    config_file: Option<PathBuf>,
}

impl From<FirecrackerArgs> for RunArgs {
    fn from(args: FirecrackerArgs) -> Self {
        let source = ConfigSource { config: args.config_file, config_fd: None };
        Self { source, api_sock: args.api_sock, events_fd: None, id: args.id, runtime_dir: None }
    }
}

/// Name of a VM that was given none.
const DEFAULT_ID: &str = "anonymous";

const EXIT_STATUS: &str = "Exit status of run: 0 the guest powered off or was stopped, 1 the VM could not start, \
3 reset, 4 guest kernel panic, 5 triple fault, 6 the monitor failed, 7 watchdog. 2: wrong arguments.";

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a VM until it ends
    Run(RunArgs),
    /// Tell whether this host can run VMs; exit status 0 only if it can
    Probe {
        /// Print a JSON object
        #[arg(long)]
        json: bool,
    },
    /// Tell whether a configuration is valid
    CheckConfig {
        /// JSON file
        file: PathBuf,
    },
}

#[derive(Debug, Args)]
struct RunArgs {
    #[command(flatten)]
    source: ConfigSource,
    /// Serve the control API on this Unix socket; without a configuration, wait there for one, and for the start
    #[arg(long, value_name = "PATH")]
    api_sock: Option<PathBuf>,
    /// Write events, one JSON object a line, to this inherited descriptor; stop when its other end is closed
    #[arg(long, value_name = "N")]
    events_fd: Option<RawFd>,
    /// Name of the VM in answers of the control socket
    #[arg(long, default_value = DEFAULT_ID, value_parser = vm_name)]
    id: String,
    /// Directory of the front door: its files are removed when the events descriptor's other end is closed
    #[arg(long, value_name = "DIR", requires = "events_fd")]
    runtime_dir: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[group(multiple = false)]
struct ConfigSource {
    /// Configuration of the VM, a JSON file
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Configuration of the VM, read from this inherited descriptor to its end
    #[arg(long, value_name = "N")]
    config_fd: Option<RawFd>,
}

impl RunArgs {
    /// Refuses what the parser can't see.
    fn check(&self) {
        self.refuse_shared_descriptor();
        if self.source.is_none() && self.api_sock.is_none() {
            let text =
                "a configuration is needed: --config <FILE>, --config-fd <N>, or --api-sock <PATH> to get one there";
            Cli::command().error(ErrorKind::MissingRequiredArgument, text).exit();
        }
    }

    /// One descriptor can't be both: each is owned, and closed, by what it is for.
    fn refuse_shared_descriptor(&self) {
        if let (Some(events), Some(config)) = (self.events_fd, self.source.config_fd)
            && events == config
        {
            let text = format!("--events-fd and --config-fd must be different descriptors, not both {events}");
            Cli::command().error(ErrorKind::ArgumentConflict, text).exit();
        }
    }
}

fn vm_name(text: &str) -> Result<String, String> {
    let valid = (1..=128).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic());
    if valid { Ok(text.to_owned()) } else { Err("must have 1 to 128 printable ASCII characters".to_owned()) }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let command = cli.command.unwrap_or_else(|| Command::Run(cli.firecracker.into()));
    let result = match command {
        Command::Run(args) => {
            args.check();
            return run(args);
        }
        Command::Probe { json } => return probe(json),
        Command::CheckConfig { file } => check_config(&file),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(error.as_ref());
            ExitCode::FAILURE
        }
    }
}

fn probe(json: bool) -> ExitCode {
    let report = hull_vmm::probe::probe();
    if json {
        // The report has nothing that JSON can't say.
        println!("{}", serde_json::to_string_pretty(&report).unwrap_or_default());
    } else {
        print!("{}", report.to_text());
    }
    if report.can_run_guests { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn check_config(path: &Path) -> Result<()> {
    read_config(&ConfigSource { config: Some(path.to_owned()), config_fd: None })?;
    Ok(())
}

impl ConfigSource {
    fn is_none(&self) -> bool {
        self.config.is_none() && self.config_fd.is_none()
    }
}

/// The configuration, and the control socket that the command line names.
fn read_run_config(args: &RunArgs) -> Result<VmConfig> {
    let mut config = if args.source.is_none() { VmConfig::default() } else { read_config(&args.source)? };
    if args.api_sock.is_some() {
        config.control_socket.clone_from(&args.api_sock);
    }
    config.validate_draft()?;
    Ok(config)
}

fn read_config(source: &ConfigSource) -> Result<VmConfig> {
    let (name, file) = match (&source.config, source.config_fd) {
        (Some(path), _) => {
            let name = path.display().to_string();
            let file = File::open(path).with_context(|| name.clone())?;
            (name, file)
        }
        (None, Some(number)) => {
            let name = format!("config-fd {number}");
            let file = File::from(fd::take_inherited(number).with_context(|| name.clone())?);
            (name, file)
        }
        (None, None) => anyhow::bail!("no configuration"),
    };
    let text = config::read_bounded(file).with_context(|| name.clone())?;
    VmConfig::from_json(&text).context(name)
}

fn run(args: RunArgs) -> ExitCode {
    memory::limit_heap_arenas();
    fd::raise_limit(MAX_FILES);
    let events = match open_events(args.events_fd) {
        Ok(events) => Arc::new(events),
        Err(error) => {
            complain(error.as_ref());
            return exit_code(ExitCause::StartFailed);
        }
    };
    events.phase(BootPhase::MonitorStarted);
    let cleanup = Arc::new(Cleanup::new(args.runtime_dir.clone()));
    let config = match read_run_config(&args) {
        Ok(config) => config,
        Err(error) => return fail_start(&events, &cleanup, error.as_ref(), CONFIG_GRACE),
    };
    end_process_on_panic(events.clone(), cleanup.clone());
    match run_vm(config, args, &events, &cleanup) {
        Ok(report) => {
            let code = exit_code(report.cause);
            if !matches!(report.cause, ExitCause::PowerOff | ExitCause::Stopped) {
                log::line(&report.message);
            }
            events.exited(report);
            code
        }
        Err(error) => fail_start(&events, &cleanup, error.as_ref(), Duration::ZERO),
    }
}

fn open_events(number: Option<RawFd>) -> Result<EventStream> {
    let Some(number) = number else { return Ok(EventStream::none()) };
    let fd = fd::take_inherited(number).with_context(|| format!("events-fd {number}"))?;
    EventStream::over(fd).with_context(|| format!("events-fd {number}"))
}

/// Runs the VM to its end: at once, or when the control API says so.
fn run_vm(config: VmConfig, args: RunArgs, events: &Arc<EventStream>, cleanup: &Arc<Cleanup>) -> Result<ExitReport> {
    event_loop::block_stop_signals().context("signals")?;
    let control = config.control_socket.as_deref().map(ControlServer::bind).transpose()?;
    if let Some(path) = &config.control_socket {
        cleanup.add_socket(path);
    }
    let end = Arc::new(EndSignal::new().context("The host refuses an eventfd")?);
    let alarm = Arc::new(Alarm::new().context("The host refuses a timer")?);
    let mut instance = Instance::new(args.id, config, end.clone(), alarm.clone(), events.clone(), cleanup.clone());
    if !args.source.is_none() {
        instance.start()?;
    }
    let instance = Rc::new(RefCell::new(instance));
    let control = control.map(|server| server.serve(instance.clone()));
    let on_alarm = {
        let instance = instance.clone();
        move || instance.borrow().alarm_rang()
    };
    let outcome = event_loop::run(&end, events.raw_fd(), control, (&alarm, Box::new(on_alarm)));
    let (ending, front_door_gone) = match outcome {
        Ok(Outcome::Ended(ending)) => (ending, false),
        Ok(Outcome::FrontDoorGone) => {
            (Ending { cause: ExitCause::Stopped, message: "The front door went away".to_owned() }, true)
        }
        Err(error) => (Ending { cause: ExitCause::MonitorFailed, message: one_line(&error) }, false),
    };
    let instance = Rc::into_inner(instance).context("the VM is still in use")?.into_inner();
    let report = instance.report(ending);
    // Threads that don't end in time end with the process.
    let _ = instance.shut_down();
    if front_door_gone {
        cleanup.everything();
    } else {
        cleanup.sockets();
    }
    Ok(report)
}

fn fail_start(events: &EventStream, cleanup: &Cleanup, error: &(dyn Error + 'static), grace: Duration) -> ExitCode {
    complain(error);
    events.exited(ExitReport { cause: ExitCause::StartFailed, message: one_line(error), console_tail: String::new() });
    if events.is_hung_up(grace) {
        cleanup.everything();
    } else {
        cleanup.sockets();
    }
    exit_code(ExitCause::StartFailed)
}

fn complain(error: &(dyn Error + 'static)) {
    log::line(&one_line(error));
}

/// A panic in any thread, but for those that are contained, ends the process, with an event, and without sockets left behind.
fn end_process_on_panic(events: Arc<EventStream>, cleanup: Arc<Cleanup>) {
    panics::set_hook(move |message| {
        let report = ExitReport { cause: ExitCause::MonitorFailed, message, console_tail: String::new() };
        events.exited(report);
        cleanup.sockets();
        std::process::abort();
    });
}

fn exit_code(cause: ExitCause) -> ExitCode {
    ExitCode::from(match cause {
        ExitCause::PowerOff | ExitCause::Stopped => 0,
        ExitCause::StartFailed => 1,
        ExitCause::Reset => 3,
        ExitCause::Panic => 4,
        ExitCause::TripleFault => 5,
        ExitCause::MonitorFailed => 6,
        ExitCause::Watchdog => 7,
    })
}
