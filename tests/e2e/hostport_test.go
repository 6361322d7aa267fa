package e2e

import (
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/strake-io/strake/tests/lab"
)

const hostPorts = `
apiVersion: v1
kind: Pod
metadata: {name: served}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: c
    image: strake.io/demo:1
    args: [demo, echo, --listen, ":8080"]
    ports: [{containerPort: 8080, hostPort: 8099}, {containerPort: 8080, hostPort: 8099, protocol: UDP}, {containerPort: 8080, hostPort: 8098, hostIP: 127.0.0.1}]
---
apiVersion: v1
kind: Pod
metadata: {name: client}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: c, image: "strake.io/demo:1", args: [demo, echo]}]
`

const rival = `
apiVersion: v1
kind: Pod
metadata: {name: rival}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - {name: c, image: "strake.io/demo:1", args: [demo, echo], ports: [{containerPort: 8080, hostPort: 8099}]}
`

func TestHostPort(t *testing.T) {
	c := use(t)
	c.apply(hostPorts)
	c.kubectl("wait", "--for=condition=Ready", "pod/served", "pod/client", "--timeout=60s")
	client := func(url string) []string {
		return []string{"demo", "client", "--count", "1", "--url", url}
	}
	everywhere := func(want string) string {
		for _, url := range []string{"http://" + lab.NodeIP + ":8099", "udp://" + lab.NodeIP + ":8099"} {
			inside, _ := c.try(append([]string{"exec", "client", "--", "/strake"}, client(url)...)...) // what it says is looked at
			outside, _ := exec.CommandContext(t.Context(), "ip", append([]string{"netns", "exec", c.Outside, c.Binary}, client(url)...)...).CombinedOutput()
			onNode, _ := c.Command(t.Context(), append([]string{c.Binary}, client(url)...)...).CombinedOutput()
			for from, out := range map[string]string{"a pod": inside, "outside": string(outside), "the node": string(onNode)} {
				if !strings.Contains(out, want) {
					return url + " from " + from + ": " + out
				}
			}
		}
		return ""
	}
	if bad := everywhere("served answers"); bad != "" {
		t.Error(bad)
	}
	own := client("http://127.0.0.1:8098")
	if out, _ := c.Command(t.Context(), append([]string{c.Binary}, own...)...).CombinedOutput(); !strings.Contains(string(out), "served answers") {
		t.Errorf("on the node's loopback address: %s", out)
	}
	if out, _ := c.try(append([]string{"exec", "client", "--", "/strake"}, own...)...); strings.Contains(out, "served answers") {
		t.Errorf("a pod's own loopback address leads to the node's hostPort: %s", out)
	}
	c.apply(rival)
	eventually(t, 80*time.Second, func() string {
		if out := c.kubectl("get", "events", "--field-selector", "involvedObject.name=rival"); !strings.Contains(out, "free ports") {
			return "a second pod with the same port is not refused:\n" + out
		}
		return ""
	})
	c.kubectl("delete", "pod", "served", "--timeout=120s")
	c.kubectl("wait", "--for=condition=Ready", "pod/rival", "--timeout=60s")
	if bad := c.kubectl("get", "pod", "rival", "-o", "jsonpath={.status.hostIP}"); bad != lab.NodeIP {
		t.Errorf("host IP %q", bad)
	}
	eventually(t, 80*time.Second, func() string { // without a probe it is Ready before it listens
		out, err := exec.CommandContext(t.Context(), "ip", append([]string{"netns", "exec", c.Outside, c.Binary}, client("http://"+lab.NodeIP+":8099")...)...).CombinedOutput()
		if err != nil || !strings.Contains(string(out), "rival answers") {
			return fmt.Sprintf("%v: %s", err, out)
		}
		return ""
	})
}
