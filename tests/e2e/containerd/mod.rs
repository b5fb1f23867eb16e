//! containerd with Hull as a runtime: what `ctr` does with containerd's own runtime it does with `io.containerd.kata.v2`.

mod cgroups;
mod configuration;
mod cri;
mod exec;
mod faults;
mod full_disk;
mod grpc;
mod harness;
mod network;
mod output;
mod pods;
mod run;
mod sizes;
mod storage;
mod tasks;
