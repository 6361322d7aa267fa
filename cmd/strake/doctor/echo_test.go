package doctor

import (
	"context"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/strake-io/strake/tests/netns"
)

func run(t *testing.T, command string) {
	t.Helper()
	f := strings.Fields(command)
	if out, err := exec.Command(f[0], f[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", command, err, out)
	}
}

func FuzzReply(f *testing.F) {
	f.Add([]byte("\x45\x00\x00\x1c"))
	f.Fuzz(func(_ *testing.T, b []byte) {
		isReply(true, b, b)
		isReply(false, b, b)
	})
}

// TestPathMTU sends real packets over a link that carries less than both its ends believe.
func TestPathMTU(t *testing.T) {
	netns.Enter(t)
	pid := exec.Command("unshare", "--net", "sleep", "1000")
	if err := pid.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = pid.Process.Kill(); _ = pid.Wait() })
	awaitNamespace(t, pid.Process.Pid)
	peer := func(cmd string) { t.Helper(); run(t, "nsenter --net=/proc/"+itoa(pid.Process.Pid)+"/ns/net "+cmd) }
	run(t, "ip link add here type veth peer name there netns "+itoa(pid.Process.Pid))
	for _, c := range []string{"ip addr add 192.0.2.1/24 dev here", "ip addr add 2001:db8::1/64 dev here nodad", "ip link set here up"} {
		run(t, c)
	}
	for _, c := range []string{"ip addr add 192.0.2.2/24 dev there", "ip addr add 2001:db8::2/64 dev there nodad", "ip link set there up"} {
		peer(c)
	}
	v4, v6 := netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("2001:db8::2")
	for _, to := range []netip.Addr{v4, v6} {
		if got, err := pathMTU(t.Context(), to, 1500); err != nil || got != 1500 {
			t.Errorf("%s: %d, %v, want 1500", to, got, err)
		}
	}
	// The link itself refuses what is larger; a way that is narrower further on looks the same to who sends.
	run(t, "ip link set here mtu 1400")
	for _, to := range []netip.Addr{v4, v6} {
		if got, err := pathMTU(t.Context(), to, 1500); err != nil || got != 1400 {
			t.Errorf("%s: %d, %v, want 1400", to, got, err)
		}
	}
	if got, err := pathMTU(t.Context(), netip.MustParseAddr("203.0.113.1"), 1500); err != nil || got != 0 {
		t.Errorf("no route: %d, %v", got, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := pathMTU(ctx, netip.MustParseAddr("192.0.2.77"), 1500); err == nil {
		t.Error("it went on when it was to end")
	}
}

func itoa(n int) string { return strconv.Itoa(n) }

// awaitNamespace waits until the child has its own namespace.
func awaitNamespace(t *testing.T, pid int) {
	t.Helper()
	own, err := os.Readlink("/proc/thread-self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		theirs, err := os.Readlink("/proc/" + itoa(pid) + "/ns/net")
		comm, cerr := os.ReadFile("/proc/" + itoa(pid) + "/comm")
		if err == nil && cerr == nil && theirs != own && strings.TrimSpace(string(comm)) == "sleep" {
			return
		}
	}
	t.Fatal("the child has no namespace of its own")
}
