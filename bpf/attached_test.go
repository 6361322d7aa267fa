package bpf

import (
	"os"
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
