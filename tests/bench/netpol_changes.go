package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/strake-io/strake/bpf"
	"github.com/strake-io/strake/netpol/compiler"
)

const (
	tieredSpaces = 100
	tieredNodes  = 100
)

var tiers = []string{"web", "api", "db"}

// tieredCluster is how large one is, and within which time a change is to be enforced.
type tieredCluster struct {
	Pods, Policies int
	Most           float64 // ms
}

func (c tieredCluster) String() string {
	return fmt.Sprintf("%d policies, %d pods", c.Policies, c.Pods)
}

// tieredClusters are those that changes are measured in.
var tieredClusters = []tieredCluster{{10_000, 1_000, 10}, {30_000, 10_000, 50}}

// tieredPod is a pod of a cluster of applications: in each of 100 namespaces a hundredth of the policies' applications, each with a web, an api and a db.
func tieredPod(i, policies int) *corev1.Pod {
	apps := max(1, policies/tieredSpaces)
	kind, owns := i/tieredSpaces, true
	app, tier := fmt.Sprint("app-", kind%apps), tiers[kind/apps%len(tiers)]
	return &corev1.Pod{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{Namespace: fmt.Sprint("space-", i%tieredSpaces), Name: fmt.Sprint("pod-", i), UID: types.UID(fmt.Sprint("pod-", i)),
			Labels:          map[string]string{"app": app, "tier": tier},
			OwnerReferences: []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "StatefulSet", Name: app + "-" + tier, Controller: &owns}}},
		Spec: corev1.PodSpec{NodeName: fmt.Sprint("node-", i/7%tieredNodes), Containers: []corev1.Container{{Name: "main", Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 8080}}}}},
		Status: corev1.PodStatus{Phase: corev1.PodRunning, PodIPs: []corev1.PodIP{
			{IP: fmt.Sprintf("10.%d.%d.%d", 1+i>>16, i>>8&255, i&255)}, {IP: fmt.Sprintf("fd00:10::%x:%x", 1+i>>16, i&0xffff)},
		}},
	}
}

// tieredPolicy is that of an application: its web and api are let in at a named port, and a neighbouring namespace at all; it is let out to its api and db, and
// out of the cluster.
func tieredPolicy(i int) *networkingv1.NetworkPolicy {
	app, http := fmt.Sprint("app-", i/tieredSpaces), intstr.FromString("http")
	tier := func(name string) networkingv1.NetworkPolicyPeer {
		return networkingv1.NetworkPolicyPeer{PodSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": app, "tier": name}}}
	}
	neighbour := metav1.LabelSelector{MatchLabels: map[string]string{corev1.LabelMetadataName: fmt.Sprint("space-", (i+1)%tieredSpaces)}}
	return &networkingv1.NetworkPolicy{
		TypeMeta:   metav1.TypeMeta{APIVersion: "networking.k8s.io/v1", Kind: "NetworkPolicy"},
		ObjectMeta: metav1.ObjectMeta{Namespace: fmt.Sprint("space-", i%tieredSpaces), Name: fmt.Sprint("policy-", i), UID: types.UID(fmt.Sprint("policy-", i))},
		Spec: networkingv1.NetworkPolicySpec{
			PodSelector: metav1.LabelSelector{MatchLabels: map[string]string{"app": app}},
			PolicyTypes: []networkingv1.PolicyType{"Ingress", "Egress"},
			Ingress: []networkingv1.NetworkPolicyIngressRule{
				{From: []networkingv1.NetworkPolicyPeer{tier("web"), tier("api")}, Ports: []networkingv1.NetworkPolicyPort{{Port: &http}}},
				{From: []networkingv1.NetworkPolicyPeer{{NamespaceSelector: &neighbour}}},
			},
			Egress: []networkingv1.NetworkPolicyEgressRule{
				{To: []networkingv1.NetworkPolicyPeer{tier("api"), tier("db")}},
				{To: []networkingv1.NetworkPolicyPeer{{IPBlock: &networkingv1.IPBlock{CIDR: "0.0.0.0/0", Except: []string{"10.0.0.0/8"}}}}},
			},
		},
	}
}

func tieredSpace(i int) *corev1.Namespace {
	name := fmt.Sprint("space-", i)
	return &corev1.Namespace{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Namespace"},
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{corev1.LabelMetadataName: name}},
	}
}

// policyChanges takes the time from when the compiler is told of a change until its rows are in the kernel, on a node of a large cluster.
func (b *bench) policyChanges(ctx context.Context) error {
	for _, c := range tieredClusters {
		if err := b.policyChangesAt(ctx, c.Pods, c.Policies, c.Most); err != nil {
			return fmt.Errorf("%d policies: %w", c.Policies, err)
		}
	}
	return nil
}

func (b *bench) policyChangesAt(ctx context.Context, pods, size int, most float64) (err error) {
	tables, err := bpf.OpenPolicyMachine()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, tables.Close()) }()
	what := tieredCluster{Pods: pods, Policies: size}.String() + ", "
	heap := func() float64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.GC()
		runtime.ReadMemStats(&m)
		return float64(m.HeapAlloc) / (1 << 20)
	}
	before := heap()
	// As many rules as a node's tables hold.
	c := compiler.New(compiler.Options{NodeName: "node-0", MaxRules: bpf.DefaultMaxPolicyRules})
	apply := func() error {
		changes := c.Flush()
		if len(changes) == 0 {
			return errors.New("the change concerns no row")
		}
		for _, change := range changes {
			if err := tables.Apply(change); err != nil {
				return err
			}
		}
		return nil
	}
	began := time.Now()
	for i := range tieredSpaces {
		c.SetNamespace(tieredSpace(i))
	}
	for i := range pods {
		c.SetPod(tieredPod(i, size))
	}
	for i := range size {
		c.SetNetworkPolicy(tieredPolicy(i))
	}
	if err := apply(); err != nil {
		return err
	}
	b.report.figure(what+"all objects → tables, from nothing", time.Since(began).Seconds(), "s")
	b.report.figure(what+"heap of the compiler", heap()-before, "MiB")
	tier := func(i int, name string) *corev1.Pod {
		p := tieredPod(i, size)
		p.Labels["tier"] = name
		return p
	}
	narrow, wide := tieredPolicy(0), tieredPolicy(0)
	narrow.Spec.Ingress[0].From = narrow.Spec.Ingress[0].From[:1]
	here, elsewhere := 0, size // of one application, by tieredPod, of which the second is on another node
	fresh := tieredPod(0, size)
	fresh.Labels["pod-template-hash"] = "fresh" // as the first of a rollout
	fresh.Name, fresh.UID, fresh.Status.PodIPs = "fresh", "fresh", []corev1.PodIP{{IP: "10.200.0.1"}, {IP: "fd00:20::1"}}
	for _, change := range []struct {
		name string
		do   [2]func() // in turns: the second takes the first back
	}{
		{"a policy of this node's pods changes", [2]func(){func() { c.SetNetworkPolicy(narrow) }, func() { c.SetNetworkPolicy(wide) }}},
		{"a pod of this node has another label", [2]func(){func() { c.SetPod(tier(here, "db")) }, func() { c.SetPod(tier(here, "web")) }}},
		{"a pod elsewhere has another label", [2]func(){func() { c.SetPod(tier(elsewhere, "db")) }, func() { c.SetPod(tier(elsewhere, "web")) }}},
		{"a pod of this node comes or goes", [2]func(){func() { c.SetPod(fresh) }, func() { c.DeletePod(fresh.UID) }}},
	} {
		var took []float64
		for i := range b.times(500) {
			if err := ctx.Err(); err != nil {
				return err
			}
			began := time.Now()
			change.do[i%2]()
			if err := apply(); err != nil {
				return err
			}
			took = append(took, 1000*time.Since(began).Seconds())
		}
		b.report.figure(what+change.name+", median", quantile(took, 0.5), "ms")
		b.report.aim(what+change.name+", p99", quantile(took, 0.99), "ms", atMost, most)
	}
	return nil
}

// policyAnswers takes the time of the commands that answer without a cluster, from exec to end, files read and answers written.
func (b *bench) policyAnswers(ctx context.Context) error {
	const pods, size, asked = 5_000, 1_000, 100_000
	dir, err := os.MkdirTemp("", "strake-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	var manifests bytes.Buffer
	w := json.NewEncoder(&manifests)
	write := func(object any) error {
		manifests.WriteString("---\n")
		return w.Encode(object)
	}
	for i := range tieredSpaces {
		err = errors.Join(err, write(tieredSpace(i)))
	}
	for i := range pods {
		err = errors.Join(err, write(tieredPod(i, size)))
	}
	for i := range size {
		err = errors.Join(err, write(tieredPolicy(i)))
	}
	type query struct {
		From string `json:"from"`
		To   string `json:"to"`
		Port int    `json:"port"`
	}
	var queries []query
	name := func(i int) string { return fmt.Sprintf("space-%d/pod-%d", i%tieredSpaces, i) }
	for i := range asked {
		queries = append(queries, query{name(i % pods), name((i*7919 + i/pods) % pods), 8080})
	}
	batch, encodeErr := json.Marshal(queries)
	objects, asks := filepath.Join(dir, "cluster.yaml"), filepath.Join(dir, "queries.json")
	if err := errors.Join(err, encodeErr, os.WriteFile(objects, manifests.Bytes(), 0o600), os.WriteFile(asks, batch, 0o600)); err != nil {
		return err
	}
	for _, command := range []struct {
		name string
		args string
		most float64 // s; 0: no target
	}{
		{fmt.Sprintf("matrix of %d pods and %d policies", pods, size), "policy matrix -f " + objects, 5},
		{fmt.Sprintf("eval of %d queries, rows", asked), "policy eval --engine=rows --batch " + asks + " -f " + objects, 0},
		{fmt.Sprintf("eval of %d queries, kernel", asked), "policy eval --engine=kernel --batch " + asks + " -f " + objects, 0},
		{fmt.Sprintf("eval of %d queries, reference", asked), "policy eval --engine=reference --batch " + asks + " -f " + objects, 0},
	} {
		var took []float64
		for range b.times(5) {
			run := exec.CommandContext(ctx, b.strake, strings.Fields(command.args)...)
			var stderr bytes.Buffer
			run.Stderr = &stderr
			began := time.Now()
			if err := run.Run(); err != nil {
				return fmt.Errorf("strake %s: %w\n%s", command.args, err, stderr.Bytes())
			}
			took = append(took, time.Since(began).Seconds())
		}
		if command.most != 0 {
			b.report.aim(command.name+", median", quantile(took, 0.5), "s", atMost, command.most)
		} else {
			b.report.figure(command.name+", median", quantile(took, 0.5), "s")
		}
	}
	return nil
}
