package policy

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/strake-io/strake/netpol"
	"github.com/strake-io/strake/netpol/flows"
)

// recordOf makes a node's record: web asks db, which was allowed and would not be by a policy in shadow, and a stranger, whom a policy dropped.
func recordOf(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	web := flows.End{Addr: "10.244.0.5", Namespace: "default", Pod: "web-1", Labels: map[string]string{"app": "web"}}
	db := flows.End{Addr: "10.244.0.6", Namespace: "default", Pod: "db-1", Labels: map[string]string{"app": "db"}}
	odd := flows.End{Addr: "10.244.0.7", Namespace: "other", Pod: "odd", Labels: map[string]string{"app": "odd"}}
	shadow := &netpol.PolicyRef{Kind: "NetworkPolicy", Namespace: "default", Name: "lockdown"}
	asked := &flows.Flow{Verdict: flows.Allowed, From: web, To: db, Protocol: "TCP", Port: 5432, Sides: []string{"source", "destination"}, ShadowEgress: &flows.Decision{Policy: shadow, Rule: netpol.NoRule}}
	denied := &flows.Flow{Verdict: flows.Dropped, From: odd, To: db, Protocol: "TCP", Port: 5432, Sides: []string{"source", "destination"},
		Ingress: &flows.Decision{Policy: &netpol.PolicyRef{Kind: "NetworkPolicy", Namespace: "default", Name: "db"}, Rule: netpol.NoRule}}
	for sort, lines := range map[string][]flows.Line{
		"flows": {
			{Kind: flows.KindFlow, Flow: asked, Sample: &flows.Sample{Event: "new", Sport: 4000}},
			{Kind: flows.KindFlow, Flow: denied, Sample: &flows.Sample{Event: "drop", Sport: 4001}},
			{Kind: flows.KindLoss, Loss: &flows.Loss{Skipped: 9, Full: 3}},
		},
		"counts": {
			{Kind: flows.KindCount, Flow: asked, Count: &flows.Count{Class: "1", Flows: 5, Since: time.Now()}},
			{Kind: flows.KindCount, Flow: asked, Count: &flows.Count{Class: "1", Flows: 6, Since: time.Now()}},
			{Kind: flows.KindCount, Flow: denied, Count: &flows.Count{Class: "2", Packets: 10, Since: time.Now()}},
		},
	} {
		var b strings.Builder
		for i, l := range lines {
			l.Seq, l.Time, l.Node = uint64(i+1), time.Now().Add(time.Duration(i-5)*time.Minute), "n1"
			if err := json.NewEncoder(&b).Encode(l); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.WriteFile(filepath.Join(dir, sort+"-00000000000000000001.jsonl"), []byte(b.String()), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// A pod that has the very name is meant, and no StatefulSet's pods, wherever in the record it comes.
func TestFlowsOfOnePod(t *testing.T) {
	dir := recordOf(t)
	later := flows.Flow{Verdict: flows.Allowed, From: flows.End{Addr: "10.244.0.8", Namespace: "default", Pod: "web"}, To: flows.End{Addr: "203.0.113.9"}, Protocol: "UDP", Port: 53, Sides: []string{"source"}}
	for sort, l := range map[string]flows.Line{
		"flows": {Kind: flows.KindFlow, Flow: &later, Sample: &flows.Sample{Event: "new", Sport: 4002}}, "counts": {Kind: flows.KindCount, Flow: &later, Count: &flows.Count{Class: "3", Flows: 1, Since: time.Now()}},
	} {
		l.Seq, l.Time, l.Node = 9, time.Now(), "n1"
		f, err := os.OpenFile(filepath.Join(dir, sort+"-00000000000000000001.jsonl"), os.O_APPEND|os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(json.NewEncoder(f).Encode(l), f.Close()); err != nil {
			t.Fatal(err)
		}
	}
	for _, by := range []string{"", " --by class"} {
		code, out, errs := ask(t, "", strings.Fields("flows --record "+dir+" --pod default/web"+by)...)
		if code != 0 || !strings.Contains(out, "53/UDP") || strings.Contains(out, "web-1") {
			t.Errorf("%q: exit %d, %s\n%s", by, code, errs, out)
		}
	}
}

func TestFlows(t *testing.T) {
	dir := recordOf(t)
	for _, c := range []struct {
		args  string
		code  int
		has   []string
		hasNo []string
	}{
		{"", 0, []string{"default/web-1:4000 → default/db-1 5432/TCP", "in shadow: isolated by default/lockdown would drop", "dropped other/odd:4001", "isolated by default/db", "9 beyond the rate"}, nil},
		{"--verdict dropped", 0, []string{"other/odd"}, []string{"web-1"}},
		{"--verdict would-drop", 0, []string{"web-1"}, []string{"other/odd"}},
		{"--verdict would-allow", 0, []string{"beyond the rate"}, []string{"web-1", "other/odd"}},
		{"--pod other/odd", 0, []string{"other/odd"}, []string{"web-1"}},
		{"--pod default/web", 0, []string{"web-1"}, []string{"other/odd"}},
		{"-n other", 0, []string{"other/odd"}, []string{"web-1"}},
		{"--policy default/lockdown", 0, []string{"web-1"}, []string{"other/odd"}},
		{"--since 1m", 0, nil, []string{"web-1", "other/odd"}},
		{"-o json --verdict dropped", 0, []string{`"verdict":"dropped"`, `"policy":{"kind":"NetworkPolicy","namespace":"default","name":"db"}`}, []string{"web-1"}},
		{"--by class", 0, []string{"11     0       allowed", "0      10      dropped", "not in these counts: 3 flows and packets for which the kernel's table had no room"}, nil},
		{"--since -1m", 2, []string{"--since -1m0s: how far to look back"}, nil},
		{"--by class -o json --verdict dropped", 0, []string{`"packets": 10`}, []string{"web-1"}},
		{"--by node", 2, []string{"class and shadow are known"}, nil},
		{"--by shadow", 0, []string{"default/lockdown  egress     isolation  drop   11     default/web-1  default/db-1  5432/TCP"}, []string{"odd"}},
		{"--by shadow -o json", 0, []string{`"would": "drop"`, `"count": 11`}, nil},
		{"--by class -f", 2, []string{"without --follow"}, nil},
		{"--verdict lost", 2, []string{"would-drop"}, nil},
		{"--pod odd", 2, []string{"NAMESPACE/NAME"}, nil},
		{"-o yaml", 2, []string{"json"}, nil},
	} {
		args := append([]string{"flows", "--record", dir}, strings.Fields(c.args)...)
		code, out, errs := ask(t, "", args...)
		if code != c.code {
			t.Errorf("flows %s: exit code %d, %s", c.args, code, errs)
		}
		for _, want := range c.has {
			if !strings.Contains(out+errs, want) {
				t.Errorf("flows %s: %q is missing in\n%s%s", c.args, want, out, errs)
			}
		}
		for _, never := range c.hasNo {
			if strings.Contains(out, never) {
				t.Errorf("flows %s: %q is in\n%s", c.args, never, out)
			}
		}
	}
	if code, _, errs := ask(t, "", "flows"); code != 2 || !strings.Contains(errs, "--record-flows") {
		t.Errorf("nothing is recorded: exit code %d, %s", code, errs)
	}
	if code, _, errs := ask(t, "", "flows", "--record", filepath.Join(dir, "none")); code != 2 || !strings.Contains(errs, "no such file") {
		t.Errorf("no folder: exit code %d, %s", code, errs)
	}
}

func TestReplayAndRecommend(t *testing.T) {
	dir := recordOf(t)
	some := manifestsOf(t, cluster)
	closed := manifestsOf(t, "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: none}, spec: {podSelector: {}}}\n")
	code, out, errs := ask(t, "", "replay", "--record", dir, "-f", some, "--policies", closed)
	if code != 1 || !strings.Contains(out, "would break:\n  default/app=web → default/app=db 5432/TCP: 11") || strings.Contains(out, "opened") {
		t.Errorf("replay: exit code %d\n%s%s", code, out, errs)
	}
	code, out, errs = ask(t, "", "recommend", "--record", dir, "-f", some)
	if code != 0 || !strings.Contains(out, "name: db-observed") || !strings.Contains(out, "# Dropped then, and not admitted: other/app=odd → default/app=db 5432/TCP (10 packets).") {
		t.Fatalf("recommend: exit code %d\n%s%s", code, out, errs)
	}
	file := filepath.Join(t.TempDir(), "observed.yaml")
	if err := os.WriteFile(file, []byte(out), 0o600); err != nil {
		t.Fatal(err)
	}
	if code, out, errs = ask(t, "", "replay", "--record", dir, "-f", some, "--policies", file, "-o", "json"); code != 0 || !strings.Contains(out, `"flows": 21`) {
		t.Errorf("replay of what is recommended: exit code %d\n%s%s", code, out, errs)
	}
	for want, args := range map[string][]string{
		"--policies is missing":  {"replay", "--record", dir, "-f", some},
		"no flows in the record": {"replay", "--record", dir, "--since", "1s", "-f", some, "--policies", closed},
		`namespace "none"`:       {"recommend", "--record", dir, "-f", some, "-n", "none"},
		"--record-flows":         {"recommend", "-f", some},
	} {
		if code, _, errs := ask(t, "", args...); code != 2 || !strings.Contains(errs, want) {
			t.Errorf("%q: exit code %d, %s", args, code, errs)
		}
	}
}
