package e2e

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/strake-io/strake/tests/podnet"
)

// neighbour is a machine on the nodes' network that is none of them.
type neighbour struct {
	podnet.Space
	addrs    []netip.Addr // of the families of the nodes
	gateways []netip.Addr // the first node, by family as addrs
}

// newNeighbour joins a namespace to the lab's bridge, with the last address but some of each range.
func newNeighbour(t *testing.T, c *threeNodes) neighbour {
	t.Helper()
	s, err := podnet.NewSpace(filepath.Join(t.TempDir(), "neighbour"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Remove(); err != nil {
			t.Error(err)
		}
	})
	first := podnet.Space("/run/netns/" + c.Net)
	m := neighbour{Space: s}
	// By the second node's addresses, the bridge has the number 1.
	var cidrs []string
	for _, a := range c.nodes[1].Addresses {
		own, gateway := a.AsSlice(), a.AsSlice()
		own[len(own)-1], gateway[len(gateway)-1] = 200, 1
		o, _ := netip.AddrFromSlice(own)
		g, _ := netip.AddrFromSlice(gateway)
		bits := 24
		if a.Is6() {
			bits = 64
		}
		m.addrs, m.gateways, cidrs = append(m.addrs, o), append(m.gateways, g), append(cidrs, netip.PrefixFrom(o, bits).String())
	}
	err = errors.Join(
		first.Connect("neighbour", s, "eth0"),
		first.In(func() error {
			links, err := netlink.LinkList()
			if err != nil {
				return err
			}
			port, err := netlink.LinkByName("neighbour")
			if err != nil {
				return err
			}
			for _, l := range links {
				if strings.HasPrefix(l.Attrs().Name, "stkbr-") {
					return netlink.LinkSetMaster(port, l)
				}
			}
			return errors.New("no bridge of the lab")
		}),
		s.Address("eth0", cidrs...),
	)
	for _, g := range m.gateways {
		err = errors.Join(err, m.route(netip.Prefix{}, g))
	}
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// route leads to a range over a gateway; the zero range is the default.
func (m neighbour) route(to netip.Prefix, gateway netip.Addr) error {
	return m.In(func() error {
		r := &netlink.Route{Gw: gateway.AsSlice()}
		if to.IsValid() {
			r.Dst = &net.IPNet{IP: to.Addr().AsSlice(), Mask: net.CIDRMask(to.Bits(), to.Addr().BitLen())}
		}
		return netlink.RouteReplace(r)
	})
}

// unconnected are datagrams of a socket that names their receiver with each. One that is connected can't be given another backend: it
// gets an error when its backend goes.
const unconnected = "unconnected udp"

// sender is such a socket.
type sender struct {
	*net.UDPConn
	to netip.AddrPort
}

// Write implements net.Conn.
func (s sender) Write(b []byte) (int, error) { return s.WriteToUDPAddrPort(b, s.to) }

// dial connects from a namespace; from port 0 the kernel chooses.
func dial(s podnet.Space, network string, port int, to netip.AddrPort, patience time.Duration) (c net.Conn, err error) {
	if network == unconnected {
		err := s.In(func() error {
			l, err := net.ListenUDP("udp4", nil)
			c = sender{l, to}
			return err
		})
		if err == nil {
			err = c.SetDeadline(time.Now().Add(patience))
		}
		return c, err
	}
	d := net.Dialer{Timeout: patience, FallbackDelay: -1}
	if port != 0 && network == "udp" {
		d.LocalAddr = &net.UDPAddr{Port: port}
	}
	err = s.In(func() error {
		c, err = d.Dial(network, to.String())
		return err
	})
	if err == nil {
		err = c.SetDeadline(time.Now().Add(patience))
	}
	return c, err
}

// exchange asks the demo's server and returns its answer.
func exchange(c net.Conn) (string, error) {
	if c.LocalAddr().Network() == "udp" {
		if _, err := c.Write([]byte("?")); err != nil {
			return "", err
		}
		b := make([]byte, 200)
		n, err := c.Read(b)
		return string(b[:n]), err
	}
	if _, err := fmt.Fprint(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		return "", err
	}
	b := make([]byte, 1000)
	n, err := c.Read(b)
	_, answer, _ := strings.Cut(string(b[:n]), "\r\n\r\n")
	return answer, err
}

// asks is one question over a connection of its own.
func asks(s podnet.Space, network string, port int, to netip.AddrPort, patience time.Duration) (string, error) {
	c, err := dial(s, network, port, to, patience)
	if err != nil {
		return "", err
	}
	defer c.Close()
	return exchange(c)
}

// errTimeout is the error itself if it tells that time ran out, else another one.
func errTimeout(err error) error {
	var n net.Error
	if errors.As(err, &n) && n.Timeout() {
		return err
	}
	return errors.New("no timeout")
}

// get asks over HTTP.
func (m neighbour) get(url string) (code int, body string, err error) {
	client := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true, DialContext: m.Dial}}
	r, err := client.Get(url)
	if err != nil {
		return 0, "", err
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	return r.StatusCode, string(b), err
}

// only wants answers from all of these pods, and from no other.
func only(seen map[string]int, pods ...string) bool {
	for _, p := range pods {
		if seen[p] == 0 {
			return false
		}
	}
	return len(seen) == len(pods)
}

func pod(answer string) string {
	name, _, _ := strings.Cut(answer, " ")
	return name
}

const patient, brief = 5 * time.Second, 700 * time.Millisecond

// caller is somebody who asks.
type caller struct {
	what string
	ask  func(network string, to netip.AddrPort, patience time.Duration) (string, error)
}

// callerIn asks from a namespace. In a node's, hooks serve the test's sockets as all of the node's; in a pod's they don't, for the test is no process of it: its packets
// tell what it asks for.
func callerIn(what string, s podnet.Space) caller {
	return caller{what, func(network string, to netip.AddrPort, patience time.Duration) (string, error) {
		return asks(s, network, 0, to, patience)
	}}
}

// processOf asks as a process of a pod.
func (c *threeNodes) processOf(pod string, more ...string) caller {
	return caller{"pod " + pod, func(network string, to netip.AddrPort, _ time.Duration) (string, error) {
		url := map[string]string{"tcp": "http://", "udp": "udp://"}[network] + to.String()
		out, err := c.try(append(append([]string{"exec", pod}, more...), "--", "/strake", "demo", "client", "--count", "1", "--url", url)...)
		if strings.Contains(out, syscall.ECONNREFUSED.Error()) {
			err = syscall.ECONNREFUSED
		}
		if f := strings.SplitN(out, " ", 3); len(f) == 3 {
			out = f[2] // behind its number and time
		}
		return out, err
	}}
}

// packetsOf asks as a pod on a node whose sockets no hook serves.
func (c *threeNodes) packetsOf(pod string, node int) caller {
	c.t.Helper()
	return callerIn("packets of pod "+pod, podnet.Space(c.nodes[node].allocation(c.t, c.podAddrs(pod)[0]).Netns))
}

func (c *threeNodes) node(i int) caller {
	return callerIn("node "+c.nodes[i].Name, podnet.Space(c.nodes[i].netns))
}

// clusterIP is a Service's, of the family of the nodes' addresses with this number.
func (c *threeNodes) clusterIP(service string, family int) netip.AddrPort {
	c.t.Helper()
	for text := range strings.FieldsSeq(c.kubectl("get", "service", service, "-o", "jsonpath={.spec.clusterIPs[*]}")) {
		if a := netip.MustParseAddr(text); a.Is4() == c.nodes[0].Addresses[family].Is4() {
			return netip.AddrPortFrom(a, 80)
		}
	}
	c.t.Fatalf("Service %s has no address of the family of %s", service, c.nodes[0].Addresses[family])
	return netip.AddrPort{}
}

// nodePorts are a NodePort's addresses, node by node.
func (c *threeNodes) nodePorts(port uint16, family int) (to []netip.AddrPort) {
	for _, n := range c.nodes {
		to = append(to, netip.AddrPortFrom(n.Addresses[family], port))
	}
	return to
}

// each waits until all of these, asked by TCP and UDP at the same time, end so.
func each(t *testing.T, callers []caller, places []netip.AddrPort, patience time.Duration, want func(answer string, err error) bool) {
	t.Helper()
	var all sync.WaitGroup
	for _, k := range callers {
		for _, network := range []string{"tcp", "udp"} {
			for _, to := range places {
				all.Go(func() {
					if last := within(80*time.Second, func() string {
						answer, err := k.ask(network, to, patience)
						if want(answer, err) {
							return ""
						}
						return fmt.Sprintf("%s to %s by %s: %q, %v", k.what, to, network, answer, err)
					}); last != "" {
						t.Error(last)
					}
				})
			}
		}
	}
	all.Wait()
	if t.Failed() {
		t.FailNow()
	}
}

func refuses(_ string, err error) bool { return errors.Is(err, syscall.ECONNREFUSED) }

// isSilent is what a packet that is dropped comes to; of a socket that is served, the call is not permitted.
func isSilent(_ string, err error) bool {
	return err != nil && (errors.Is(err, errTimeout(err)) || errors.Is(err, os.ErrPermission))
}

func answersAs(name string) func(string, error) bool {
	return func(answer string, err error) bool { return err == nil && pod(answer) == name }
}
