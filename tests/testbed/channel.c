// The two ends of the testbed's one channel: a virtio-serial port on one side, a socket of QEMU's on the other.
//
//   channel host TIMEOUT_S TTY_0_OR_1 DIRECTORY ENVIRONMENT_FILE COMMAND_COUNT COMMAND... QEMU...
//   channel guest
//
// The host end starts QEMU (which finds the socket as file descriptor 3), sends the command and passes the standard
// streams. The guest end is process 1 of the testbed: it runs the command and reports how it ended. Frames are
// {type, length, bytes}; the exit status is the last frame, so nothing written before it can be lost.
//
// Exit status of the host end: the command's own (128 + signal if it was killed), or 124 when time ran out, 125 when
// the testbed failed, 126/127 when the command could not be started, and NOT_BOOTED when the guest end never spoke.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <poll.h>
#include <pty.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

enum { TIME_OUT = 124, TESTBED_FAILED = 125, NOT_BOOTED = 201, BOOT_LIMIT_S = 120, QEMU_FD = 3 };
// Host to guest: words of the command, then RUN, then STDIN as often as the guest asks by WANT. Guest to host: the rest.
enum { DIRECTORY = 'd', ENVIRONMENT = 'e', WORD = 'w', RUN = 'r', STDIN = 'i', HELLO = 'H', WANT = 'W', STDOUT = 'o', STDERR = 'E', EXIT = 'x' };

struct header { uint32_t type, length; };
static char data[1 << 16];

static int write_all(int fd, const void *bytes, size_t length) {
  const char *at = bytes;
  while (length > 0) {
    ssize_t n = write(fd, at, length);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && errno == EAGAIN) { struct pollfd p = {fd, POLLOUT, 0}; poll(&p, 1, -1); continue; }
    if (n <= 0) return -1;
    at += n; length -= (size_t)n;
  }
  return 0;
}

static int read_all(int fd, void *bytes, size_t length) {
  char *at = bytes;
  while (length > 0) {
    ssize_t n = read(fd, at, length);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && errno == EAGAIN) { struct pollfd p = {fd, POLLIN, 0}; poll(&p, 1, -1); continue; }
    if (n <= 0) return -1;
    at += n; length -= (size_t)n;
  }
  return 0;
}

static int send_frame(int fd, uint32_t type, const void *bytes, size_t length) {
  static char frame[sizeof(struct header) + sizeof data];
  struct header header = {type, (uint32_t)length};
  if (length > sizeof data) { errno = E2BIG; return -1; }
  memcpy(frame, &header, sizeof header);
  memcpy(frame + sizeof header, bytes, length);
  return write_all(fd, frame, sizeof header + length);
}

static int receive_frame(int fd, struct header *header) {
  if (read_all(fd, header, sizeof *header) || header->length > sizeof data) return -1;
  return read_all(fd, data, header->length);
}

// ---------------------------------------------------------------------------------------------------------- host --

static pid_t qemu;
static volatile sig_atomic_t booted, time_limit_s;
static int raw_terminal;
static struct termios saved_terminal;

static void restore_terminal(void) { if (raw_terminal) tcsetattr(0, TCSANOW, &saved_terminal); }

static void end_qemu(void) { kill(qemu, SIGKILL); waitpid(qemu, NULL, 0); }

static void on_signal(int number) {
  restore_terminal();
  kill(qemu, SIGKILL);
  signal(number, SIG_DFL);
  raise(number);
}

static void on_alarm(int number) {
  static const char message[] = "\ntestbed: the time limit is over; the testbed was ended (--timeout SECONDS)\n";
  (void)number;
  restore_terminal();
  kill(qemu, SIGKILL);
  if (!booted) _exit(NOT_BOOTED);
  if (write(2, message, sizeof message - 1) < 0) { /* nobody listens */ }
  _exit(TIME_OUT);
}

static void start_qemu(char **command) {
  int ends[2];
  pid_t parent = getpid();
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends)) { perror("testbed: socketpair"); exit(TESTBED_FAILED); }
  qemu = fork();
  if (qemu == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) _exit(TESTBED_FAILED);
    setpgid(0, 0);
    int null = open("/dev/null", O_RDWR);
    dup2(null, 0); dup2(2, 1);
    if (ends[1] == QEMU_FD) fcntl(QEMU_FD, F_SETFD, 0); else dup2(ends[1], QEMU_FD);
    execvp(command[0], command);
    fprintf(stderr, "testbed: %s: %s\n", command[0], strerror(errno));
    _exit(127);
  }
  close(ends[1]);
  // Out of the way of QEMU's number.
  int channel = fcntl(ends[0], F_DUPFD_CLOEXEC, 10);
  close(ends[0]);
  dup2(channel, 9);
  close(channel);
  fcntl(9, F_SETFD, FD_CLOEXEC);
}

static void must_send(uint32_t type, const char *text) {
  if (send_frame(9, type, text, strlen(text))) {
    fprintf(stderr, "testbed: cannot send the command: %s\n", strerror(errno));
    end_qemu();
    exit(TESTBED_FAILED);
  }
}

static void send_command(char **argv, int count) {
  FILE *environment = fopen(argv[2], "r");
  size_t size = 0;
  char *line = NULL;
  must_send(DIRECTORY, argv[1]);
  while (environment && getdelim(&line, &size, 0, environment) > 0) must_send(ENVIRONMENT, line);
  for (int i = 0; i < count; i++) must_send(WORD, argv[4 + i]);
  must_send(RUN, argv[0]);
}

static int host(int argc, char **argv) {
  if (argc < 8) return TESTBED_FAILED;
  char **rest = argv + 3;
  int count = atoi(rest[3]);
  int wants_input = 0, channel = 9;
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  time_limit_s = atoi(argv[2]);
  signal(SIGINT, on_signal); signal(SIGTERM, on_signal); signal(SIGHUP, on_signal);
  signal(SIGALRM, on_alarm); signal(SIGPIPE, SIG_IGN);
  start_qemu(rest + 4 + count);
  alarm(time_limit_s < BOOT_LIMIT_S ? (unsigned)time_limit_s : BOOT_LIMIT_S);

  for (;;) {
    struct pollfd fds[2] = {{channel, POLLIN, 0}, {wants_input ? 0 : -1, POLLIN, 0}};
    if (poll(fds, 2, -1) < 0) continue;
    if (fds[1].revents) {
      ssize_t n = read(0, data, sizeof data);
      send_frame(channel, STDIN, data, n > 0 ? (size_t)n : 0);
      wants_input = 0;
    }
    if (!fds[0].revents) continue;
    struct header header;
    if (receive_frame(channel, &header)) break;
    switch (header.type) {
    case HELLO:
      booted = 1;
      alarm((unsigned)time_limit_s);
      if (rest[0][0] == '1' && tcgetattr(0, &saved_terminal) == 0) {
        struct termios raw = saved_terminal;
        cfmakeraw(&raw);
        raw_terminal = tcsetattr(0, TCSANOW, &raw) == 0;
      }
      send_command(rest, count);
      break;
    case WANT: wants_input = 1; break;
    case STDOUT: write_all(1, data, header.length); break;
    case STDERR: write_all(2, data, header.length); break;
    case EXIT: restore_terminal(); end_qemu(); return (unsigned char)data[0];
    }
  }
  restore_terminal();
  end_qemu();
  if (!booted) return NOT_BOOTED;
  fprintf(stderr, "testbed: the testbed's machine ended before the command did\n");
  return TESTBED_FAILED;
}

// --------------------------------------------------------------------------------------------------------- guest --

static char *words[4096], *variables[4096], *directory;

static void receive_command(int channel, int *tty) {
  struct header header;
  int word_count = 0, variable_count = 0;
  for (;;) {
    if (receive_frame(channel, &header)) { perror("testbed: channel"); for (;;) pause(); }
    char *text = strndup(data, header.length);
    if (header.type == DIRECTORY) directory = text;
    else if (header.type == ENVIRONMENT && variable_count < 4095) variables[variable_count++] = text;
    else if (header.type == WORD && word_count < 4095) words[word_count++] = text;
    else if (header.type == RUN) { *tty = text[0] == '1'; return; }
  }
}

static void run_command(int tty) {
  struct rlimit files = {1024, 1 << 20};
  setrlimit(RLIMIT_NOFILE, &files);
  setsid();
  if (tty) ioctl(0, TIOCSCTTY, 0);
  if (chdir(directory)) {
    fprintf(stderr, "testbed: working directory %s: %s (/run is empty in the testbed; the host's is /host/run)\n", directory, strerror(errno));
    _exit(126);
  }
  environ = variables;
  execvp(words[0], words);
  fprintf(stderr, "testbed: %s: %s\n", words[0], strerror(errno));
  _exit(errno == ENOENT ? 127 : 126);
}

// Passes what a pipe holds; closes it at its end. Returns whether there was anything.
static int pass(int channel, int *fd, uint32_t type) {
  if (*fd < 0) return 0;
  ssize_t n = read(*fd, data, sizeof data);
  if (n > 0) { send_frame(channel, type, data, (size_t)n); return 1; }
  if (n < 0 && (errno == EAGAIN || errno == EINTR)) return 0;
  close(*fd);
  *fd = -1;
  return 0;
}

// The port's device node is numbered by the driver. It appears a moment after the driver has started.
static int open_port(void) {
  for (int tries = 0; tries < 100; tries++, usleep(100000)) {
    glob_t found;
    if (glob("/dev/vport*p1", 0, NULL, &found)) continue;
    int port = open(found.gl_pathv[0], O_RDWR | O_CLOEXEC);
    if (port >= 0) return port;
  }
  fprintf(stderr, "testbed: no virtio-serial port\n");
  for (;;) pause();
}

static void on_child(int number) { (void)number; }

static void guest(void) {
  int in[2], out[2], err[2], tty = 0, exit_status = -1;
  size_t held = 0, held_at = 0;
  static char input[sizeof data];
  int channel = open_port();
  struct sigaction action = {.sa_handler = on_child};
  sigaction(SIGCHLD, &action, NULL);
  signal(SIGPIPE, SIG_IGN);
  send_frame(channel, HELLO, "", 0);
  receive_command(channel, &tty);

  if (tty) {
    struct winsize size = {.ws_row = 40, .ws_col = 120};
    int terminal, user;
    if (openpty(&terminal, &user, NULL, NULL, &size)) perror("testbed: openpty");
    in[1] = terminal; out[0] = fcntl(terminal, F_DUPFD_CLOEXEC, 0); err[0] = -1;
    in[0] = out[1] = err[1] = user;
    fcntl(terminal, F_SETFD, FD_CLOEXEC);
  } else if (pipe2(in, O_CLOEXEC) || pipe2(out, O_CLOEXEC) || pipe2(err, O_CLOEXEC)) perror("testbed: pipe");
  pid_t command = fork();
  if (command == 0) {
    dup2(in[0], 0); dup2(out[1], 1); dup2(err[1], 2);
    if (tty) close(in[0]);
    signal(SIGPIPE, SIG_DFL); signal(SIGCHLD, SIG_DFL);
    run_command(tty);
  }
  close(in[0]);
  if (!tty) { close(out[1]); close(err[1]); }
  fcntl(in[1], F_SETFL, O_NONBLOCK);
  fcntl(out[0], F_SETFL, O_NONBLOCK);
  if (err[0] >= 0) fcntl(err[0], F_SETFL, O_NONBLOCK);
  send_frame(channel, WANT, "", 0);

  while (exit_status < 0) {
    struct pollfd fds[4] = {{channel, POLLIN, 0}, {out[0], POLLIN, 0}, {err[0], POLLIN, 0}, {held ? in[1] : -1, POLLOUT, 0}};
    // The time limit covers a child that ends between the check and the wait.
    poll(fds, 4, 200);
    if (fds[0].revents & POLLIN) {
      struct header header;
      if (receive_frame(channel, &header) == 0 && header.type == STDIN) {
        if (header.length == 0) { if (!tty) close(in[1]); in[1] = tty ? in[1] : -1; }
        else { memcpy(input, data, header.length); held = header.length; held_at = 0; }
      }
    }
    if (held && in[1] >= 0) {
      ssize_t n = write(in[1], input + held_at, held);
      if (n > 0) { held -= (size_t)n; held_at += (size_t)n; if (!held) send_frame(channel, WANT, "", 0); }
      else if (n < 0 && errno == EPIPE) { close(in[1]); in[1] = -1; held = 0; }
    }
    pass(channel, &out[0], STDOUT);
    pass(channel, &err[0], STDERR);
    int status;
    pid_t pid;
    while ((pid = waitpid(-1, &status, WNOHANG)) > 0)
      if (pid == command) exit_status = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  }
  while (pass(channel, &out[0], STDOUT) | pass(channel, &err[0], STDERR)) {}
  sync();
  char last = (char)exit_status;
  send_frame(channel, EXIT, &last, 1);
  for (;;) pause();
}

int main(int argc, char **argv) {
  if (argc > 1 && strcmp(argv[1], "host") == 0) return host(argc, argv);
  if (argc > 1 && strcmp(argv[1], "guest") == 0) guest();
  fprintf(stderr, "usage: channel host|guest\n");
  return 2;
}
