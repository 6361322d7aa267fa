package doctor

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/strake-io/strake/bpf"
)

// judged runs one judgement and returns its checks.
func judged(f func(group)) []Check {
	var r Report
	f(group{"g", &r})
	return r.Checks
}

func TestJudgements(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	path := way{"path to node b", netip.MustParseAddr("192.0.2.2"), 1500}
	for name, c := range map[string]struct {
		judge  func(group)
		status Status
		says   string // in detail or hint
	}{
		"a new kernel":                 {func(g group) { g.judgeRelease("6.1.0-13-amd64") }, OK, "6.1.0"},
		"the oldest kernel":            {func(g group) { g.judgeRelease("5.10") }, OK, "5.10"},
		"an old kernel":                {func(g group) { g.judgeRelease("5.9.16") }, Failure, "5.9.16"},
		"a strange kernel":             {func(g group) { g.judgeRelease("next") }, Unknown, "next"},
		"a feature":                    {func(g group) { g.feature(bpf.Feature{Name: "x", Needed: true}) }, OK, "present"},
		"a needed feature is missing":  {func(g group) { g.feature(bpf.Feature{Name: "x", Needed: true, Err: ebpf.ErrNotSupported}) }, Failure, "missing"},
		"an optional one is missing":   {func(g group) { g.feature(bpf.Feature{Name: "x", Instead: "y", Err: ebpf.ErrNotSupported}) }, OK, "instead: y"},
		"a feature can't be probed":    {func(g group) { g.feature(bpf.Feature{Name: "x", Err: errors.New("EPERM")}) }, Unknown, "EPERM"},
		"default ports":                {func(g group) { g.judgePorts("32768\t60999") }, OK, "4536"},
		"ports up to the end":          {func(g group) { g.judgePorts("1024 65535") }, Warning, `"1024 60999"`},
		"just enough ports":            {func(g group) { g.judgePorts("1024 64511") }, OK, "1024 ports"},
		"no ports":                     {func(g group) { g.judgePorts("none") }, Unknown, "none"},
		"strict filter, tunnel":        {func(g group) { g.judgeReversePath("e", "1", "0", false) }, OK, "strict"},
		"strict filter, native":        {func(g group) { g.judgeReversePath("e", "0", "1", true) }, Warning, "rp_filter=2"},
		"loose wins over strict":       {func(g group) { g.judgeReversePath("e", "2", "1", true) }, OK, "loose"},
		"advertised route, forwarding": {func(g group) { g.judgeRouterAdvertisements("e", "1", "1", true) }, Failure, "accept_ra=2"},
		"advertised route, kept":       {func(g group) { g.judgeRouterAdvertisements("e", "2", "1", true) }, OK, "2"},
		"a static route":               {func(g group) { g.judgeRouterAdvertisements("e", "1", "1", false) }, OK, "1"},
		"tunnel fits":                  {func(g group) { g.judgeTunnelMTU(1450, 1500, 50) }, OK, "1450"},
		"tunnel is too large":          {func(g group) { g.judgeTunnelMTU(1451, 1500, 50) }, Failure, "should have 1450"},
		"pods fit":                     {func(g group) { g.judgePodMTU(map[string]int{"a": 1450}, 1450) }, OK, "1450"},
		"a pod is too large":           {func(g group) { g.judgePodMTU(map[string]int{"a": 1450, "b": 1500}, 1450) }, Failure, "b 1500"},
		"a pod is small":               {func(g group) { g.judgePodMTU(map[string]int{"a": 1400}, 1450) }, Warning, "a 1400"},
		"full packets pass":            {func(g group) { g.judgePath(path, 1500, nil, 8472) }, OK, "1500"},
		"small packets pass":           {func(g group) { g.judgePath(path, 1400, nil, 8472) }, Failure, "up to 1400"},
		"nothing passes":               {func(g group) { g.judgePath(path, 0, nil, 8472) }, Failure, "no echo"},
		"the clocks agree":             {func(g group) { g.judgeClock(now, now.Add(time.Second), now) }, OK, ""},
		"the server's second is over":  {func(g group) { g.judgeClock(now, now, now.Add(-3*time.Second)) }, OK, ""},
		"the clocks are apart":         {func(g group) { g.judgeClock(now, now, now.Add(5*time.Second)) }, Warning, "5s"},
		"the clocks are far apart":     {func(g group) { g.judgeClock(now, now, now.Add(-time.Hour)) }, Failure, "-59m59s"},
		"our configuration":            {func(g group) { g.judgeConfigs("d", []string{"10-strake.conflist"}) }, OK, "10-strake"},
		"another comes first":          {func(g group) { g.judgeConfigs("d", []string{"10-strake.conflist", "05-x.conf"}) }, Failure, "05-x.conf"},
		"another comes later":          {func(g group) { g.judgeConfigs("d", []string{"10-strake.conflist", "20-x.conf", "README"}) }, Warning, "20-x.conf"},
		"no configuration":             {func(g group) { g.judgeConfigs("d", nil) }, Failure, "missing"},
		"tables have room":             {func(g group) { g.judgeFill([]bpf.MapStatus{{Name: "names", Rows: 89, Max: 100}}) }, OK, ""},
		"a table that grows":           {func(g group) { g.judgeFill([]bpf.MapStatus{{Name: "names", Rows: 99, Max: 100, Grows: true}}) }, OK, ""},
		"a table that could not grow":  {func(g group) { g.judgeFill([]bpf.MapStatus{{Name: "names", Rows: 100, Max: 100, Grows: true}}) }, Failure, "names has 100 of 100"},
		"a table is almost full":       {func(g group) { g.judgeFill([]bpf.MapStatus{{Name: "names", Rows: 90, Max: 100}}) }, Failure, "names has 90 of 100"},
		"no tables":                    {func(g group) { g.judgeFill(nil) }, Failure, "none"},
		"drops of the past":            {func(g group) { g.judgeDrops(map[string]uint64{"drop_x": 5}, map[string]uint64{"drop_x": 5}, 1) }, OK, "drop_x 5"},
		"drops go on":                  {func(g group) { g.judgeDrops(map[string]uint64{"drop_x": 5}, map[string]uint64{"drop_x": 7}, 1) }, Warning, "drop_x by 2"},
		"verdicts are no drops":        {func(g group) { g.judgeDrops(nil, map[string]uint64{"pod_to_pod": 7}, 1) }, OK, "none"},
		"certificates are good":        {func(g group) { g.judgeCertificates(map[string]time.Time{"a": now.Add(8 * 24 * time.Hour)}, now) }, OK, "1, "},
		"a certificate ends soon":      {func(g group) { g.judgeCertificates(map[string]time.Time{"a": now.Add(time.Hour)}, now) }, Warning, "a (2026"},
		"a certificate has ended":      {func(g group) { g.judgeCertificates(map[string]time.Time{"a": now.Add(-1)}, now) }, Failure, "a (2026"},
		"the node is unknown":          {func(g group) { g.judgeNode(nil, "n") }, Failure, "no node n"},
		"the node is ready":            {func(g group) { g.judgeNode(nodeThatIs(corev1.ConditionTrue), "n") }, OK, "n"},
		"the node is not ready":        {func(g group) { g.judgeNode(nodeThatIs(corev1.ConditionFalse), "n") }, Failure, "because"},
	} {
		t.Run(name, func(t *testing.T) {
			got := judged(c.judge)
			if len(got) != 1 || got[0].Status != c.status || !strings.Contains(got[0].Detail+" "+got[0].Hint, c.says) {
				t.Errorf("got %+v, want one check that is %q and says %q", got, c.status, c.says)
			}
			if len(got) == 1 && got[0].Status == Failure && got[0].Hint == "" {
				t.Errorf("a failure without a hint: %+v", got[0])
			}
		})
	}
}

func nodeThatIs(ready corev1.ConditionStatus) []corev1.Node {
	return []corev1.Node{{ObjectMeta: metav1.ObjectMeta{Name: "n"}, Status: corev1.NodeStatus{Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: ready, Message: "because"}}}}}
}

func TestHooks(t *testing.T) {
	names := func(i int) string { return map[int]string{2: "up0", 5: "stk5", 6: "stk6"}[i] }
	whole := []bpf.Hook{
		{Program: "strake_connect4", Attached: true}, {Program: bpf.HookPod, Ifindex: 5, Attached: true},
		{Program: bpf.HookUplink, Ifindex: 2, Attached: true}, {Program: bpf.HookToPod, Ifindex: 5, Attached: true}, {Program: bpf.HookEgress, Ifindex: 2, Attached: true},
	}
	pod := []bpf.Endpoint{{Addr: netip.MustParseAddr("10.0.0.1"), Ifindex: 5}}
	change := func(i int, f func(*bpf.Hook)) []bpf.Hook {
		out := append([]bpf.Hook(nil), whole...)
		f(&out[i])
		return out
	}
	for name, c := range map[string]struct {
		hooks     []bpf.Hook
		endpoints []bpf.Endpoint
		missing   string
		foreign   string
	}{
		"all there":               {whole, pod, "", ""},
		"a cgroup hook":           {change(0, func(h *bpf.Hook) { h.Attached = false }), pod, "strake_connect4 at the cgroup root", ""},
		"a detached pod":          {change(1, func(h *bpf.Hook) { h.Attached = false }), pod, "strake_pod at stk5", ""},
		"a pod that never had it": {whole, append(pod, bpf.Endpoint{Addr: netip.MustParseAddr("10.0.0.2"), Ifindex: 6}), "strake_pod at stk6, the interface of the pod with 10.0.0.2; strake_to_pod at stk6, the interface of the pod with 10.0.0.2", ""},
		"a gone interface's pin":  {append(change(0, func(*bpf.Hook) {}), bpf.Hook{Program: bpf.HookPod, Ifindex: 9}), pod, "", ""},
		"no pin at the uplink":    {whole[:4], pod, "strake_egress at up0", ""},
		"a foreign program":       {change(2, func(h *bpf.Hook) { h.Others = []string{"cil_from_netdev"} }), pod, "", "cil_from_netdev beside strake_uplink at up0"},
	} {
		t.Run(name, func(t *testing.T) {
			got := judged(func(g group) { g.hooks(c.hooks, c.endpoints, []string{"up0"}, nil, names) })
			if len(got) != 2 || (got[0].Status == Failure) != (c.missing != "") || !strings.HasSuffix(got[0].Detail, c.missing) || !strings.Contains(got[1].Detail, c.foreign) ||
				(got[1].Status == Warning) != (c.foreign != "") {
				t.Errorf("got %+v", got)
			}
		})
	}
}

// The agent does without a further link that takes no program; one whose program was detached is broken.
func TestHooksOfFurtherLinks(t *testing.T) {
	names := func(i int) string { return map[int]string{3: "storage0", 4: "odd0"}[i] }
	hooks := []bpf.Hook{{Program: bpf.HookUplink, Ifindex: 3, Attached: true}, {Program: bpf.HookEgress, Ifindex: 3, Attached: true}}
	got := judged(func(g group) { g.hooks(hooks, nil, nil, []string{"storage0", "odd0"}, names) })
	if len(got) != 3 || got[0].Status != OK || got[1].Status != Warning || got[1].Detail != "not attached: strake_egress at odd0; strake_uplink at odd0" || !strings.Contains(got[1].Hint, "agent.log") {
		t.Errorf("got %+v", got)
	}
	hooks[0].Attached = false
	if got := judged(func(g group) { g.hooks(hooks, nil, nil, []string{"storage0"}, names) }); got[0].Status != Failure || !strings.Contains(got[0].Detail, "strake_uplink at storage0") {
		t.Errorf("got %+v", got)
	}
}

func TestLeftovers(t *testing.T) {
	for _, c := range []struct{ patterns, names, want []string }{
		{foreignLinks, []string{"lo", "eth0", "stk0123", "strake-vxlan", "stkbr-1", "docker0", "cali12345", "cni0", "flannel.1", "kube-ipvs0"}, []string{"cali12345", "cni0", "flannel.1", "kube-ipvs0"}},
		{foreignChains, []string{"INPUT", "DOCKER", "KUBE-SERVICES", "KUBE-SERVICES", "cali-FORWARD", "CILIUM_INPUT", "postrouting"}, []string{"CILIUM_INPUT", "KUBE-SERVICES", "cali-FORWARD"}},
		{foreignTables, []string{"nat", "filter", "kube-proxy", "firewalld"}, []string{"kube-proxy"}},
		{foreignSets, []string{"f2b-sshd", "KUBE-CLUSTER-IP", "cali40s:x"}, []string{"KUBE-CLUSTER-IP", "cali40s:x"}},
	} {
		if got := pick(c.patterns, c.names); strings.Join(got, " ") != strings.Join(c.want, " ") {
			t.Errorf("of %v got %v, want %v", c.names, got, c.want)
		}
	}
	if n := virtualServers([]byte("IP Virtual Server version 1.2.1 (size=4096)\nProt LocalAddress:Port Scheduler Flags\n  -> RemoteAddress:Port\nTCP  0A600001:01BB rr\n  -> 0A000002:192B      Masq    1      0          0\nUDP  0A60000A:0035 rr\n")); n != 2 {
		t.Errorf("%d virtual servers, want 2", n)
	}
}

func TestDrift(t *testing.T) {
	at := netip.MustParseAddrPort
	row := func(owner, name string, frontends, backends []netip.AddrPort) bpf.LoadBalancer {
		lb := bpf.LoadBalancer{Owner: owner, Name: name, Protocol: 6}
		for _, f := range frontends {
			lb.Frontends = append(lb.Frontends, bpf.Frontend{Addr: f})
		}
		for _, b := range backends {
			lb.Backends = append(lb.Backends, bpf.Backend{Addr: b, All: true})
		}
		return lb
	}
	f, g, b, c := at("10.96.0.1:80"), at("10.96.0.2:80"), at("10.0.0.1:8080"), at("10.0.0.2:8080")
	type ports = []netip.AddrPort
	for name, x := range map[string]struct {
		want, have []bpf.LoadBalancer
		says       string
	}{
		"the same, in another order": {[]bpf.LoadBalancer{row("u", "n/a:", ports{f, g}, ports{b, c})}, []bpf.LoadBalancer{row("u", "n/a:", ports{g, f}, ports{c, b})}, ""},
		"a missing row":              {[]bpf.LoadBalancer{row("u", "n/a:", ports{f}, ports{b})}, nil, "n/a: TCP of u is missing"},
		"a row too many":             {nil, []bpf.LoadBalancer{row("u", "n/a:", ports{f}, ports{b})}, "should not be"},
		"a missing backend":          {[]bpf.LoadBalancer{row("u", "n/a:", ports{f}, ports{b, c})}, []bpf.LoadBalancer{row("u", "n/a:", ports{f}, ports{b})}, "should be"},
		"a frontend of the first comer": {[]bpf.LoadBalancer{row("u", "n/a:", ports{f}, ports{b}), row("v", "n/b:", ports{f}, ports{c})},
			[]bpf.LoadBalancer{row("u", "n/a:", ports{f}, ports{b}), row("v", "n/b:", nil, nil)}, ""},
		"a frontend that nobody should have": {[]bpf.LoadBalancer{row("v", "n/b:", ports{f}, ports{c})},
			[]bpf.LoadBalancer{row("u", "n/a:", ports{f}, ports{b}), row("v", "n/b:", nil, nil)}, "n/b: TCP of v is"},
	} {
		t.Run(name, func(t *testing.T) {
			got := strings.Join(differences(flattenServices(withoutTaken(x.want, x.have)), flattenServices(x.have)), "\n")
			if (got == "") != (x.says == "") || !strings.Contains(got, x.says) {
				t.Errorf("got %q, want %q", got, x.says)
			}
		})
	}
	a := netip.MustParseAddr("10.0.0.1")
	pod := func(ifindex int) map[string]string {
		return flattenEndpoints([]bpf.Endpoint{{Addr: a, Ifindex: ifindex}})
	}
	if got := differences(pod(7), pod(7)); len(got) != 0 {
		t.Errorf("a pod as it should be: %v", got)
	}
	if got := differences(pod(7), pod(8)); len(got) != 1 {
		t.Errorf("a pod behind another interface: %v", got)
	}
	remote := func(node string) map[string]string {
		return flattenRemotes([]bpf.Remote{{Owner: "n", Prefix: netip.MustParsePrefix("10.1.0.0/24"), Node: netip.MustParseAddr(node)}})
	}
	if got := differences(remote("192.0.2.1"), remote("192.0.2.2")); len(got) != 1 || !strings.Contains(got[0], "at 192.0.2.2") {
		t.Errorf("a node with another address: %v", got)
	}
	n := []bpf.Name{{Owner: "u", Name: "a.b.", Addrs: []netip.Addr{a}}}
	if got := differences(flattenNames(n), flattenNames(nil)); len(got) != 1 {
		t.Errorf("a missing name: %v", got)
	}
}

func TestReport(t *testing.T) {
	for _, c := range []struct {
		add  []Status
		code int
		ok   bool
	}{{[]Status{OK, Warning}, 0, true}, {[]Status{OK, Unknown}, 2, false}, {[]Status{Unknown, Failure, OK}, 1, false}} {
		r := Report{OK: true}
		for _, s := range c.add {
			r.add(Check{Group: "g", Name: string(s), Status: s})
		}
		if r.Code() != c.code || r.OK != c.ok {
			t.Errorf("%v: code %d, ok %v", c.add, r.Code(), r.OK)
		}
	}
}

func TestWays(t *testing.T) {
	node := func(name, addr string) corev1.Node {
		return corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}, Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: addr}, {Type: corev1.NodeHostName, Address: name}}}}
	}
	pod := func(name, node string, host bool, ips ...string) corev1.Pod {
		p := corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.PodSpec{NodeName: node, HostNetwork: host}, Status: corev1.PodStatus{Phase: corev1.PodRunning}}
		for _, ip := range ips {
			p.Status.PodIPs = append(p.Status.PodIPs, corev1.PodIP{IP: ip})
		}
		return p
	}
	got := ways("a", &objects{nodes: []corev1.Node{node("a", "192.0.2.1"), node("b", "192.0.2.2")}, pods: []corev1.Pod{
		pod("own", "a", false, "10.0.0.1"), pod("host", "b", true, "192.0.2.2"), pod("one", "b", false, "10.0.1.1", "fd00::1"), pod("two", "b", false, "10.0.1.2"),
	}}, 1500, 1450)
	var text []string
	for _, w := range got {
		text = append(text, w.to.String(), map[int]string{1500: "uplink", 1450: "tunnel"}[w.size])
	}
	if s := strings.Join(text, " "); s != "192.0.2.2 uplink 10.0.1.1 tunnel fd00::1 tunnel" {
		t.Errorf("ways: %s", s)
	}
}

func TestTunnelOverhead(t *testing.T) {
	v4, v6 := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")
	for _, c := range []struct {
		own  []netip.Addr
		ends []netip.Addr
		want int
	}{
		{[]netip.Addr{v6, v4}, nil, 50}, {[]netip.Addr{v6}, nil, 70}, {[]netip.Addr{v4, v6}, []netip.Addr{v4, v4}, 50}, {[]netip.Addr{v4, v6}, []netip.Addr{v4, v6}, 70},
	} {
		var remotes []bpf.Remote
		for _, a := range c.ends {
			remotes = append(remotes, bpf.Remote{Node: a})
		}
		if got := tunnelOverhead(c.own, remotes); got != c.want {
			t.Errorf("own %v, ends %v: %d, want %d", c.own, c.ends, got, c.want)
		}
	}
}
