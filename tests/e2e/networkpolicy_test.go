package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sync/errgroup"

	"github.com/strake-io/strake/tests/podnet"
)

// policyLab is a cluster of two nodes with servers and clients in two namespaces.
type policyLab struct {
	*threeNodes
	places map[string]podnet.Space // of pods and nodes, by name
	addrs  map[string][]netip.Addr // of both families
}

const policyPods = `
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {team: green}}
---
apiVersion: v1
kind: Namespace
metadata: {name: other}
---
apiVersion: v1
kind: Service
metadata: {name: server, namespace: shop}
spec:
  type: NodePort
  ipFamilyPolicy: RequireDualStack
  selector: {app: server}
  ports:
  - {name: http, port: 80, targetPort: http, nodePort: 30290}
`

// policyPod is a pod that answers on 8080 (http) and 8081 (admin), TCP and UDP, and is probed; or one that only asks.
func policyPod(namespace, name, node, app string) string {
	return fmt.Sprintf(`
---
apiVersion: v1
kind: Pod
metadata: {name: %[2]s, namespace: %[1]s, labels: {app: %[4]s}}
spec:
  nodeName: %[3]s
  terminationGracePeriodSeconds: 1
  containers:
  - name: http
    image: "strake.io/demo:1"
    args: [demo, echo, --listen, ":8080"]
    ports: [{name: http, containerPort: 8080}]
    startupProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1, failureThreshold: 60}
    readinessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1, failureThreshold: 2}
    livenessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1, timeoutSeconds: 3, failureThreshold: 2}
  - name: admin
    image: "strake.io/demo:1"
    args: [demo, echo, --listen, ":8081"]
    ports: [{name: admin, containerPort: 8081}]
`, namespace, name, node, app)
}

// TestNetworkPolicy lets policies of every kind bite between pods of one node and of two, in both families.
func TestNetworkPolicy(t *testing.T) {
	t.Parallel()
	l := &policyLab{threeNodes: &threeNodes{cluster: start(t, "--nodes", "2", "--ip-family", "dual", "--record-flows")}, places: map[string]podnet.Space{}, addrs: map[string][]netip.Addr{}}
	eventually(t, 4*time.Minute, l.refresh)
	first, second := l.nodes[0], l.nodes[1]
	l.applyAll(policyPods)
	for _, ns := range []string{"shop", "other"} {
		eventually(t, 2*time.Minute, func() string {
			if out, err := l.try("get", "serviceaccount", "default", "-n", ns); err != nil {
				return out
			}
			return ""
		})
	}
	l.applyAll(policyPod("shop", "server", first.Name, "server") + policyPod("shop", "near", first.Name, "client") + policyPod("shop", "far", second.Name, "client") + policyPod("other", "stranger", second.Name, "client"))
	for _, ns := range []string{"shop", "other"} {
		l.kubectl("wait", "-n", ns, "--for=condition=Ready", "pod", "--all", "--timeout=90s")
	}
	for name, at := range map[string]struct {
		node      labNode
		namespace string
	}{"server": {first, "shop"}, "near": {first, "shop"}, "far": {second, "shop"}, "stranger": {second, "other"}} {
		for _, text := range strings.Fields(l.kubectl("get", "pod", name, "-n", at.namespace, "-o", "jsonpath={.status.podIPs[*].ip}")) {
			l.addrs[name] = append(l.addrs[name], netip.MustParseAddr(text))
		}
		l.places[name] = podnet.Space(at.node.allocation(t, l.addrs[name][0]).Netns)
	}
	for name, n := range map[string]labNode{"node-1": first, "node-2": second} {
		l.places[name], l.addrs[name] = podnet.Space(n.netns), n.Addresses
	}
	for _, part := range []struct {
		name string
		run  func(*policyLab)
	}{
		{"without any policy", withoutPolicy},
		{"default deny, and who is let in", ingressPolicies},
		{"labels of pods and namespaces change", relabelled},
		{"ports by number, name and range", portPolicies},
		{"Services are judged as their backends", servicePolicies},
		{"egress, and the cluster's DNS", egressPolicies},
		{"blocks with exceptions, nodes and their own processes", blockPolicies},
		{"ClusterNetworkPolicies before and behind", clusterPolicies},
		{"recorded flows", recordedFlows},
		{"established flows", establishedFlows},
		{"a pod is isolated before its first instruction", isolatedFromTheFirst},
		{"verdicts stand while processes are away", verdictsStand},
		{"verdicts stand while the API server is away, and an agent begins anew", withoutAPI},
		{"a report has evidence", reported},
	} {
		t.Run(part.name, func(t *testing.T) {
			sub := *l
			sub.threeNodes = l.in(t)
			part.run(&sub)
			sub.kubectl("delete", "networkpolicies", "-n", "shop", "--all")
		})
	}
	// The kubelet's probes came through all of that.
	for _, name := range []string{"server", "near", "far"} {
		eventually(t, 2*time.Minute, func() string { // an agent that has just begun tells in its own time
			if got := l.kubectl("get", "pod", name, "-n", "shop", "-o", "jsonpath={.status.containerStatuses[*].restartCount} {.status.conditions[?(@.type=='Ready')].status}"); got != "0 0 True" {
				return fmt.Sprintf("pod %s: restarts and readiness %s\n%s", name, got, l.kubectl("get", "events", "-n", "shop", "--field-selector", "involvedObject.name="+name))
			}
			return ""
		})
	}
}

// applyAll takes objects of any namespace.
func (l *policyLab) applyAll(manifest string) {
	l.t.Helper()
	cmd := l.StrakeCommand(l.t.Context(), "kubectl", "apply", "-f", "-")
	cmd.Stdin = strings.NewReader(manifest)
	l.must(cmd)
}

// path is who asks whom, over what.
type path struct {
	from, to string
	port     uint16
	network  string
}

func tcp(from, to string, port uint16) path { return path{from, to, port, "tcp"} }

func udp(from, to string, port uint16) path { return path{from, to, port, "udp"} }

// patience is how long an answer may take. What is denied takes that long to see.
const patience = 500 * time.Millisecond

// expect waits until these paths are open, in both families, and those are not.
func (l *policyLab) expect(open, closed []path) {
	l.t.Helper()
	var g errgroup.Group
	check := func(p path, want bool) {
		for _, a := range l.addrs[p.to] {
			g.Go(func() error { return l.await(p, netip.AddrPortFrom(a, p.port), want) })
		}
	}
	for _, p := range open {
		check(p, true)
	}
	for _, p := range closed {
		check(p, false)
	}
	if err := g.Wait(); err != nil {
		l.t.Error(err)
	}
}

func (l *policyLab) await(p path, to netip.AddrPort, want bool) error {
	deadline := time.Now().Add(80 * time.Second)
	for {
		_, err := asks(l.places[p.from], p.network, 0, to, patience)
		var timeout net.Error
		if denied := errors.As(err, &timeout) && timeout.Timeout(); err == nil && want || denied && !want {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s from %s to %s (%s): %v, should it be open: %v", p.network, p.from, p.to, to, err, want)
		}
	}
}

// policy makes a NetworkPolicy in namespace shop, and replaces one of its name.
func (l *policyLab) policy(name, spec string) {
	l.t.Helper()
	l.applyAll(fmt.Sprintf("{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: %s, namespace: shop}, spec: %s}", name, spec))
}

func (l *policyLab) clusterPolicy(name, spec string) {
	l.t.Helper()
	l.applyAll(fmt.Sprintf("{apiVersion: policy.networking.k8s.io/v1alpha2, kind: ClusterNetworkPolicy, metadata: {name: %s}, spec: %s}", name, spec))
}

const denyIngress = `{podSelector: {matchLabels: {app: server}}, policyTypes: [Ingress]}`

func withoutPolicy(l *policyLab) {
	l.expect([]path{tcp("near", "server", 8080), tcp("far", "server", 8080), tcp("stranger", "server", 8081), udp("near", "server", 8080), udp("far", "server", 8081), tcp("node-1", "server", 8080), tcp("node-2", "server", 8080)}, nil)
}

func ingressPolicies(l *policyLab) {
	l.policy("deny", denyIngress)
	// The node's own processes, as the kubelet, get to its pods; those of others do not.
	l.expect([]path{tcp("node-1", "server", 8080), tcp("server", "near", 8080), tcp("server", "server", 8080)},
		[]path{tcp("near", "server", 8080), tcp("far", "server", 8080), tcp("stranger", "server", 8080), udp("near", "server", 8080), udp("far", "server", 8080), tcp("node-2", "server", 8080)})
	l.policy("allow", `{podSelector: {matchLabels: {app: server}}, ingress: [{from: [{podSelector: {matchLabels: {app: client}}}]}]}`)
	l.expect([]path{tcp("near", "server", 8080), tcp("far", "server", 8081), udp("far", "server", 8080)}, []path{tcp("stranger", "server", 8080), tcp("node-2", "server", 8080)})
	l.policy("allow", `{podSelector: {matchLabels: {app: server}}, ingress: [{from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: other}}}]}]}`)
	l.expect([]path{tcp("stranger", "server", 8080)}, []path{tcp("near", "server", 8080), tcp("far", "server", 8080)})
}

func relabelled(l *policyLab) {
	l.policy("allow", `{podSelector: {matchLabels: {app: server}}, ingress: [{from: [{podSelector: {matchLabels: {role: friend}}}, {namespaceSelector: {matchLabels: {team: blue}}}]}]}`)
	l.expect(nil, []path{tcp("near", "server", 8080), tcp("far", "server", 8080), tcp("stranger", "server", 8080)})
	l.kubectl("label", "pod", "near", "far", "-n", "shop", "role=friend")
	l.expect([]path{tcp("near", "server", 8080), tcp("far", "server", 8080)}, []path{tcp("stranger", "server", 8080)})
	l.kubectl("label", "pod", "far", "-n", "shop", "role-")
	l.kubectl("label", "namespace", "other", "team=blue")
	l.expect([]path{tcp("near", "server", 8080), tcp("stranger", "server", 8080)}, []path{tcp("far", "server", 8080)})
	l.kubectl("label", "pod", "near", "-n", "shop", "role-")
	l.kubectl("label", "namespace", "other", "team-")
	l.expect(nil, []path{tcp("near", "server", 8080), tcp("far", "server", 8080), tcp("stranger", "server", 8080)})
	// A subject that gets another label is out of the policy.
	l.kubectl("label", "pod", "server", "-n", "shop", "app=free", "--overwrite")
	l.expect([]path{tcp("near", "server", 8080), tcp("far", "server", 8080), tcp("stranger", "server", 8080)}, nil)
	l.kubectl("label", "pod", "server", "-n", "shop", "app=server", "--overwrite")
	l.expect(nil, []path{tcp("near", "server", 8080)})
}

func portPolicies(l *policyLab) {
	ports := func(list string) {
		l.policy("allow", `{podSelector: {matchLabels: {app: server}}, ingress: [{ports: [`+list+`]}]}`)
	}
	ports(`{port: 8080}`)
	l.expect([]path{tcp("near", "server", 8080), tcp("far", "server", 8080)}, []path{tcp("near", "server", 8081), udp("far", "server", 8080)})
	ports(`{port: admin}`)
	l.expect([]path{tcp("near", "server", 8081), tcp("far", "server", 8081)}, []path{tcp("far", "server", 8080), udp("far", "server", 8081)})
	ports(`{port: 8080, endPort: 8081, protocol: UDP}`)
	l.expect([]path{udp("near", "server", 8081), udp("far", "server", 8080)}, []path{tcp("near", "server", 8080), tcp("far", "server", 8081)})
	ports(`{protocol: TCP}`)
	l.expect([]path{tcp("near", "server", 8081), tcp("stranger", "server", 8080)}, []path{udp("far", "server", 8080)})
}

func servicePolicies(l *policyLab) {
	for _, text := range strings.Fields(l.kubectl("get", "service", "server", "-n", "shop", "-o", "jsonpath={.spec.clusterIPs[*]}")) {
		l.addrs["service"] = append(l.addrs["service"], netip.MustParseAddr(text))
	}
	l.expect([]path{tcp("near", "service", 80), tcp("far", "service", 80), tcp("stranger", "service", 80), tcp("far", "node-1", 30290)}, nil)
	l.policy("allow", `{podSelector: {matchLabels: {app: server}}, ingress: [{from: [{podSelector: {}}], ports: [{port: 8080}]}]}`)
	l.expect([]path{tcp("near", "service", 80), tcp("far", "service", 80), tcp("server", "service", 80)}, []path{tcp("stranger", "service", 80)})
	// The Service's own port means nothing.
	l.policy("allow", `{podSelector: {matchLabels: {app: server}}, ingress: [{from: [{podSelector: {}}], ports: [{port: 80}]}]}`)
	l.expect([]path{tcp("server", "service", 80)}, []path{tcp("near", "service", 80), tcp("far", "service", 80)})
	// Egress is judged by where it really goes, and the Service's address means nothing.
	l.policy("allow", `{podSelector: {matchLabels: {app: client}}, policyTypes: [Egress], egress: [{to: [{podSelector: {matchLabels: {app: server}}}]}]}`)
	l.expect([]path{tcp("near", "service", 80), tcp("far", "service", 80)}, []path{tcp("near", "far", 8080)})
	l.policy("allow", fmt.Sprintf(`{podSelector: {matchLabels: {app: client}}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: %s/32}}, {ipBlock: {cidr: %q}}]}]}`, l.addrs["service"][0], l.addrs["service"][1].String()+"/128"))
	l.expect(nil, []path{tcp("near", "service", 80), tcp("far", "service", 80)})
}

// lookup asks the cluster's DNS from a pod, by a packet.
func (l *policyLab) lookup(from string, dns netip.Addr) error {
	name := dnsmessage.MustNewName("server.shop.svc.cluster.local.")
	query, err := (&dnsmessage.Message{Header: dnsmessage.Header{ID: 7, RecursionDesired: true}, Questions: []dnsmessage.Question{{Name: name, Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}}}).Pack()
	if err != nil {
		return err
	}
	conn, err := dial(l.places[from], "udp", 0, netip.AddrPortFrom(dns, 53), patience)
	if err != nil {
		return err
	}
	defer conn.Close()
	if _, err := conn.Write(query); err != nil {
		return err
	}
	_, err = conn.Read(make([]byte, 512))
	return err
}

func egressPolicies(l *policyLab) {
	dns := netip.MustParseAddr("10.96.0.10")
	awaitLookup := func(want bool) {
		l.t.Helper()
		eventually(l.t, 80*time.Second, func() string {
			if err := l.lookup("far", dns); (err == nil) != want {
				return fmt.Sprintf("DNS: %v, should it answer: %v", err, want)
			}
			return ""
		})
	}
	awaitLookup(true)
	l.policy("out", `{podSelector: {matchLabels: {app: client}}, policyTypes: [Egress]}`)
	l.expect([]path{tcp("server", "far", 8080), tcp("stranger", "near", 8080)}, []path{tcp("near", "server", 8080), tcp("far", "server", 8080), udp("far", "server", 8080), tcp("near", "far", 8080)})
	awaitLookup(false)
	l.policy("out", `{podSelector: {matchLabels: {app: client}}, policyTypes: [Egress], egress: [{to: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: kube-system}}, podSelector: {matchLabels: {k8s-app: kube-dns}}}], ports: [{port: 53, protocol: UDP}]}]}`)
	awaitLookup(true)
	// The workbench judges it as the nodes do, though no Service and no pod has that address.
	if out, err := l.StrakeCommand(l.t.Context(), "policy", "eval", "--from", "shop/far", "--to", dns.String(), "--port", "dns/UDP", "--exit-code").CombinedOutput(); err != nil {
		l.t.Errorf("policy eval: %v\n%s", err, out)
	}
	l.expect(nil, []path{tcp("far", "server", 8080)})
	// By name, a port is that of who is asked.
	l.policy("out", `{podSelector: {matchLabels: {app: client}}, policyTypes: [Egress], egress: [{ports: [{port: admin}]}]}`)
	l.expect([]path{tcp("near", "server", 8081), tcp("far", "server", 8081)}, []path{tcp("near", "server", 8080), tcp("far", "server", 8080)})
	awaitLookup(false)
}

func blockPolicies(l *policyLab) {
	near := l.addrs["near"]
	l.policy("allow", fmt.Sprintf(`{podSelector: {matchLabels: {app: server}}, ingress: [{from: [{ipBlock: {cidr: 0.0.0.0/0, except: [%s/32]}}, {ipBlock: {cidr: "::/0", except: ["%s/128"]}}]}]}`, near[0], near[1]))
	l.expect([]path{tcp("far", "server", 8080), tcp("stranger", "server", 8080), tcp("node-1", "server", 8080)}, []path{tcp("near", "server", 8080)})
	l.policy("allow", `{podSelector: {matchLabels: {app: server}}, ingress: [{from: [{ipBlock: {cidr: 203.0.113.0/24}}]}]}`)
	l.expect([]path{tcp("node-1", "server", 8080)}, []path{tcp("near", "server", 8080), tcp("far", "server", 8080), tcp("node-2", "server", 8080)})
	node := l.addrs["node-2"]
	l.policy("allow", fmt.Sprintf(`{podSelector: {matchLabels: {app: server}}, ingress: [{from: [{ipBlock: {cidr: %s/32}}, {ipBlock: {cidr: "%s/128"}}]}]}`, node[0], node[1]))
	// By its InternalIP: what comes over the tunnel has that of the node's way there.
	l.expect(nil, []path{tcp("far", "server", 8080)})
}

func clusterPolicies(l *policyLab) {
	defer l.kubectl("delete", "clusternetworkpolicies", "--all")
	l.policy("allow", `{podSelector: {matchLabels: {app: server}}, ingress: [{from: [{podSelector: {}}]}]}`)
	const subject = `subject: {pods: {namespaceSelector: {matchLabels: {team: green}}, podSelector: {matchLabels: {app: server}}}}`
	const clients = `from: [{pods: {namespaceSelector: {matchLabels: {team: green}}, podSelector: {}}}]`
	l.clusterPolicy("last", `{tier: Baseline, priority: 1, subject: {pods: {namespaceSelector: {}, podSelector: {matchLabels: {app: client}}}}, ingress: [{action: Deny, from: [{namespaces: {}}]}]}`)
	l.expect([]path{tcp("near", "server", 8080), tcp("far", "server", 8080)}, []path{tcp("stranger", "server", 8080), tcp("server", "far", 8080)})
	l.clusterPolicy("first", `{tier: Admin, priority: 10, `+subject+`, ingress: [{action: Deny, `+clients+`, protocols: [{tcp: {destinationPort: {number: 8080}}}]}]}`)
	l.expect([]path{tcp("near", "server", 8081), tcp("far", "server", 8081)}, []path{tcp("near", "server", 8080), tcp("far", "server", 8080), tcp("stranger", "server", 8081)})
	l.clusterPolicy("before", `{tier: Admin, priority: 5, `+subject+`, ingress: [{action: Pass, `+clients+`}, {action: Accept, from: [{namespaces: {matchLabels: {kubernetes.io/metadata.name: other}}}]}]}`)
	l.expect([]path{tcp("near", "server", 8080), tcp("far", "server", 8080), tcp("stranger", "server", 8080)}, nil)
	for _, name := range []string{"last", "first", "before"} {
		eventually(l.t, 2*time.Minute, func() string {
			if got := l.kubectl("get", "clusternetworkpolicy", name, "-o", `jsonpath={.status.conditions[?(@.type=="Accepted")].status} {.status.conditions[?(@.type=="Accepted")].reason}`); got != "True Enforced" {
				return fmt.Sprintf("ClusterNetworkPolicy %s: condition Accepted is %q", name, got)
			}
			return ""
		})
	}
}

// flow is a connection that is asked again and again.
type flow struct {
	net.Conn
	l *policyLab
}

func (l *policyLab) connect(from, to string) flow {
	l.t.Helper()
	var c net.Conn
	eventually(l.t, 80*time.Second, func() string {
		var err error
		if c, err = dial(l.places[from], "tcp", 0, netip.AddrPortFrom(l.addrs[to][0], 8080), patience); err != nil {
			return err.Error()
		}
		return ""
	})
	l.t.Cleanup(func() { c.Close() })
	return flow{c, l}
}

// answers tells whether it is answered within some time.
func (f flow) answers(within time.Duration) error {
	if err := f.SetDeadline(time.Now().Add(within)); err != nil {
		return err
	}
	_, err := exchange(f.Conn)
	return err
}

func establishedFlows(l *policyLab) {
	l.policy("deny", `{podSelector: {matchLabels: {app: server}}, ingress: [{from: [{podSelector: {matchLabels: {app: client}}}]}]}`)
	l.expect([]path{tcp("near", "server", 8080), tcp("far", "server", 8080)}, []path{tcp("stranger", "server", 8080)})
	near, far := l.connect("near", "server"), l.connect("far", "server")
	for _, f := range []flow{near, far} {
		if err := f.answers(10 * time.Second); err != nil {
			l.t.Fatal(err)
		}
	}
	l.policy("deny", denyIngress)
	l.expect(nil, []path{tcp("near", "server", 8080), tcp("far", "server", 8080)})
	for name, f := range map[string]flow{"near": near, "far": far} {
		if err := f.answers(patience); err == nil {
			l.t.Errorf("a connection of %s goes on although it is denied", name)
		}
	}
	// With the policy gone it goes on: what was sent meanwhile is sent again.
	l.kubectl("delete", "networkpolicy", "deny", "-n", "shop")
	for name, f := range map[string]flow{"near": near, "far": far} {
		if err := f.answers(30 * time.Second); err != nil {
			l.t.Errorf("a connection of %s, once it is allowed again: %v", name, err)
		}
	}
	// A pod may have its connections live on.
	l.kubectl("annotate", "pod", "server", "-n", "shop", "strake.io/established-flows=keep")
	defer l.kubectl("annotate", "pod", "server", "-n", "shop", "strake.io/established-flows-")
	kept := l.connect("far", "server")
	if err := kept.answers(10 * time.Second); err != nil {
		l.t.Fatal(err)
	}
	l.policy("deny", denyIngress)
	l.expect(nil, []path{tcp("far", "server", 8080)})
	if err := kept.answers(10 * time.Second); err != nil {
		l.t.Errorf("a connection that is to be kept: %v", err)
	}
}

// isolatedFromTheFirst starts pods whose first instruction is a connection that their policy forbids.
func isolatedFromTheFirst(l *policyLab) {
	l.policy("out", `{podSelector: {matchLabels: {app: eager}}, policyTypes: [Egress]}`)
	var manifest strings.Builder
	for i := range 6 {
		fmt.Fprintf(&manifest, `
---
apiVersion: v1
kind: Pod
metadata: {name: eager-%d, namespace: shop, labels: {app: eager}}
spec:
  nodeName: %s
  restartPolicy: Never
  terminationGracePeriodSeconds: 0
  containers:
  - name: c
    image: "strake.io/busybox:1"
    command: [sh, -c, "nc -w 2 %s 8080 </dev/null && echo reached || echo blocked"]
`, i, l.nodes[i%2].Name, l.addrs["server"][0])
	}
	l.applyAll(manifest.String())
	defer l.kubectl("delete", "pod", "-n", "shop", "-l", "app=eager", "--wait=false")
	l.kubectl("wait", "-n", "shop", "--for=jsonpath={.status.phase}=Succeeded", "pod", "-l", "app=eager", "--timeout=60s")
	if logs := l.kubectl("logs", "-n", "shop", "-l", "app=eager"); strings.Count(logs, "blocked") != 6 {
		l.t.Errorf("first words of isolated pods:\n%s", logs)
	}
}

// reported: on a node a report has the proof of its kernel, packets that went as policies say, and what was enforced since when.
func reported(l *policyLab) {
	l.policy("allow", `{podSelector: {matchLabels: {app: server}}, ingress: [{from: [{podSelector: {matchLabels: {app: client}}}]}]}`)
	l.expect([]path{tcp("near", "server", 8080)}, []path{tcp("stranger", "server", 8080)})
	var r struct {
		Evidence struct {
			Proof *struct {
				Questions, Differences int
			}
			Probes  []struct{ OK bool }
			History []struct {
				What   string
				Policy struct{ Name string }
			}
			HistoryBroken []string
		}
	}
	eventually(l.t, 2*time.Minute, func() string { // the history is written beside
		out, err := l.StrakeCommand(l.t.Context(), "policy", "report", "--probes", "10", "-o", "json").Output()
		if len(out) == 0 || json.Unmarshal(out, &r) != nil {
			return fmt.Sprintf("%v: %s", err, out)
		}
		for _, e := range r.Evidence.History {
			if e.What == "enforced" && e.Policy.Name == "allow" {
				return ""
			}
		}
		return fmt.Sprintf("history %+v", r.Evidence.History)
	})
	if e := r.Evidence; e.Proof == nil || e.Proof.Questions == 0 || e.Proof.Differences > 0 || len(e.Probes) == 0 || len(e.HistoryBroken) > 0 {
		l.t.Errorf("evidence %+v", e)
	}
	for _, p := range r.Evidence.Probes {
		if !p.OK {
			l.t.Errorf("probes %+v", r.Evidence.Probes)
		}
	}
}
