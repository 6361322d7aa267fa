package bpf

import (
	"crypto/rand"
	"encoding/hex"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// inNetns moves the test into a network namespace of its own.
func inNetns(t testing.TB) {
	t.Helper()
	runtime.LockOSThread()
	old, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatalf("a namespace needs root: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Setns(int(old.Fd()), unix.CLONE_NEWNET); err != nil {
			t.Error(err)
		}
		old.Close()
		runtime.UnlockOSThread()
	})
}

func cgroupRoot(t testing.TB) string {
	for _, dir := range []string{"/sys/fs/cgroup/unified", "/sys/fs/cgroup"} {
		if ok, err := isFS(dir, cgroup2Magic); err == nil && ok {
			return dir
		}
	}
	t.Fatal("no cgroup2 mount")
	return ""
}

// testConfig makes a bpffs and a cgroup that go with the test.
func testConfig(t testing.TB) Config {
	t.Helper()
	inNetns(t)
	pins := filepath.Join(t.TempDir(), "bpf")
	if err := MountBPFFS(pins); err != nil {
		t.Fatal(err)
	}
	var id [4]byte
	rand.Read(id[:])
	root := cgroupRoot(t)
	group := filepath.Join(root, "strake-test-"+hex.EncodeToString(id[:]))
	if err := os.Mkdir(group, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := Remove(pins); err != nil {
			t.Error(err)
		}
		if err := UnmountBPFFS(pins); err != nil {
			t.Error(err)
		}
		if err := os.Remove(group); err != nil {
			t.Error(err)
		}
	})
	return Config{PinDir: pins, CgroupRoot: root, NodeCgroup: group, DNSAddrs: []netip.Addr{netip.MustParseAddr("10.96.0.10"), netip.MustParseAddr("fd00:10:96::a")}, Zone: "cluster.local", DNSTTL: 30}
}

// tablesConfig is testConfig without the programs of packets, for tests of tables alone: it opens in a tenth of the time.
func tablesConfig(t testing.TB) Config {
	c := testConfig(t)
	c.noPackets = true
	return c
}

func open(t testing.TB, c Config) *Datapath {
	t.Helper()
	d, err := Open(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

// fronts are frontends of a kind, for all backends.
func fronts(kind FrontendKind, addrs ...netip.AddrPort) []Frontend {
	var out []Frontend
	for _, a := range addrs {
		out = append(out, Frontend{Addr: a, Kind: kind})
	}
	return out
}

// backs are backends that take what there is.
func backs(addrs ...netip.AddrPort) []Backend {
	var out []Backend
	for _, a := range addrs {
		out = append(out, Backend{Addr: a, All: true, Weight: 1})
	}
	return out
}
