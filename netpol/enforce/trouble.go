package enforce

import (
	"sync"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/record"
	"k8s.io/klog/v2"

	"github.com/strake-io/strake/netpol"
	"github.com/strake-io/strake/netpol/compiler"
)

// Reasons of Events.
const (
	reasonInvalid = "PolicyNotEnforcedAsWritten"
	reasonFailed  = "PoliciesNotWritten"
	ReasonDrift   = "PolicyDrift"
)

// trouble tells, once each, what is wrong with policies.
type trouble struct {
	recorder record.EventRecorder
	node     *corev1.ObjectReference

	mu   sync.Mutex
	told map[compiler.Problem]bool
}

func newTrouble(r record.EventRecorder, node string) *trouble {
	return &trouble{recorder: r, node: &corev1.ObjectReference{Kind: "Node", APIVersion: "v1", Name: node, UID: types.UID(node)}, told: map[compiler.Problem]bool{}}
}

// tell gives an Event for each problem that is new. Every node that the policy concerns tells of it; Events of one object are counted together.
func (t *trouble) tell(problems []compiler.Problem) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := make(map[compiler.Problem]bool, len(problems))
	for _, p := range problems {
		now[p] = true
		if t.told[p] {
			continue
		}
		klog.InfoS("A policy is not enforced as it is written: it closes more", "policy", p.Policy, "field", p.Field, "reason", p.Reason)
		where := p.Field
		if where != "" {
			where += ": "
		}
		t.recorder.Event(reference(p.Policy), corev1.EventTypeWarning, reasonInvalid, where+p.Reason)
	}
	t.told = now
}

func (t *trouble) failed(err error) {
	t.recorder.Event(t.node, corev1.EventTypeWarning, reasonFailed, err.Error())
}

func (t *trouble) drift(what string) {
	t.recorder.Event(t.node, corev1.EventTypeWarning, ReasonDrift, what)
}

func reference(p netpol.PolicyRef) *corev1.ObjectReference {
	version := "networking.k8s.io/v1"
	if p.Kind == kindClusterNetworkPolicy {
		version = customPolicies.GroupVersion().String()
	}
	return &corev1.ObjectReference{Kind: p.Kind, APIVersion: version, Namespace: p.Namespace, Name: p.Name, UID: p.UID}
}
