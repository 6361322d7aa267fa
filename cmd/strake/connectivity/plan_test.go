package connectivity

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

func addrs(l ...string) []netip.Addr {
	var out []netip.Addr
	for _, s := range l {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

// scene of two nodes and both families.
func scene() Scene {
	s := Scene{Namespace: "t", Families: []string{"IPv4", "IPv6"}, Nodes: []string{"a", "b"}, Port: 8000, ClusterIPs: addrs("10.96.0.1", "fd00:96::1"), NodePort: 30001, NodePortUDP: 30002}
	for i, n := range s.Nodes {
		s.Pods = append(s.Pods,
			Pod{Name: podName(n, 0), Node: n, Addrs: addrs(fmt.Sprintf("10.244.%d.2", i), fmt.Sprintf("fd00:244:%d::2", i))},
			Pod{Name: podName(n, 1), Node: n, Addrs: addrs(fmt.Sprintf("10.244.%d.3", i), fmt.Sprintf("fd00:244:%d::3", i))},
			Pod{Name: hostPodName(n), Node: n, Host: true, Addrs: addrs(fmt.Sprintf("192.0.2.%d", i+1), fmt.Sprintf("2001:db8::%d", i+1))})
	}
	return s
}

func find(t *testing.T, plan []Check, from, column, family, what string) Check {
	t.Helper()
	i := slices.IndexFunc(plan, func(c Check) bool {
		return c.From.Name == from && c.Column == column && c.Family == family && c.What == what
	})
	if i < 0 {
		t.Fatalf("there is no check from %s, %s, %s, %q", from, column, family, what)
	}
	return plan[i]
}

func TestPlan(t *testing.T) {
	s := scene()
	s.Outside = "[2001:db8::99]:443"
	plan := Plan(s)
	for _, from := range []string{podName("a", 0), hostPodName("a"), podName("b", 0), hostPodName("b")} {
		for _, family := range s.Families {
			for _, column := range Columns {
				want := column != ColOutside || family == "IPv6"
				if strings.HasPrefix(from, "host-") && (column == ColHairpin || column == ColNode) {
					want = false
				}
				if got := slices.ContainsFunc(plan, func(c Check) bool { return c.From.Name == from && c.Column == column && c.Family == family }); got != want {
					t.Errorf("from %s by %s to %q: planned %v, want %v", from, family, column, got, want)
				}
			}
		}
	}
	if slices.ContainsFunc(plan, func(c Check) bool { return c.From.Name == podName("a", 1) }) {
		t.Error("the second pods are targets alone")
	}
	c := find(t, plan, podName("a", 0), ColPodThere, "IPv6", "pod pod-0-b by HTTP")
	if c.Probe.Target != "[fd00:244:1::2]:8000" || c.WantClient != "fd00:244:0::2" && c.WantClient != "fd00:244::2" || !slices.Equal(c.WantPods, []string{"pod-0-b"}) {
		t.Errorf("pod to pod: %+v", c)
	}
	if c := find(t, plan, podName("a", 0), ColNodeThere, "IPv4", "node b by HTTP"); c.Probe.Target != "192.0.2.2:8000" || c.WantClient != "10.244.0.2" {
		t.Errorf("pod to another node keeps its address: %+v", c)
	}
	if c := find(t, plan, hostPodName("a"), ColPodHere, "IPv4", "pod pod-0-a by HTTP"); c.WantClient != "" {
		t.Errorf("a node may choose its source: %+v", c)
	}
	if c := find(t, plan, podName("a", 0), ColHairpin, "IPv4", "its own Service"); !slices.Equal(c.WantPods, []string{podName("a", 0)}) {
		t.Errorf("a pod to itself: %+v", c)
	}
	if c := find(t, plan, podName("b", 0), ColHeadless, "IPv4", "each"); !slices.Equal(c.WantAddrs, []string{"10.244.0.2", "10.244.0.3", "10.244.1.2", "10.244.1.3"}) {
		t.Errorf("a headless Service: %+v", c)
	}
	if c := find(t, plan, podName("b", 0), ColNodePorts, "IPv4", "node a by UDP"); c.Probe.Target != "192.0.2.1:30002" {
		t.Errorf("a NodePort by UDP: %+v", c)
	}
}

func TestJudge(t *testing.T) {
	c := Check{WantPods: []string{"x"}, WantClient: "10.0.0.1", Probe: Probe{Kind: ProbeHTTP}}
	for want, r := range map[string]Result{
		"":              {Pod: "x", Client: "::ffff:10.0.0.1"},
		"no answer":     {Error: "no answer"},
		"y answered":    {Pod: "y", Client: "10.0.0.1"},
		"it is seen as": {Pod: "x", Client: "192.0.2.1"},
	} {
		if got := c.judge(r); (got == "") != (want == "") || !strings.HasPrefix(got, want) {
			t.Errorf("%+v: %q, want %q", r, got, want)
		}
	}
	d := Check{Probe: Probe{Kind: ProbeDNS}, WantAddrs: []string{"10.0.0.1"}}
	if d.judge(Result{Addrs: []string{"10.0.0.1"}}) != "" || d.judge(Result{Addrs: []string{"10.0.0.2"}}) == "" || d.judge(Result{}) == "" {
		t.Error("names are not judged")
	}
	full := Check{Probe: Probe{Kind: ProbeFull}}
	if got := full.judge(Result{Error: "no answer", Bytes: 1500}); !strings.Contains(got, "1500 bytes") {
		t.Errorf("the size is not told: %q", got)
	}
}

func TestFamilies(t *testing.T) {
	both := Pod{Addrs: addrs("fd00::1", "10.0.0.1")}
	for _, c := range []struct {
		pods   []Pod
		wanted []string
		want   string
	}{
		{[]Pod{both, both}, nil, "[IPv6 IPv4]"}, {[]Pod{both, {Addrs: addrs("10.0.0.2")}}, nil, "[IPv4]"}, {[]Pod{both}, []string{"IPv4"}, "[IPv4]"},
		{[]Pod{both, {Addrs: addrs("10.0.0.2")}}, []string{"IPv6"}, "error"}, {[]Pod{{Addrs: addrs("fd00::1")}, {Addrs: addrs("10.0.0.2")}}, nil, "error"},
	} {
		got, err := familiesOf(c.pods, c.wanted)
		if text := fmt.Sprint(got); err == nil && text != c.want || err != nil && c.want != "error" {
			t.Errorf("%v of %v: %v, %v; want %s", c.wanted, c.pods, got, err, c.want)
		}
	}
}

func TestPrint(t *testing.T) {
	r := Report{Families: []string{"IPv4"}, Nodes: []string{"a"}, NotReady: []string{"c"}, Reference: "node → itself", Figures: []Figure{{Path: "p", Family: "IPv4", BitsPerS: 2e9, ThroughputRatio: 0.5, RoundTripRatio: 2}}}
	r.add(Outcome{From: "a's pod", Column: ColPodHere, Family: "IPv4", OK: true})
	r.add(Outcome{From: "a's pod", Column: ColDNS, Family: "IPv4", Target: "all", Reason: "no answer"})
	r.add(Outcome{From: "a's pod", Column: ColDNS, Family: "IPv4", Target: "each", Reason: "no such host"})
	r.add(Outcome{From: "a", Column: ColPodHere, Family: "IPv4", OK: true})
	var b strings.Builder
	r.Print(&b)
	want := "from     pod here  names\n" +
		"a's pod  ✓         ✗ [1]\n" +
		"a        ✓         –\n" +
		"[1] a's pod → names: all: no answer; each: no such host\n" +
		"✗ node c is not Ready and was left out\n" +
		"4 paths, 2 failed\n"
	if !strings.HasPrefix(b.String(), want) || !strings.Contains(b.String(), "2.00 Gbit/s (0.50)") {
		t.Errorf("got\n%s\nwant\n%s", b.String(), want)
	}
}

func TestUnready(t *testing.T) {
	waiting := func(reason string) *corev1.Pod {
		return &corev1.Pod{Spec: corev1.PodSpec{NodeName: "n"}, Status: corev1.PodStatus{ContainerStatuses: []corev1.ContainerStatus{{State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: reason}}}}}}
	}
	for reason, hint := range map[string]string{"ErrImageNeverPull": "node n lacks the image", "CrashLoopBackOff": "another release"} {
		if _, err := unready(waiting(reason), "i"); err == nil || !strings.Contains(err.Error(), hint) {
			t.Errorf("%s: %v", reason, err)
		}
	}
	if why, err := unready(waiting("ContainerCreating"), "i"); err != nil || why != "ContainerCreating" {
		t.Errorf("%q, %v", why, err)
	}
}

func TestPaths(t *testing.T) {
	one := scene()
	one.Nodes, one.Pods = one.Nodes[:1], one.Pods[:3]
	if got := paths(one, "IPv6"); len(got) != 4 || got[0].name != "node → itself" || got[1].target != netip.MustParseAddrPort("[fd00:244::3]:8001") {
		t.Errorf("one node: %v", got)
	}
	if got := paths(scene(), "IPv4"); len(got) != 7 || got[0].name != "node → other node" {
		t.Errorf("two nodes: %v", got)
	}
}
