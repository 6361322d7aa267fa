package enforce

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	clienttesting "k8s.io/client-go/testing"
	policyv1alpha2 "sigs.k8s.io/network-policy-api/apis/v1alpha2"

	"github.com/strake-io/strake/bpf"
	"github.com/strake-io/strake/netpol/compiler"
)

func custom(name string, spec any) *unstructured.Unstructured {
	return &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": customPolicies.GroupVersion().String(), "kind": kindClusterNetworkPolicy, "metadata": map[string]any{"name": name, "resourceVersion": "7", "uid": name}, "spec": spec,
	}}
}

// A policy that can't be read holds up no other, and closes what of it is not understood.
func TestPoliciesThatCannotBeRead(t *testing.T) {
	everywhere := map[string]any{"namespaces": map[string]any{}}
	rule := map[string]any{"action": "Accept", "from": []any{everywhere}}
	for name, c := range map[string]struct {
		spec any
		open bool // a pod of ns is
	}{
		"no spec at all":        {"rubbish", false},
		"rules that are none":   {map[string]any{"tier": "Admin", "priority": int64(1), "subject": everywhere, "ingress": "rubbish"}, false},
		"a rule of other types": {map[string]any{"tier": "Admin", "priority": int64(1), "subject": everywhere, "ingress": []any{map[string]any{"action": int64(5)}, rule}}, false},
		"a later rule":          {map[string]any{"tier": "Admin", "priority": int64(1), "subject": everywhere, "ingress": []any{rule, "rubbish"}}, true},
		"a priority":            {map[string]any{"tier": "Admin", "priority": "first", "subject": everywhere, "ingress": []any{map[string]any{"action": "Deny", "from": []any{everywhere}}}}, false},
		"a subject":             {map[string]any{"tier": "Admin", "priority": int64(1), "subject": int64(1), "ingress": []any{map[string]any{"action": "Deny", "from": []any{everywhere}}}}, false},
		"of another namespace":  {map[string]any{"tier": "Admin", "priority": int64(1), "subject": map[string]any{"namespaces": map[string]any{"matchLabels": map[string]any{"a": "b"}}}, "ingress": "rubbish"}, true},
	} {
		t.Run(name, func(t *testing.T) {
			var passed []*policyv1alpha2.ClusterNetworkPolicy
			f := newFollowed(kindClusterNetworkPolicy, keyOf, customCodec, func(_, _ string, o metav1.Object) { passed = append(passed, o.(*policyv1alpha2.ClusterNetworkPolicy)) })
			if err := f.Replace([]any{custom("broken", c.spec)}, "7"); err != nil {
				t.Fatal(err)
			}
			if len(passed) != 1 || !f.await(t.Context(), "broken", custom("broken", nil).GetResourceVersion()) {
				t.Fatalf("passed on: %+v", passed)
			}
			compiled := compiler.New(compiler.Options{NodeName: self})
			compiled.SetNamespace(namespace("ns"))
			compiled.SetPod(pod("ns", "a", "u1", self, "10.244.0.2"))
			compiled.SetPod(pod("ns", "b", "u2", "node-2", "10.244.1.2"))
			compiled.SetClusterNetworkPolicy(passed[0])
			compiled.Flush()
			if len(compiled.Problems()) == 0 {
				t.Error("nobody is told")
			}
			got := compiler.Interpret(compiled.Rows()).Judge(bpf.PolicyQuery{From: netip.MustParseAddr("10.244.1.2"), To: netip.MustParseAddr("10.244.0.2"), Protocol: 6, Port: 80})
			if got.Allowed != c.open {
				t.Errorf("allowed %v, want %v", got.Allowed, c.open)
			}
		})
	}
}

// What the API does not serve yet is not waited for; when it does, it is followed.
func TestDefinitionIsEstablishedLater(t *testing.T) {
	d := newDefinition()
	early := crd(version("v1alpha2", true))
	delete(early.Object, "status")
	if err := d.Add(early); err != nil {
		t.Fatal(err)
	}
	if served, known, _ := d.now(); served || !known {
		t.Errorf("served %v, known %v before it is established", served, known)
	}
	if err := d.Update(crd(version("v1alpha2", true))); err != nil {
		t.Fatal(err)
	}
	if served, _, _ := d.now(); !served {
		t.Error("established, but not served")
	}
}

// A pod that waits for the API is told why the API does not tell.
func TestWhyTheAPIDoesNotTell(t *testing.T) {
	l := newLab(t, newTables(), namespace("ns"), pod("ns", "a", "u1", self))
	refused := make(chan struct{}, 100)
	l.dynamic.PrependReactor("list", definitions.Resource, func(clienttesting.Action) (bool, runtime.Object, error) {
		refused <- struct{}{}
		return true, nil, errors.New("definitions are not for you")
	})
	l.run()
	for range 2 { // the first error is noted when it tries again
		select {
		case <-refused:
		case <-time.After(patience):
			t.Fatal("nobody asks for definitions")
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	err := l.Admit(ctx, endpoint("c1", "ns", "a", "u1", "10.244.0.2"))
	if err == nil || !strings.Contains(err.Error(), kindClusterNetworkPolicy) || !strings.Contains(err.Error(), "definitions are not for you") {
		t.Errorf("error %v", err)
	}
}
