package endpoints

import (
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// pod has the addresses 10.0.0.n and fd00::n.
func pod(n int, change ...func(*corev1.Pod)) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: fmt.Sprint("p", n), UID: types.UID(fmt.Sprint("u", n))}}
	p.Spec.NodeName = "node"
	p.Status.Phase = corev1.PodRunning
	p.Status.PodIP = fmt.Sprint("10.0.0.", n)
	p.Status.PodIPs = []corev1.PodIP{{IP: p.Status.PodIP}, {IP: fmt.Sprint("fd00::", n)}}
	p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
	for _, f := range change {
		f(p)
	}
	return p
}

func unready(p *corev1.Pod)     { p.Status.Conditions = nil }
func terminating(p *corev1.Pod) { p.DeletionTimestamp = &metav1.Time{} }
func named(port int32) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		p.Spec.Containers = []corev1.Container{{Ports: []corev1.ContainerPort{{Name: "web", ContainerPort: port, Protocol: corev1.ProtocolTCP}}}}
	}
}

// text is one line for each subset: ports, ready addresses, others.
func text(all []corev1.EndpointSubset) string {
	var lines []string
	for _, s := range all {
		var parts []string
		for _, p := range s.Ports {
			parts = append(parts, fmt.Sprintf("%s:%d/%s", p.Name, p.Port, p.Protocol))
		}
		for _, a := range s.Addresses {
			parts = append(parts, strings.TrimSpace(a.IP+" "+a.Hostname))
		}
		for _, a := range s.NotReadyAddresses {
			parts = append(parts, "!"+a.IP)
		}
		lines = append(lines, strings.Join(parts, " "))
	}
	return strings.Join(lines, "\n")
}

func TestSubsets(t *testing.T) {
	http := corev1.ServicePort{Name: "http", Port: 80, Protocol: corev1.ProtocolTCP, TargetPort: intstr.FromInt32(8080)}
	byName := corev1.ServicePort{Name: "web", Port: 81, Protocol: corev1.ProtocolTCP, TargetPort: intstr.FromString("web")}
	app := "kubernetes.io/h2c"
	h2c := http
	h2c.AppProtocol = &app
	for name, c := range map[string]struct {
		spec corev1.ServiceSpec
		pods []*corev1.Pod
		want string
	}{
		"nobody":            {corev1.ServiceSpec{Ports: []corev1.ServicePort{http}}, nil, ""},
		"in order":          {corev1.ServiceSpec{Ports: []corev1.ServicePort{http}}, []*corev1.Pod{pod(2), pod(1)}, "http:8080/TCP 10.0.0.1 10.0.0.2"},
		"not ready":         {corev1.ServiceSpec{Ports: []corev1.ServicePort{http}}, []*corev1.Pod{pod(1), pod(2, unready)}, "http:8080/TCP 10.0.0.1 !10.0.0.2"},
		"published anyway":  {corev1.ServiceSpec{Ports: []corev1.ServicePort{http}, PublishNotReadyAddresses: true}, []*corev1.Pod{pod(1, terminating), pod(2, unready)}, "http:8080/TCP 10.0.0.1 10.0.0.2"},
		"terminating":       {corev1.ServiceSpec{Ports: []corev1.ServicePort{http}}, []*corev1.Pod{pod(1, terminating)}, ""},
		"ended":             {corev1.ServiceSpec{Ports: []corev1.ServicePort{http}}, []*corev1.Pod{pod(1, func(p *corev1.Pod) { p.Status.Phase = corev1.PodSucceeded })}, ""},
		"no address yet":    {corev1.ServiceSpec{Ports: []corev1.ServicePort{http}}, []*corev1.Pod{pod(1, func(p *corev1.Pod) { p.Status.PodIP, p.Status.PodIPs = "", nil })}, ""},
		"IPv6":              {corev1.ServiceSpec{Ports: []corev1.ServicePort{http}, IPFamilies: []corev1.IPFamily{corev1.IPv6Protocol, corev1.IPv4Protocol}}, []*corev1.Pod{pod(1)}, "http:8080/TCP fd00::1"},
		"no ports":          {corev1.ServiceSpec{ClusterIP: corev1.ClusterIPNone}, []*corev1.Pod{pod(1)}, "10.0.0.1"},
		"named ports":       {corev1.ServiceSpec{Ports: []corev1.ServicePort{byName}}, []*corev1.Pod{pod(1, named(90)), pod(2, named(91)), pod(3)}, "web:90/TCP 10.0.0.1\nweb:91/TCP 10.0.0.2"},
		"one of its ports":  {corev1.ServiceSpec{Ports: []corev1.ServicePort{http, byName}}, []*corev1.Pod{pod(1, named(90)), pod(2)}, "http:8080/TCP 10.0.0.1 10.0.0.2\nweb:90/TCP 10.0.0.1"},
		"a protocol's name": {corev1.ServiceSpec{Ports: []corev1.ServicePort{h2c}}, []*corev1.Pod{pod(1), pod(2)}, "http:8080/TCP 10.0.0.1 10.0.0.2"},
		"ports of the same": {corev1.ServiceSpec{Ports: []corev1.ServicePort{http, byName}}, []*corev1.Pod{pod(1, named(90))}, "http:8080/TCP web:90/TCP 10.0.0.1"},
		"hostnames": {corev1.ServiceSpec{ClusterIP: corev1.ClusterIPNone}, []*corev1.Pod{pod(1, func(p *corev1.Pod) { p.Spec.Hostname, p.Spec.Subdomain = "a", "svc" }), pod(2, func(p *corev1.Pod) { p.Spec.Hostname, p.Spec.Subdomain = "b", "other" })},
			"10.0.0.1 a 10.0.0.2"},
	} {
		t.Run(name, func(t *testing.T) {
			svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "svc"}, Spec: c.spec}
			if got := text(subsets(svc, c.pods)); got != c.want {
				t.Errorf("%q, want %q", got, c.want)
			}
		})
	}
}

func TestTruncate(t *testing.T) {
	subset := func(ready, others int) corev1.EndpointSubset {
		return corev1.EndpointSubset{Addresses: make([]corev1.EndpointAddress, ready), NotReadyAddresses: make([]corev1.EndpointAddress, others)}
	}
	for _, c := range []struct {
		have []corev1.EndpointSubset
		over bool
		want string
	}{
		{nil, false, ""},
		{[]corev1.EndpointSubset{subset(600, 400)}, false, "600+400"},
		{[]corev1.EndpointSubset{subset(600, 600)}, true, "600+400"},
		{[]corev1.EndpointSubset{subset(1500, 500), subset(500, 0)}, true, "750+0 250+0"},
		{[]corev1.EndpointSubset{subset(500, 1000), subset(0, 1000)}, true, "500+250 0+250"},
		{[]corev1.EndpointSubset{subset(1000, 0), subset(0, 9)}, true, "1000+0"},
	} {
		got, over := truncate(c.have)
		var parts []string
		for _, s := range got {
			parts = append(parts, fmt.Sprintf("%d+%d", len(s.Addresses), len(s.NotReadyAddresses)))
		}
		if strings.Join(parts, " ") != c.want || over != c.over {
			t.Errorf("%v, over %t, want %s, %t", parts, over, c.want, c.over)
		}
	}
}
