//! What the task API answers where no guest is needed: races, and guests that do not do what they are asked.

use containerd_shim_protos::api::{CreateTaskRequest, DeleteRequest, KillRequest, StartRequest, WaitRequest};
use containerd_shim_protos::types::mount::Mount;
use tokio::time::{Duration, timeout};
use ttrpc::Code;

use super::process::{Phase, Process};
use super::shim::{Exec, Task};
use super::*;
use crate::args::Args;
use crate::events::EventQueue;
use crate::stdio::Stdio;

const SOON: Duration = Duration::from_secs(20);

fn shim() -> Arc<Shim> {
    Arc::new(Shim::new(Args::sample(), EventQueue::default()))
}

/// The shim's task `id`, which is nothing in a guest, with the exec'd process `e`.
fn task(shim: &Arc<Shim>, id: &str) -> Arc<Task> {
    let init = Arc::new(Process::new("", Stdio::default()));
    let task = Arc::new(Task::new(id, "/bundle".into(), 1, init, None));
    let process = Arc::new(Process::new("e", Stdio::default()));
    task.add_exec(Exec { process, spec: String::new() }).unwrap();
    assert!(shim.reserve(id).unwrap().fulfil(Arc::clone(&task)));
    task
}

fn delete_request(id: &str, exec_id: &str) -> DeleteRequest {
    DeleteRequest { id: id.into(), exec_id: exec_id.into(), ..Default::default() }
}

/// A waiter for the exec'd process, that waits already.
async fn waiter(shim: &Arc<Shim>) -> tokio::task::JoinHandle<u32> {
    let shim = Arc::clone(shim);
    let waiter = tokio::spawn(async move {
        let request = WaitRequest { id: "c".into(), exec_id: "e".into(), ..Default::default() };
        query::wait(&shim, &request).await.unwrap().exit_status
    });
    tokio::task::yield_now().await;
    waiter
}

async fn answer(waiter: tokio::task::JoinHandle<u32>) -> u32 {
    timeout(SOON, waiter).await.expect("the waiter hears of the end").unwrap()
}

#[tokio::test]
async fn who_waits_for_a_process_that_is_deleted_before_it_starts_hears_of_it() {
    let shim = shim();
    let task = task(&shim, "c");
    let waits = waiter(&shim).await;
    delete::delete(Arc::clone(&shim), delete_request("c", "e")).await.unwrap();
    assert_eq!(answer(waits).await, 0);
    assert!(task.execs().is_empty());
}

#[tokio::test]
async fn who_waits_for_a_process_that_goes_with_its_task_hears_of_it() {
    let shim = shim();
    let task = task(&shim, "c");
    let waits = waiter(&shim).await;
    delete::delete(Arc::clone(&shim), delete_request("c", "")).await.unwrap();
    assert_eq!(answer(waits).await, KILLED);
    assert_eq!(task.init.exit().unwrap().status, KILLED);
    assert_eq!(shim.events.topics(), ["/tasks/exit", "/tasks/delete"]);
}

#[tokio::test]
async fn who_waits_for_a_process_that_can_not_be_started_hears_of_it() {
    let shim = shim();
    task(&shim, "c").init.set_running();
    let waits = waiter(&shim).await;
    let request = StartRequest { id: "c".into(), exec_id: "e".into(), ..Default::default() };
    start::start(Arc::clone(&shim), request).await.unwrap_err();
    assert_eq!(answer(waits).await, 255);
}

#[tokio::test]
async fn a_process_that_is_deleted_while_it_starts_does_not_run() {
    let shim = shim();
    let process = Arc::clone(&task(&shim, "c").exec("e").unwrap().process);
    // As Start holds it while the guest takes its time.
    let turn = process.turn.lock().await;
    timeout(SOON, delete::delete(Arc::clone(&shim), delete_request("c", "e"))).await.unwrap().unwrap();
    assert!(!process.set_running());
    drop(turn);
}

#[tokio::test]
async fn a_task_that_is_being_started_is_not_deleted() {
    let shim = shim();
    let task = task(&shim, "c");
    let turn = task.init.turn.lock().await;
    let delete = tokio::spawn(delete::delete(Arc::clone(&shim), delete_request("c", "")));
    tokio::task::yield_now().await;
    assert_eq!(task.init.phase(), Phase::Created);
    task.init.set_running();
    drop(turn);
    assert_eq!(timeout(SOON, delete).await.unwrap().unwrap().unwrap_err().code, Code::FAILED_PRECONDITION);
    assert!(shim.task("c").is_ok());
}

#[tokio::test]
async fn a_task_that_is_deleted_while_it_is_made_is_remembered_as_unwanted() {
    let shim = shim();
    let creating = shim.reserve("c").unwrap();
    let error = delete::delete(Arc::clone(&shim), delete_request("c", "")).await.unwrap_err();
    assert_eq!(error.code, Code::NOT_FOUND);
    let made = Task::new("c", "/bundle".into(), 1, Arc::new(Process::new("", Stdio::default())), None);
    assert!(!creating.fulfil(Arc::new(made)), "whoever made it has to delete it");
    // That it has no such process says nothing of the task.
    let creating = shim.reserve("d").unwrap();
    delete::delete(Arc::clone(&shim), delete_request("d", "e")).await.unwrap_err();
    let made = Task::new("d", "/bundle".into(), 1, Arc::new(Process::new("", Stdio::default())), None);
    assert!(creating.fulfil(Arc::new(made)));
}

#[tokio::test]
async fn of_a_task_that_has_ended_there_are_no_statistics() {
    let shim = shim();
    let init = Arc::new(Process::new("", Stdio::default()));
    // What has the number of its monitor now is another process: this one.
    let task = Task::new("p", "/bundle".into(), std::process::id(), init, None);
    assert!(shim.reserve("p").unwrap().fulfil(Arc::new(task)));
    assert!(stats::stats(&shim, "p").await.is_ok());
    let kill = KillRequest { id: "p".into(), signal: 9, ..Default::default() };
    kill::kill(Arc::clone(&shim), kill).await.unwrap();
    assert_eq!(stats::stats(&shim, "p").await.unwrap_err().code, Code::NOT_FOUND);
}

#[tokio::test]
async fn a_mount_elsewhere_than_at_the_root_is_refused() {
    let mount = Mount { type_: "bind".into(), target: "etc".into(), ..Default::default() };
    let request = CreateTaskRequest { id: "c".into(), rootfs: vec![mount], ..Default::default() };
    let error = create::create(shim(), request).await.unwrap_err();
    assert_eq!(error.code, Code::INVALID_ARGUMENT);
    assert!(error.message.contains("not etc"), "{error}");
}

#[tokio::test]
async fn a_kill_for_want_of_memory_is_told_before_the_end_and_once() {
    let shim = shim();
    let task = task(&shim, "c");
    let exit = hull_sandbox::Exit { status: 137, signal: 9, oom_killed: true, exited_at_ns: 0 };
    for _ in 0..2 {
        assert_eq!(watch::end_of(&shim, &task, exit).status, KILLED);
    }
    assert_eq!(shim.events.topics(), ["/tasks/oom"]);
}

#[tokio::test]
async fn a_task_whose_caller_is_gone_before_it_is_made_is_unwanted() {
    let shim = shim();
    let made = || Arc::new(Task::new("c", "/bundle".into(), 1, Arc::new(Process::new("", Stdio::default())), None));
    let creating = shim.reserve("c").unwrap();
    drop(Caller { shim: &shim, id: "c".into(), waits: false });
    assert!(creating.fulfil(made()));
    shim.forget("c");
    let creating = shim.reserve("c").unwrap();
    drop(Caller { shim: &shim, id: "c".into(), waits: true });
    assert!(!creating.fulfil(made()), "whoever made it has to delete it");
}
