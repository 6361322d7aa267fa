package cni

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"github.com/vishvananda/netns"
)

// procSys shows the sysctls of the network namespace of the thread that opens a file.
const procSys = "/proc/sys/"

type sysctl struct{ name, value string }

func setSysctls(list []sysctl) error {
	for _, s := range list {
		err := os.WriteFile(procSys+s.name, []byte(s.value), 0)
		if err != nil && !errors.Is(err, os.ErrNotExist) { // a kernel without IPv6
			return fmt.Errorf("sysctl %s: %w", s.name, err)
		}
	}
	return nil
}

// hostSysctls are what the kernel should not do by itself on the host's side of a pod's interface.
func hostSysctls(ifname string, ipv6 bool) []sysctl {
	v4, v6 := "net/ipv4/conf/"+ifname+"/", "net/ipv6/conf/"+ifname+"/"
	return append([]sysctl{
		// The BPF program checks sources, by exact address. Where conf/all asks for more, that is used, and finds the pod's route.
		{v4 + "rp_filter", "0"},
	}, linkSysctls(v6, ipv6)...)
}

// podSysctls are those of the pod's own interface, and of lo, which some runtimes leave without ::1.
func podSysctls(ifname string, ipv6 bool) []sysctl {
	list := linkSysctls("net/ipv6/conf/"+ifname+"/", ipv6)
	if ipv6 {
		list = append(list, sysctl{"net/ipv6/conf/lo/disable_ipv6", "0"})
	}
	return list
}

// linkSysctls leave an interface with the addresses that it is given and no others: without an IPv6 address there is no IPv6 on it,
// and with one no router is asked or believed, no link-local address made and no address tested for duplicates.
func linkSysctls(v6 string, ipv6 bool) []sysctl {
	if !ipv6 {
		return []sysctl{{v6 + "accept_ra", "0"}, {v6 + "disable_ipv6", "1"}}
	}
	return []sysctl{
		{v6 + "accept_ra", "0"}, {v6 + "autoconf", "0"}, {v6 + "router_solicitations", "0"},
		{v6 + "accept_dad", "0"}, {v6 + "dad_transmits", "0"},
		{v6 + "addr_gen_mode", "1"}, // none
		{v6 + "disable_ipv6", "0"},
	}
}

// onThreadIn runs f on a thread in a network namespace. A thread that does not get back ends with its goroutine.
func onThreadIn(ns netns.NsHandle, f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		done <- func() error {
			own, err := netns.Get()
			if err != nil {
				return fmt.Errorf("the node's network namespace: %w", err)
			}
			defer own.Close()
			if err := netns.Set(ns); err != nil {
				return fmt.Errorf("enter a network namespace: %w", err)
			}
			err = f()
			if netns.Set(own) == nil {
				runtime.UnlockOSThread()
			}
			return err
		}()
	}()
	return <-done
}
