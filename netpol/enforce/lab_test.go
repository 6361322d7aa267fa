package enforce

import (
	"context"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	dynamicfake "k8s.io/client-go/dynamic/fake"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/tools/record"

	"github.com/strake-io/strake/bpf"
)

// fakeTables keep rows, and refuse what they are told to.
type fakeTables struct {
	mu       sync.Mutex
	subjects map[netip.Addr]bpf.PolicySubject
	peers    map[netip.Prefix]bpf.PolicyPeer
	answers  map[answerKey]bpf.PolicyAnswer
	ports    map[bpf.PolicyPort]bool
	names    map[uint32]bpf.PolicyName
	writes   int
	fail     error
	failRead error
	reborn   []netip.Addr // of changes that were written
	changed  chan struct{}
}

func newTables(addrs ...string) *fakeTables {
	t := &fakeTables{
		subjects: map[netip.Addr]bpf.PolicySubject{}, peers: map[netip.Prefix]bpf.PolicyPeer{}, answers: map[answerKey]bpf.PolicyAnswer{},
		ports: map[bpf.PolicyPort]bool{}, names: map[uint32]bpf.PolicyName{}, changed: make(chan struct{}),
	}
	for _, a := range addrs {
		t.subjects[netip.MustParseAddr(a)] = bpf.PolicySubject{Addr: netip.MustParseAddr(a)}
	}
	return t
}

func (t *fakeTables) Apply(c bpf.PolicyChange) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.writes++
	close(t.changed)
	t.changed = make(chan struct{})
	if t.fail != nil {
		return t.fail
	}
	t.reborn = append(t.reborn, c.Reborn...)
	for _, n := range c.Names {
		t.names[n.Policy] = n
	}
	for _, p := range c.Ports {
		maps.DeleteFunc(t.ports, func(have bpf.PolicyPort, _ bool) bool {
			have.Verdict = p.Verdict
			return have == p
		})
		t.ports[p] = true
	}
	for _, a := range c.Answers {
		t.answers[answerOf(a)] = a
	}
	for _, p := range c.Peers {
		t.peers[p.Prefix] = p
	}
	for _, s := range c.Subjects {
		t.subjects[s.Addr] = s
	}
	for _, a := range c.GoneSubjects {
		delete(t.subjects, a)
	}
	for _, p := range c.GonePeers {
		delete(t.peers, p)
	}
	for _, a := range c.GoneAnswers {
		delete(t.answers, answerOf(a))
	}
	for _, list := range c.GonePorts {
		maps.DeleteFunc(t.ports, func(p bpf.PolicyPort, _ bool) bool { return p.Ports == list })
	}
	for _, n := range c.GoneNames {
		delete(t.names, n)
	}
	return nil
}

func (t *fakeTables) Dump() (bpf.PolicyRows, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.failRead != nil {
		return bpf.PolicyRows{}, t.failRead
	}
	return bpf.PolicyRows{
		Subjects: slices.Collect(maps.Values(t.subjects)), Peers: slices.Collect(maps.Values(t.peers)), Answers: slices.Collect(maps.Values(t.answers)),
		Ports: slices.Collect(maps.Keys(t.ports)), Names: slices.Collect(maps.Values(t.names)),
	}, nil
}

func (t *fakeTables) Hits() ([]bpf.PolicyHit, error) { return nil, nil }

func (t *fakeTables) Usage() ([]bpf.MapStatus, error) { return nil, nil }

func (t *fakeTables) refuse(err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.fail = err
}

// patience is how long a test waits for what must come.
const patience = 30 * time.Second

// await waits until a condition of the tables holds.
func (t *fakeTables) await(tb testing.TB, what string, cond func() bool) {
	tb.Helper()
	deadline := time.After(patience)
	for {
		t.mu.Lock()
		ok, changed := cond(), t.changed
		t.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-changed:
		case <-deadline:
			tb.Fatalf("%s did not come about", what)
		}
	}
}

func (t *fakeTables) awaitSubjects(tb testing.TB, addrs ...string) {
	tb.Helper()
	t.await(tb, "subjects "+strings.Join(addrs, " "), func() bool {
		var have []string
		for a := range t.subjects {
			have = append(have, a.String())
		}
		slices.Sort(have)
		slices.Sort(addrs)
		return slices.Equal(have, addrs)
	})
}

// lab is an Enforcer on fakes.
type lab struct {
	*Enforcer
	tb      testing.TB
	client  *fake.Clientset
	dynamic *dynamicfake.FakeDynamicClient
	tables  *fakeTables
	events  chan string
	stop    func()
}

const self = "node-1"

func newLab(tb testing.TB, tables *fakeTables, objects ...runtime.Object) *lab {
	tb.Helper()
	l := &lab{tb: tb, tables: tables, client: fake.NewClientset(objects...)}
	l.dynamic = dynamicfake.NewSimpleDynamicClientWithCustomListKinds(runtime.NewScheme(), map[schema.GroupVersionResource]string{
		definitions: "CustomResourceDefinitionList", customPolicies: "ClusterNetworkPolicyList",
	})
	recorder := record.NewFakeRecorder(100)
	l.events = recorder.Events
	l.Enforcer = New(Config{Client: l.client, Dynamic: l.dynamic, Tables: tables, NodeName: self, Recorder: recorder})
	return l
}

// run starts it; it ends with stop or the test.
func (l *lab) run() *lab {
	l.tb.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx) }()
	l.stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				l.tb.Errorf("Run: %v", err)
			}
		case <-time.After(patience):
			l.tb.Error("Run does not end")
		}
	})
	l.tb.Cleanup(l.stop)
	return l
}

func namespace(name string) *corev1.Namespace {
	return &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID("uid-of-" + name)}}
}

func pod(namespace, name, uid, node string, addrs ...string) *corev1.Pod {
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, UID: types.UID(uid), Labels: map[string]string{"app": name}},
		Spec:       corev1.PodSpec{NodeName: node, Containers: []corev1.Container{{Name: "c", Image: "i"}}},
	}
	for _, a := range addrs {
		p.Status.PodIPs = append(p.Status.PodIPs, corev1.PodIP{IP: a})
	}
	return p
}

func endpoint(owner, namespace, pod, uid string, addrs ...string) Endpoint {
	ep := Endpoint{Owner: owner, Namespace: namespace, Pod: pod, UID: uid}
	for _, a := range addrs {
		ep.Addrs = append(ep.Addrs, netip.MustParseAddr(a))
	}
	return ep
}

func crd(versions ...any) *unstructured.Unstructured {
	return &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": map[string]any{"name": customPolicies.GroupResource().String()},
		"spec":   map[string]any{"versions": versions},
		"status": map[string]any{"conditions": []any{map[string]any{"type": "Established", "status": "True"}}},
	}}
}

func version(name string, served bool) any { return map[string]any{"name": name, "served": served} }
