package e2e

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/strake-io/strake/tests/podnet"
)

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
