package policy

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/strake-io/strake/netpol"
	"github.com/strake-io/strake/netpol/manifests"
)

const town = shop + `---
apiVersion: v1
kind: Node
metadata: {name: n1}
status: {addresses: [{type: InternalIP, address: 192.168.0.1}, {type: InternalIP, address: "fd00:f::1"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: far, namespace: kube-system, labels: {app: far}}
spec: {nodeName: n1, containers: [{name: c, image: i, ports: [{name: http, containerPort: 80}]}]}
status: {podIP: 10.1.0.9, podIPs: [{ip: 10.1.0.9}, {ip: "fd00:1::9"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: host}
spec: {nodeName: n1, hostNetwork: true, containers: [{name: c, image: i}]}
---
apiVersion: v1
kind: Pod
metadata: {name: done}
spec: {containers: [{name: c, image: i}]}
status: {phase: Succeeded, podIPs: [{ip: 10.1.0.7}]}
---
apiVersion: v1
kind: Service
metadata: {name: kube-dns, namespace: kube-system}
spec: {clusterIP: 10.96.0.10, selector: {}, ports: [{port: 53, protocol: UDP}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: front}
spec: {podSelector: {matchLabels: {app: front}}, policyTypes: [Ingress, Egress], ingress: [{from: [{ipBlock: {cidr: 0.0.0.0/0, except: [10.1.0.0/16]}}], ports: [{port: 8000, endPort: 8100}]}], egress: [{ports: [{port: http}, {port: 53, protocol: UDP}]}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: far, namespace: kube-system}
spec: {podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: default}}}]}]}
---
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {name: guard}
spec: {tier: Admin, priority: 3, subject: {namespaces: {}}, ingress: [{action: Accept, from: [{pods: {namespaceSelector: {}, podSelector: {matchLabels: {app: far}}}}], protocols: [{destinationNamedPort: http}]}, {action: Pass, from: [{pods: {namespaceSelector: {}, podSelector: {matchLabels: {app: web}}}}]}, {action: Deny, from: [{pods: {namespaceSelector: {}, podSelector: {matchLabels: {app: far}}}}]}], egress: [{action: Deny, to: [{nodes: {}}], protocols: [{tcp: {destinationPort: {number: 22}}}]}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: later, annotations: {strake.io/policy-mode: shadow}}
spec: {podSelector: {matchExpressions: [{key: app, operator: In, values: [db, front]}]}, policyTypes: [Ingress, Egress], ingress: [{from: [{podSelector: {}}], ports: [{port: 8101}, {port: 5432}]}], egress: [{ports: [{port: 22}]}]}
---
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {name: ground}
spec: {tier: Baseline, priority: 3, subject: {namespaces: {}}, egress: [{action: Deny, to: [{networks: [198.51.100.0/24]}]}], ingress: [{action: Deny, from: [{pods: {namespaceSelector: {}, podSelector: {matchLabels: {app: web}}}}], protocols: [{tcp: {destinationPort: {number: 80}}}]}]}
`

// TestEnginesAgree asks all witnesses about every pair of ends of a little town: they must decide alike, by the same tier, policy and rule.
func TestEnginesAgree(t *testing.T) {
	s, problems := manifests.Parse("town", []byte(town))
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	asked := newResolver(s)
	var flows []netpol.Flow
	var names []string
	ends := []string{"default/web", "default/db", "default/front-0", "default/front-1", "kube-system/far", "default/host", "default/done", "10.1.0.7", "192.168.0.1", "fd00:f::1", "198.51.100.1", "2001:db8::1", "10.96.0.10", "fd00:1::9", "127.0.0.1"}
	for _, from := range ends {
		for _, to := range ends {
			for _, port := range []string{"80/TCP", "8080/TCP", "8100/TCP", "8101/TCP", "5432/TCP", "22/TCP", "53/UDP", "80/SCTP", "ICMP"} {
				q, err := singleQuery(from, to, port)
				if err != nil {
					t.Fatal(err)
				}
				f, err := asked.flow(q)
				if err != nil {
					t.Fatal(err)
				}
				flows, names = append(flows, f), append(names, fmt.Sprint(from, " -> ", to, " ", port))
				f.ViaService, f.Forwarded = true, true
				flows, names = append(flows, f), append(names, fmt.Sprint(from, " -> ", to, " ", port, " by a Service"))
			}
		}
	}
	judged := func(name string) []string {
		e, err := newEngine(name, s, func(problem string) { t.Error(problem) })
		if err != nil {
			t.Fatal(err)
		}
		defer e.close()
		var out []string
		for _, v := range e.judge(flows) {
			out = append(out, words(v))
		}
		return out
	}
	want := judged("reference")
	if !slices.ContainsFunc(want, func(w string) bool { return strings.Contains(w, "in shadow Allowed") }) || !slices.ContainsFunc(want, func(w string) bool { return strings.Contains(w, "in shadow Denied") }) {
		t.Error("policies in shadow make no difference: this proves little")
	}
	if denied := len(slices.DeleteFunc(slices.Clone(want), func(w string) bool { return w[0] != 'D' })); denied < 300 {
		t.Errorf("%d of %d flows are denied: this proves little", denied, len(want))
	}
	for _, name := range engineNames[1:] {
		if name == "kernel" && os.Geteuid() != 0 {
			t.Log("the kernel is asked as root only")
			continue
		}
		for i, got := range judged(name) {
			if got != want[i] {
				t.Errorf("%s, %s: %s, the reference %s", name, names[i], got, want[i])
			}
		}
	}
}

func words(v verdict) string {
	if v.err != nil {
		return "error: " + v.err.Error()
	}
	side := func(s netpol.Side) string {
		policy := "nobody"
		if s.Policy != nil {
			policy = s.Policy.Kind + " " + s.Policy.String()
		}
		return fmt.Sprintf("%v by %s, tier %q, rule %d", s.Allowed, policy, s.Tier, s.Rule)
	}
	out := fmt.Sprintf("%s: egress %s; ingress %s", map[bool]string{true: "Allowed", false: "Denied"}[v.Allowed], side(v.Egress), side(v.Ingress))
	if v.shadow != nil {
		out += "; in shadow " + words(verdict{Verdict: *v.shadow})
	}
	return out
}
