package proxy

import (
	"net/http"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// lateAfter is how long a change may wait before the proxy calls itself unhealthy, as long as with kube-proxy's defaults.
const lateAfter = time.Minute

// toBeDeleted is the taint by which the cluster autoscaler announces that it will remove a node.
const toBeDeleted = "ToBeDeletedByClusterAutoscaler"

// health says whether the rows follow the API, and whether load balancers should send here.
type health struct {
	changes *changes
	now     func() time.Time
	updated atomic.Pointer[time.Time] // when rows were last as they should be
	leaving atomic.Bool               // the node is being removed
	metrics *instruments
}

func newHealth(c *changes, m *instruments) *health {
	return &health{changes: c, now: time.Now, metrics: m}
}

// healthy tells whether no change waits for too long, whatever is with the node. A Service that was refused, such as one that asks for
// another's address, does not wait: that is no reason to take the node away from all others.
func (h *health) healthy() bool {
	oldest := h.changes.oldest()
	return oldest.IsZero() || h.now().Sub(oldest) < lateAfter
}

func (h *health) done() {
	now := h.now()
	h.updated.Store(&now)
}

// follow notes what the Node object says.
func (h *health) follow(n *corev1.Node) {
	leaving := n.DeletionTimestamp != nil
	for _, t := range n.Spec.Taints {
		leaving = leaving || t.Key == toBeDeleted
	}
	h.leaving.Store(leaving)
}

// status is the body of an answer, as kube-proxy's.
type status struct {
	LastUpdated  time.Time `json:"lastUpdated"`
	CurrentTime  time.Time `json:"currentTime"`
	NodeEligible *bool     `json:"nodeEligible,omitempty"`
	Healthy      bool      `json:"healthy"`
}

// handler serves /healthz, for load balancers, and /livez, for those that would restart us: the way of all nodes is no reason for that.
func (h *health) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) {
		eligible := !h.leaving.Load()
		s := h.status()
		s.NodeEligible, s.Healthy = &eligible, s.Healthy && eligible
		answered(h.metrics.healthz, h.answer(w, s))
	})
	mux.HandleFunc("/livez", func(w http.ResponseWriter, _ *http.Request) { answered(h.metrics.livez, h.answer(w, h.status())) })
	return mux
}

func (h *health) status() status {
	s := status{CurrentTime: h.now(), Healthy: h.healthy()}
	if t := h.updated.Load(); t != nil {
		s.LastUpdated = *t
	}
	return s
}

func (h *health) answer(w http.ResponseWriter, s status) int {
	code := http.StatusServiceUnavailable
	if s.Healthy {
		code, s.LastUpdated = http.StatusOK, s.CurrentTime // nothing has waited: as good as updated now
	}
	respond(w, code, s)
	return code
}
