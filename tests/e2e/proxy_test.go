package e2e

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/strake-io/strake/tests/lab"
)

// TestProxyAlone runs `strake agent --only proxy` on two nodes whose pods have the network of Debian's ptp and bridge plugins.
func TestProxyAlone(t *testing.T) {
	t.Parallel()
	l := startProxyLab(t)
	one, two := l.nodes[0], l.nodes[1]
	for _, n := range l.nodes {
		n.start()
	}
	// The bridge comes with its first pod, after the agent.
	a, b := one.pod("a"), two.pod("b")
	both := l.service("both", 30100, nil, a, b)
	here := l.service("here", 30101, nil, a)
	there := l.service("there", 30102, nil, b)
	local := l.service("local", 30103, func(s *corev1.Service) { s.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal }, a, b)
	none := l.service("none", 30104, nil)

	url := func(scheme, host string, port int) string {
		return scheme + "://" + net.JoinHostPort(host, fmt.Sprint(port))
	}
	answers := func(t *testing.T, out string, err error, times int, want ...string) map[string]bool {
		t.Helper()
		pods, clients := answeredBy(out)
		n := 0
		for _, p := range want {
			if pods[p] == 0 {
				t.Errorf("%s did not answer", p)
			}
			n += pods[p]
		}
		if err != nil || n != times || len(pods) != len(want) {
			t.Errorf("%v: want %d answers of %v, got %v:\n%s", err, times, want, pods, out)
		}
		return clients
	}
	// The last Service is there when it refuses.
	for _, p := range []*proxyPod{a, b} {
		for f := range 2 {
			eventually(t, 4*time.Minute, func() string {
				if out, _ := p.ask(url("http", none.Spec.ClusterIPs[f], 80), 1); !strings.Contains(out, "connection refused") {
					return out
				}
				return ""
			})
		}
	}
	for f, family := range []string{"IPv4", "IPv6"} {
		for _, scheme := range []string{"http", "udp"} {
			t.Run(family+" "+scheme, func(t *testing.T) {
				for _, p := range []*proxyPod{a, b} {
					for s, want := range map[*corev1.Service][]string{both: {"a", "b"}, here: {"a"}, there: {"b"}} {
						t.Run("pod "+p.name+" to the ClusterIP of "+s.Name, func(t *testing.T) {
							out, err := p.ask(url(scheme, s.Spec.ClusterIPs[f], 80), 30)
							answers(t, out, err, 30, want...)
						})
						t.Run("pod "+p.name+", whose sockets no hook serves, to the ClusterIP of "+s.Name, func(t *testing.T) {
							out, err := l.askIn(p.space, "", url(scheme, s.Spec.ClusterIPs[f], 80), 30)
							answers(t, out, err, 30, want...)
						})
						t.Run("pod "+p.name+" to the NodePort of "+s.Name, func(t *testing.T) {
							out, err := p.ask(url(scheme, p.node.addrs[f], int(s.Spec.Ports[0].NodePort)), 30)
							answers(t, out, err, 30, want...)
						})
						t.Run("pod "+p.name+", whose sockets no hook serves, to the NodePort of "+s.Name, func(t *testing.T) {
							out, err := l.askIn(p.space, "", url(scheme, p.node.addrs[f], int(s.Spec.Ports[0].NodePort)), 30)
							answers(t, out, err, 30, want...)
						})
					}
				}
				t.Run("node to a ClusterIP", func(t *testing.T) {
					out, err := one.ask(url(scheme, both.Spec.ClusterIPs[f], 80), 30)
					answers(t, out, err, 30, "a", "b")
				})
				for _, n := range l.nodes {
					for s, want := range map[*corev1.Service][]string{both: {"a", "b"}, here: {"a"}, there: {"b"}} {
						t.Run("outside to the NodePort of "+s.Name+" at "+n.name, func(t *testing.T) {
							out, err := l.askOutside(url(scheme, n.addrs[f], int(s.Spec.Ports[0].NodePort)), 12)
							answers(t, out, err, 12, want...)
						})
					}
					t.Run("outside to the NodePort of a Service with local traffic policy at "+n.name, func(t *testing.T) {
						out, err := l.askOutside(url(scheme, n.addrs[f], int(local.Spec.Ports[0].NodePort)), 5)
						clients := answers(t, out, err, 5, map[*proxyNode]string{one: "a", two: "b"}[n])
						outside := map[*proxyNode][2]string{one: {lab.OutsideIP, lab.OutsideIP6}, two: {"198.18.1.1", "2001:db8:1::1"}}[n][f]
						if !clients[outside] || len(clients) != 1 {
							t.Errorf("the pod saw %v, not %s", clients, outside)
						}
					})
				}
			})
		}
	}
	t.Run("as whom a backend elsewhere sees pods whose sockets no hook serves", func(t *testing.T) {
		for f := range 2 {
			for _, c := range []struct {
				pod  *proxyPod
				to   *corev1.Service
				seen string
			}{{a, there, a.addrs[f]}, {b, here, two.addrs[f]}} { // by its own veth, and by the bridge
				to := url("http", c.to.Spec.ClusterIPs[f], 80)
				out, err := l.askIn(c.pod.space, "", to, 3)
				if _, clients := answeredBy(out); err != nil || len(clients) != 1 || !clients[c.seen] {
					t.Errorf("pod %s, asking %s: %v; want to be seen as %s:\n%s", c.pod.name, to, err, c.seen, out)
				}
			}
		}
	})
	t.Run("a backend goes", func(t *testing.T) {
		leaves := l.service("leaves", 30105, nil, b)
		to := net.JoinHostPort(leaves.Spec.ClusterIPs[0], "80")
		var c net.Conn
		eventually(t, 2*time.Minute, func() string {
			var err error
			if c, err = one.space.Dial(t.Context(), "tcp", to); err != nil {
				return err.Error()
			}
			return ""
		})
		defer c.Close()
		slices := l.client.DiscoveryV1().EndpointSlices("default")
		for i := range 2 {
			slice, err := slices.Get(t.Context(), fmt.Sprint("leaves-", i), metav1.GetOptions{})
			if err != nil {
				t.Fatal(err)
			}
			slice.Endpoints[0].Addresses, slice.Endpoints[0].NodeName = []string{a.addrs[i]}, &one.name
			if _, err := slices.Update(t.Context(), slice, metav1.UpdateOptions{}); err != nil {
				t.Fatal(err)
			}
		}
		// What stands to the one that is gone is ended, and who asks anew gets the other.
		c.SetReadDeadline(time.Now().Add(60 * time.Second))
		if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("a connection to a backend that is gone: %v", err)
		}
		for _, p := range []*proxyPod{a, b} {
			out, err := p.ask("http://"+to, 10)
			answers(t, out, err, 10, "a")
		}
		out, err := l.askOutside(url("http", two.addrs[0], 30105), 10)
		answers(t, out, err, 10, "a")
	})
	t.Run("names, before the cluster's own DNS", func(t *testing.T) { proxyNames(t, l, a, b, here) })
	t.Run("seen", func(t *testing.T) {
		if out, err := one.strake("service", "list"); err != nil || !strings.Contains(out, "both") {
			t.Errorf("service list: %v\n%s", err, out)
		}
		if out, err := one.strake("service", "get", "here"); err != nil || !strings.Contains(out, a.addrs[0]+":8080") || !strings.Contains(out, one.addrs[0]+":30101") {
			t.Errorf("service get: %v\n%s", err, out)
		}
		// Names are the API's: the kernel answers none here.
		if out, err := one.strake("trace", "--from", "node", "--to", "here:80"); err != nil || !strings.Contains(out, "default/here:http") || !strings.Contains(out, a.addrs[0]+":8080") {
			t.Errorf("trace: %v\n%s", err, out)
		}
		// This node may not list pods, but knows whose veth is whose.
		if out, err := one.strake("trace", "--from", a.addrs[0], "--to", "there:80"); err != nil || !strings.HasPrefix(out, "pod ") || !strings.Contains(out, a.addrs[0]+" (its own, unless the CNI plugin") {
			t.Errorf("trace from a pod's address: %v\n%s", err, out)
		}
	})
	t.Run("started with rules of kube-proxy, and other addresses for NodePorts", func(t *testing.T) {
		const other = "198.18.0.77"
		nft := func(script string) string {
			t.Helper()
			out, err := exec.Command("nsenter", "--net="+string(one.space), "nft", script).CombinedOutput()
			if err != nil {
				t.Fatalf("nft %s: %v\n%s", script, err, out)
			}
			return string(out)
		}
		run(t, "ip -n "+l.Net+" addr add "+other+"/24 dev up0")
		nft("add table ip kube-proxy; add chain ip kube-proxy services; add table ip stranger; add chain ip stranger input")
		one.stop(syscall.SIGTERM)
		one.start("--clean-kube-proxy", "--nodeport-addresses", other+"/32")
		eventually(t, 4*time.Minute, func() string {
			if tables := nft("list tables"); strings.Contains(tables, "kube-proxy") {
				return tables
			}
			return ""
		})
		if tables := nft("list tables"); !strings.Contains(tables, "stranger") {
			t.Errorf("another's table went: %s", tables)
		}
		eventually(t, 4*time.Minute, func() string {
			if out, err := l.askOutside(url("http", other, 30101), 1); err != nil || strings.Contains(out, "error") {
				return out
			}
			return ""
		})
		if out, _ := l.askOutside(url("http", one.addrs[0], 30101), 1); !strings.Contains(out, "refused") {
			t.Errorf("another address has the NodePort: %s", out)
		}
		nft("delete table ip stranger")
		one.stop(syscall.SIGTERM)
		one.start()
		eventually(t, 4*time.Minute, func() string {
			if out, err := l.askOutside(url("http", one.addrs[0], 30101), 1); err != nil || strings.Contains(out, "error") {
				return out
			}
			return ""
		})
	})
	t.Run("killed and started", func(t *testing.T) {
		stop := make(chan struct{})
		failed := make(chan string, 1)
		calls := 0
		go func() {
			defer close(failed)
			for {
				select {
				case <-stop:
					return
				default:
				}
				if out, err := l.askOutside(url("http", one.addrs[0], 30101), 5); err != nil || strings.Contains(out, "error") {
					failed <- out
					return
				}
				if out, err := a.ask(url("http", both.Spec.ClusterIPs[0], 80), 5); err != nil || strings.Contains(out, "error") {
					failed <- out
					return
				}
				calls++
			}
		}()
		for range 3 {
			one.stop(syscall.SIGKILL)
			if out, err := a.ask(url("http", both.Spec.ClusterIPs[1], 80), 5); err != nil {
				t.Errorf("while no agent runs: %v\n%s", err, out)
			}
			before := len(one.log.String())
			one.start()
			eventually(t, 2*time.Minute, func() string {
				if said := one.log.String()[before:]; !strings.Contains(said, "served at a device") {
					return "it does not start: " + said
				}
				return ""
			})
		}
		close(stop)
		if out, bad := <-failed; bad || calls == 0 {
			t.Errorf("%d rounds went well, then: %s", calls, out)
		}
	})
	t.Run("cleanup", func(t *testing.T) {
		if out, err := one.strake("agent", "--only=proxy", "--cleanup"); err == nil || !strings.Contains(out, "stop it first") {
			t.Errorf("while it runs: %v\n%s", err, out)
		}
		for _, n := range l.nodes {
			n.stop(syscall.SIGTERM)
			if out, err := a.ask(url("http", both.Spec.ClusterIPs[0], 80), 1); n == one && err != nil {
				t.Errorf("the agent was stopped, and Services with it: %v\n%s", err, out)
			}
			if out, err := n.strake("agent", "--only=proxy", "--cleanup"); err != nil {
				t.Errorf("%v\n%s", err, out)
			}
			if _, err := os.Stat(n.data); !os.IsNotExist(err) {
				t.Errorf("%s is there still: %v", n.data, err)
			}
		}
		if out, err := a.ask(url("http", none.Spec.ClusterIPs[0], 80), 1); strings.Contains(out, "refused") {
			t.Errorf("a Service is served after the cleanup: %v\n%s", err, out)
		}
	})
}
