package monitor

import (
	"context"
	"encoding/json"
	"errors"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/strake-io/strake/bpf"
)

func pod(uid, name, ip string) *corev1.Pod {
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "demo", Name: name, UID: types.UID(uid)}, Status: corev1.PodStatus{Phase: corev1.PodRunning, PodIPs: []corev1.PodIP{{IP: ip}}}}
}

func TestNames(t *testing.T) {
	host := pod("u3", "host", "192.0.2.2")
	host.Spec.HostNetwork = true
	done := pod("u4", "done", "10.0.0.9")
	done.Status.Phase = corev1.PodSucceeded
	c := fake.NewClientset(pod("u1", "client", "10.0.0.1"), pod("u2", "server", "fd00::1"), host, done,
		&corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "demo", Name: "echo", UID: "s1"}, Spec: corev1.ServiceSpec{ClusterIPs: []string{"10.96.0.1"}, Ports: []corev1.ServicePort{{NodePort: 30080}}}},
		&corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "demo", Name: "headless", UID: "s2"}, Spec: corev1.ServiceSpec{ClusterIPs: []string{"None"}}},
		&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node-1", UID: "n1"}, Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Address: "192.0.2.2"}, {Address: "node-1"}}}})
	n := NewNames()
	if err := n.Follow(t.Context(), c, time.Minute); err != nil {
		t.Fatal(err)
	}
	for at, want := range map[string]string{
		"10.0.0.1:99": "10.0.0.1:99 (demo/client)", "[fd00::1]:1": "[fd00::1]:1 (demo/server)", "10.96.0.1:80": "10.96.0.1:80 (service demo/echo)",
		"192.0.2.2:30080": "192.0.2.2:30080 (service demo/echo)", "192.0.2.2:22": "192.0.2.2:22 (node node-1)", "10.0.0.9:1": "10.0.0.9:1", "203.0.113.1:0": "203.0.113.1",
	} {
		a := netip.MustParseAddrPort(at)
		if got := n.Of(a.Addr(), a.Port()).String(); got != want {
			t.Errorf("%s: %q, want %q", at, got, want)
		}
	}
	// An address that goes from one pod to the next, told in the wrong order.
	n.add(pod("u5", "next", "10.0.0.1"))
	n.remove(pod("u1", "client", "10.0.0.1"))
	if got := n.Of(netip.MustParseAddr("10.0.0.1"), 0); got.Pod != "demo/next" {
		t.Errorf("the successor is %q", got.Pod)
	}
}

// A StatefulSet's pods are not those of a pod that has the set's name.
func TestPodsOfAName(t *testing.T) {
	n := NewNames()
	takes := func(pod string) bool { return (Filter{Pod: "demo/web"}).takes(Line{Pod: pod}, n.HasPod("demo/web")) }
	if !takes("demo/web-0") {
		t.Error("a workload's pod is not taken")
	}
	n.add(pod("u1", "web", "10.0.0.1"))
	n.add(pod("u1", "web", "10.0.0.1")) // as an informer that lists again tells it
	n.add(pod("u2", "web", "10.0.0.2"))
	n.remove(pod("u1", "web", "10.0.0.1"))
	if takes("demo/web-0") || !takes("demo/web") {
		t.Error("the pod of that name is not meant alone")
	}
	n.remove(pod("u2", "web", "10.0.0.2"))
	if !takes("demo/web-0") {
		t.Error("a pod that is gone is still meant")
	}
}

func TestPodUID(t *testing.T) {
	const uid = "be2d238f-2a67-4e22-9e39-6cc1009d4d8a"
	for cgroup, want := range map[string]string{
		"0::/strake-01234567/kubepods/besteffort/pod" + uid + "/abc\n":                                                             uid,
		"12:cpu:/other\n0::/kubepods.slice/kubepods-pod" + strings.ReplaceAll(uid, "-", "_") + ".slice/cri-containerd-abc.scope\n": uid,
		"0::/user.slice\n": "", "": "", "0::/kubepods/podshort\n": "",
	} {
		if got := podUID(cgroup); got != want {
			t.Errorf("%q: %q, want %q", cgroup, got, want)
		}
	}
}

// events is a Source that gives its events and then ends.
type events struct {
	list []bpf.Event
	lost uint64
	end  func()
}

func (e *events) Read(time.Time) (bpf.Event, error) {
	if len(e.list) == 0 {
		e.end()
		return bpf.Event{}, os.ErrDeadlineExceeded
	}
	next := e.list[0]
	e.list = e.list[1:]
	return next, nil
}

func (e *events) Lost() (uint64, error) { return e.lost, nil }

func TestRun(t *testing.T) {
	syn := bytesOf(t, frames["SYN"].frame)
	wall := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	list := []bpf.Event{
		{Time: time.Second, Reason: "drop_spoofed", Length: 60, Ifindex: 999999, From: 999999, Packet: syn},
		{Time: time.Second, Reason: "masqueraded_out", Length: 60, Ifindex: 999998, From: 999999, Packet: syn},
		{Time: time.Second, Reason: "drop_no_backend", Socket: &bpf.Socket{PID: 1 << 30, Command: "curl", To: netip.MustParseAddrPort("192.0.2.2:80"), Protocol: 6}},
	}
	run := func(f Filter, count int, asJSON bool, lost uint64) (out, notes string) {
		t.Helper()
		n := NewNames()
		n.add(pod("u1", "client", "192.0.2.1"))
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var o, e strings.Builder
		err := Run(ctx, Config{
			Source: &events{list: slices.Clone(list), lost: lost, end: cancel}, Names: n, Filter: f, Count: count, JSON: asJSON,
			Clock: func() (time.Time, time.Duration) { return wall.Add(time.Second), 2 * time.Second },
			PodAt: func(i int) string { return map[int]string{999999: "demo/liar"}[i] },
		}, &o, &e)
		if err != nil {
			t.Fatal(err)
		}
		return o.String(), e.String()
	}
	at := wall.Local().Format("15:04:05.000000")
	const ends = "192.0.2.1:4096 (demo/client) → 192.0.2.2:80 SYN,ACK, 60 bytes\n"
	out, notes := run(Filter{}, 0, false, 0)
	if want := at + " drop_spoofed           in interface 999999 of demo/liar: TCP " + ends +
		at + " masqueraded_out        out interface 999998 from interface 999999 of demo/liar: TCP " + ends +
		at + " drop_no_backend        socket of curl (pid 1073741824) TCP → 192.0.2.2:80\n"; out != want || notes != "" {
		t.Errorf("got\n%s%s\nwant\n%s", out, notes, want)
	}
	if out, _ := run(Filter{}, 2, false, 0); strings.Count(out, "\n") != 2 {
		t.Errorf("two were asked for:\n%s", out)
	}
	for _, c := range []struct {
		f    Filter
		want int
	}{{Filter{Reasons: []string{"drop_no_backend"}}, 1}, {Filter{Pod: "demo/client"}, 2}, {Filter{Pod: "demo/liar"}, 2}, {Filter{Pod: "demo/nobody"}, 0}, {Filter{Pod: "demo/cli"}, 0}} {
		if out, _ := run(c.f, 0, false, 0); strings.Count(out, "\n") != c.want {
			t.Errorf("%+v: want %d lines:\n%s", c.f, c.want, out)
		}
	}
	if _, notes := run(Filter{}, 0, false, 7); !strings.Contains(notes, "7 events lost") {
		t.Errorf("losses are not told: %q", notes)
	}
	out, _ = run(Filter{}, 0, true, 7)
	var l Line
	dec := json.NewDecoder(strings.NewReader(out))
	if err := dec.Decode(&l); err != nil || l.Reason != "drop_spoofed" || !l.Drop || l.Direction != "in" || l.Source.Pod != "demo/client" || l.Destination.Port != 80 || l.Flags != "SYN,ACK" || !l.Time.Equal(wall) {
		t.Errorf("%v: %+v", err, l)
	}
	if !strings.HasSuffix(out, "{\"lost\":7}\n") {
		t.Errorf("losses are not told:\n%s", out)
	}
}

// What policies drop names the policy and its rule.
func TestDropsOfPolicies(t *testing.T) {
	c := Config{Names: NewNames(), Clock: func() (time.Time, time.Duration) { return time.Now(), 0 }, PolicyNames: func() map[uint32]bpf.PolicyName {
		return map[uint32]bpf.PolicyName{3: {Policy: 3, Kind: "NetworkPolicy", Namespace: "shop", Name: "web"}, 4: {Policy: 4, Kind: "ClusterNetworkPolicy", Name: "guard"}}
	}}
	syn := bytesOf(t, frames["SYN"].frame)
	for want, e := range map[string]bpf.Event{
		", isolated by NetworkPolicy shop/web":   {Policy: 3, Rule: bpf.PolicyNoRule},
		", rule 0 of ClusterNetworkPolicy guard": {Policy: 4},
		"60 bytes":                               {},
		" SYN,ACK, 60 bytes":                     {Policy: 5},
	} {
		e.Reason, e.Length, e.Packet = "drop_policy_ingress", 60, syn
		if got := c.line(e).String(); !strings.HasSuffix(got, want) {
			t.Errorf("%q does not end with %q", got, want)
		}
	}
}

func TestCheckReasons(t *testing.T) {
	if err := CheckReasons([]string{"drop_spoofed", "pod_to_pod"}); err != nil {
		t.Error(err)
	}
	if err := CheckReasons([]string{"drop_nothing"}); err == nil || !strings.Contains(err.Error(), "drop_spoofed") {
		t.Errorf("a reason that does not exist: %v", err)
	}
}

func TestInterfaces(t *testing.T) {
	reads := 0
	rows, failed := []bpf.Endpoint{{Ifindex: 5, Addr: netip.MustParseAddr("10.0.0.1")}}, error(nil)
	i := Interfaces{Read: func() ([]bpf.Endpoint, error) { reads++; return rows, failed }}
	if a, ok := i.Addr(5); !ok || a.String() != "10.0.0.1" {
		t.Errorf("%v %v", a, ok)
	}
	for range 10 {
		if _, ok := i.Addr(6); ok {
			t.Error("found what is not there")
		}
	}
	if reads > 2 {
		t.Errorf("the table was read %d times within a second", reads)
	}
	failed = errors.New("gone")
	i.read = time.Time{}
	if _, ok := i.Addr(7); ok {
		t.Error("found in a table that can't be read")
	}
}
