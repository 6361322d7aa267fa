package e2e

import (
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/strake-io/strake/tests/lab"
)

// TestProxyAlone runs `strake agent --only proxy` on two nodes whose pods have the network of Debian's ptp and bridge plugins.
func TestProxyAlone(t *testing.T) {
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
			eventually(t, 60*time.Second, func() string {
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
						t.Run("pod "+p.name+" to the NodePort of "+s.Name, func(t *testing.T) {
							out, err := p.ask(url(scheme, p.node.addrs[f], int(s.Spec.Ports[0].NodePort)), 30)
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
			eventually(t, 30*time.Second, func() string {
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
