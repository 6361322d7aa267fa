package analysis

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/strake-io/strake/netpol"
	"github.com/strake-io/strake/netpol/manifests"
)

var update = flag.Bool("update", false, "write the golden files anew")

// golden compares with a file of testdata.
func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s differs (go test -update writes it anew):\n%s", path, got)
	}
}

func load(t testing.TB, paths ...string) netpol.State {
	t.Helper()
	for i := range paths {
		paths[i] = filepath.Join("testdata", paths[i])
	}
	s, problems, err := manifests.Load(paths...)
	if err != nil || len(problems) > 0 {
		t.Fatal(err, problems)
	}
	return s
}

func TestMatrixOutputs(t *testing.T) {
	for _, name := range []string{"shop", "dual"} {
		m := New(load(t, name+".yaml"), Options{}).Matrix(nil, nil)
		for ext, write := range map[string]func(io.Writer) error{
			"txt": func(w io.Writer) error { return m.WriteText(w, false) }, "csv": m.WriteCSV, "json": m.WriteJSON, "dot": m.WriteDot,
		} {
			var b bytes.Buffer
			if err := write(&b); err != nil {
				t.Fatal(err)
			}
			golden(t, name+".matrix."+ext, b.Bytes())
			if ext == "json" && !json.Valid(b.Bytes()) {
				t.Error("the JSON is none")
			}
			if ext == "csv" {
				if lines, err := csv.NewReader(&b).ReadAll(); err != nil || len(lines) != m.Counts.Pairs+1 {
					t.Errorf("%d lines, %v; there are %d pairs", len(lines), err, m.Counts.Pairs)
				}
			}
		}
	}
}

func TestMatrixPage(t *testing.T) {
	s := load(t, "shop.yaml")
	s.Pods[0].OwnerReferences, s.Pods[0].Name = nil, "</script><b>" // no name of a pod, but a name must not be able to do this
	var b bytes.Buffer
	if err := New(s, Options{}).Matrix(nil, nil).WriteHTML(&b, "a & b"); err != nil {
		t.Fatal(err)
	}
	page := b.String()
	if strings.Count(page, "</script>") != 1 || !strings.Contains(page, "a &amp; b") {
		t.Error("names are not escaped")
	}
	for _, word := range []string{"http:", "https:", "src=\"", "href=", "@import", "url("} {
		if strings.Contains(page, word) {
			t.Errorf("the page asks for something: it has %q", word)
		}
	}
}

func TestMatrixChoice(t *testing.T) {
	a := New(load(t, "shop.yaml"), Options{})
	for pattern, want := range map[string]string{"shop/*": "shop/db shop/web", "world": "world", "10.0.0.0/8": "10.0.0.0/8", "shop/web": "shop/web", "none/*": ""} {
		choose, err := Named(pattern)
		if err != nil {
			t.Fatal(err)
		}
		m := a.Matrix(choose, nil)
		var got []string
		for i, row := range m.Rows {
			for _, id := range row {
				if id >= 0 {
					got = append(got, m.Ends[i].Name)
					break
				}
			}
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%s chooses %q, want %q", pattern, got, want)
		}
	}
	if _, err := Named("["); err == nil {
		t.Error("a pattern that is none is no error")
	}
}

// TestPartsOfAWorkload: pods of a workload that policies tell apart have lines of their own, those that they don't have one.
func TestPartsOfAWorkload(t *testing.T) {
	state := func(selected string) netpol.State {
		s, problems := manifests.Parse("x", []byte(`
{apiVersion: v1, kind: Pod, metadata: {name: web-0, labels: {app: web, pod: a}, ownerReferences: [{apiVersion: apps/v1, kind: StatefulSet, name: web, uid: u, controller: true}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: web-1, labels: {app: web, pod: b}, ownerReferences: [{apiVersion: apps/v1, kind: StatefulSet, name: web, uid: u, controller: true}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: client}}
---
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: p}, spec: {podSelector: {matchLabels: {pod: `+selected+`}}}}`))
		if len(problems) > 0 {
			t.Fatal(problems)
		}
		return s
	}
	names := func(s netpol.State) string {
		var out []string
		for _, e := range New(s, Options{}).Ends() {
			out = append(out, e.Name)
		}
		return strings.Join(out, " | ")
	}
	if got := names(state("a")); got != "default/client | default/web (web-0) | default/web (web-1) | world" {
		t.Error(got)
	}
	if got := names(state("c")); got != "default/client | default/web | world" {
		t.Error(got)
	}
}

func TestOwnerOf(t *testing.T) {
	yes := true
	pod := func(kind, name string, l map[string]string) *corev1.Pod {
		return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "n", Name: "p", Labels: l, OwnerReferences: []metav1.OwnerReference{{Kind: kind, Name: name, Controller: &yes}}}}
	}
	for want, p := range map[Owner]*corev1.Pod{
		{"Deployment", "n", "web"}:   pod("ReplicaSet", "web-5d8f", map[string]string{"pod-template-hash": "5d8f"}),
		{"ReplicaSet", "n", "web-5"}: pod("ReplicaSet", "web-5", nil),
		{"CronJob", "n", "nightly"}:  pod("Job", "nightly-29384756", nil),
		{"Job", "n", "once-2"}:       pod("Job", "once-2", nil),
		{"Pod", "n", "alone"}:        {ObjectMeta: metav1.ObjectMeta{Namespace: "n", Name: "alone"}},
	} {
		if got := OwnerOf(p); got != want {
			t.Errorf("%v, want %v", got, want)
		}
	}
}

// bigState is a cluster of many namespaces, workloads and policies of the usual shapes.
func bigState(namespaces, workloads, replicas, policies int) netpol.State {
	var s netpol.State
	tcp := corev1.ProtocolTCP
	for n := range namespaces {
		ns := fmt.Sprintf("ns-%d", n)
		s.Namespaces = append(s.Namespaces, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: ns, Labels: map[string]string{"team": fmt.Sprint(n % 10)}}})
		for w := range workloads {
			for r := range replicas {
				yes := true
				i := len(s.Pods)
				s.Pods = append(s.Pods, &corev1.Pod{
					ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: fmt.Sprintf("app-%d-%d", w, r), Labels: map[string]string{"app": fmt.Sprintf("app-%d", w), "pod": fmt.Sprint(r)},
						OwnerReferences: []metav1.OwnerReference{{Kind: "StatefulSet", Name: fmt.Sprintf("app-%d", w), Controller: &yes}}},
					Spec:   corev1.PodSpec{Containers: []corev1.Container{{Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: int32(8000 + w)}}}}},
					Status: corev1.PodStatus{PodIPs: []corev1.PodIP{{IP: fmt.Sprintf("10.%d.%d.%d", 1+i>>16, i>>8&255, i&255)}}},
				})
			}
		}
	}
	for p := range policies {
		app := func(i int) *metav1.LabelSelector {
			return &metav1.LabelSelector{MatchLabels: map[string]string{"app": fmt.Sprintf("app-%d", i%workloads)}}
		}
		port := intstr.FromInt32(int32(8000 + p%workloads))
		http := intstr.FromString("http")
		n := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: fmt.Sprintf("ns-%d", p%namespaces), Name: fmt.Sprintf("p-%d", p)}}
		n.Spec.PodSelector = *app(p / namespaces)
		n.Spec.PolicyTypes = []networkingv1.PolicyType{networkingv1.PolicyTypeIngress, networkingv1.PolicyTypeEgress}
		n.Spec.Ingress = []networkingv1.NetworkPolicyIngressRule{
			{From: []networkingv1.NetworkPolicyPeer{{PodSelector: app(p + 1)}, {NamespaceSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"team": fmt.Sprint(p % 10)}}}}, Ports: []networkingv1.NetworkPolicyPort{{Protocol: &tcp, Port: &http}}},
			{From: []networkingv1.NetworkPolicyPeer{{IPBlock: &networkingv1.IPBlock{CIDR: fmt.Sprintf("192.%d.%d.0/24", p>>8, p&255)}}}},
		}
		n.Spec.Egress = []networkingv1.NetworkPolicyEgressRule{
			{To: []networkingv1.NetworkPolicyPeer{{NamespaceSelector: &metav1.LabelSelector{}, PodSelector: app(p + 2)}}, Ports: []networkingv1.NetworkPolicyPort{{Protocol: &tcp, Port: &port}}},
			{To: []networkingv1.NetworkPolicyPeer{{IPBlock: &networkingv1.IPBlock{CIDR: "0.0.0.0/0", Except: []string{"10.0.0.0/8"}}}}},
		}
		s.NetworkPolicies = append(s.NetworkPolicies, n)
	}
	return s
}

// BenchmarkMatrix is the whole matrix of 5 000 pods and 1 000 policies, written as text: of 1 000 workloads, and of as many as there are pods.
func BenchmarkMatrix(b *testing.B) {
	for name, s := range map[string]netpol.State{"1000 workloads": bigState(100, 10, 5, 1000), "5000 workloads": bigState(100, 50, 1, 1000)} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				m := New(s, Options{}).Matrix(nil, nil)
				if err := m.WriteText(io.Discard, false); err != nil {
					b.Fatal(err)
				}
				b.ReportMetric(float64(m.Counts.Pairs), "pairs")
			}
		})
	}
}
