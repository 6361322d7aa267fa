package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/strake-io/strake/tests/podnet"
)

// verdictsStand while the API server is away and agents are killed.
func verdictsStand(l *policyLab) {
	l.policy("allow", `{podSelector: {matchLabels: {app: server}}, ingress: [{from: [{podSelector: {matchLabels: {app: client}}}]}]}`)
	open, closed := []path{tcp("near", "server", 8080), tcp("far", "server", 8080)}, []path{tcp("stranger", "server", 8080), udp("stranger", "server", 8080)}
	l.expect(open, closed)
	var agents []int
	for _, n := range l.nodes {
		agents = append(agents, n.agent())
		if err := syscall.Kill(n.agent(), syscall.SIGSTOP); err != nil {
			l.t.Fatal(err)
		}
	}
	l.expect(open, closed)
	for _, pid := range agents {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			l.t.Fatal(err)
		}
	}
	deadline := time.Now().Add(90 * time.Second)
	for back := false; !back; {
		l.expect(open, closed)
		if back = l.refresh() == "" && l.nodes[0].agent() != agents[0] && l.nodes[1].agent() != agents[1]; !back && time.Now().After(deadline) {
			l.t.Fatal("the agents do not come back")
		}
	}
	for i, n := range l.nodes {
		l.places[fmt.Sprint("node-", i+1)] = podnet.Space(n.netns)
	}
	l.kubectl("label", "pod", "far", "-n", "shop", "app=other", "--overwrite")
	l.expect([]path{tcp("near", "server", 8080)}, []path{tcp("far", "server", 8080)})
}

// withoutAPI stops the API server, kills an agent meanwhile, and the server in the end: the verdicts of before stand, nobody new is let in, and what changes
// afterwards counts.
func withoutAPI(l *policyLab) {
	eventually(l.t, 4*time.Minute, l.refresh) // other parts have killed agents
	l.kubectl("label", "pod", "far", "-n", "shop", "app=client", "--overwrite")
	l.policy("allow", `{podSelector: {matchLabels: {app: server}}, ingress: [{from: [{podSelector: {matchLabels: {app: client}}}]}]}`)
	open, closed := []path{tcp("near", "server", 8080), tcp("far", "server", 8080)}, []path{tcp("stranger", "server", 8080)}
	l.expect(open, closed)
	server, agent := 0, l.nodes[1].agent()
	for _, c := range l.nodes[0].Components {
		if c.Name == "server" {
			server = c.PID
		}
	}
	if server == 0 {
		l.t.Fatalf("no server among %+v", l.nodes[0].Components)
	}
	if err := syscall.Kill(server, syscall.SIGSTOP); err != nil {
		l.t.Fatal(err)
	}
	defer syscall.Kill(server, syscall.SIGCONT) // if the test fails
	l.expect(open, closed)
	// Nor is what the kernel has unknown to who asks for it.
	for _, asked := range []struct {
		args  []string
		code  int
		shown string
	}{
		{[]string{"service", "list", "-A"}, 2, "not compared"},
		{[]string{"trace", "--from", "node", "--to", "10.96.0.1:443"}, 0, "default/kubernetes"},
	} {
		var told, warned bytes.Buffer
		cmd := l.StrakeCommand(l.t.Context(), asked.args...)
		cmd.Stdout, cmd.Stderr = &told, &warned
		err := cmd.Run()
		if cmd.ProcessState.ExitCode() != asked.code || !strings.Contains(told.String(), "kubernetes") || !strings.Contains(told.String(), asked.shown) ||
			!strings.Contains(warned.String(), "the API server tells nothing") {
			l.t.Errorf("%v without the API server: %v, want exit code %d\n%s\n%s", asked.args, err, asked.code, &told, &warned)
		}
	}
	known := l.newcomer(l.nodes[0])
	known.sendsNothing()
	if err := syscall.Kill(agent, syscall.SIGKILL); err != nil {
		l.t.Fatal(err)
	}
	unknown := l.newcomer(l.nodes[1])
	for range 4 { // in which time the next agent has begun, and does not know what there is
		l.expect(open, closed)
	}
	known.sendsNothing()
	for _, c := range []*newcomer{known, unknown} {
		select {
		case err := <-c.added:
			if err == nil {
				l.t.Error("a pod is let in although nobody knows its policies")
			}
			c.added <- err
		default:
		}
	}
	if err := syscall.Kill(server, syscall.SIGKILL); err != nil { // the next one begins
		l.t.Fatal(err)
	}
	eventually(l.t, 6*time.Minute, func() string {
		if why := l.refresh(); why != "" || l.nodes[1].agent() == agent {
			return "the agent does not come back: " + why
		}
		return ""
	})
	for i, n := range l.nodes {
		l.places[fmt.Sprint("node-", i+1)] = podnet.Space(n.netns)
	}
	l.expect(open, closed)
	l.kubectl("label", "pod", "far", "-n", "shop", "app=other", "--overwrite")
	l.expect([]path{tcp("near", "server", 8080)}, []path{tcp("far", "server", 8080)})
	for _, c := range []*newcomer{known, unknown} { // the API, now that it is back, has no such pod
		c.refused()
	}
}

// newcomer is a pod for which the runtime has called the CNI plugin.
type newcomer struct {
	l     *policyLab
	space podnet.Space
	added chan error // of the call
}

// newcomer calls the plugin for a pod of which the API server never told.
func (l *policyLab) newcomer(n labNode) *newcomer {
	l.t.Helper()
	c := &newcomer{l: l, added: make(chan error, 1)}
	var err error
	if c.space, err = podnet.NewSpace(filepath.Join(l.t.TempDir(), "pod")); err != nil {
		l.t.Fatal(err)
	}
	call := l.cni(n)
	go func() {
		out, err := call("ADD", "newcomer", c.space, "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=newcomer;K8S_POD_UID=11111111-1111-4111-8111-111111111111")
		if err != nil {
			err = fmt.Errorf("%w: %s", err, out)
		}
		c.added <- err
	}()
	l.t.Cleanup(func() {
		<-c.added
		out, err := call("DEL", "newcomer", c.space, "")
		if err := errors.Join(err, c.space.Remove()); err != nil {
			l.t.Errorf("DEL: %v: %s", err, out)
		}
	})
	return c
}

// sendsNothing, once it has its addresses: also not to whom no policy guards.
func (c *newcomer) sendsNothing() {
	c.l.t.Helper()
	eventually(c.l.t, 2*time.Minute, func() string {
		if out, err := exec.Command("nsenter", "--net="+string(c.space), "ip", "-o", "addr", "show", "dev", "eth0", "scope", "global").CombinedOutput(); err != nil || strings.Count(string(out), "inet") != 2 {
			return fmt.Sprintf("%v: %s", err, out)
		}
		return ""
	})
	for _, a := range c.l.addrs["stranger"] {
		if _, err := asks(c.space, "tcp", 0, netip.AddrPortFrom(a, 8080), patience); err == nil {
			c.l.t.Errorf("a pod whose policies nobody knows reaches %s", a)
		}
	}
}

// refused waits for the end of the call.
func (c *newcomer) refused() {
	c.l.t.Helper()
	select {
	case err := <-c.added:
		if err == nil {
			c.l.t.Error("let in")
		}
		c.added <- err
	case <-time.After(90 * time.Second):
		c.l.t.Error("the CNI plugin does not end")
	}
}
