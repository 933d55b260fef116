# Lunar: an NBD server whose LUNs can be rolled back. `make` or `make help` lists the targets.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

# mkfs, nbd-client and e2fsck live in sbin, which is not in everyone's PATH.
export PATH := $(PATH):/usr/local/go/bin:/usr/local/sbin:/usr/sbin:/sbin

VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo unversioned)
BIN     := bin/lunar
GOTEST  := go test -count=1
UNIT     = $$(go list ./... | grep -v '/integration')

FUZZTIME  ?= 60s
SOAK      ?= 1h
CRASHTIME ?= 60s
BENCHCOUNT ?= 10
BENCHTIME  ?= 200ms
GOLANGCI  := v2.12.2

# What the tests call. Installed by `make tools`, only when missing.
PACKAGES := gcc libc6-dev git qemu-system-x86 qemu-utils nbdkit libnbd-bin python3-libnbd nbd-client fio \
            linux-image-cloud-amd64 busybox-static xfsprogs e2fsprogs strace

.PHONY: help build run tools test test-unit test-rules test-integration test-guest test-long \
        crash crash-long soak fuzz bench bench-quick bench-go bench-versions bench-versions-quick bench-versions-many bench-sizes bench-capacity lint vet clean

help: ## List the targets
	@echo "Lunar $(VERSION). Targets:"
	@sed -nE 's/^([a-z-]+):[^#]*## (.*)/\1\t\2/p' Makefile | while IFS=$$'\t' read -r t d; do printf '  %-21s %s\n' "$$t" "$$d"; done
	@echo "Variables: FUZZTIME=60s CRASHTIME=60s SOAK=1h"

build: ## Build the static release binary bin/lunar
	@mkdir -p bin
	CGO_ENABLED=0 go build -trimpath -ldflags '-s -w -X main.version=$(VERSION)' -o $(BIN) ./cmd/lunar

run: build ## Serve ./lunar-data with a 1 GiB thin LUN `demo` on 127.0.0.1:10809
	@exec integration/demo.sh $(BIN)

tools: ## Install the Debian packages that the tests need (only what is missing; root or sudo)
	@missing=(); for p in $(PACKAGES); do \
	  dpkg-query -W -f='$${Status}' "$$p" 2>/dev/null | grep -q 'ok installed' || missing+=("$$p"); done; \
	if [ "$${#missing[@]}" -gt 0 ]; then \
	  echo "installing: $${missing[*]}"; \
	  root=(); [ "$$(id -u)" -eq 0 ] || root=(sudo); \
	  "$${root[@]}" apt-get update -q; \
	  "$${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "$${missing[@]}"; \
	fi
	@integration/qemu10.sh .cache/qemu10

test: tools ## Everything: build, vet, unit and model tests with -race, import rules, guest, integration
	$(MAKE) build
	$(MAKE) vet
	$(MAKE) test-unit
	$(MAKE) crash
	$(MAKE) test-rules
	$(MAKE) test-guest
	$(MAKE) test-integration

vet: ## go vet
	go vet ./...

test-unit: ## Unit and model tests under the race detector
	CGO_ENABLED=1 $(GOTEST) -race -timeout 20m $(UNIT)
	$(GOTEST) -timeout 10m -run TestModel ./lun -model.runs 4
	$(GOTEST) -timeout 10m -run TestAdmissionRate ./reservation

test-rules: ## Import layers, file and function sizes; every mutant still applies
	$(GOTEST) -v -run 'TestImports|TestSizes|TestPure' ./integration
	$(GOTEST) ./integration/mutants

test-integration: build ## Black box tests of bin/lunar with real clients
	LUNAR_BIN=$(CURDIR)/$(BIN) $(GOTEST) -v -timeout 20m ./integration ./integration/client ./integration/checker ./integration/bench ./integration/soak

test-guest: build ## A real Linux guest: nbd-client, ext4, xfs, power cuts
	LUNAR_BIN=$(CURDIR)/$(BIN) $(GOTEST) -v -timeout 20m ./integration/guest

test-long: tools build ## The same black box and guest tests at full size and many rounds (about an hour), then each fuzz target
	LUNAR_LONG=1 LUNAR_BIN=$(CURDIR)/$(BIN) $(GOTEST) -v -timeout 4h ./integration ./integration/guest
	$(MAKE) fuzz

soak: tools build ## Everything at once for SOAK (1h): fio verify, snapshots, rollbacks, clones, recycling, scrubs, restarts; nothing may grow
	SOAK=$(SOAK) LUNAR_BIN=$(CURDIR)/$(BIN) $(GOTEST) -v -timeout 0 ./integration/soak

crash: ## The simulator: failures, power cuts at each operation of five workloads, then seeds from 1 on; CRASHTIME (60s)
	$(GOTEST) -v -timeout 3h -run TestSimulated ./lun -sim.for $(CRASHTIME) $(CRASHARGS) | grep -v '^=== ' | grep -v -- '--- PASS: .*/seed='

crash-long: ## The same for an hour with new seeds, each operation failing in each way, the model and the log's crash tests with new seeds
	$(GOTEST) -v -timeout 3h -run TestSimulatedErrors ./lun -sim.all
	LUNAR_MODEL_RANDOM=1 $(GOTEST) -v -timeout 3h -run TestModel ./lun -model.runs 60
	$(GOTEST) -timeout 1h -run Crash ./store/...
	$(MAKE) crash CRASHTIME=60m CRASHARGS='-sim.all -sim.random'

.PHONY: mutants
mutants: ## Changes that are wrong on purpose: the crash tests must catch each of them (about 15 minutes)
	go run ./integration/mutants

fuzz: ## Each fuzz target for FUZZTIME (60s)
	@for p in $$(go list ./...); do \
	  for f in $$(go test -list '^Fuzz' "$$p" | grep '^Fuzz' || true); do \
	    echo "$$p $$f"; go test -run '^$$' -fuzz "^$$f$$" -fuzztime $(FUZZTIME) "$$p"; done; done

bin/gonbd: integration/bench/gonbd/main.go integration/bench/gonbd/go.mod
	cd integration/bench/gonbd && CGO_ENABLED=0 go build -trimpath -o $(CURDIR)/bin/gonbd .

bench: tools build bin/gonbd ## lunar beside nbdkit, qemu-nbd and go-nbd, all rows of the target table, then bench-versions; writes docs/bench
	go run ./integration/bench -lunar $(BIN) -out docs/bench -docs docs/PERFORMANCE.md
	$(MAKE) bench-versions

bench-quick: tools build ## The main rows in about two minutes
	go run ./integration/bench -lunar $(BIN) -out docs/bench -quick

bench-versions: tools build ## Snapshots, rollbacks, clones, deletes at full size, beside qcow2 (up to an hour, 40 GB in /tmp)
	go run ./integration/bench -lunar $(BIN) -out docs/bench -docs docs/PERFORMANCE.md -versions all

bench-versions-quick: tools build ## The same in small, a few minutes
	go run ./integration/bench -lunar $(BIN) -out docs/bench -versions logical,head,miss,delete,merge,index,pause,clones -quick

bench-versions-many: tools build ## 65,536 snapshots of one LUN
	go run ./integration/bench -lunar $(BIN) -out docs/bench -docs docs/PERFORMANCE.md -versions many

bench-sizes: tools build ## 10,000 LUNs, maps larger than their cache, recovery (20 minutes, 40 GB in /tmp)
	go run ./integration/bench -lunar $(BIN) -out docs/bench -docs docs/PERFORMANCE.md -sizes all

bench-capacity: tools build ## Amplification by pool use, the way to an area's limit, disk beside the account (5 minutes, root)
	LUNAR_FIGURES=$(CURDIR)/docs/bench LUNAR_BIN=$(CURDIR)/$(BIN) $(GOTEST) -v -timeout 30m -run TestCapacityFigures ./integration/figures

bench-go: ## Go micro-benchmarks of map, log, index, ledger and protocol, 10 runs each: for benchstat
	@go test -run '^$$' -bench . -benchmem -count $(BENCHCOUNT) -benchtime $(BENCHTIME) ./store/segment ./store/index ./reservation ./cow ./lun ./nbd

lint: ## gofmt, go vet, golangci-lint (built into bin/ at a pinned version)
	@bad=$$(gofmt -l $$(git ls-files -co --exclude-standard '*.go')); [ -z "$$bad" ] || { echo "not gofmt'ed: $$bad"; exit 1; }
	go vet ./...
	@bin/golangci-lint version 2>/dev/null | grep -q '$(GOLANGCI:v%=%)' || GOBIN=$(CURDIR)/bin go install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI)
	bin/golangci-lint run ./...

clean: ## Remove what was built (not ./lunar-data)
	rm -rf bin .cache
