package e2e

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/strake-io/strake/tests/podnet"
)

// whom are the pods that answer clients of each node. Where that are none, what is asked is dropped.
type whom [3][]string

func everywhere(pods ...string) whom { return whom{pods, pods, pods} }

// askers are clients of each node: its processes, what its pod sends by packets, and who asks it from outside.
type askers struct {
	*threeNodes
	inside  [3][]caller
	outside caller
}

func (c *threeNodes) askers(m neighbour) askers {
	k := askers{threeNodes: c, outside: callerIn("outside", m.Space)}
	for i := range c.nodes {
		k.inside[i] = []caller{c.node(i), c.packetsOf(fmt.Sprint("client-", i), i)}
	}
	return k
}

// everyone are all that are inside.
func (k askers) everyone() []caller { return slices.Concat(k.inside[0], k.inside[1], k.inside[2]) }

// get waits until clients of each node get just these pods of a Service by TCP and UDP, in both families: inside by its ClusterIPs, and outside by its node port, unless that is 0.
func (k askers) get(t *testing.T, service string, nodePort uint16, want whom) {
	t.Helper()
	var all sync.WaitGroup
	for family := range k.nodes[0].Addresses {
		own, ports := k.clusterIP(service, family), k.nodePorts(nodePort, family)
		for i, pods := range want {
			ask := func(who caller, to netip.AddrPort) {
				for _, network := range []string{"tcp", "udp"} {
					all.Go(func() {
						if last := within(80*time.Second, func() string { return who.reaches(network, to, pods) }); last != "" {
							t.Errorf("%s, asked at node %d: %s", service, i+1, last)
						}
					})
				}
			}
			for _, who := range k.inside[i] {
				ask(who, own)
			}
			if nodePort != 0 {
				ask(k.outside, ports[i])
			}
		}
	}
	all.Wait()
	if t.Failed() {
		t.FailNow()
	}
}

// reaches asks until all of these pods have answered, and tells who else did; without pods, that it is not silent.
func (k caller) reaches(network string, to netip.AddrPort, pods []string) string {
	const enough, most = 12, 150
	seen := map[string]int{}
	for n := 0; n < enough || !only(seen, pods...); n++ {
		patience := patient
		if len(pods) == 0 {
			patience = brief
		}
		answer, err := k.ask(network, to, patience)
		if len(pods) == 0 && isSilent(answer, err) {
			return ""
		}
		if seen[pod(answer)]++; err != nil || n == most || !slices.Contains(pods, pod(answer)) {
			return fmt.Sprintf("%s to %s by %s: %q, %v; %v answered, want %v", k.what, to, network, answer, err, seen, pods)
		}
	}
	return ""
}

// choices are Services of which some endpoints are asked, by the topology or by what their pods say of themselves.
func choices(nodes []labNode) string {
	named := func(name, node, port string) string {
		return with(strings.NewReplacer("app: web", "app: named", ":8080", ":"+port).Replace(server(name, node)),
			fmt.Sprintf("ports: [{name: web, containerPort: %s}, {name: packets, containerPort: %[1]s, protocol: UDP}]", port))
	}
	var ports []string
	for _, port := range []string{"hostPort: 8097", fmt.Sprintf("hostPort: 8096, hostIP: %q", nodes[1].Addresses[1])} {
		ports = append(ports, "{containerPort: 8080, "+port+"}", "{containerPort: 8080, protocol: UDP, "+port+"}")
	}
	return strings.Join([]string{
		webService("near", 30394, "type: NodePort", "trafficDistribution: PreferSameNode"),
		webService("same-zone", 30395, "type: NodePort", "trafficDistribution: PreferSameZone"),
		webService("close", 30396, "type: NodePort", "trafficDistribution: PreferClose"),
		named("named-a", nodes[1].Name, "8080"), named("named-b", nodes[2].Name, "9090"),
		strings.NewReplacer("app: web", "app: named", "8080, protocol", "packets, protocol", "8080", "web").Replace(webService("named", 30397, "type: NodePort")),
		strings.ReplaceAll(webService("shy", 30398, "type: NodePort", "publishNotReadyAddresses: true"), "app: web", "app: shy"),
		webService("renamed", 0), strings.ReplaceAll(webService("bare", 0, "clusterIP: None"), "app: web", "app: mirror"),
		with(strings.ReplaceAll(server("ported", nodes[1].Name), "app: web", "app: ported"), "ports: ["+strings.Join(ports, ", ")+"]"),
	}, "---\n")
}

// with has more lines of a server's container.
func with(server, more string) string { return strings.Replace(server, `"]}`, `"], `+more+"}", 1) }

// ofWeb are the pods that every part of TestServicesOfNodes finds behind app=web.
var ofWeb = []string{"second-a", "second-b", "third"}

// internalLocal: clients get the endpoints of their own node, and where that has none what they ask is dropped, by either path.
func internalLocal(t *testing.T, c *threeNodes, m neighbour) {
	c.askers(m).get(t, "inner", 0, whom{nil, ofWeb[:2], ofWeb[2:]})
	for _, url := range []string{"udp://inner:80", "http://inner"} { // from a pod's own process
		if seen, out := c.from(1, url); !only(seen, ofWeb[:2]...) {
			t.Errorf("%s: %v, want %v:\n%s", url, seen, ofWeb[:2], out)
		}
	}
}

// distribution: trafficDistribution, with nodes in zones. Where a zone has no endpoints, and where a node with endpoints is in none, all of them count.
func distribution(t *testing.T, c *threeNodes, m neighbour) {
	k := c.askers(m)
	c.zones("", "", "")
	t.Cleanup(func() { c.zones("", "", "") })
	k.get(t, "near", 30394, whom{ofWeb, ofWeb[:2], ofWeb[2:]})
	for _, row := range []struct {
		zones      [3]string
		near, zone whom
	}{
		{[3]string{"east", "east", "west"}, whom{ofWeb[:2], ofWeb[:2], ofWeb[2:]}, whom{ofWeb[:2], ofWeb[:2], ofWeb[2:]}},
		{[3]string{"west", "east", "west"}, whom{ofWeb[2:], ofWeb[:2], ofWeb[2:]}, whom{ofWeb[2:], ofWeb[:2], ofWeb[2:]}},
		{[3]string{"north", "east", "west"}, whom{ofWeb, ofWeb[:2], ofWeb[2:]}, whom{ofWeb, ofWeb[:2], ofWeb[2:]}},
		{[3]string{"east", "", "west"}, whom{ofWeb, ofWeb[:2], ofWeb[2:]}, everywhere(ofWeb...)},
	} {
		c.zones(row.zones[:]...)
		k.get(t, "near", 30394, row.near)
		k.get(t, "same-zone", 30395, row.zone)
		k.get(t, "close", 30396, row.zone)
	}
}

// zones puts nodes into zones; "" takes them out.
func (c *threeNodes) zones(zones ...string) {
	c.t.Helper()
	for i, zone := range zones {
		label := corev1.LabelTopologyZone + "=" + zone
		if zone == "" {
			label = corev1.LabelTopologyZone + "-"
		}
		c.kubectl("label", "node", c.nodes[i].Name, "--overwrite", label)
	}
}

// conditions: which endpoints of slices of the user's own are asked, as their conditions and hints say; by policy Cluster, and by policy Local.
func conditions(t *testing.T, c *threeNodes, m neighbour) {
	var families []*semantics
	for family, a := range m.addrs {
		s := &semantics{cluster: c.cluster, v6: a.Is6(), pods: map[string]string{}}
		for _, name := range ofWeb {
			s.pods[name] = c.podAddrs(name)[family].String()
		}
		families = append(families, s)
	}
	made := func(name string, port int32, local bool) *corev1.Service {
		return families[0].service(name, func(svc *corev1.Service) {
			svc.Name, svc.Spec.Type, svc.Spec.IPFamilies, svc.Spec.IPFamilyPolicy = name, corev1.ServiceTypeNodePort, nil, new(corev1.IPFamilyPolicyRequireDualStack)
			svc.Spec.Ports[0].NodePort, svc.Spec.Ports[1].NodePort = port, port
			if local {
				svc.Spec.InternalTrafficPolicy, svc.Spec.ExternalTrafficPolicy = new(corev1.ServiceInternalTrafficPolicyLocal), corev1.ServiceExternalTrafficPolicyLocal
			}
		})
	}
	cluster, local := made("chosen", 30399, false), made("chosen-here", 30400, true)
	families[0].write(cluster, local)
	k := c.askers(m)
	a, b, z := end{pod: "second-a", node: c.nodes[1].Name}, end{pod: "second-b", node: c.nodes[1].Name}, end{pod: "third", node: c.nodes[2].Name}
	unready := func(e end) end { e.unready = true; return e }
	dying := func(e end) end { e.unready, e.dying = true, true; return e }
	serving := func(e end) end { e.unready, e.dying, e.serving = true, true, true; return e }
	in := func(zone string, e end) end { e.zone = zone; return e }
	c.zones("east", "east", "west")
	t.Cleanup(func() { c.zones("", "", "") })
	for _, row := range []struct {
		what         string
		ends         []end
		anyone, here whom
	}{
		{"ready ones before those that terminate, on each node", []end{a, serving(b), serving(z)}, everywhere("second-a"), whom{nil, {"second-a"}, {"third"}}},
		{"those that terminate and serve, where none is ready", []end{unready(a), serving(b), dying(z)}, everywhere("second-b"), whom{nil, {"second-b"}, nil}},
		{"hints for zones", []end{in("east", a), in("west", b), in("west", z)}, whom{{"second-a"}, {"second-a"}, {"second-b", "third"}}, whom{nil, ofWeb[:2], ofWeb[2:]}},
		{"hints for no zone of some nodes", []end{in("west", a), in("west", b), in("south", z)}, whom{ofWeb, ofWeb, ofWeb[:2]}, whom{nil, ofWeb[:2], ofWeb[2:]}},
		{"an endpoint without hints", []end{in("east", a), b, in("west", z)}, everywhere(ofWeb...), whom{nil, ofWeb[:2], ofWeb[2:]}},
	} {
		t.Log(row.what)
		var written []any
		for _, svc := range []*corev1.Service{cluster, local} {
			for _, s := range families {
				slice := s.slice(svc, row.ends...)
				slice.Name += "-" + strings.ToLower(string(slice.AddressType))
				written = append(written, slice)
			}
		}
		families[0].write(written...)
		k.get(t, "chosen", 30399, row.anyone)
		k.get(t, "chosen-here", 30400, row.here)
	}
	for _, label := range []string{"service.kubernetes.io/service-proxy-name", corev1.IsHeadlessService} { // another proxy's, on every node
		c.kubectl("label", "service", "chosen", label+"=mine")
		k.unserved(t, "chosen", 30399)
		c.kubectl("label", "service", "chosen", label+"-")
	}
	k.get(t, "chosen", 30399, everywhere(ofWeb...))
}

// unserved waits until nobody inside gets anything of a Service by TCP and UDP, nor who asks outside by a node port.
func (k askers) unserved(t *testing.T, service string, nodePort uint16) {
	t.Helper()
	for family := range k.nodes[0].Addresses {
		each(t, k.everyone(), []netip.AddrPort{k.clusterIP(service, family)}, brief, fails)
		each(t, []caller{k.outside}, k.nodePorts(nodePort, family), brief, fails)
	}
}

func fails(_ string, err error) bool { return err != nil }

// published: pods that are not ready are endpoints of a Service that says so, and of no other.
func published(t *testing.T, c *threeNodes, m neighbour) {
	c.apply(with(strings.ReplaceAll(server("shy", c.nodes[1].Name), "app: web", "app: shy"), "readinessProbe: {exec: {command: [/strake, nothing]}, periodSeconds: 1}"))
	t.Cleanup(func() { c.kubectl("delete", "pod", "shy", "--timeout=60s") })
	k := c.askers(m)
	k.get(t, "shy", 30398, everywhere("shy"))
	if ready := c.kubectl("get", "pod", "shy", "-o", `jsonpath={.status.conditions[?(@.type=="Ready")].status}`); ready != "False" {
		t.Errorf("Ready is %q of a pod whose probe fails", ready)
	}
	c.kubectl("patch", "service", "shy", "-p", `{"spec":{"publishNotReadyAddresses":false}}`)
	for family := range m.addrs {
		ports := c.nodePorts(30398, family)
		each(t, k.everyone(), append(ports, c.clusterIP("shy", family)), patient, refuses)
		each(t, []caller{k.outside}, ports, patient, refuses)
	}
}

// names: a headless Service and an ExternalName have no entries on any node, only names; and a target port of a name is each pod's own.
func names(t *testing.T, c *threeNodes, m neighbour) {
	k := c.askers(m)
	k.get(t, "named", 30397, everywhere("named-a", "named-b"))
	k.get(t, "renamed", 0, everywhere(ofWeb...))
	var former []netip.AddrPort
	for family := range m.addrs {
		former = append(former, c.clusterIP("renamed", family))
	}
	c.kubectl("patch", "service", "renamed", "-p", `{"spec":{"type":"ExternalName","externalName":"mirror.default.svc.cluster.local"}}`)
	each(t, k.everyone(), former, brief, fails)
	for i := range c.nodes {
		for _, url := range []string{"http://renamed", "udp://renamed:80", "http://bare:8080", "udp://bare:8080"} {
			eventually(t, 80*time.Second, func() string {
				if seen, out := c.from(i, url); !only(seen, "mirror") {
					return fmt.Sprintf("%s asked on node %d: %v, want mirror:\n%s", url, i+1, seen, out)
				}
				return ""
			})
		}
	}
	for service, says := range map[string]string{"renamed": "a name for mirror.default.svc.cluster.local", "bare": "headless"} {
		if out, err := c.Strake("service", "get", service); err != nil || !strings.Contains(out, says) {
			t.Errorf("service get %s: %v\n%s", service, err, out)
		}
	}
}

// portsOfOneNode: a port of a pod's node is served there alone, on the address that the pod names or on all, and no node port on a loopback address.
func portsOfOneNode(t *testing.T, c *threeNodes, m neighbour) {
	all := []caller{callerIn("outside", m.Space), c.node(0), c.node(1), c.packetsOf("client-0", 0), c.packetsOf("client-1", 1)}
	for family := range m.addrs {
		served, own := c.nodePorts(8097, family), c.nodePorts(8096, family)
		each(t, all, served[1:2], patient, answersAs("ported"))
		each(t, all, []netip.AddrPort{served[0], served[2], own[0], own[2]}, patient, refuses)
		want := refuses
		if family == 1 { // of which its hostIP is
			want = answersAs("ported")
		}
		each(t, all, own[1:2], patient, want)
		loopback := netip.MustParseAddr(map[bool]string{true: "127.0.0.1", false: "::1"}[c.nodes[0].Addresses[family].Is4()])
		each(t, []caller{c.node(0), c.node(1), c.node(2)}, []netip.AddrPort{netip.AddrPortFrom(loopback, 30381)}, patient, refuses)
	}
}

// routedAddresses: what a network leads to a node for a Service is answered there; inside it is served on every node. What a load balancer delivers by itself goes to that.
func routedAddresses(t *testing.T, c *threeNodes, m neighbour) {
	elsewhere, balanced := []string{"203.0.113.80", "2001:db8:113::80"}, []string{"203.0.113.81", "2001:db8:113::81"}
	ingress := func(mode corev1.LoadBalancerIPMode) {
		c.kubectl("patch", "service", "kept", "--subresource=status", "--type=merge", "-p", fmt.Sprintf(`{"status":{"loadBalancer":{"ingress":[{"ip":%q,"ipMode":%q},{"ip":%q,"ipMode":%[2]q}]}}}`, balanced[0], mode, balanced[1]))
	}
	ingress(corev1.LoadBalancerIPModeVIP)
	k := c.askers(m)
	all := func(addrs []string, who []caller, pods ...string) {
		t.Helper()
		var asked sync.WaitGroup
		for _, addr := range addrs {
			to := netip.AddrPortFrom(netip.MustParseAddr(addr), 80)
			for _, w := range who {
				for _, network := range []string{"tcp", "udp"} {
					asked.Go(func() {
						if last := within(80*time.Second, func() string { return w.reaches(network, to, pods) }); last != "" {
							t.Error(last)
						}
					})
				}
			}
		}
		asked.Wait()
	}
	for i, kept := range [][]string{1: ofWeb[:2], 2: ofWeb[2:]} {
		if kept == nil {
			continue
		}
		for _, addr := range slices.Concat(elsewhere, balanced) {
			a := netip.MustParseAddr(addr)
			by := slices.IndexFunc(m.addrs, func(own netip.Addr) bool { return own.Is4() == a.Is4() })
			if err := m.route(netip.PrefixFrom(a, a.BitLen()), c.nodes[i].Addresses[by]); err != nil {
				t.Fatal(err)
			}
		}
		all(elsewhere, []caller{k.outside}, ofWeb...)
		all(balanced, []caller{k.outside}, kept...)
	}
	all(slices.Concat(elsewhere, balanced), k.everyone(), ofWeb...)
	balancer := podnet.Space("/run/netns/" + c.Outside)
	if err := balancer.Address("lo", balanced[0]+"/32", balanced[1]+"/128"); err != nil {
		t.Fatal(err)
	}
	for _, addr := range balanced {
		answerIn(t, balancer, "balancer", net.JoinHostPort(addr, "80"))
	}
	ingress(corev1.LoadBalancerIPModeProxy)
	all(balanced, k.everyone(), "balancer")
	all(elsewhere, k.everyone(), ofWeb...)
}
