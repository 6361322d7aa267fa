package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/strake-io/strake/tests/lab"
	"github.com/strake-io/strake/tests/podnet"
)

// TestServicesAreSeen is what `strake service` and `strake trace` tell of Services that are asked, and what an Event tells of a node port that a
// process has.
func TestServicesAreSeen(t *testing.T) {
	c := use(t)
	node := podnet.Space("/run/netns/" + c.Net)
	outside := podnet.Space("/run/netns/" + c.Outside)
	var holder net.Listener
	if err := node.In(func() (err error) { holder, err = net.Listen("tcp", ":30391"); return err }); err != nil {
		t.Fatal(err)
	}
	defer holder.Close()
	c.apply(strings.Join([]string{server("one", nodeName), server("two", nodeName),
		strings.ReplaceAll(webService("web", 30390, "type: NodePort"), "RequireDualStack", "SingleStack"),
		strings.ReplaceAll(webService("held", 30391, "type: NodePort"), "RequireDualStack", "SingleStack"),
		strings.NewReplacer("RequireDualStack", "SingleStack", "app: web", "app: nobody").Replace(webService("empty", 0))}, "---\n"))
	c.kubectl("wait", "--for=condition=Ready", "pod", "--all", "--timeout=90s")
	web := netip.AddrPortFrom(netip.MustParseAddr(lab.NodeIP), 30390)
	eventually(t, 2*time.Minute, func() string {
		for _, name := range []string{"one", "two"} {
			if out, _ := c.Strake("service", "get", "web", "-n", c.namespace); !strings.Contains(out, name+"  node-1  ready") {
				return out
			}
		}
		return ""
	})
	type service struct {
		Name  string
		Hits  uint64
		Held  []string
		Ports []struct {
			Frontends []struct{ Address, Kind string }
			Backends  []struct{ Address, Pod, State string }
		}
	}
	get := func(name string) (s service) {
		t.Helper()
		out, err := c.Strake("service", "get", c.namespace+"/"+name, "-o", "json")
		if err != nil || json.Unmarshal([]byte(out), &s) != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return s
	}
	t.Run("get", func(t *testing.T) {
		before := get("web")
		for range 10 {
			if _, err := asks(outside, "tcp", 0, web, 10*time.Second); err != nil {
				t.Fatal(err)
			}
		}
		after := get("web")
		if after.Hits != before.Hits+10 || len(after.Ports) != 2 || len(after.Ports[0].Backends) != 2 {
			t.Errorf("asked ten times: %+v, before %+v", after, before)
		}
		if s := get("empty"); len(s.Ports) != 2 || len(s.Ports[0].Backends) != 0 {
			t.Errorf("without endpoints: %+v", s)
		}
		out, err := c.Strake("service", "get", c.namespace+"/nobody")
		if exit := (*exec.ExitError)(nil); !errors.As(err, &exit) || exit.ExitCode() != 2 {
			t.Errorf("a Service that is not there: %v\n%s", err, out)
		}
	})
	t.Run("list", func(t *testing.T) {
		out, err := c.Strake("service", "list", "-n", c.namespace)
		if err != nil || !strings.Contains(out, "web") || !strings.Contains(out, "empty") || strings.Contains(out, "kubernetes") {
			t.Errorf("%v\n%s", err, out)
		}
		if out, err := c.Strake("service", "list", "-A", "-o", "json"); err != nil || !strings.Contains(out, `"kubernetes"`) {
			t.Errorf("%v\n%s", err, out)
		}
	})
	t.Run("trace", func(t *testing.T) {
		out, err := c.Strake("trace", "--from", c.namespace+"/one", "--to", "web:80")
		if err != nil || !strings.Contains(out, c.namespace+"/web:http") || !strings.Contains(out, "at the socket") || !strings.Contains(out, "one of 2 by chance") {
			t.Errorf("from a pod: %v\n%s", err, out)
		}
		if out, err := c.Strake("trace", "--from", "node", "--to", "empty."+c.namespace+":80"); err != nil || !strings.Contains(out, "refused") {
			t.Errorf("a Service without endpoints: %v\n%s", err, out)
		}
		// Who is to answer a client whose port is known, does.
		own := lab.OutsideIP
		for port := 41000; port < 41008; port++ {
			out, err := c.Strake("trace", "--from", fmt.Sprint(own, ":", port), "--to", web.String(), "--proto", "udp", "-o", "json")
			var told []struct {
				Backends []struct{ Name string }
			}
			if err != nil || json.Unmarshal([]byte(out), &told) != nil || len(told) != 1 || len(told[0].Backends) != 1 {
				t.Fatalf("from outside: %v\n%s", err, out)
			}
			answer, err := asks(outside, "udp", port, web, 10*time.Second)
			if err != nil || c.namespace+"/"+pod(answer) != told[0].Backends[0].Name {
				t.Errorf("port %d: %q (%v), and %s was told", port, answer, err, told[0].Backends[0].Name)
			}
		}
	})
	t.Run("a node port that a process has", func(t *testing.T) {
		if s := get("held"); len(s.Held) != 1 || !strings.Contains(s.Held[0], "port 30391/TCP") {
			t.Errorf("%+v", s)
		}
		eventually(t, 2*time.Minute, func() string {
			out := c.kubectl("events", "--for", "service/held")
			if !strings.Contains(out, "NodePortHeld") || !strings.Contains(out, "30391/TCP") {
				return out
			}
			return ""
		})
		if answer, err := asks(outside, "tcp", 0, netip.AddrPortFrom(web.Addr(), 30391), 10*time.Second); err != nil || answer == "" {
			t.Errorf("who asks from outside gets the Service: %q, %v", answer, err)
		}
	})
}
