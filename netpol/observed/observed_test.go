package observed

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/strake-io/strake/netpol"
	"github.com/strake-io/strake/netpol/flows"
	"github.com/strake-io/strake/netpol/manifests"
	"github.com/strake-io/strake/netpol/reference"
)

func end(namespace, name, addr string, labels ...string) flows.End {
	e := flows.End{Addr: addr, Namespace: namespace, Pod: name, Labels: map[string]string{}}
	for _, l := range labels {
		k, v, _ := strings.Cut(l, "=")
		e.Labels[k] = v
	}
	return e
}

var (
	web    = end("shop", "web-7d9f-abcde", "10.244.0.5", "app=web", "pod-template-hash=7d9f")
	db     = end("shop", "db-0", "10.244.0.6", "app=db", "tier=data", "statefulset.kubernetes.io/pod-name=db-0")
	cache  = end("shop", "cache-1", "10.244.0.7", "app=cache", "tier=data")
	far    = flows.End{Addr: "203.0.113.9"}
	dns    = end("kube-system", "kube-dns", "10.96.0.10", "k8s-app=kube-dns")
	prober = flows.End{Addr: "192.0.2.1", Node: "n1"}
)

func allowed(from, to flows.End, protocol string, port uint16, sides ...string) Observed {
	return Observed{flows.Flow{Verdict: flows.Allowed, From: from, To: to, Protocol: protocol, Port: port, Sides: sides}, 3}
}

func record() *Record {
	at := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	return &Record{From: at, To: at.Add(time.Hour), Nodes: []string{"n1"}, Flows: []Observed{
		allowed(web, db, "TCP", 5432, "source", "destination"),
		allowed(web, dns, "UDP", 53, "source"),
		allowed(flows.End{Addr: "198.51.100.0/24"}, web, "TCP", 8080, "destination"),
		allowed(web, far, "TCP", 443, "source"),
		allowed(prober, web, "TCP", 8080, "destination", "node"),
	}}
}

func policies(t *testing.T, text string) netpol.State {
	t.Helper()
	file := filepath.Join(t.TempDir(), "p.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := manifests.LoadAll(strings.NewReader(""), nil, file)
	if err != nil || len(l.Problems) > 0 {
		t.Fatal(err, l.Problems)
	}
	return l.State
}

// Other policies break what they do not admit, in the directions that were judged, and open what they do.
func TestReplay(t *testing.T) {
	r := record()
	dropped := allowed(cache, db, "TCP", 5432, "source", "destination")
	dropped.Verdict, dropped.Count = flows.Dropped, 7
	dropped.Ingress = &flows.Decision{Policy: &netpol.PolicyRef{Namespace: "shop", Name: "old"}, Rule: netpol.NoRule}
	r.Flows = append(r.Flows, dropped)
	same, err := Replay(&Record{Flows: r.Flows[:5]}, netpol.State{})
	if err != nil || same.Differs() {
		t.Errorf("no policies, and all was allowed: %+v, %v", same, err)
	}
	got, err := Replay(r, policies(t, `
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: web, namespace: shop}, spec: {podSelector: {matchLabels: {app: web}}, policyTypes: [Ingress, Egress], egress: [
  {to: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: kube-system}}, podSelector: {matchLabels: {k8s-app: kube-dns}}}], ports: [{port: 53, protocol: UDP}]},
  {to: [{podSelector: {matchLabels: {app: db}}}]}]}}
`))
	if err != nil {
		t.Fatal(err)
	}
	var breaks, opens []string
	for _, g := range got.Breaks {
		breaks = append(breaks, fmt.Sprintf("%s→%s:%d %d", g.From, g.To, g.Port, g.Count))
	}
	for _, g := range got.Opens {
		opens = append(opens, fmt.Sprintf("%s→%s:%d %d", g.From, g.To, g.Port, g.Count))
	}
	slices.Sort(breaks)
	if want := []string{"198.51.100.0/24→shop/app=web:8080 3", "shop/app=web→203.0.113.9:443 3"}; !slices.Equal(breaks, want) {
		t.Errorf("breaks %q, want %q", breaks, want)
	}
	if want := []string{"shop/app=cache,tier=data→shop/app=db,tier=data:5432 7"}; !slices.Equal(opens, want) {
		t.Errorf("opens %q, want %q", opens, want)
	}
	var text strings.Builder
	if err := got.WriteText(&text); err != nil || !strings.Contains(text.String(), "isolated by shop/old") || !strings.Contains(text.String(), "would break") {
		t.Errorf("%s, %v", text.String(), err)
	}
}

// What is read of a folder: counts, and for clients outside the samples with their addresses.
func TestReadRecord(t *testing.T) {
	dir, at := t.TempDir(), time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	write := func(sort string, lines ...flows.Line) {
		var b strings.Builder
		for i, l := range lines {
			l.Seq, l.Time, l.Node = uint64(i+1), at.Add(time.Duration(i)*time.Minute), "n1"
			if err := json.NewEncoder(&b).Encode(l); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.WriteFile(filepath.Join(dir, sort+"-00000000000000000001.jsonl"), []byte(b.String()), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	o := record().Flows
	known, unknown, middle := o[2].Flow, o[2].Flow, o[0].Flow
	unknown.Port, middle.Port = 9090, 0
	client := known
	client.From.Addr = "198.51.100.77"
	count := func(f flows.Flow, n uint64) flows.Line {
		return flows.Line{Kind: flows.KindCount, Flow: &f, Count: &flows.Count{Class: "1", Flows: n, Since: at.Add(-time.Hour)}}
	}
	write("counts", count(o[0].Flow, 5), count(o[0].Flow, 6), count(known, 9), count(unknown, 4), count(middle, 2))
	write("flows", flows.Line{Kind: flows.KindFlow, Flow: &client, Sample: &flows.Sample{Event: "new"}}, flows.Line{Kind: flows.KindLoss, Loss: &flows.Loss{Lost: 2, Skipped: 6, Full: 3}})
	r, err := Read([]string{dir}, time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, f := range r.Flows {
		got = append(got, fmt.Sprintf("%s:%d %d", f.From.Name(), f.Port, f.Count))
	}
	slices.Sort(got)
	if want := []string{"198.51.100.0/24:8080 8", "198.51.100.0/24:9090 4", "198.51.100.77:8080 1", "shop/web-7d9f-abcde:5432 11"}; !slices.Equal(got, want) || r.Unknown != 2 || r.Networks != 12 || r.Losses.Full != 3 || !r.From.Equal(at.Add(-time.Hour)) {
		t.Errorf("%q, want %q; %+v", got, want, r)
	}
}

// A policy never admits a whole namespace for a pod without labels, and tells whom its selectors admit beside who was seen; what samples left out is said.
func TestRecommendTellsWhatItCanNotSay(t *testing.T) {
	bare := end("shop", "bare", "10.244.0.8", "pod-template-hash=1")
	r := record()
	r.Losses, r.Networks = flows.Loss{Lost: 2, Skipped: 5}, 3
	r.Flows = append(r.Flows, allowed(bare, db, "TCP", 5432, "source", "destination"))
	// Pods of db have all labels of cache, too.
	sub := end("shop", "sub", "10.244.0.9", "tier=data")
	r.Flows = append(r.Flows, allowed(web, sub, "TCP", 80, "source", "destination"))
	rec := Recommend(r, nil, "")
	for _, p := range rec.Policies {
		for _, in := range p.Spec.Ingress {
			for _, from := range in.From {
				if from.PodSelector != nil && len(from.PodSelector.MatchLabels) == 0 {
					t.Errorf("%s admits all pods of a namespace", p.Name)
				}
			}
		}
	}
	text, err := rec.WriteYAML()
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"without labels alone: shop/(pods without labels) → shop/app=db,tier=data 5432/TCP.", "shop/tier=data: other pods", "7 samples", "Of 3 of them"} {
		if !strings.Contains(string(text), want) {
			t.Errorf("%q is missing in\n%s", want, text)
		}
	}
	again, err := Replay(r, netpol.State{})
	if err != nil || again.Networks != 3 || again.Unsampled != 7 {
		t.Errorf("%+v, %v", again, err)
	}
	var b strings.Builder
	if err := again.WriteText(&b); err != nil || !strings.Contains(b.String(), "3 flows and packets from outside") {
		t.Errorf("%s, %v", b.String(), err)
	}
}

// Whatever the files of a record have: no panic.
func FuzzRead(f *testing.F) {
	f.Add([]byte(`{"kind":"loss","lost":1}`))
	f.Add([]byte(`{"kind":"start","node":"n1"}`))
	f.Add([]byte(`{"kind":"flow","verdict":"allowed","from":{"addr":"10.0.0.1"},"to":{"addr":"x"},"protocol":"TCP","sides":["source"],"event":"new","bytes":1}`))
	f.Add([]byte(`{"kind":"count","class":"1","verdict":"dropped","from":{"addr":"198.51.100.0/24"},"to":{"addr":"10.0.0.1","pod":"p","namespace":"n"},"sides":["destination"],"protocol":"TCP","port":1}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		dir := t.TempDir()
		for _, sort := range []string{"counts", "flows"} {
			if err := os.WriteFile(filepath.Join(dir, sort+"-00000000000000000001.jsonl"), append(text, '\n'), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		r, err := Read([]string{dir}, time.Time{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Recommend(r, nil, "").WriteYAML(); err != nil {
			t.Fatal(err)
		}
		_, _ = Replay(r, netpol.State{})
	})
}

// The selectors are the smallest, the cluster's DNS is named as policies name it, and what the policies rest on is said.
func TestRecommend(t *testing.T) {
	r := record()
	r.Losses.Full = 4
	rec := Recommend(r, nil, "")
	text, err := rec.WriteYAML()
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"# Made from 15 flows", "2026-11-21T12:00:00Z to 2026-11-21T13:00:00Z", "INCOMPLETE", "name: web-observed", "name: db-observed", "k8s-app: kube-dns", "cidr: 203.0.113.9/32", "cidr: 198.51.100.0/24"} {
		if !strings.Contains(string(text), want) {
			t.Errorf("%q is missing in\n%s", want, text)
		}
	}
	for _, never := range []string{"template-hash", "tier", "192.0.2.1"} {
		if strings.Contains(string(text), never) {
			t.Errorf("%q is in\n%s", never, text)
		}
	}
	if read := policies(t, string(text)); len(read.NetworkPolicies) != 2 {
		t.Errorf("%d policies are read back", len(read.NetworkPolicies))
	}
	// Where app=db is not enough, more is taken.
	other := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "x", Labels: map[string]string{"app": "db", "tier": "test"}}}
	for _, p := range Recommend(r, []*corev1.Pod{other}, "shop").Policies {
		if p.Spec.PodSelector.MatchLabels["app"] == "db" && p.Spec.PodSelector.MatchLabels["tier"] != "data" && len(p.Spec.PodSelector.MatchLabels) != 1 {
			t.Errorf("%v", p.Spec.PodSelector)
		}
	}
	if n := len(Recommend(r, nil, "elsewhere").Policies); n != 0 {
		t.Errorf("%d policies for another namespace", n)
	}
}

// What the other node dropped is not admitted on the way out either, unless it let some of it through.
func TestRecommendKnowsWhatTheOtherNodeDropped(t *testing.T) {
	r := record()
	card := end("cde", "card", "10.244.1.9", "app=card")
	left := allowed(web, card, "TCP", 8443, "source")
	arrived := left
	arrived.Sides, arrived.Verdict, arrived.Count = []string{"destination"}, flows.Dropped, 7
	r.Flows = append(r.Flows, left, arrived)
	text, err := Recommend(r, nil, "shop").WriteYAML()
	if err != nil {
		t.Fatal(err)
	}
	if note := "# Dropped then, and not admitted: shop/app=web → cde/app=card 8443/TCP (7 packets)."; !strings.Contains(string(text), note) || strings.Contains(string(text), "port: 8443") {
		t.Errorf("%q is missing in, or the port is admitted by\n%s", note, text)
	}
	r.Flows = append(r.Flows, allowed(web, card, "TCP", 8443, "destination"))
	if text, err = Recommend(r, nil, "shop").WriteYAML(); err != nil || !strings.Contains(string(text), "port: 8443") {
		t.Errorf("%v: what came through is not admitted by\n%s", err, text)
	}
}

// What one node let out and the other dropped can't break where it left; what came through at the other can.
func TestReplayKnowsWhatTheOtherNodeDropped(t *testing.T) {
	card := end("cde", "card", "10.244.1.9", "app=card")
	left := allowed(web, card, "TCP", 8443, "source")
	arrived := left
	arrived.Sides, arrived.Verdict, arrived.Count = []string{"destination"}, flows.Dropped, 7
	s := netpol.State{NetworkPolicies: []*networkingv1.NetworkPolicy{
		{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "shut"}, Spec: networkingv1.NetworkPolicySpec{PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeEgress}}},
		{ObjectMeta: metav1.ObjectMeta{Namespace: "cde", Name: "shut"}, Spec: networkingv1.NetworkPolicySpec{}},
	}}
	r := &Record{Flows: []Observed{left, arrived}}
	if got, err := Replay(r, s); err != nil || got.Differs() {
		t.Errorf("%+v, %v", got, err)
	}
	arrived.Verdict = flows.Allowed
	r.Flows = []Observed{left, arrived}
	if got, err := Replay(r, s); err != nil || len(got.Breaks) != 2 {
		t.Errorf("%+v, %v", got, err)
	}
}

// Rules are of workloads: what one pod was refused and another one of its workload was not, the policy admits, and it doesn't say otherwise.
func TestRecommendSaysOnlyWhatItsRulesSay(t *testing.T) {
	r := record()
	card, again := end("cde", "card", "10.244.1.9", "app=card"), end("shop", "web-7d9f-fghij", "10.244.0.15", "app=web", "pod-template-hash=7d9f")
	refused := allowed(web, card, "TCP", 8443, "source")
	refused.Verdict = flows.Dropped
	other := refused
	other.Port = 8444
	r.Flows = append(r.Flows, refused, other, allowed(again, card, "TCP", 8443, "source"), allowed(again, card, "TCP", 8443, "destination"))
	text, err := Recommend(r, nil, "shop").WriteYAML()
	if err != nil || !strings.Contains(string(text), "port: 8443") || strings.Contains(string(text), "card 8443/TCP") || !strings.Contains(string(text), "not admitted: shop/app=web → cde/app=card 8444/TCP") {
		t.Errorf("%v\n%s", err, text)
	}
}

// Who has asked from a node of which there is no record gets no policy: it would forbid all that was not seen.
func TestRecommendLeavesOutPodsOfOtherNodes(t *testing.T) {
	r := record()
	r.Flows = append(r.Flows, allowed(end("shop", "elsewhere", "10.244.7.7", "app=elsewhere"), web, "TCP", 8080, "destination"))
	for _, p := range Recommend(r, nil, "").Policies {
		if p.Spec.PodSelector.MatchLabels["app"] == "elsewhere" {
			t.Errorf("%s is for pods that nobody has watched: %+v", p.Name, p.Spec)
		}
	}
}

// What a pod asks itself by a Service left it, and is judged by ClusterNetworkPolicies.
func TestReplayJudgesWhatCameBack(t *testing.T) {
	r := record()
	r.Flows = []Observed{allowed(web, web, "TCP", 8080, "source", "destination")}
	got, err := Replay(r, policies(t, `
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {name: none}
spec: {tier: Admin, priority: 1, subject: {namespaces: {}}, ingress: [{action: Deny, from: [{namespaces: {}}]}]}
`))
	if err != nil || len(got.Breaks) != 1 {
		t.Errorf("%+v, %v; the flow would break", got, err)
	}
}

// On random clusters: what was observed is admitted by what is recommended, and what was not observed between the same workloads is not.
func TestRecommendedPoliciesAdmitWhatWasObserved(t *testing.T) {
	seed := rand.Uint64()
	rnd := rand.New(rand.NewPCG(seed, 1))
	for range 300 {
		var ends []flows.End
		for i := range 3 + rnd.IntN(12) {
			labels := []string{"app=" + string('a'+rune(rnd.IntN(4))), "pod-template-hash=" + fmt.Sprint(rnd.IntN(3))}
			if rnd.IntN(2) == 0 {
				labels = append(labels, "tier="+string('x'+rune(rnd.IntN(2))))
			}
			ends = append(ends, end(fmt.Sprint("ns", rnd.IntN(2)), fmt.Sprint("p", i), fmt.Sprintf("10.244.0.%d", i+1), labels...))
		}
		others := append(slices.Clone(ends), far, dns)
		r := &Record{Nodes: []string{"n1"}}
		seen := map[string]bool{}
		name := func(from, to flows.End, port uint16, protocol string) string {
			return fmt.Sprint(who(from), "|", who(to), "|", port, protocol)
		}
		for range rnd.IntN(20) {
			from, to := ends[rnd.IntN(len(ends))], others[rnd.IntN(len(others))]
			if from.Pod == to.Pod {
				continue
			}
			port, protocol := uint16(80+rnd.IntN(3)), []string{"TCP", "UDP"}[rnd.IntN(2)]
			sides := []string{"source"}
			if to.Pod != "" && !isDNS(to) {
				sides = append(sides, "destination")
			}
			r.Flows = append(r.Flows, allowed(from, to, protocol, port, sides...))
			seen[name(from, to, port, protocol)] = true
		}
		rec := Recommend(r, podsOf(ends), "")
		again, err := Replay(r, rec.State(netpol.State{}))
		if err != nil || again.Differs() {
			t.Fatalf("seed %d: what was observed: %+v, %v, by\n%+v", seed, again, err, rec.Policies)
		}
		state, err := populate(rec.State(netpol.State{}), r)
		if err != nil {
			t.Fatal(err)
		}
		e, err := reference.New(state.State)
		if err != nil {
			t.Fatal(err)
		}
		subject := map[string]bool{}
		shared := map[string]bool{} // a selector chooses more than the workload
		for _, o := range r.Flows {
			for _, x := range []flows.End{o.From, o.To} {
				if x.Pod != "" && !isDNS(x) {
					subject[who(x)] = true
					if _, alone := newKnown(r, podsOf(ends)).selector(workloadOf(x)); !alone {
						shared[who(x)] = true
					}
				}
			}
		}
		for range 50 {
			from, to := r.Flows, r.Flows
			if len(r.Flows) == 0 {
				break
			}
			f := flows.Flow{From: from[rnd.IntN(len(from))].From, To: to[rnd.IntN(len(to))].To, Protocol: "TCP", Port: uint16(80 + rnd.IntN(3))}
			if f.From.Pod == f.To.Pod || shared[who(f.From)] || shared[who(f.To)] || len(shared) > 0 {
				continue
			}
			v, err := state.judge(e, f)
			if err != nil {
				t.Fatal(err)
			}
			if want := seen[name(f.From, f.To, f.Port, "TCP")]; v.Allowed != want {
				t.Fatalf("seed %d: %s → %s %d: %+v, observed: %v, by\n%+v", seed, who(f.From), who(f.To), f.Port, v, want, rec.Policies)
			}
		}
	}
}

func podsOf(ends []flows.End) []*corev1.Pod {
	var out []*corev1.Pod
	for _, e := range ends {
		out = append(out, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: e.Namespace, Name: e.Pod, Labels: e.Labels}, Status: corev1.PodStatus{PodIPs: []corev1.PodIP{{IP: e.Addr}}}})
	}
	return out
}

// A pod that is gone has its ports' names from those that are like it.
func TestReplayKnowsPortsOfPodsThatAreGone(t *testing.T) {
	s := policies(t, `
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: db, namespace: shop}, spec: {podSelector: {matchLabels: {app: db}}, ingress: [{ports: [{port: pg}]}]}}
`)
	s.Pods = []*corev1.Pod{{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "db-9", Labels: map[string]string{"app": "db", "tier": "data"}},
		Spec: corev1.PodSpec{Containers: []corev1.Container{{Ports: []corev1.ContainerPort{{Name: "pg", ContainerPort: 5432, Protocol: corev1.ProtocolTCP}}}}}}}
	got, err := Replay(&Record{Flows: record().Flows[:1]}, s)
	if err != nil || got.Differs() {
		t.Errorf("%+v, %v", got, err)
	}
	s.Pods = nil
	if got, err = Replay(&Record{Flows: record().Flows[:1]}, s); err != nil || len(got.Breaks) != 1 {
		t.Errorf("%+v, %v", got, err)
	}
}
