//! The default seccomp profile, with the meaning of Docker's: what is not in the tables fails with EPERM.

use serde_json::{Value, json};

use super::CapabilitySet;
use super::syscalls::{ALWAYS, WITH_CAPABILITY};

/// CLONE_NEWNS, CLONE_NEWCGROUP, CLONE_NEWUTS, CLONE_NEWIPC, CLONE_NEWUSER, CLONE_NEWPID and CLONE_NEWNET.
const CLONE_NAMESPACES: u64 = 0x7e02_0000;
/// The family of sockets between VMs: a container shall not talk to the host or to the agent.
const AF_VSOCK: u64 = 40;
/// Personalities that change nothing that matters: Linux, Linux 32, UNAME26 of both, and the question which it is.
const PERSONALITIES: [u64; 5] = [0x0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// The profile for a container with these capabilities.
pub(super) fn profile(capabilities: &CapabilitySet) -> Value {
    let mut rules =
        vec![allow(ALWAYS), allow_if("socket", &json!({ "index": 0, "value": AF_VSOCK, "op": "SCMP_CMP_NE" }))];
    for personality in PERSONALITIES {
        let is = json!({ "index": 0, "value": personality, "op": "SCMP_CMP_EQ" });
        rules.push(allow_if("personality", &is));
    }
    for (capability, names) in WITH_CAPABILITY {
        if capabilities.contains(capability) {
            rules.push(allow(names));
        }
    }
    if !capabilities.contains("SYS_ADMIN") {
        let no_namespaces = json!({
            "index": 0, "value": CLONE_NAMESPACES, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ",
        });
        rules.push(allow_if("clone", &no_namespaces));
        // Its flags are behind a pointer, where a filter can't look: C libraries fall back to clone.
        rules.push(json!({ "names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": libc::ENOSYS }));
    }
    json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": libc::EPERM,
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "syscalls": rules,
    })
}

fn allow(names: &[&str]) -> Value {
    json!({ "names": names, "action": "SCMP_ACT_ALLOW" })
}

fn allow_if(name: &str, condition: &Value) -> Value {
    json!({ "names": [name], "action": "SCMP_ACT_ALLOW", "args": [condition] })
}
