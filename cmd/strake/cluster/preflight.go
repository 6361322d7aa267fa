package cluster

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"syscall"

	"github.com/strake-io/strake/bpf"
	"github.com/strake-io/strake/cmd/strake/agent"
	"github.com/strake-io/strake/cmd/strake/containerd"
)

// check finds what would make a start fail, before anything is touched.
func (u *upStart) check(flags Settings, given func(string) bool, nodes int) error {
	err := u.l.Check()
	if err == nil {
		err = notSystemds(u.l)
	}
	if err == nil {
		u.s, err = settle(u.l, flags, given)
	}
	if err == nil {
		err = u.planNodes(nodes)
	}
	if err != nil || !u.fresh {
		return err
	}
	loopback := netip.AddrFrom4([4]byte{127, 0, 0, 1})
	ports := append(kubeletPorts(u.s),
		listener{loopback, u.s.EtcdPort, "etcd (another: --" + FlagEtcdPort + ")"},
		listener{loopback, u.s.EtcdPort + 1, "etcd's peers (another: --" + FlagEtcdPort + ")"},
	)
	for _, a := range u.s.NodeAddrs {
		ports = append(ports, listener{a, u.s.Port, "the API server (another: --" + FlagPort + ")"})
	}
	return u.checkMachine(ports)
}

// listener is a port that a component wants.
type listener struct {
	addr netip.Addr
	port int
	what string
}

func kubeletPorts(s Settings) []listener {
	var list []listener
	for _, a := range s.NodeAddrs {
		list = append(list, listener{a, agent.KubeletPort, "the kubelet"})
	}
	return list
}

// checkMachine is what a node of either kind needs.
func (u *start) checkMachine(ports []listener) error {
	if _, err := containerd.Binaries(); err != nil {
		return err
	}
	if err := bpf.Supported(); err != nil {
		return err
	}
	if err := enoughSpace(u.l.Data, minFree); err != nil {
		return err
	}
	for _, a := range ports {
		if err := free(netip.AddrPortFrom(a.addr, uint16(a.port)), a.what); err != nil {
			return err
		}
	}
	return nil
}

// What a cluster wants of its disk, in bytes: to start with, and at the least.
const (
	minFree  = 1 << 30
	fullFree = 256 << 20
)

// enoughSpace looks at the disk of a folder that need not be there yet.
func enoughSpace(folder string, want uint64) error {
	for dir := folder; ; dir = filepath.Dir(dir) {
		var st syscall.Statfs_t
		err := syscall.Statfs(dir, &st)
		if errors.Is(err, syscall.ENOENT) && dir != "/" {
			continue
		}
		if err != nil {
			return fmt.Errorf("data folder %s: %w", folder, err)
		}
		if left := st.Bavail * uint64(st.Bsize); left < want {
			return fmt.Errorf("the disk of %s has %d MiB left, a cluster wants %d MiB; free some, or choose another folder with --data-dir", folder, left>>20, minFree>>20)
		}
		return nil
	}
}

func free(addr netip.AddrPort, what string) error {
	ln, err := net.Listen("tcp", addr.String())
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return fmt.Errorf("%s is taken by another process, but %s needs it; stop that process", addr, what)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return fmt.Errorf("no interface has the node's address %s; name another with --%s", addr.Addr(), FlagNodeIP)
	case err != nil:
		return fmt.Errorf("listen on %s: %w", addr, err)
	}
	return ln.Close()
}
