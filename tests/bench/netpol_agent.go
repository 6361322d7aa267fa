package main

import (
	"context"
	"encoding/gob"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"net/netip"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kruntime "k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/strake-io/strake/bpf"
	"github.com/strake-io/strake/netpol/enforce"
	"github.com/strake-io/strake/netpol/history"
)

// tieredNode is the node whose agent is measured; it has a hundredth of the pods.
const tieredNode = "node-0"

// untilProved is a time in which an agent proves what it has written, and gives back what it needed for that and before.
const untilProved = 45 * time.Second

// objects are a cluster's as an API server stores them. Its pods have no owners, for the controllers would end those whose owner is not there,
// and tolerate that their nodes are silent.
func (c tieredCluster) objects() iter.Seq2[string, kruntime.Object] {
	created := metav1.NewTime(time.Unix(1767225600, 0))
	return func(yield func(string, kruntime.Object) bool) {
		for i := range tieredSpaces {
			if o := tieredSpace(i); !yield("namespaces/"+o.Name, o) {
				return
			}
		}
		for i := range tieredNodes {
			n := &corev1.Node{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Node"}, ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("node-", i), UID: types.UID(fmt.Sprint("node-", i))}}
			if !yield("minions/"+n.Name, n) {
				return
			}
		}
		for i := range c.Policies {
			if o := tieredPolicy(i); !yield("networkpolicies/"+o.Namespace+"/"+o.Name, o) {
				return
			}
		}
		for i := range c.Pods {
			p := tieredPod(i, c.Policies)
			p.OwnerReferences, p.CreationTimestamp = nil, created
			p.ManagedFields = []metav1.ManagedFieldsEntry{{Manager: "kubelet", Operation: metav1.ManagedFieldsOperationUpdate, APIVersion: "v1", Time: &created, FieldsType: "FieldsV1", Subresource: "status",
				FieldsV1: metav1.NewFieldsV1(`{"f:status":{"f:conditions":{"k:{\"type\":\"ContainersReady\"}":{".":{},"f:lastProbeTime":{},"f:status":{},"f:type":{}},"k:{\"type\":\"Initialized\"}":{".":{},"f:status":{},"f:type":{}}},"f:containerStatuses":{},"f:hostIP":{},"f:phase":{},"f:podIP":{},"f:podIPs":{".":{},"k:{\"ip\":\"10.244.0.2\"}":{".":{},"f:ip":{}}},"f:startTime":{}}}`)}}
			p.Spec.Tolerations = []corev1.Toleration{{Operator: corev1.TolerationOpExists}}
			p.Spec.Containers[0].Image, p.Spec.Containers[0].Command = "registry.example/team/"+p.Labels["app"]+":1.0", []string{"/bin/serve", "--listen=:8080", "--log-format=json"}
			if !yield("pods/"+p.Namespace+"/"+p.Name, p) {
				return
			}
		}
	}
}

// policyAgent measures an agent of policies as it runs in a large cluster, at a real API server: its memory, and the time from a change in the API to the
// last row of it in the kernel.
func (b *bench) policyAgent(ctx context.Context) (err error) {
	dir, err := os.MkdirTemp("", "strake-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	p, err := newPlane(dir, b.strake)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.close()) }()
	if _, err := p.start(ctx); err != nil {
		return err
	}
	for _, c := range tieredClusters {
		if err := put(ctx, p.lab, c.objects()); err != nil {
			return err
		}
		if err := b.policyAgentAt(ctx, p, c); err != nil {
			return fmt.Errorf("%s: %w", c, err)
		}
	}
	return nil
}

func (b *bench) policyAgentAt(ctx context.Context, p *plane, c tieredCluster) (err error) {
	var a *agent
	defer func() {
		if a != nil {
			err = errors.Join(err, a.stop())
		}
	}()
	what := c.String() + ", agent: "
	var synced []float64
	for i := range b.times(3) {
		if a != nil {
			if err := a.stop(); err != nil {
				return err
			}
		}
		if a, err = startAgent(p.lab, filepath.Join(p.dir, "agent"), agentSpec{Cluster: c}); err != nil {
			return err
		}
		opened, err := a.next(ctx)
		if err != nil {
			return err
		}
		all, err := a.next(ctx)
		if err != nil {
			return err
		}
		if i > 0 { // by the first one the API server learns of what was put into etcd
			synced = append(synced, (all.At - opened.At).Seconds())
		}
	}
	b.report.figure(what+"all objects → tables, from nothing, median", quantile(synced, 0.5), "s")
	pid := a.cmd.Process.Pid
	if err := pause(ctx, untilProved); err != nil {
		return err
	}
	rest, err := memoryOf(pid)
	if err != nil {
		return err
	}
	if err := b.policyAPIChanges(ctx, p, a, c, what); err != nil {
		return err
	}
	if err := pause(ctx, untilProved); err != nil {
		return err
	}
	proved, err := memoryOf(pid)
	if err != nil {
		return err
	}
	peak, err := peakOf(pid)
	if err != nil {
		return err
	}
	for _, when := range []struct {
		name string
		memory
	}{{"at rest", rest}, {"behind changes and a proof", proved}} {
		if c.Policies == 10_000 {
			b.report.aim(what+"RSS "+when.name, when.rss, "MiB", atMost, 200)
		} else {
			b.report.figure(what+"RSS "+when.name, when.rss, "MiB")
		}
		b.report.figure(what+"anonymous of it "+when.name, when.anon, "MiB")
	}
	b.report.figure(what+"peak of RSS, from the start on", peak, "MiB")
	return nil
}

// peakOf is the most memory that a process ever had.
func peakOf(pid int) (float64, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(data)) {
		if text, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			var kb float64
			_, err := fmt.Sscanf(text, "%f kB", &kb)
			return kb / 1024, err
		}
	}
	return 0, fmt.Errorf("/proc/%d/status has no VmHWM", pid)
}

// policyAPIChanges takes the time of changes, one after the other, of each of which the second takes the first back.
func (b *bench) policyAPIChanges(ctx context.Context, p *plane, a *agent, c tieredCluster, what string) error {
	patch := func(kind string, namespace, name string, changed any) func(context.Context) error {
		data, err := json.Marshal(changed)
		return func(ctx context.Context) error {
			if err != nil {
				return err
			}
			if kind == "pod" {
				_, err := p.client.CoreV1().Pods(namespace).Patch(ctx, name, types.MergePatchType, data, metav1.PatchOptions{})
				return err
			}
			_, err := p.client.NetworkingV1().NetworkPolicies(namespace).Patch(ctx, name, types.MergePatchType, data, metav1.PatchOptions{})
			return err
		}
	}
	relabel := func(i int, tier string) func(context.Context) error {
		o := tieredPod(i, c.Policies)
		return patch("pod", o.Namespace, o.Name, map[string]any{"metadata": map[string]any{"labels": map[string]string{"tier": tier}}})
	}
	narrow, wide := tieredPolicy(0), tieredPolicy(0)
	narrow.Spec.Ingress[0].From = narrow.Spec.Ingress[0].From[:1]
	// Of one application, by tieredPod, of which the second pod is on another node.
	here, elsewhere := 0, c.Policies
	for _, change := range []struct {
		name string
		do   [2]func(context.Context) error
	}{
		{"a policy of its pods changes", [2]func(context.Context) error{patch("policy", narrow.Namespace, narrow.Name, map[string]any{"spec": narrow.Spec}), patch("policy", wide.Namespace, wide.Name, map[string]any{"spec": wide.Spec})}},
		{"a pod of its node has another label", [2]func(context.Context) error{relabel(here, "db"), relabel(here, "web")}},
		{"a pod elsewhere has another label", [2]func(context.Context) error{relabel(elsewhere, "web"), relabel(elsewhere, "db")}},
	} {
		var whole, rest []float64
		for i := range 2 * b.times(150) {
			asked := monotonic()
			if err := change.do[i%2](ctx); err != nil {
				return err
			}
			answered := monotonic()
			for {
				w, err := a.next(ctx)
				if err != nil {
					return err
				}
				if w.At > asked {
					whole, rest = append(whole, 1000*(w.At-asked).Seconds()), append(rest, 1000*max(0, w.At-answered).Seconds())
					break
				}
			}
			if err := pause(ctx, 5*time.Millisecond); err != nil {
				return err
			}
		}
		b.report.figure(what+change.name+", API call → last row, median", quantile(whole, 0.5), "ms")
		b.report.figure(what+change.name+", API call → last row, p99", quantile(whole, 0.99), "ms")
		b.report.figure(what+change.name+", API answer → last row, median", quantile(rest, 0.5), "ms")
		b.report.aim(what+change.name+", API answer → last row, p99", quantile(rest, 0.99), "ms", atMost, c.Most)
	}
	return nil
}

// enforce is an agent that runs policies as cmd/strake/agent does, on the node of a simulated cluster, whose pods are known as if the CNI server had made them.
func (s agentSpec) enforce(ctx context.Context, d *bpf.Datapath, rc *rest.Config, client kubernetes.Interface, tell *gob.Encoder) error {
	debug.SetGCPercent(50)
	json := rest.CopyConfig(rc)
	json.ContentType = "" // custom resources are JSON
	custom, err := dynamic.NewForConfig(json)
	if err != nil {
		return err
	}
	past, err := history.Open(filepath.Join(s.Dir, "history"))
	if err != nil {
		return err
	}
	tables := &toldPolicies{PolicyTables: d.Policies(), wrote: make(chan struct{}, 1)}
	all := make(chan struct{})
	e := enforce.New(enforce.Config{Client: client, Dynamic: custom, Tables: tables, NodeName: tieredNode, History: past, Synced: func() {
		go debug.FreeOSMemory()
		close(all)
	}})
	var pods []enforce.Endpoint
	for i := range s.Cluster.Pods {
		if p := tieredPod(i, s.Cluster.Policies); p.Spec.NodeName == tieredNode {
			ep := enforce.Endpoint{Owner: p.Name + "/eth0", Namespace: p.Namespace, Pod: p.Name, UID: string(p.UID)}
			for _, ip := range p.Status.PodIPs {
				ep.Addrs = append(ep.Addrs, netip.MustParseAddr(ip.IP))
			}
			pods = append(pods, ep)
		}
	}
	e.Known(pods...)
	var noting sync.WaitGroup
	defer noting.Wait()
	noting.Go(func() { past.Run(ctx) })
	noting.Go(func() {
		select {
		case <-ctx.Done():
			return
		case <-all:
		}
		for {
			select {
			case <-ctx.Done():
				return
			case <-tables.wrote:
			}
			for !e.Settled() && ctx.Err() == nil { // a change may take several writes
				time.Sleep(200 * time.Microsecond)
			}
			if err := tell.Encode(written{At: tables.last()}); err != nil {
				fmt.Fprintln(os.Stderr, "agent:", err)
			}
		}
	})
	return e.Run(ctx)
}

// toldPolicies tells when rows were written last.
type toldPolicies struct {
	*bpf.PolicyTables
	wrote chan struct{}
	mu    sync.Mutex
	at    time.Duration
}

// Apply implements enforce.Tables.
func (t *toldPolicies) Apply(c bpf.PolicyChange) error {
	err := t.PolicyTables.Apply(c)
	t.mu.Lock()
	t.at = monotonic()
	t.mu.Unlock()
	select {
	case t.wrote <- struct{}{}:
	default:
	}
	return err
}

func (t *toldPolicies) last() time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.at
}
