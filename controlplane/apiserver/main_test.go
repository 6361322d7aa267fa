package apiserver_test

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"syscall"
	"testing"
)

// ownNetwork tells a process of the tests that its network is one of its own.
const ownNetwork = "STRAKE_TEST_OWN_NETWORK"

// TestMain runs the tests in a network namespace of their own where the machine has no address but loopback: pods and Services can't have that.
func TestMain(m *testing.M) {
	if os.Getenv(ownNetwork) == "" && firstAddress(fatal{}) == "" {
		os.Exit(inOwnNetwork())
	}
	m.Run()
}

// inOwnNetwork runs this program once more, and returns its exit code.
func inOwnNetwork() int {
	again := exec.Command("sh", append([]string{"-euc", `ip link set lo up; ip addr add 198.18.0.2/32 dev lo; exec "$0" "$@"`, os.Args[0]}, os.Args[1:]...)...)
	again.Stdout, again.Stderr, again.Env = os.Stdout, os.Stderr, append(os.Environ(), ownNetwork+"=yes")
	again.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if err := again.Run(); err != nil {
		fmt.Fprintln(os.Stderr, "the tests in a network namespace of their own:", err)
		return 1
	}
	return 0
}

// fatal stands for a test where there is none yet.
type fatal struct{ testing.TB }

func (fatal) Helper() {}
func (fatal) Fatal(args ...any) {
	fmt.Fprintln(os.Stderr, args...)
	os.Exit(1)
}

// firstAddress is an IPv4 address of this machine's that others can have as well; empty: there is none.
func firstAddress(t testing.TB) string {
	t.Helper()
	for _, a := range must(net.InterfaceAddrs())(t) {
		if n, ok := a.(*net.IPNet); ok && n.IP.To4() != nil && n.IP.IsGlobalUnicast() {
			return n.IP.String()
		}
	}
	return ""
}
