# Everything a newcomer needs: `make up` and `make test`.
SHELL := /bin/bash
GO ?= go
VERSION ?= v1.37.2+strake
export CGO_ENABLED := 0
export GOTOOLCHAIN := local
# With the same flags for all that is compiled, each package is compiled once. What `go env -w` has set stays.
export GOFLAGS := $(filter-out -trimpath,$(shell $(GO) env GOFLAGS)) -trimpath
LDFLAGS := -s -w -X k8s.io/component-base/version.gitVersion=$(VERSION)
RUN_PACKAGES := containerd runc
TEST_PACKAGES := $(RUN_PACKAGES) iproute2 busybox-static curl containernetworking-plugins iptables musl-tools nftables procps

.PHONY: build up down test test-packages run-packages lint unit e2e soak cross generate check-generated bench bench-podnet bench-services bench-netpol bench-api kernel-packages test-kernels coredns test-coredns test-clients bench-dns test-ui release staticcheck

build:
	$(GO) build -ldflags "$(LDFLAGS)" -o bin/strake ./cmd/strake
	$(GO) build -ldflags "-s -w" -o bin/strake-cni ./cmd/strake-cni

# apt-get runs only for what is missing. The machine's own containerd is not used: strake starts one of its own.
define install
	@missing=(); for p in $(1); do dpkg -s $$p >/dev/null 2>&1 || missing+=($$p); done; \
	if [ $${#missing[@]} -gt 0 ]; then apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $(2) "$${missing[@]}"; fi
endef

run-packages:
	$(call install,$(RUN_PACKAGES))

test-packages:
	$(call install,$(TEST_PACKAGES))

up: run-packages build
	bin/strake up

down:
	bin/strake down

# The arm64 build fills the time that e2e spends on waiting.
test: test-packages lint build unit
	$(MAKE) -j2 e2e cross

lint:
	@bad=$$(gofmt -l $$(git ls-files '*.go')); if [ -n "$$bad" ]; then echo "gofmt would change: $$bad"; exit 1; fi
	$(GO) vet ./...

# Mistakes that go vet does not see. It takes minutes, so it is no part of lint.
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2
staticcheck:
	$(GO) run $(STATICCHECK) ./...

# Vetted by lint already, and linked without tables for debuggers, which takes half as long.
TEST_FLAGS := -vet=off -ldflags="-s -w"

# Those that take longest begin first.
unit:
	.ci/tests unit "$$($(GO) list ./bpf ./tests/podnet ./tests/apiserver ./... | grep -v /tests/e2e | tr '\n' ' ')" -timeout 30m $(TEST_FLAGS)

e2e: build
	.ci/tests e2e ./tests/e2e -count=1 -timeout 30m -parallel 2 $(TEST_FLAGS)

# Figures of a whole cluster, measured in a namespace of its own; BENCH_FLAGS="-effort 0.2" is a quick look.
bench: test-packages build
	$(GO) build -ldflags "-s -w" -o bin/bench-load ./tests/bench/load
	$(GO) build -ldflags "-s -w" -o bin/bench ./tests/bench
	bin/bench -json bin/bench.json $(BENCH_FLAGS)

# Figures of the node network alone, in namespaces; the rival is Debian's bridge plugin.
bench-podnet: build
	$(call install,iproute2 containernetworking-plugins)
	$(GO) build -ldflags "-s -w" -o bin/bench ./tests/bench
	bin/bench -podnet -json bin/bench-podnet.json $(BENCH_FLAGS)

# Figures of Services at growing numbers of them, against kube-proxy's rulesets; ARGS=--quick takes under five minutes.
bench-services: build
	$(call install,iproute2 iptables nftables)
	$(GO) build -ldflags "-s -w" -o bin/bench ./tests/bench
	$(GO) test -c -o bin/bpf.test ./bpf
	bin/bench -services -json bin/bench-services.json -svg bin/bench-services.svg $(ARGS)

# Figures of network policies at growing numbers of them, against rules of nftables; ARGS=--quick is a quick look.
bench-netpol: build
	$(call install,iproute2 nftables containernetworking-plugins)
	$(GO) build -ldflags "-s -w" -o bin/bench ./tests/bench
	bin/bench -netpol -json bin/bench-netpol.json $(ARGS)

# Figures of the API server alone, beside an etcd alone under the same load; ARGS=--quick is a quick look.
bench-api: build
	$(call install,iproute2)
	$(GO) build -ldflags "-s -w" -o bin/bench ./tests/bench
	bin/bench -api -json bin/bench-api.json $(ARGS)

# Cluster DNS from a pod: the kernel, our resolver and CoreDNS in turns, and what there is of each target; STRAKE_BENCH_SERVICES=50000 is a
# larger cluster.
bench-dns: coredns build
	STRAKE_BENCH_DNS=$(CURDIR)/bin/coredns STRAKE_BENCH_BINARY=$(CURDIR)/bin/strake $(GO) test -count=1 -v -timeout 20m -run '^TestBench' ./dns

kernel-packages:
	$(call install,qemu-system-x86 busybox-static,--no-install-recommends)

# The tests of the node network on other kernels, in emulated machines; KERNEL_FLAGS="-kernels 6.1 -run TestPod" is one of them.
test-kernels: kernel-packages
	$(GO) run ./tests/kernel $(KERNEL_FLAGS)

# Cluster DNS against CoreDNS, a module of its own that is built first (once: a minute or two).
coredns:
	cd tests/coredns/server && $(GO) build -ldflags "-s -w" -o ../../../bin/coredns .

test-coredns: coredns
	STRAKE_COREDNS=$(CURDIR)/bin/coredns $(GO) test -count=1 ./tests/coredns

# An operator made with controller-runtime, Helm, metrics-server, cert-manager, Argo CD, Prometheus and Kubernetes' conformance tests, in modules of their own,
# and older kubectls.
# What is built the first time costs most: each kubectl 3 to 5 minutes on two busy processors. metrics-server's test then takes 75 s.
OLD_KUBECTLS := 1.33 1.34 1.35 1.36
test-clients: test-packages build
	cd tests/clients && $(GO) test -count=1 -timeout 20m ./...
	for v in $(OLD_KUBECTLS); do \
	  (cd tests/clients/kubectl && $(GO) build -ldflags "-s -w -X k8s.io/component-base/version.gitVersion=v$$v.0" $$([ -f $$v.mod ] && echo -modfile=$$v.mod) -o ../../../bin/kubectl-$$v .) && \
	  STRAKE_KUBECTL=$(CURDIR)/bin/kubectl-$$v $(GO) test -count=1 -timeout 10m -run '^TestKubectl' ./tests/e2e || exit 1; \
	done

# Services that change under load while agents are killed, for as long as you like: make soak DURATION=1h.
DURATION ?= 10m
soak: test-packages build
	STRAKE_SOAK=$(DURATION) $(GO) test -count=1 -timeout 0 -run '^TestServicesSoak$$' -v ./tests/e2e

# The page of strake policy ui, in a browser.
test-ui:
	$(call install,chromium,--no-install-recommends)
	$(GO) test -count=1 ./netpol/ui

cross:
	GOARCH=arm64 nice -n 19 $(GO) build -ldflags "-s -w" -o bin/arm64/ ./cmd/...
	GOARCH=arm64 nice -n 19 $(GO) vet ./bpf

# Makes the BPF objects and the OpenAPI definitions anew: wants clang-19, llvm-19, libbpf-dev.
generate:
	$(GO) generate ./bpf ./controlplane/apiserver/generated/openapi

# Archives of a clean checkout for both architectures, in bin/release, with licences, modules and sums; VERSION names it.
release:
	.ci/release $(VERSION)

# Fails unless all that is generated and committed is what the sources give.
check-generated:
	$(call install,clang-19 llvm-19 libbpf-dev)
	$(MAKE) generate
	git diff --exit-code --stat -- bpf controlplane/apiserver/generated
