// Asks the guest kernel for what containers need, by the system calls that they would make. Prints one line for each.
#define _GNU_SOURCE
#include <netinet/in.h>  // before the kernel's headers, which then leave out what it has
#include <errno.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <sys/fanotify.h>
#include <linux/io_uring.h>
#include <linux/landlock.h>
#include <linux/netfilter_ipv4/ip_tables.h>
#include <linux/netlink.h>
#include <linux/vm_sockets.h>
#include <mqueue.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static int failures;

static void report(const char *what, long result) {
  if (result < 0) { printf("FAIL  %s: %s\n", what, strerror(errno)); failures++; } else printf("ok    %s\n", what);
}

static long bpf_device_filter(void) {
  struct bpf_insn program[] = {{.code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = 0, .imm = 1}, {.code = BPF_JMP | BPF_EXIT}};
  union bpf_attr load = {.prog_type = BPF_PROG_TYPE_CGROUP_DEVICE, .insn_cnt = 2, .insns = (unsigned long)program, .license = (unsigned long)"Apache-2.0"};
  int filter = (int)syscall(SYS_bpf, BPF_PROG_LOAD, &load, sizeof load);
  int group = open("/sys/fs/cgroup", O_DIRECTORY);
  union bpf_attr attach = {.target_fd = (unsigned)group, .attach_bpf_fd = (unsigned)filter, .attach_type = BPF_CGROUP_DEVICE, .attach_flags = BPF_F_ALLOW_MULTI};
  return filter < 0 ? filter : syscall(SYS_bpf, BPF_PROG_ATTACH, &attach, sizeof attach);
}

static long iptables_table(int family, int level, const char *name) {
  int s = socket(family, SOCK_RAW, IPPROTO_RAW);
  struct ipt_getinfo info = {0};
  socklen_t length = sizeof info;
  strcpy(info.name, name);
  return getsockopt(s, level, IPT_SO_GET_INFO, &info, &length);
}

// An i386 program: "int $0x80" as it was always done, in a child because it is the program's last act.
static long runs(const char *path) {
  int status;
  pid_t child = fork();
  if (child == 0) { execl(path, path, NULL); _exit(127); }
  waitpid(child, &status, 0);
  errno = ENOEXEC;
  return WIFEXITED(status) && WEXITSTATUS(status) == 42 ? 0 : -1;
}

int main(void) {
  struct io_uring_params ring = {0};
  report("io_uring", syscall(SYS_io_uring_setup, 4, &ring));
  report("BPF device filter of a cgroup", bpf_device_filter());
  report("seccomp filters", prctl(PR_GET_SECCOMP) == 0 ? 0 : -1);
  report("Landlock", syscall(SYS_landlock_create_ruleset, NULL, 0, LANDLOCK_CREATE_RULESET_VERSION));
  report("fanotify with permission events", fanotify_init(FAN_CLASS_CONTENT, O_RDONLY));
  report("userfaultfd", syscall(SYS_userfaultfd, O_CLOEXEC));
  report("memfd", memfd_create("check", 0));
  report("memfd on huge pages", memfd_create("check", MFD_HUGETLB));
  report("memfd_secret", syscall(447, 0));
  report("POSIX message queue", mq_open("/check", O_CREAT | O_RDWR, 0600, NULL));
  report("SysV shared memory", shmget(IPC_PRIVATE, 4096, IPC_CREAT | 0600));
  report("keyring", syscall(SYS_add_key, "user", "check", "x", 1, -4));
  report("protection keys or a processor without", pkey_alloc(0, 0) >= 0 || errno == ENOSPC || errno == EINVAL ? 0 : -1);
  report("vsock", socket(AF_VSOCK, SOCK_STREAM, 0));
  report("IPv6", socket(AF_INET6, SOCK_STREAM, 0));
  report("packet socket", socket(AF_PACKET, SOCK_RAW, 0));
  report("netfilter netlink", socket(AF_NETLINK, SOCK_RAW, NETLINK_NETFILTER));
  report("socket diagnosis netlink", socket(AF_NETLINK, SOCK_RAW, NETLINK_SOCK_DIAG));
  for (const char **table = (const char *[]){"filter", "nat", "mangle", "raw", NULL}; *table; table++) {
    char what[64];
    snprintf(what, sizeof what, "iptables, table %s", *table);
    report(what, iptables_table(AF_INET, IPPROTO_IP, *table));
    snprintf(what, sizeof what, "ip6tables, table %s", *table);
    report(what, iptables_table(AF_INET6, IPPROTO_IPV6, *table));
  }
  report("/dev/fuse", open("/dev/fuse", O_RDWR));
  report("/dev/net/tun", open("/dev/net/tun", O_RDWR));
  report("/dev/loop-control", open("/dev/loop-control", O_RDWR));
  report("32-bit programs", runs("/i386"));
  report("all namespaces", unshare(CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWCGROUP | CLONE_NEWTIME));
  return failures != 0;
}
