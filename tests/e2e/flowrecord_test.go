package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/strake-io/strake/netpol/flows"
	"github.com/strake-io/strake/netpol/observed"
)

// recordedFlows looks at what the nodes have recorded: who asked whom, and the policy and rule behind the answer.
func recordedFlows(l *policyLab) {
	spec := `{podSelector: {matchLabels: {app: server}}, ingress: [{from: [{podSelector: {matchLabels: {app: nobody}}}]}, {from: [{podSelector: {matchLabels: {app: client}}}], ports: [{port: http}]}]}`
	l.policy("recorded", spec)
	l.expect([]path{tcp("near", "server", 8080), tcp("far", "server", 8080)}, []path{tcp("stranger", "server", 8080), tcp("far", "server", 8081)})
	type want struct {
		from, verdict string
		port          uint16
		rule          int
	}
	wants := []want{{"shop/near", flows.Allowed, 8080, 1}, {"shop/far", flows.Allowed, 8080, 1}, {"other/stranger", flows.Dropped, 8080, -1}, {"shop/far", flows.Dropped, 8081, -1}}
	eventually(l.t, 2*time.Minute, func() string {
		out, err := l.StrakeCommand(l.t.Context(), "policy", "flows", "--since", "10m", "--policy", "shop/recorded", "-o", "json").Output()
		if err != nil {
			return fmt.Sprintf("policy flows: %v", err)
		}
		var seen []want
		for d := json.NewDecoder(bytes.NewReader(out)); d.More(); {
			var line flows.Line
			if err := d.Decode(&line); err != nil {
				return err.Error()
			}
			if f := line.Flow; f != nil && f.Protocol == "TCP" && f.To.Namespace+"/"+f.To.Pod == "shop/server" && f.To.Labels["app"] == "server" && f.Ingress != nil && f.Ingress.Policy != nil && f.Ingress.Policy.Name == "recorded" {
				seen = append(seen, want{f.From.Namespace + "/" + f.From.Pod, f.Verdict, f.Port, f.Ingress.Rule})
			}
		}
		for _, w := range wants {
			if !slices.Contains(seen, w) {
				return fmt.Sprintf("%+v is not among %+v", w, seen)
			}
		}
		return ""
	})
	// Counts, by which flows are judged again, are written every ten seconds.
	judgedBy := func(spec string) (r observed.Replayed, code int, said string) {
		file := filepath.Join(l.t.TempDir(), "policies.yaml")
		manifest := fmt.Sprintf("{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: recorded, namespace: shop}, spec: %s}", spec)
		if err := os.WriteFile(file, []byte(manifest), 0o600); err != nil {
			l.t.Fatal(err)
		}
		cmd := l.StrakeCommand(l.t.Context(), "policy", "replay", "--policies", file, "--since", "10m", "-o", "json")
		var errs strings.Builder
		cmd.Stderr = &errs
		out, err := cmd.Output()
		if json.Unmarshal(out, &r) != nil {
			return r, -1, fmt.Sprintf("%v: %s%s", err, out, errs.String())
		}
		return r, cmd.ProcessState.ExitCode(), errs.String()
	}
	breaks := func(r observed.Replayed) bool {
		return slices.ContainsFunc(r.Breaks, func(g observed.Group) bool {
			return strings.Contains(g.Was, "recorded") && strings.Contains(g.Example, "near") && strings.Contains(g.Example, "server") && g.Port == 8080
		})
	}
	eventually(l.t, 4*time.Minute, func() string {
		if r, code, said := judgedBy(denyIngress); code != 1 || !breaks(r) {
			return fmt.Sprintf("policy replay by one that lets nobody in: exit code %d, %+v %s", code, r, said)
		}
		return ""
	})
	if r, code, said := judgedBy(spec); code < 0 || breaks(r) {
		l.t.Errorf("policy replay by the policy of then: exit code %d, %+v %s", code, r, said)
	}
}
