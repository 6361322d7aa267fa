package proxy

import (
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/strake-io/strake/bpf"
)

func TestNodePortAddrs(t *testing.T) {
	primary := addrs("192.0.2.1", "2001:db8::1")
	interfaces := addrs("127.0.0.1", "::1", "192.0.2.1", "198.51.100.1", "10.96.0.10", "2001:db8::1", "2001:db8:5::1", "fe80::1", "169.254.1.1")
	for _, c := range []struct {
		ranges []string
		want   []netip.Addr
	}{
		{nil, primary},
		{[]string{"198.51.100.0/24"}, addrs("198.51.100.1")},
		{[]string{"0.0.0.0/0", "::/0"}, addrs("192.0.2.1", "198.51.100.1", "2001:db8::1", "2001:db8:5::1")},
		{[]string{"0.0.0.0/0", "192.0.2.0/24"}, addrs("192.0.2.1", "198.51.100.1")},
		{[]string{"2001:db8:5::/64"}, addrs("2001:db8:5::1")},
		{[]string{"127.0.0.0/8", "192.0.2.1/32"}, addrs("127.0.0.1", "192.0.2.1")},
		{[]string{"::1/128"}, addrs("::1")},
		{[]string{"203.0.113.0/24"}, nil},
	} {
		var ranges []netip.Prefix
		for _, r := range c.ranges {
			ranges = append(ranges, netip.MustParsePrefix(r))
		}
		if got := NodePortAddrs(ranges, primary, interfaces, addrs("10.96.0.10")); !slices.Equal(got, c.want) {
			t.Errorf("%v: %v, want %v", c.ranges, got, c.want)
		}
	}
}

// Addresses that come and go take NodePorts and health checks along.
func TestInterfacesAreFollowed(t *testing.T) {
	client := fake.NewClientset(balanced(func(s *corev1.Service) { s.Spec.Ports[0].NodePort = 30080 }), slice(nop))
	r := start(t, client, newTable(0), testNode)
	done := make(chan error, 1)
	go func() {
		done <- r.FollowInterfaces(t.Context(), []netip.Prefix{netip.MustParsePrefix("198.18.7.0/24")})
	}()
	lo, err := netlink.LinkByName("lo")
	must(t, err)
	answers := func(want ...netip.Addr) {
		t.Helper()
		r.until(t, func() bool {
			rows, err := r.table.Dump()
			must(t, err)
			var got []netip.Addr
			for _, lb := range rows {
				for _, f := range lb.Frontends {
					if f.Kind == bpf.NodePort {
						got = append(got, f.Addr.Addr())
					}
				}
			}
			slices.SortFunc(got, netip.Addr.Compare)
			if !slices.Equal(got, want) {
				return false
			}
			for _, a := range want {
				if code, _, _ := ask(t, fmt.Sprintf("http://%s:31000/", a)); code != http.StatusOK {
					return false
				}
			}
			return true
		})
	}
	answers()
	add := func(text string) *netlink.Addr {
		a := &netlink.Addr{IPNet: &net.IPNet{IP: net.ParseIP(text), Mask: net.CIDRMask(32, 32)}}
		must(t, netlink.AddrAdd(lo, a))
		return a
	}
	one := add("198.18.7.1")
	answers(addrs("198.18.7.1")...)
	two := add("198.18.7.2")
	answers(addrs("198.18.7.1", "198.18.7.2")...)
	must(t, netlink.AddrDel(lo, one))
	answers(addrs("198.18.7.2")...)
	must(t, netlink.AddrDel(lo, two))
	answers()
}

func TestBindAddrs(t *testing.T) {
	usual := addrs("127.0.0.1", "2001:db8::1")
	for text, want := range map[string]string{
		"": "[127.0.0.1:10256 [2001:db8::1]:10256]", "none": "[]", ":99": "[127.0.0.1:99 [2001:db8::1]:99]", "0.0.0.0": "[0.0.0.0:10256]", "::": "[[::]:10256]", "192.0.2.1:99": "[192.0.2.1:99]",
		"[::1]:99": "[[::1]:99]", ":0": "", ":65536": "", "here:99": "", "192.0.2.1:": "", "192.0.2.1:http": "",
	} {
		got, err := BindAddrs(text, usual, HealthzPort)
		if (err == nil) != (want != "") || err == nil && fmt.Sprint(got) != want {
			t.Errorf("%q: %v, %v; want %s", text, got, err, want)
		}
	}
}

// An address that is not free yet is served as soon as it is.
func TestServeWaitsForItsAddress(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	at := netip.MustParseAddrPort(l.Addr().String())
	go Serve(t.Context(), []netip.AddrPort{at}, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "ok") }))
	must(t, l.Close())
	for {
		if code, _, body := ask(t, fmt.Sprintf("http://%s/", at)); code == http.StatusOK && body == "ok" {
			return
		}
	}
}
