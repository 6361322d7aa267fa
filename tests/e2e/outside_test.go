package e2e

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/strake-io/strake/tests/lab"
)

const traveller = `
apiVersion: v1
kind: Pod
metadata: {name: traveller}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - {name: demo, image: "strake.io/demo:1", args: [demo, echo]}
  - {name: shell, image: "strake.io/busybox:1", command: [sleep, "3600"]}
`

// A pod reaches a server that has no way back to the pod range; the server sees the node.
func TestPodsReachTheOutside(t *testing.T) {
	c := use(t)
	c.apply(traveller)
	web, datagrams := c.listenOutside()
	// Both answer with the name of who asks, which the client prints.
	go http.Serve(web, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host, _, _ := net.SplitHostPort(r.RemoteAddr)
		fmt.Fprintln(w, host)
	}))
	go func() {
		b := make([]byte, 2000)
		for {
			_, from, err := datagrams.ReadFrom(b)
			if err != nil {
				return
			}
			host, _, _ := net.SplitHostPort(from.String())
			datagrams.WriteTo([]byte(host+"\n"), from)
		}
	}()
	c.kubectl("wait", "--for=condition=Ready", "pod/traveller", "--timeout=60s")
	for _, url := range []string{"http://" + web.Addr().String(), "udp://" + datagrams.LocalAddr().String()} {
		out, err := c.try("exec", "traveller", "-c", "demo", "--", "/strake", "demo", "client", "--interval", "1ms", "--count", "20", "--url", url)
		answers := 0
		for line := range strings.Lines(out) {
			if f := strings.Fields(line); len(f) == 3 && f[2] == lab.NodeIP {
				answers++
			}
		}
		if err != nil || answers != 20 {
			t.Errorf("%s: %v: %d of 20 answers name the node:\n%s", url, err, answers, out)
		}
	}
	for _, size := range []string{"56", "4000"} {
		if out, err := c.try("exec", "traveller", "-c", "shell", "--", "busybox", "ping", "-c", "2", "-W", "5", "-s", size, lab.OutsideIP); err != nil {
			t.Errorf("ping of %s bytes: %v\n%s", size, err, out)
		}
	}
}

// listenOutside opens sockets in the outside namespace; a socket stays in the namespace that it was made in.
func (c *cluster) listenOutside() (net.Listener, net.PacketConn) {
	c.t.Helper()
	var l net.Listener
	var p net.PacketConn
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		ns, err := os.Open("/run/netns/" + c.Outside)
		if err == nil {
			defer ns.Close()
			err = unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET)
		}
		if err == nil {
			l, err = net.Listen("tcp4", lab.OutsideIP+":0")
		}
		if err == nil {
			p, err = net.ListenPacket("udp4", lab.OutsideIP+":0")
		}
		done <- err
	}()
	if err := <-done; err != nil {
		c.t.Fatal("listen outside: ", err)
	}
	c.t.Cleanup(func() { l.Close(); p.Close() })
	return l, p
}
