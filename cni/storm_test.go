package cni

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// namespacesHeld counts what of this process keeps other network namespaces alive: descriptors, and threads in them.
func namespacesHeld(t *testing.T) (held []string) {
	t.Helper()
	var own unix.Stat_t
	must(t, unix.Stat("/proc/self/ns/net", &own))
	for _, pattern := range []string{"/proc/self/fd/*", "/proc/self/task/*/ns/net"} {
		paths, err := filepath.Glob(pattern)
		must(t, err)
		for _, p := range paths {
			var fs unix.Statfs_t
			var st unix.Stat_t
			if unix.Statfs(p, &fs) != nil || fs.Type != unix.NSFS_MAGIC || unix.Stat(p, &st) != nil || st.Ino == own.Ino {
				continue // it may have gone meanwhile
			}
			held = append(held, p)
		}
	}
	return held
}

// A node's whole share of pods and more comes at once, by as many processes: all get what they ask for, no address twice, and when they
// are gone nothing of them is held.
func TestTwoHundredPodsAtOnce(t *testing.T) {
	const pods = 200
	n := newNode(t, "10.244.0.0/24", "fd00::/64")
	stop := n.run(t)
	namespaces := make([]string, pods)
	for i := range namespaces {
		namespaces[i] = newNetns(t)
	}
	var mu sync.Mutex
	seen := map[netip.Addr]string{}
	all := func(verb string) {
		var wg sync.WaitGroup
		for i := range pods {
			wg.Go(func() {
				id := fmt.Sprint("pod", i)
				a, err := n.call(t, n.conf(), vars(verb, id, namespaces[i])...)
				if err != nil {
					t.Errorf("%s %s: %v", verb, id, err)
				}
				if verb == "ADD" {
					mu.Lock()
					defer mu.Unlock()
					if other, ok := seen[a]; ok {
						t.Errorf("%s is %s's and %s's", a, id, other)
					}
					seen[a] = id
				}
			})
		}
		wg.Wait()
	}
	all("ADD")
	if len(n.fake.rows) != 2*pods || len(n.fake.attached) != pods {
		t.Errorf("%d rows, %d attached", len(n.fake.rows), len(n.fake.attached))
	}
	all("DEL")
	stop()
	n.wantNothing(t)
	for _, ns := range namespaces {
		removeNetns(t, ns)
	}
	for late := time.Now().Add(2 * time.Minute); len(namespacesHeld(t)) > 0 && time.Now().Before(late); {
		runtime.Gosched() // threads end in their own time
	}
	if held := namespacesHeld(t); len(held) > 0 {
		t.Errorf("namespaces are held by %v", held)
	}
}
