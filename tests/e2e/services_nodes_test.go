package e2e

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"strings"
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

// server is a pod on a node that is one of app=web.
func server(name, node string) string {
	return fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: %s, labels: {app: web}}
spec:
  nodeName: %s
  terminationGracePeriodSeconds: 1
  containers:
  - {name: echo, image: "strake.io/demo:1", args: [demo, echo, --listen, ":8080"]}
`, name, node)
}

// webService is one of app=web, with more lines of its spec.
func webService(name string, nodePort int, more ...string) string {
	ports := ""
	if nodePort != 0 {
		ports = fmt.Sprintf(", nodePort: %d", nodePort)
	}
	return fmt.Sprintf(`
apiVersion: v1
kind: Service
metadata: {name: %s}
spec:
  ipFamilyPolicy: RequireDualStack
  selector: {app: web}
  ports:
  - {name: http, port: 80, targetPort: 8080%s}
  - {name: packets, port: 80, targetPort: 8080, protocol: UDP%[2]s}
  %[3]s
`, name, ports, strings.Join(more, "\n  "))
}

// TestServicesOfNodes is what Services mean where there are several nodes: two servers on the second, one on the third, none on the first.
func TestServicesOfNodes(t *testing.T) {
	t.Parallel()
	c := &threeNodes{cluster: start(t, "--nodes", "3", "--ip-family", "dual")}
	eventually(t, 4*time.Minute, c.refresh)
	var manifests []string
	for i, n := range c.nodes {
		manifests = append(manifests, strings.NewReplacer("resident-", "client-", "app: resident, ", "").Replace(residents(n.Name, i)))
	}
	manifests = append(manifests, server("second-a", c.nodes[1].Name), server("second-b", c.nodes[1].Name), server("third", c.nodes[2].Name),
		webService("any", 30381, "type: NodePort"),
		webService("kept", 30382, "type: LoadBalancer", "externalTrafficPolicy: Local"),
		webService("inner", 0, "internalTrafficPolicy: Local"),
		webService("sticky", 30383, "type: NodePort", "sessionAffinity: ClientIP"),
		webService("near", 0, "trafficDistribution: PreferSameNode"),
		webService("elsewhere", 0, "externalIPs: [203.0.113.80]"),
		ends(c.nodes))
	c.apply(strings.Join(manifests, "---\n"))
	c.kubectl("wait", "--for=condition=Ready", "pod", "--all", "--timeout=90s")
	m := newNeighbour(t, c)
	for _, part := range []struct {
		name string
		run  func(*testing.T, *threeNodes, neighbour)
	}{
		{"any node sends a client to the same backend", sameBackend},
		{"externalTrafficPolicy Local", externalLocal},
		{"internalTrafficPolicy Local", internalLocal},
		{"sessionAffinity", stays},
		{"trafficDistribution PreferSameNode", sameNode},
		{"addresses of load balancers and externalIPs", routedAddresses},
		{"a pod that gets itself", hairpin},
		{"clients and backends with the network of nodes", hostNetwork},
		{"no endpoints", noEndpoints},
		{"internalTrafficPolicy Local, of both families", internalPolicy},
		{"loadBalancerSourceRanges", sourceRanges},
		{"a rollout fails no request", rollout},
		{"clients of a backend that goes", backendGoes},
		{"direct server return, and at the driver", directReturn},
	} {
		t.Run(part.name, func(t *testing.T) { part.run(t, c.in(t), m) })
	}
}

// from asks often from the pod on a node, and tells who answered.
func (c *threeNodes) from(node int, url string) (map[string]int, string) {
	out, _ := c.try("exec", fmt.Sprint("client-", node), "-c", "echo", "--", "/strake", "demo", "client", "--interval", "1ms", "--count", "40", "--url", url)
	return answersOf(out), out
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

// sameBackend: by consistent hashing the nodes agree on the backend of a client's address and port.
func sameBackend(t *testing.T, c *threeNodes, m neighbour) {
	for family := range m.addrs {
		seen := map[string]int{}
		for port := 40000; port < 40020; port++ {
			var first string
			for _, n := range c.nodes[1:] {
				to := netip.AddrPortFrom(n.Addresses[family], 30381)
				var answer string
				eventually(t, 2*time.Minute, func() string {
					var err error
					if answer, err = asks(m.Space, "udp", port, to, 2*time.Second); err != nil {
						return fmt.Sprintf("%s: %v", to, err)
					}
					return ""
				})
				if first == "" {
					first = pod(answer)
				}
				if pod(answer) != first {
					t.Errorf("port %d by %s: %s, by another node %s", port, to, pod(answer), first)
				}
			}
			seen[first]++
		}
		if !only(seen, "second-a", "second-b", "third") {
			t.Errorf("the backends of twenty clients: %v", seen)
		}
	}
}

// externalLocal: nodes that have endpoints give their own, with the client's address; the others drop, and say so to health checks.
func externalLocal(t *testing.T, c *threeNodes, m neighbour) {
	health := strings.TrimSpace(c.kubectl("get", "service", "kept", "-o", "jsonpath={.spec.healthCheckNodePort}"))
	for family, own := range m.addrs {
		for i, pods := range [][]string{nil, {"second-a", "second-b"}, {"third"}} {
			node := c.nodes[i].Addresses[family]
			for _, network := range []string{"tcp", "udp"} {
				to := netip.AddrPortFrom(node, 30382)
				if pods == nil {
					if answer, err := asks(m.Space, network, 0, to, time.Second); err == nil || !errors.Is(err, errTimeout(err)) {
						t.Errorf("%s of a node without endpoints: %q, %v", network, answer, err)
					}
					continue
				}
				seen := map[string]int{}
				for range 30 {
					answer, err := asks(m.Space, network, 0, to, 5*time.Second)
					if err != nil || !strings.Contains(answer, own.String()) {
						t.Fatalf("%s to %s: %q, %v", network, to, answer, err)
					}
					seen[pod(answer)]++
				}
				if !only(seen, pods...) {
					t.Errorf("%s to %s: %v answer, want %v", network, to, seen, pods)
				}
			}
			want := http.StatusOK
			if pods == nil {
				want = http.StatusServiceUnavailable
			}
			eventually(t, 80*time.Second, func() string {
				code, body, err := m.get("http://" + net.JoinHostPort(node.String(), health) + "/healthz")
				if err != nil || code != want || !strings.Contains(body, fmt.Sprintf(`"localEndpoints": %d`, len(pods))) && !strings.Contains(body, fmt.Sprintf(`"localEndpoints":%d`, len(pods))) {
					return fmt.Sprintf("health of %s: %d, %s, %v", node, code, body, err)
				}
				return ""
			})
		}
	}
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

// internalLocal: clients get the endpoints of their own node, or none.
func internalLocal(t *testing.T, c *threeNodes, _ neighbour) {
	for i, pods := range [][]string{nil, {"second-a", "second-b"}, {"third"}} {
		if seen, out := c.from(i, "udp://inner:80"); !only(seen, pods...) && i > 0 {
			t.Errorf("node %d: %v, want %v:\n%s", i+1, seen, pods, out)
		}
	}
	if out, err := c.try("exec", "client-0", "-c", "echo", "--", "/strake", "demo", "client", "--count", "1", "--url", "http://inner"); err == nil {
		t.Errorf("a node without endpoints: %s", out)
	}
}

// stays: a client keeps its backend.
func stays(t *testing.T, c *threeNodes, m neighbour) {
	for _, url := range []string{"http://sticky", "udp://sticky:80"} {
		if seen, out := c.from(0, url); len(seen) != 1 {
			t.Errorf("%s from a pod: %v\n%s", url, seen, out)
		}
	}
	for family := range m.addrs {
		for _, network := range []string{"tcp", "udp"} {
			seen := map[string]int{}
			for range 20 {
				answer, err := asks(m.Space, network, 0, netip.AddrPortFrom(c.nodes[1].Addresses[family], 30383), 5*time.Second)
				if err != nil {
					t.Fatal(err)
				}
				seen[pod(answer)]++
			}
			if len(seen) != 1 {
				t.Errorf("%s from outside: %v", network, seen)
			}
		}
	}
}

// sameNode: endpoints of the client's node, if it has some.
func sameNode(t *testing.T, c *threeNodes, _ neighbour) {
	for i, pods := range [][]string{{"second-a", "second-b", "third"}, {"second-a", "second-b"}, {"third"}} {
		eventually(t, 80*time.Second, func() string { // hints come with the slices
			if seen, out := c.from(i, "udp://near:80"); !only(seen, pods...) {
				return fmt.Sprintf("node %d: %v, want %v:\n%s", i+1, seen, pods, out)
			}
			return ""
		})
	}
}

// routedAddresses: what a network leads to a node for a Service is answered there.
func routedAddresses(t *testing.T, c *threeNodes, m neighbour) {
	c.kubectl("patch", "service", "kept", "--subresource=status", "--type=merge", "-p", `{"status":{"loadBalancer":{"ingress":[{"ip":"203.0.113.81"}]}}}`)
	for addr, pods := range map[string][]string{"203.0.113.80": {"second-a", "second-b", "third"}, "203.0.113.81": {"third"}} {
		a := netip.MustParseAddr(addr)
		if err := m.route(netip.PrefixFrom(a, 32), c.nodes[2].Addresses[0]); err != nil {
			t.Fatal(err)
		}
		for _, network := range []string{"tcp", "udp"} {
			var seen map[string]int
			eventually(t, 80*time.Second, func() string {
				seen = map[string]int{}
				for range 40 {
					answer, err := asks(m.Space, network, 0, netip.AddrPortFrom(a, 80), 2*time.Second)
					if err != nil {
						return fmt.Sprintf("%s to %s: %v", network, a, err)
					}
					seen[pod(answer)]++
				}
				return ""
			})
			if !only(seen, pods...) {
				t.Errorf("%s to %s: %v answer, want %v", network, a, seen, pods)
			}
		}
	}
}

// rollout replaces all pods of a Deployment while clients inside and outside ask, of which none must notice.
func rollout(t *testing.T, c *threeNodes, m neighbour) {
	c.apply(`
apiVersion: apps/v1
kind: Deployment
metadata: {name: roll}
spec:
  replicas: 3
  selector: {matchLabels: {app: roll}}
  strategy: {rollingUpdate: {maxUnavailable: 0, maxSurge: 3}}
  template:
    metadata: {labels: {app: roll}}
    spec:
      terminationGracePeriodSeconds: 30
      containers:
      - name: echo
        image: strake.io/demo:1
        args: [demo, echo, --listen, ":8080"]
        lifecycle: {preStop: {sleep: {seconds: 8}}} # the time for every node to hear of it
        readinessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1}
` + "---\n" + strings.ReplaceAll(webService("roll", 30384, "type: NodePort"), "app: web", "app: roll"))
	c.kubectl("rollout", "status", "deployment/roll", "--timeout=60s")
	eventually(t, 2*time.Minute, func() string {
		if seen, out := c.from(0, "http://roll"); len(seen) != 3 {
			return out
		}
		return ""
	})
	done := make(chan struct{})
	failures := make(chan string, 3)
	go func() {
		out, _ := c.try("exec", "client-0", "-c", "echo", "--", "/strake", "demo", "client", "--interval", "10ms", "--count", "800", "--url", "http://roll")
		for line := range strings.Lines(out) {
			if !strings.Contains(line, " answers ") {
				failures <- "inside: " + line
				return
			}
		}
		failures <- ""
	}()
	for _, network := range []string{"tcp", "udp"} {
		go func() {
			for n := 1; ; n++ {
				select {
				case <-done:
					failures <- ""
					return
				case <-time.After(10 * time.Millisecond):
				}
				if _, err := asks(m.Space, network, 0, netip.AddrPortFrom(c.nodes[n%2+1].Addresses[0], 30384), 5*time.Second); err != nil {
					failures <- fmt.Sprintf("outside, %s: %v", network, err)
					return
				}
			}
		}()
	}
	c.kubectl("rollout", "restart", "deployment/roll")
	c.kubectl("rollout", "status", "deployment/roll", "--timeout=60s")
	eventually(t, 2*time.Minute, func() string {
		if out := c.kubectl("get", "pods", "-l", "app=roll", "-o", "name"); strings.Count(out, "pod/") != 3 {
			return out // old ones end still
		}
		return ""
	})
	close(done)
	for range 3 {
		if f := <-failures; f != "" {
			t.Error(f)
		}
	}
	c.kubectl("delete", "deployment,service", "roll", "--wait=false")
}

// backendGoes: when a backend is no endpoint any more, though it lives, its datagrams' clients go to another, and its connections end.
func backendGoes(t *testing.T, c *threeNodes, m neighbour) {
	ip := netip.MustParseAddr(strings.TrimSpace(c.kubectl("get", "service", "any", "-o", "jsonpath={.spec.clusterIP}")))
	inside, outside := netip.AddrPortFrom(ip, 80), netip.AddrPortFrom(c.nodes[2].Addresses[0], 30381)
	node := podnet.Space(c.nodes[0].netns)
	type client struct {
		what    string
		conn    net.Conn
		backend string
	}
	var clients []client
	c.kubectl("label", "pod", "second-a", "second-b", "app-") // only the third is left
	for _, to := range []struct {
		what  string
		space podnet.Space
		addr  netip.AddrPort
	}{{"inside", node, inside}, {"outside", m.Space, outside}} {
		networks := []string{"tcp", "udp"}
		if to.what == "inside" {
			networks[1] = unconnected
		}
		for _, network := range networks {
			var k client
			eventually(t, 80*time.Second, func() string {
				conn, err := dial(to.space, network, 0, to.addr, 60*time.Second)
				if err != nil {
					return err.Error()
				}
				answer, err := exchange(conn)
				if err != nil || pod(answer) != "third" {
					conn.Close()
					return fmt.Sprintf("%s %s: %q, %v", to.what, network, answer, err)
				}
				k = client{to.what + " by " + network, conn, pod(answer)}
				return ""
			})
			defer k.conn.Close()
			clients = append(clients, k)
		}
	}
	c.kubectl("label", "pod", "second-a", "app=web")
	c.kubectl("label", "pod", "third", "app-")
	for _, k := range clients {
		if k.conn.LocalAddr().Network() == "tcp" {
			if n, err := k.conn.Read(make([]byte, 1)); err == nil || errors.Is(err, errTimeout(err)) {
				t.Errorf("%s: %d bytes, %v", k.what, n, err)
			}
			continue
		}
		eventually(t, 80*time.Second, func() string {
			k.conn.SetDeadline(time.Now().Add(2 * time.Second))
			answer, err := exchange(k.conn)
			if err != nil || pod(answer) != "second-a" {
				return fmt.Sprintf("%s: %q, %v", k.what, answer, err)
			}
			return ""
		})
	}
	// The pod of a name is made anew on another node.
	c.kubectl("delete", "pod", "third", "second-b", "--timeout=60s")
	c.kubectl("label", "pod", "second-a", "app-")
	c.apply(server("third", c.nodes[0].Name))
	c.kubectl("wait", "--for=condition=Ready", "pod/third", "--timeout=60s")
	for _, to := range []struct {
		space podnet.Space
		addr  netip.AddrPort
	}{{node, inside}, {m.Space, outside}} {
		eventually(t, 80*time.Second, func() string {
			answer, err := asks(to.space, "tcp", 0, to.addr, 2*time.Second)
			if err != nil || pod(answer) != "third" {
				return fmt.Sprintf("%s: %q, %v", to.addr, answer, err)
			}
			return ""
		})
	}
}
