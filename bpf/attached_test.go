package bpf

import (
	"os"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
)

// The program's absence is seen, and that of an agent before, on kernels with tcx and without.
func TestPodAttached(t *testing.T) {
	for name, noTCX := range map[string]bool{"links": false, "filters": true} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t)
			if noTCX {
				for _, i := range l.veths {
					if err := detachPinned(linkPin(l.config.PinDir, podProgram, i)); err != nil && !os.IsNotExist(err) {
						must(t, l.d.DetachPod(i)) // they are filters anyway
					}
				}
				l.d.noTCX = true
				must(t, l.d.AttachPod(l.veths[0]))
				must(t, l.d.AttachPod(l.veths[1]))
			}
			must(t, l.d.PodAttached(l.veths[0]))
			must(t, l.d.DetachPod(l.veths[0]))
			if err := l.d.PodAttached(l.veths[0]); err == nil {
				t.Error("a program that was taken away is there")
			}
			if err := l.d.PodAttached(l.uplink); err == nil {
				t.Error("the uplink has a pod's program")
			}
			if !noTCX {
				must(t, netlink.LinkDel(device(t, "pod1")))
				if err := l.d.PodAttached(l.veths[1]); err == nil {
					t.Error("an interface that is gone has a program")
				}
				return
			}
			must(t, l.d.Close())
			l.d = open(t, l.config)
			if err := l.d.PodAttached(l.veths[1]); err == nil {
				t.Error("the program of the agent before passes for the present one's")
			}
		})
	}
}

// A new pod's program stands at once; made a link of, it is there in each moment, and goes with DetachPod in every state.
func TestNewPod(t *testing.T) {
	l := newLab(t)
	l.pods[1].serve(t, "other", 8080)
	i := l.veths[0]
	calls := func(when string) {
		t.Helper()
		must(t, l.d.PodAttached(i))
		if out, err := l.client(t, l.pods[0], true, "tcp", other+":8080", 3); err != nil {
			t.Errorf("%s: %v\n%s", when, err, out)
		}
	}
	pins := func() (n int) {
		for _, pin := range []string{linkPin(l.config.PinDir, podProgram, i), filterPin(l.config.PinDir, podProgram, i)} {
			if _, err := os.Stat(pin); err == nil {
				n++
			}
		}
		return n
	}
	if err := l.d.AttachNames(i); err == nil || !strings.Contains(err.Error(), "without Beside") {
		t.Errorf("the program for other plugins' pods, which is not loaded: %v", err)
	}
	for range 2 {
		must(t, l.d.DetachPod(i))
		if err := l.d.PodAttached(i); err == nil || pins() != 0 {
			t.Fatalf("after DetachPod: %v, %d pins", err, pins())
		}
		must(t, l.d.AttachNewPod(i))
		calls("new")
		must(t, l.d.AttachPod(i))
		calls("attached for good")
		if n := pins(); n != 1 {
			t.Errorf("%d pins", n)
		}
		must(t, l.d.AttachNewPod(i)) // as if it had ended between link and filter
	}
}
