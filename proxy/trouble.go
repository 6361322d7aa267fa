package proxy

import (
	"errors"
	"sync"
	"syscall"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/record"
	"k8s.io/klog/v2"

	"github.com/strake-io/strake/bpf"
)

// trouble tells people of Services that are not served as they ask: by Events, once for each reason, and in the log.
type trouble struct {
	recorder record.EventRecorder
	node     *corev1.ObjectReference

	mu    sync.Mutex
	of    map[string]string // by Service key: what was told last
	taken map[string]bool   // of them, those that another Service keeps from what they ask
	unfit map[string]bool   // of them, those that the tables have no room for
	full  bool              // there were such: the Node has been told
}

func newTrouble(r record.EventRecorder, node string) *trouble {
	return &trouble{recorder: r, node: &corev1.ObjectReference{Kind: "Node", Name: node, UID: types.UID(node)}, of: map[string]string{}, taken: map[string]bool{}, unfit: map[string]bool{}}
}

// again says how it goes on with a Service.
type again struct {
	retry  bool
	broken bool // the kernel does not take what it should, whatever the Service asks
}

// note tells what went wrong with the rows of a Service, and with its health check.
func (t *trouble) note(j *job, rows []error, check error) again {
	err := errors.Join(append(rows, check)...)
	t.mu.Lock()
	defer t.mu.Unlock()
	if err == nil {
		delete(t.of, j.key)
		delete(t.taken, j.key)
		delete(t.unfit, j.key)
		t.full = t.full && len(t.of) > 0
		return again{}
	}
	out := again{retry: true}
	var taken *bpf.TakenError
	delete(t.taken, j.key)
	if errors.As(err, &taken) {
		t.taken[j.key] = true
	}
	var errno syscall.Errno
	full := errors.Is(err, syscall.E2BIG)
	delete(t.unfit, j.key)
	if full {
		t.unfit[j.key] = true
	}
	out.broken = len(rows) > 0 && errors.As(errors.Join(rows...), &errno) && !full
	if t.of[j.key] == err.Error() {
		return out
	}
	t.of[j.key] = err.Error()
	klog.ErrorS(err, "Service is not served as it asks, trying again", "service", j.key)
	if j.service != nil {
		reason := "FailedToServe"
		if len(rows) == 0 {
			reason = "FailedToStartServiceHealthcheck"
		}
		t.recorder.Eventf(j.service, corev1.EventTypeWarning, reason, "Node %s: %v", t.node.Name, err)
	}
	if full && !t.full {
		t.full = true
		t.recorder.Eventf(t.node, corev1.EventTypeWarning, "ServiceTableFull", "Not all Services are served: %v", err)
	}
	return out
}

// refused are the Services that another one keeps from what they ask.
func (t *trouble) refused() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	var out []string
	for key := range t.taken {
		out = append(out, key)
	}
	return out
}

// fits tells whether the tables have room for all Services.
func (t *trouble) fits() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.unfit) == 0
}

// slice tells of an EndpointSlice that can't be read in full.
func (t *trouble) slice(s *discoveryv1.EndpointSlice, err error) {
	klog.ErrorS(err, "EndpointSlice")
	t.recorder.Event(s, corev1.EventTypeWarning, "BadWeight", err.Error())
}
