package cni

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// TunnelDevice is the name of the node's one device to all other nodes: the programs tell it where each packet goes.
const TunnelDevice = "strake-vxlan"

// DefaultTunnelPort is the UDP port that VXLAN had on Linux before IANA gave it one (ip-link(8)); other networks of containers use it too.
const DefaultTunnelPort = 8472

// What the tunnel adds to a packet: an Ethernet header of 14 bytes, VXLAN 8, UDP 8, and IP.
const (
	overhead4 = 50
	overhead6 = 70
)

// ensureTunnel makes the device right, whatever of it is there, and returns its index. One with another port is made anew: the kernel changes
// none.
func ensureTunnel(port, mtu int) (int, error) {
	have, err := netlink.LinkByName(TunnelDevice)
	if err == nil {
		v, ok := have.(*netlink.Vxlan)
		if !ok {
			return 0, fmt.Errorf("cni: interface %s is a %s and not ours; remove it", TunnelDevice, have.Type())
		}
		if !v.FlowBased || v.Port != port || v.Learning {
			if err := netlink.LinkDel(have); err != nil {
				return 0, fmt.Errorf("cni: %s: %w", TunnelDevice, err)
			}
			err = netlink.LinkNotFoundError{}
			have = nil
		}
	}
	if have == nil || errors.As(err, new(netlink.LinkNotFoundError)) {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU = TunnelDevice, mtu
		if err := netlink.LinkAdd(&netlink.Vxlan{LinkAttrs: attrs, FlowBased: true, Port: port}); err != nil {
			return 0, fmt.Errorf("cni: make %s (the kernel must have VXLAN; else choose native routing): %w", TunnelDevice, err)
		}
		have, err = netlink.LinkByName(TunnelDevice)
	}
	if err != nil {
		return 0, fmt.Errorf("cni: %s: %w", TunnelDevice, err)
	}
	attrs := have.Attrs()
	if attrs.MTU != mtu {
		if err := netlink.LinkSetMTU(have, mtu); err != nil {
			return 0, fmt.Errorf("cni: MTU %d of %s: %w", mtu, TunnelDevice, err)
		}
	}
	if attrs.RawFlags&unix.IFF_NOARP == 0 {
		if err := netlink.LinkSetARPOff(have); err != nil {
			return 0, fmt.Errorf("cni: %s without ARP: %w", TunnelDevice, err)
		}
	}
	for _, s := range [][2]string{{"addr_gen_mode", "1"}, {"accept_ra", "0"}} { // no link-local address, no router: there is no link
		if err := sysctl6(s[0], s[1]); err != nil {
			return 0, err
		}
	}
	if attrs.RawFlags&unix.IFF_UP == 0 {
		if err := netlink.LinkSetUp(have); err != nil {
			if errors.Is(err, unix.EADDRINUSE) {
				return 0, fmt.Errorf("cni: UDP port %d for %s is in use by another program or tunnel; choose another for the whole cluster: %w", port, TunnelDevice, err)
			}
			return 0, fmt.Errorf("cni: %s up: %w", TunnelDevice, err)
		}
	}
	return attrs.Index, nil
}

// sysctl6 sets an IPv6 sysctl of the device; a kernel without IPv6 has none.
func sysctl6(name, value string) error {
	path := "/proc/sys/net/ipv6/conf/" + TunnelDevice + "/" + name
	have, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) || (err == nil && string(bytes.TrimSpace(have)) == value) {
		return nil
	}
	if err == nil {
		err = os.WriteFile(path, []byte(value), 0)
	}
	if err != nil {
		return fmt.Errorf("cni: sysctl %s: %w", strings.TrimPrefix(path, "/proc/sys/"), err)
	}
	return nil
}

// removeTunnel removes the device; one that is gone is no error.
func removeTunnel() error {
	have, err := netlink.LinkByName(TunnelDevice)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil
	}
	if err == nil {
		if _, ours := have.(*netlink.Vxlan); !ours {
			return nil
		}
		err = netlink.LinkDel(have)
	}
	if err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("cni: remove %s: %w", TunnelDevice, err)
	}
	return nil
}
