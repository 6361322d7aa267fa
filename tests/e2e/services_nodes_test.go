package e2e

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"
)

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
		webService("elsewhere", 0, `externalIPs: ["203.0.113.80", "2001:db8:113::80"]`),
		ends(c.nodes), choices(c.nodes))
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
		{"trafficDistribution", distribution},
		{"endpoints by their conditions and hints", conditions},
		{"publishNotReadyAddresses", published},
		{"target ports by name, headless Services and ExternalName", names},
		{"hostPort with hostIP, and no loopback address", portsOfOneNode},
		{"addresses of load balancers and externalIPs", routedAddresses},
		{"a pod that gets itself", hairpin},
		{"clients and backends with the network of nodes", hostNetwork},
		{"no endpoints", noEndpoints},
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
