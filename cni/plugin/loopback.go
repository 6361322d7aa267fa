package plugin

import (
	"fmt"
	"net"
	"os"
	"runtime"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"golang.org/x/sys/unix"
)

const loopback = "lo"

// LoopbackFuncs are the verbs of the plugin called "loopback". containerd before 2.1 runs one of that name for every
// pod, whatever the network, and fails the pod without it; a node of ours has no other plugins than this binary.
func LoopbackFuncs() skel.CNIFuncs {
	none := func(*skel.CmdArgs) error { return nil } // it goes with its namespace
	return skel.CNIFuncs{Add: loopbackAdd, Check: loopbackCheck, Del: none, GC: none, Status: none}
}

func loopbackAdd(a *skel.CmdArgs) error {
	var conf types.NetConf
	if err := decode(a.StdinData, &conf); err != nil {
		return err
	}
	result := &types100.Result{
		CNIVersion: types100.ImplementedSpecVersion,
		Interfaces: []*types100.Interface{{Name: loopback, Mac: "00:00:00:00:00:00", Sandbox: a.Netns}},
	}
	err := inNamespace(a.Netns, func() error {
		if err := setUp(loopback); err != nil {
			return err
		}
		lo, err := net.InterfaceByName(loopback)
		if err != nil {
			return err
		}
		addrs, err := lo.Addrs()
		for _, addr := range addrs {
			if n, ok := addr.(*net.IPNet); ok {
				result.IPs = append(result.IPs, &types100.IPConfig{Interface: types100.Int(0), Address: *n})
			}
		}
		return err
	})
	if err != nil {
		return err
	}
	return types.PrintResult(result, conf.CNIVersion)
}

func loopbackCheck(a *skel.CmdArgs) error {
	return inNamespace(a.Netns, func() error {
		lo, err := net.InterfaceByName(loopback)
		if err == nil && lo.Flags&net.FlagUp == 0 {
			err = fmt.Errorf("%s is down", loopback)
		}
		return err
	})
}

// inNamespace runs f in a network namespace. The thread stays locked: it ends with the process, or with its goroutine.
func inNamespace(path string, f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked, so the thread is not used for anything else
		ns, err := os.Open(path)
		if err != nil {
			done <- fmt.Errorf("network namespace: %w", err)
			return
		}
		defer ns.Close()
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("network namespace %s: %w", path, err)
			return
		}
		if err := f(); err != nil {
			done <- fmt.Errorf("network namespace %s: %w", path, err)
			return
		}
		done <- nil
	}()
	return <-done
}

// setUp is `ip link set NAME up` (netdevice(7)).
func setUp(name string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("socket: %w", err)
	}
	defer unix.Close(fd)
	req, err := unix.NewIfreq(name)
	if err != nil {
		return fmt.Errorf("interface %s: %w", name, err)
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, req); err != nil {
		return fmt.Errorf("flags of %s: %w", name, err)
	}
	req.SetUint16(req.Uint16() | unix.IFF_UP)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, req); err != nil {
		return fmt.Errorf("%s up: %w", name, err)
	}
	return nil
}
