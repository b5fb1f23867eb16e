//! containerd with Hull as a runtime: what `ctr` does with containerd's own runtime it does with `io.containerd.kata.v2`.

mod cgroups;
mod configuration;
mod cri;
mod cri_life;
pub mod engine;
mod exec;
mod faults;
mod full_disk;
mod grpc;
pub mod harness;
mod images;
mod kills;
mod many;
mod message;
mod network;
mod output;
mod pods;
mod port_forward;
mod redis;
mod run;
mod sizes;
mod storage;
mod tasks;

use engine::Engine;
use harness::Containerd;

/// The newest containerd: a little of everything. Its CRI has a test of its own.
#[test]
fn sid() {
    let scenarios = [
        run::output_exit_codes_and_flags_are_those_of_runc,
        run::a_terminal_is_one,
        exec::processes_run_beside_the_first_with_their_own_streams_and_codes,
        tasks::states_are_those_of_runc_from_the_start_to_the_end,
        tasks::metrics_are_the_container_s,
        images::an_image_is_pulled_from_a_registry_and_run,
    ];
    let containerd = Containerd::of(Engine::Sid);
    for scenario in scenarios {
        scenario(&containerd);
        containerd.assert_nothing_left();
    }
}
