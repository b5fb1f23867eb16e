# Hull: secure containers, each in its own microVM. `make help` lists the targets.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules

PREFIX ?= /usr/local
# The runtime reads its configuration there, wherever its program is.
configuration := /etc/hull
DESTDIR ?=
CARGO ?= cargo

cache := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/hull
release := target/x86_64-unknown-linux-gnu/release
small := target/x86_64-unknown-linux-gnu/small
agent := $(small)/hull-agent
# Programs that are installed; the agent goes into the initramfs.
programs := hull hull-vmm containerd-shim-kata-v2
# Images for tests and the demonstration: made outside the clone, so that a fresh clone finds them.
images := $(cache)/images
scripts := tests/*.sh tests/images/*.sh tests/testbed/run tests/testbed/*.sh \
	kernel-config/*.sh rootfs/*.sh bench/*.sh deploy/*.sh deploy/kubernetes/*.sh fuzz/run.sh .ci/run

export CARGO
export HULL_TEST_IMAGES ?= $(images)

.PHONY: build
build: programs kernel initramfs ## Build everything into build/, laid out like an installation (the default)

.PHONY: setup
setup: ## Install the Debian packages that are missing for all of this (as root; otherwise say which)
	@tests/setup.sh test

# Only what is needed for that: on a machine that is to run Hull, nothing that only tests use.
.PHONY: setup-build setup-run
setup-build setup-run:
	@tests/setup.sh $(@:setup-%=%)

.PHONY: programs
programs: setup-build
	$(CARGO) build --release --locked --workspace --exclude hull-agent
	$(CARGO) build --profile small --locked --package hull-shim
	@mkdir -p build/bin
	@for program in $(release)/hull $(release)/hull-vmm $(small)/containerd-shim-kata-v2; do \
		name=$$(basename "$$program"); install -m 755 "$$program" "build/bin/.$$name"; mv "build/bin/.$$name" "build/bin/$$name"; done

.PHONY: kernel
kernel: setup-build
	@mkdir -p build/lib/hull
	@kernel=$$(kernel-config/build.sh); cmp -s "$$kernel" build/lib/hull/vmlinux || install -m 644 "$$kernel" build/lib/hull/vmlinux

.PHONY: initramfs
initramfs: setup-build
	$(CARGO) build --profile small --locked --package hull-agent
	@mkdir -p build/lib/hull
	@rootfs/build.sh "$(agent)" build/lib/hull/initramfs.cpio

.PHONY: run
run: build images ## Build, then run a container in a microVM and look around in it
	@tests/run.sh --timeout 300 tests/demo.sh

.PHONY: images
images: setup-run
	@for name in busybox layers python redis; do tests/images/cached.sh "$$name" "$(HULL_TEST_IMAGES)/$$name"; done

# Beside those that are installed; they come from the network.
.PHONY: engines
engines: setup
	@tests/engines.sh

.PHONY: test
test: build images engines ## All tests: without a VM, then end to end in VMs
	$(CARGO) test --release --locked --workspace --exclude hull-tests
	kernel-config/test.sh build/lib/hull/vmlinux
	rootfs/test.sh "$(agent)"
	deploy/test.sh
	tests/testbed/selftest.sh
	tests/e2e.sh

# Not installed for the user: it serves this clone only.
fuzzer := $(cache)/tools/cargo-fuzz-0.13.2

$(fuzzer)/bin/cargo-fuzz:
	$(CARGO) install cargo-fuzz --version 0.13.2 --locked --root $(fuzzer)

.PHONY: fuzz
fuzz: setup $(fuzzer)/bin/cargo-fuzz ## Fuzz targets of the monitor, each for FUZZ_SECONDS (60)
	PATH="$(fuzzer)/bin:$$PATH" FUZZ_SECONDS=$(or $(FUZZ_SECONDS),60) fuzz/run.sh

.PHONY: soak
soak: build images engines ## The end-to-end tests with HULL_SOAK (50) times as many VMs, and an hour of fuzzing each target: hours
	$(MAKE) fuzz FUZZ_SECONDS=$(or $(FUZZ_SECONDS),3600)
	HULL_SOAK=$(or $(HULL_SOAK),50) HULL_E2E_TIMEOUT=14400 tests/e2e.sh

.PHONY: bench
bench: build images ## Measure boots and devices against QEMU; results in bench/results
	$(CARGO) build --release --locked -p hull-tests --bins
	for part in run devices fs streams containerd; do tests/run.sh --timeout 3600 --share bench/results bench/$$part.sh; done

.PHONY: lint
lint: setup ## Format, clippy, shellcheck
	$(CARGO) fmt --all --check
	$(CARGO) fmt --manifest-path fuzz/Cargo.toml --check
	$(CARGO) clippy --release --locked --workspace --all-targets -- -D warnings
	shellcheck -x -P SCRIPTDIR $(scripts)

.PHONY: install
install: ## Install what `make build` built: make install PREFIX=/usr/local [DESTDIR=]
	@[ -x build/bin/hull ] || { echo "build first: make build"; exit 1; }
	install -d "$(DESTDIR)$(PREFIX)/bin" "$(DESTDIR)$(PREFIX)/lib/hull" "$(DESTDIR)$(PREFIX)/share/doc/hull" "$(DESTDIR)$(configuration)"
	install -m 755 $(addprefix build/bin/,$(programs)) "$(DESTDIR)$(PREFIX)/bin"
	install -m 644 build/lib/hull/vmlinux build/lib/hull/initramfs.cpio "$(DESTDIR)$(PREFIX)/lib/hull"
	install -m 644 README.md CHANGELOG.md CONTRIBUTING.md LICENSE "$(DESTDIR)$(PREFIX)/share/doc/hull"
	cp -r --no-preserve=mode,ownership docs deploy "$(DESTDIR)$(PREFIX)/share/doc/hull"
	install -m 644 shim/config.toml.example "$(DESTDIR)$(configuration)"
	install -d "$(DESTDIR)$(PREFIX)/share/hull/deploy/containerd" "$(DESTDIR)$(PREFIX)/share/hull/deploy/kubernetes"
	install -m 644 deploy/containerd/*.toml "$(DESTDIR)$(PREFIX)/share/hull/deploy/containerd"
	install -m 644 deploy/kubernetes/*.yaml "$(DESTDIR)$(PREFIX)/share/hull/deploy/kubernetes"
	install -m 755 deploy/kubernetes/*.sh "$(DESTDIR)$(PREFIX)/share/hull/deploy/kubernetes"
	install -d "$(DESTDIR)$(PREFIX)/share/bash-completion/completions" "$(DESTDIR)$(PREFIX)/share/zsh/site-functions" "$(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d"
	build/bin/hull completion bash >"$(DESTDIR)$(PREFIX)/share/bash-completion/completions/hull"
	build/bin/hull completion zsh >"$(DESTDIR)$(PREFIX)/share/zsh/site-functions/_hull"
	build/bin/hull completion fish >"$(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/hull.fish"

.PHONY: uninstall
uninstall: ## Remove what `make install` installed; /etc/hull/config.toml stays
	rm -f $(addprefix "$(DESTDIR)$(PREFIX)/bin"/,$(programs))
	rm -rf "$(DESTDIR)$(PREFIX)/lib/hull" "$(DESTDIR)$(PREFIX)/share/hull" "$(DESTDIR)$(PREFIX)/share/doc/hull"
	rm -f "$(DESTDIR)$(configuration)/config.toml.example"
	-rmdir --ignore-fail-on-non-empty "$(DESTDIR)$(configuration)"
	rm -f "$(DESTDIR)$(PREFIX)/share/bash-completion/completions/hull" "$(DESTDIR)$(PREFIX)/share/zsh/site-functions/_hull" "$(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/hull.fish"

.PHONY: clean
clean: ## Remove what was built here (the kernel and the images stay cached outside)
	rm -rf build target fuzz/target

.PHONY: help
help: ## This list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "  Variables: PREFIX (/usr/local), DESTDIR, CARGO, XDG_CACHE_HOME (kernel and images are cached there)"
