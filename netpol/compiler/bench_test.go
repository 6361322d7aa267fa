package compiler

import (
	"fmt"
	"runtime"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/strake-io/strake/bpf"
)

// large is a cluster of applications: in each of 100 namespaces some with a web, an api and a db, of which each lets the one before in.
type large struct {
	pods     []*corev1.Pod
	policies []*networkingv1.NetworkPolicy
	c        *Compiler
}

const largeNodes = 100

func largePod(i, policies int) *corev1.Pod {
	apps := policies / 100
	space := i % 100
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: fmt.Sprint("space-", space), Name: fmt.Sprint("pod-", i), UID: types.UID(fmt.Sprintf("00000000-0000-0000-0000-%012d", i)), Labels: map[string]string{
			"app.kubernetes.io/name": fmt.Sprint("app-", i/100%apps), "tier": []string{"web", "api", "db"}[i/100/apps%3], "pod-template-hash": fmt.Sprint(i / 100 / apps % 3),
		}},
		Spec: corev1.PodSpec{NodeName: fmt.Sprint("node-", i/7%largeNodes), Containers: []corev1.Container{{Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 8080}}}}},
		Status: corev1.PodStatus{Phase: corev1.PodRunning, PodIPs: []corev1.PodIP{
			{IP: fmt.Sprintf("10.%d.%d.%d", 1+i>>16, i>>8&255, i&255)}, {IP: fmt.Sprintf("fd00:10::%x:%x", 1+i>>16, i&65535)},
		}},
	}
}

func largePolicy(i int) *networkingv1.NetworkPolicy {
	app, http := fmt.Sprint("app-", i/100), intstr.FromString("http")
	from := func(tier string) networkingv1.NetworkPolicyPeer {
		return networkingv1.NetworkPolicyPeer{PodSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"app.kubernetes.io/name": app, "tier": tier}}}
	}
	return &networkingv1.NetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{Namespace: fmt.Sprint("space-", i%100), Name: fmt.Sprint("policy-", i), UID: types.UID(fmt.Sprintf("10000000-0000-0000-0000-%012d", i))},
		Spec: networkingv1.NetworkPolicySpec{
			PodSelector: metav1.LabelSelector{MatchLabels: map[string]string{"app.kubernetes.io/name": app}},
			PolicyTypes: []networkingv1.PolicyType{"Ingress", "Egress"},
			Ingress: []networkingv1.NetworkPolicyIngressRule{
				{From: []networkingv1.NetworkPolicyPeer{from("web"), from("api")}, Ports: []networkingv1.NetworkPolicyPort{{Port: &http}}},
				{From: []networkingv1.NetworkPolicyPeer{{NamespaceSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"kubernetes.io/metadata.name": fmt.Sprint("space-", (i+1)%100)}}}}},
			},
			Egress: []networkingv1.NetworkPolicyEgressRule{
				{To: []networkingv1.NetworkPolicyPeer{from("api"), from("db")}},
				{To: []networkingv1.NetworkPolicyPeer{{IPBlock: &networkingv1.IPBlock{CIDR: "0.0.0.0/0", Except: []string{"10.0.0.0/8"}}}}},
			},
		},
	}
}

func newLarge(tb testing.TB, pods, policies int) *large {
	l := &large{c: New(Options{NodeName: "node-0"})}
	for i := range 100 {
		l.c.SetNamespace(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("space-", i), Labels: map[string]string{"team": fmt.Sprint(i % 10)}}})
	}
	for i := range pods {
		l.pods = append(l.pods, largePod(i, policies))
		l.c.SetPod(l.pods[i])
	}
	for i := range policies {
		l.policies = append(l.policies, largePolicy(i))
		l.c.SetNetworkPolicy(l.policies[i])
	}
	l.c.Flush()
	return l
}

var sizes = []struct{ pods, policies int }{{10_000, 1_000}, {30_000, 10_000}}

func writes(changes []bpf.PolicyChange) (n int) {
	for _, c := range changes {
		n += len(single(c))
	}
	return n
}

func each(b *testing.B, f func(b *testing.B, l *large)) {
	for _, size := range sizes {
		b.Run(fmt.Sprintf("%d-pods-%d-policies", size.pods, size.policies), func(b *testing.B) {
			l := newLarge(b, size.pods, size.policies)
			b.ReportAllocs()
			b.ResetTimer()
			f(b, l)
		})
	}
}

func relabelled(p *corev1.Pod, tier string) *corev1.Pod {
	p = p.DeepCopy()
	p.Labels["tier"] = tier
	return p
}

// BenchmarkRelabelRemotePod: a pod elsewhere becomes one of another class that there is.
func BenchmarkRelabelRemotePod(b *testing.B) {
	each(b, func(b *testing.B, l *large) {
		p := l.pods[1]
		other := [2]*corev1.Pod{relabelled(p, "api"), relabelled(p, "db")}
		n := 0
		for i := range b.N {
			l.c.SetPod(other[i%2])
			n += writes(l.c.Flush())
		}
		b.ReportMetric(float64(n)/float64(b.N), "writes/op")
	})
}

// BenchmarkRelabelLocalPod: a pod of this node becomes one of another class.
func BenchmarkRelabelLocalPod(b *testing.B) {
	each(b, func(b *testing.B, l *large) {
		p := l.pods[0]
		other := [2]*corev1.Pod{relabelled(p, "api"), relabelled(p, "db")}
		n := 0
		for i := range b.N {
			l.c.SetPod(other[i%2])
			n += writes(l.c.Flush())
		}
		b.ReportMetric(float64(n)/float64(b.N), "writes/op")
	})
}

// BenchmarkNewPod: a pod comes to this node and goes.
func BenchmarkNewPod(b *testing.B) {
	each(b, func(b *testing.B, l *large) {
		p := l.pods[0].DeepCopy()
		p.UID, p.Name, p.Status.PodIPs = "new", "new", []corev1.PodIP{{IP: "10.200.0.1"}}
		n := 0
		for range b.N {
			l.c.SetPod(p)
			n += writes(l.c.Flush())
			l.c.DeletePod(p.UID)
			n += writes(l.c.Flush())
		}
		b.ReportMetric(float64(n)/float64(b.N), "writes/op")
	})
}

// BenchmarkPolicy: a policy that selects pods of this node changes.
func BenchmarkPolicy(b *testing.B) {
	each(b, func(b *testing.B, l *large) {
		p := l.policies[0]
		other := [2]*networkingv1.NetworkPolicy{p.DeepCopy(), p}
		other[0].Spec.Ingress[0].From = other[0].Spec.Ingress[0].From[:1]
		n := 0
		for i := range b.N {
			l.c.SetNetworkPolicy(other[i%2])
			n += writes(l.c.Flush())
		}
		b.ReportMetric(float64(n)/float64(b.N), "writes/op")
	})
}

// BenchmarkPolicyForAll: a policy comes that lets all pods of the cluster in, and goes: each pod's row changes.
func BenchmarkPolicyForAll(b *testing.B) {
	each(b, func(b *testing.B, l *large) {
		p := largePolicy(0)
		p.Name, p.UID = "all", "all"
		p.Spec.Ingress = []networkingv1.NetworkPolicyIngressRule{{From: []networkingv1.NetworkPolicyPeer{{NamespaceSelector: &metav1.LabelSelector{}}}}}
		n := 0
		for range b.N {
			l.c.SetNetworkPolicy(p)
			n += writes(l.c.Flush())
			l.c.DeleteNetworkPolicy(p.Namespace, p.Name)
			n += writes(l.c.Flush())
		}
		b.ReportMetric(float64(n)/float64(b.N), "writes/op")
	})
}

// BenchmarkStart: all of it from nothing; memory is what the compiler keeps.
func BenchmarkStart(b *testing.B) {
	for _, size := range sizes {
		b.Run(fmt.Sprintf("%d-pods-%d-policies", size.pods, size.policies), func(b *testing.B) {
			for range b.N {
				heap := func() uint64 {
					var m runtime.MemStats
					runtime.GC()
					runtime.GC()
					runtime.ReadMemStats(&m)
					return m.HeapAlloc
				}
				before := heap()
				l := newLarge(b, size.pods, size.policies)
				l.pods, l.policies = nil, nil
				b.StopTimer()
				b.ReportMetric(float64(heap()-before)/1e6, "MB")
				rows := l.c.Rows()
				b.ReportMetric(float64(len(rows.Answers)), "answers")
				b.ReportMetric(float64(len(rows.Peers)), "peers")
				b.ReportMetric(float64(len(rows.Ports)), "ports")
				b.ReportMetric(float64(len(rows.Subjects)), "subjects")
				runtime.KeepAlive(l)
				b.StartTimer()
			}
		})
	}
}
