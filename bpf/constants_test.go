package bpf

import (
	"errors"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// What was told to the programs is read back from the kernel, by who did not load them; each thing that would be told otherwise now is named.
func TestCompareConstants(t *testing.T) {
	c := testConfig(t)
	c.NodeAddrs = []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}
	c.NoMasquerade, c.AllowLinkLocal = []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")}, []netip.Prefix{netip.MustParsePrefix("169.254.20.10/32")}
	d := open(t, c)
	must(t, d.AttachNewPod(1))
	must(t, d.AttachUplink(1))
	must(t, d.Close())
	checked, drift, err := CompareConstants(c)
	if err != nil || len(drift) > 0 || checked < 20 {
		t.Fatalf("%d, %q, %v", checked, drift, err)
	}
	for name, change := range map[string]struct {
		do   func(*Config)
		want string
	}{
		"an address":     {func(c *Config) { c.NodeAddrs = []netip.Addr{netip.MustParseAddr("192.0.2.7"), c.NodeAddrs[1]} }, "node_addr4 is 192.0.2.1, should be 192.0.2.7"},
		"no address":     {func(c *Config) { c.NodeAddrs = c.NodeAddrs[:1] }, "node_addr6 is 2001:db8::1, should be none"},
		"the zone":       {func(c *Config) { c.Zone = "other.test" }, `should be "other.test."`},
		"the mode":       {func(c *Config) { c.Policy = !c.Policy }, "policy_on is"},
		"ports":          {func(c *Config) { c.masqPorts = portRange{10, 20} }, "masq_first is"},
		"another cgroup": {func(c *Config) { c.NodeCgroup = c.CgroupRoot }, "node_cgroup is"},
		"a range more": {func(c *Config) {
			c.NoMasquerade = append(slices.Clone(c.NoMasquerade), netip.MustParsePrefix("fd00::/56"))
		}, "masq_exempt lacks fd00::/56"},
		"a range less": {func(c *Config) { c.AllowLinkLocal = nil }, "link_local_allowed has 169.254.20.10/32"},
	} {
		now := c
		change.do(&now)
		_, drift, err := CompareConstants(now)
		if err != nil || !strings.Contains(strings.Join(drift, "\n"), change.want) {
			t.Errorf("%s: %q, want %q, %v", name, drift, change.want, err)
		}
	}
	d = open(t, c)
	must(t, d.AttachTunnel(0, 1450))
	if ifindex, mtu, err := ReadPath(c.PinDir); ifindex != 0 || mtu != 1450 || err != nil {
		t.Errorf("path %d, %d, %v", ifindex, mtu, err)
	}
}

// Pods come and go while somebody looks: that is no error.
func TestStatusWhilePodsComeAndGo(t *testing.T) {
	d := open(t, testConfig(t))
	done := make(chan error, 1)
	stop := make(chan struct{})
	home, err := os.Open("/proc/thread-self/ns/net")
	must(t, err)
	defer home.Close()
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends in the test's namespace
		err := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET)
		for err == nil {
			select {
			case <-stop:
				done <- nil
				return
			default:
				err = errors.Join(d.AttachNewPod(1), d.DetachPod(1))
			}
		}
		done <- err
	}()
	for range 300 {
		if _, err := d.Status(); err != nil {
			t.Error(err)
			break
		}
	}
	close(stop)
	must(t, <-done)
}
