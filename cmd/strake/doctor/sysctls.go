package doctor

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"

	"github.com/strake-io/strake/cni"
)

// minMasqPorts is how many ports pods should have of their own for one destination.
const minMasqPorts = 1024

func sysctl(path string) (string, error) {
	b, err := os.ReadFile("/proc/sys/" + path)
	return strings.TrimSpace(string(b)), err
}

func (e *examination) families() (v4, v6 bool) {
	for _, a := range e.Addrs {
		v4 = v4 || a.Is4()
		v6 = v6 || a.Is6()
	}
	return
}

func (e *examination) sysctls(g group) {
	v4, v6 := e.families()
	want := func(path string) {
		got, err := sysctl(path)
		switch name := strings.ReplaceAll(path, "/", "."); {
		case err != nil:
			g.unknown(name, err, "")
		case got != "1":
			g.fail(name, "sysctl -w "+name+"=1; find out what sets it otherwise (/etc/sysctl.d)", "%s: packets between pods and outside are not forwarded", got)
		default:
			g.ok(name, "%s", got)
		}
	}
	if v4 {
		want("net/ipv4/ip_forward")
	}
	if v6 {
		want("net/ipv6/conf/all/forwarding")
	}
	ports, err := sysctl("net/ipv4/ip_local_port_range")
	if err != nil {
		g.unknown("ip_local_port_range", err, "")
	} else {
		g.judgePorts(ports)
	}
	for _, name := range e.uplinks() {
		if v4 {
			all, err1 := sysctl("net/ipv4/conf/all/rp_filter")
			own, err2 := sysctl("net/ipv4/conf/" + name + "/rp_filter")
			if err1 == nil && err2 == nil {
				g.judgeReversePath(name, all, own, e.Native)
			}
		}
		if v6 {
			ra, err1 := sysctl("net/ipv6/conf/" + name + "/accept_ra")
			fwd, err2 := sysctl("net/ipv6/conf/" + name + "/forwarding")
			if err1 == nil && err2 == nil {
				g.judgeRouterAdvertisements(name, ra, fwd, hasRouteByRA(name))
			}
		}
	}
}

// hasRouteByRA tells whether the interface has a default route that came by router advertisement: one that expires.
func hasRouteByRA(name string) bool {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return false
	}
	routes, err := cni.Whole(func() ([]netlink.Route, error) { return netlink.RouteList(l, netlink.FAMILY_V6) })
	if err != nil {
		return false
	}
	for _, r := range routes {
		const byRA = 9 // RTPROT_RA of linux/rtnetlink.h
		if int(r.Protocol) == byRA {
			return true
		}
	}
	return false
}

// judgeRelease says whether a kernel release, such as 6.1.0-13-amd64, is one that the programs load on.
func (g group) judgeRelease(release string) {
	var major, minor int
	if _, err := fmt.Sscanf(release, "%d.%d", &major, &minor); err != nil {
		g.unknown("release", fmt.Errorf("release %q is no number", release), "")
		return
	}
	if major < 5 || major == 5 && minor < 10 {
		g.fail("release", "use Linux 5.10 or newer", "Linux %s", release)
		return
	}
	g.ok("release", "Linux %s", release)
}

// judgePorts says whether the kernel's range for the node's own clients leaves the masquerade enough ports.
func (g group) judgePorts(text string) {
	var first, last int
	if _, err := fmt.Sscan(text, &first, &last); err != nil {
		g.unknown("ip_local_port_range", fmt.Errorf("%q is not two ports", text), "")
		return
	}
	free := 65535 - last
	if free < minMasqPorts {
		g.warn("ip_local_port_range", fmt.Sprintf("end it at %d or lower (sysctl -w net.ipv4.ip_local_port_range=\"%d 60999\") and restart the agent", 65535-minMasqPorts, min(first, 60999)),
			"%d to %d leaves %d ports for pods' flows to outside: they share the uppermost with the node's own clients", first, last, free)
		return
	}
	g.ok("ip_local_port_range", "%d to %d; pods' flows to one outside port have %d ports", first, last, free)
}

// judgeReversePath says whether the reverse path filter may drop what comes in by an uplink. The kernel takes the stricter of both values
// (Documentation/networking/ip-sysctl.rst): strict is 1.
func (g group) judgeReversePath(link, all, own string, native bool) {
	a, _ := strconv.Atoi(all)
	o, _ := strconv.Atoi(own)
	name := "rp_filter of " + link
	switch v := max(a, o); {
	case v == 1 && native:
		g.warn(name, "sysctl -w net.ipv4.conf."+link+".rp_filter=2 if nodes have several ways to each other",
			"strict: packets of other nodes' pods are dropped unless the way back is the way they came")
	case v == 1:
		g.ok(name, "strict; the ways of the tunnel are symmetric")
	default:
		g.ok(name, "%s", map[int]string{0: "off", 2: "loose"}[v])
	}
}

// judgeRouterAdvertisements: a node that forwards ignores advertisements unless accept_ra is 2, and loses its default route with the
// lifetime of the last one.
func (g group) judgeRouterAdvertisements(link, ra, forwarding string, byRA bool) {
	name := "accept_ra of " + link
	if byRA && forwarding == "1" && ra != "2" {
		g.fail(name, "sysctl -w net.ipv6.conf."+link+".accept_ra=2, or give the node a static default route",
			"%s with forwarding on: the default route came by router advertisement and will expire", ra)
		return
	}
	g.ok(name, "%s", ra)
}
