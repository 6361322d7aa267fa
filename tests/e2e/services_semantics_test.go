package e2e

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/strake-io/strake/tests/lab"
	"github.com/strake-io/strake/tests/podnet"
)

// Three servers that EndpointSlices of the tests' own lead to, and who calls them.
const semanticsPods = `
apiVersion: v1
kind: Pod
metadata: {name: %[1]s, labels: {app: %[1]s}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: echo
    image: strake.io/demo:1
    args: [demo, echo, --listen, ":8080"]
  - {name: other, image: "strake.io/busybox:1", command: [httpd, -f, -p, "8081", -h, /etc]}
---
`

// semantics is the scene of one IP family.
type semantics struct {
	*cluster
	v6   bool
	pods map[string]string // name → address
	zone *sync.Mutex       // of the node: both families give it one
}

// at is an address of the family in a URL.
func (s *semantics) at(v4, v6 string) string {
	if s.v6 {
		return "[" + v6 + "]"
	}
	return v4
}

func (s *semantics) family() corev1.IPFamily {
	if s.v6 {
		return corev1.IPv6Protocol
	}
	return corev1.IPv4Protocol
}

// apply writes objects.
func (s *semantics) write(objects ...any) {
	s.t.Helper()
	var b strings.Builder
	for _, o := range objects {
		text, err := json.Marshal(o)
		if err != nil {
			s.t.Fatal(err)
		}
		b.Write(text)
		b.WriteString("\n---\n")
	}
	s.apply(b.String())
}

// service makes a Service without a selector, named after the family.
func (s *semantics) service(name string, change func(*corev1.Service)) *corev1.Service {
	svc := &corev1.Service{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Service"}, ObjectMeta: metav1.ObjectMeta{Name: name + strings.ToLower(string(s.family())[2:])}}
	svc.Spec.IPFamilies = []corev1.IPFamily{s.family()}
	svc.Spec.Ports = []corev1.ServicePort{{Name: "http", Port: 80, TargetPort: intstr.FromInt32(8080)}, {Name: "packets", Port: 80, TargetPort: intstr.FromInt32(8080), Protocol: corev1.ProtocolUDP}}
	change(svc)
	return svc
}

// end is an endpoint: a pod, where it is said to be, and how.
type end struct {
	pod, node               string
	unready, serving, dying bool
	zone                    string // hint
}

// slice has endpoints of a Service.
func (s *semantics) slice(svc *corev1.Service, ends ...end) *discoveryv1.EndpointSlice {
	sl := &discoveryv1.EndpointSlice{TypeMeta: metav1.TypeMeta{APIVersion: "discovery.k8s.io/v1", Kind: "EndpointSlice"}, ObjectMeta: metav1.ObjectMeta{Name: svc.Name, Labels: map[string]string{discoveryv1.LabelServiceName: svc.Name}}}
	sl.AddressType = discoveryv1.AddressType(s.family())
	for _, p := range svc.Spec.Ports {
		name, number, proto := p.Name, p.TargetPort.IntVal, p.Protocol
		sl.Ports = append(sl.Ports, discoveryv1.EndpointPort{Name: &name, Port: &number, Protocol: &proto})
		if proto == "" {
			*sl.Ports[len(sl.Ports)-1].Protocol = corev1.ProtocolTCP
		}
	}
	sl.Endpoints = []discoveryv1.Endpoint{}
	for _, e := range ends {
		ready := !e.unready
		ep := discoveryv1.Endpoint{Addresses: []string{s.pods[e.pod]}, Conditions: discoveryv1.EndpointConditions{Ready: &ready, Serving: &e.serving, Terminating: &e.dying}}
		if e.node != "" {
			ep.NodeName = &e.node
		}
		if e.zone != "" {
			ep.Hints = &discoveryv1.EndpointHints{ForZones: []discoveryv1.ForZone{{Name: e.zone}}}
		}
		sl.Endpoints = append(sl.Endpoints, ep)
	}
	return sl
}

// Who calls.
const (
	fromPod     = "a pod"
	fromNode    = "the node"
	fromOutside = "outside"
)

// call lets somebody call a URL a few times, and returns what it printed.
func (s *semantics) call(from, url string, times int) string {
	args := []string{"demo", "client", "--interval", "1ms", "--count", fmt.Sprint(times), "--url", url}
	var cmd *exec.Cmd
	switch from {
	case fromPod:
		cmd = s.kubectlCommand(append([]string{"exec", "client", "--", "/strake"}, args...)...)
	case fromNode:
		cmd = s.Command(s.t.Context(), append([]string{s.Binary}, args...)...)
	default:
		cmd = exec.CommandContext(s.t.Context(), "ip", append([]string{"netns", "exec", s.Outside, s.Binary}, args...)...)
	}
	out, _ := cmd.CombinedOutput() // an error is told in what it printed
	return string(out)
}

// reach waits until a URL leads a caller to these pods, all of them and no others; without pods, until it is refused.
func (s *semantics) reach(from, url string, pods ...string) {
	s.t.Helper()
	eventually(s.t, 2*time.Minute, func() string {
		if len(pods) == 0 {
			if out := s.call(from, url, 1); !strings.Contains(out, "refused") {
				return fmt.Sprintf("%s to %s is not refused:\n%s", from, url, out)
			}
			return ""
		}
		out := s.call(from, url, 12*len(pods))
		got := slices.Sorted(maps.Keys(answersOf(out)))
		if strings.Contains(out, "error") || !slices.Equal(got, pods) {
			return fmt.Sprintf("%s to %s reaches %v, should reach %v:\n%s", from, url, got, pods, out)
		}
		return ""
	})
}

// unanswered waits until nobody answers, and nobody refuses: packets are dropped.
func (s *semantics) unanswered(from, url string) {
	s.t.Helper()
	eventually(s.t, 4*time.Minute, func() string {
		if out := s.call(from, url, 1); strings.Contains(out, "answers") || strings.Contains(out, "refused") {
			return fmt.Sprintf("%s to %s:\n%s", from, url, out)
		}
		return ""
	})
}

func (s *semantics) clusterIP(svc *corev1.Service) string {
	s.t.Helper()
	ip := s.kubectl("get", "service", svc.Name, "-o", "jsonpath={.spec.clusterIP}")
	if s.v6 {
		return "[" + ip + "]"
	}
	return ip
}

// balance gives a Service a load balancer's address.
func (s *semantics) balance(svc *corev1.Service, ip string, mode corev1.LoadBalancerIPMode) {
	s.t.Helper()
	patch := fmt.Sprintf(`{"status":{"loadBalancer":{"ingress":[{"ip":%q,"ipMode":%q}]}}}`, strings.Trim(ip, "[]"), mode)
	s.kubectl("patch", "service", svc.Name, "--subresource=status", "--type=merge", "-p", patch)
}

// What the Service API says, on one node and in both families. EndpointSlices are the tests' own: of two pods on this node one is said to
// be on another.
func TestServiceSemantics(t *testing.T) {
	t.Parallel()
	c := start(t, "--ip-family", "dual", "--node-ip", lab.NodeIP+","+lab.NodeIP6)
	var pods strings.Builder
	for _, name := range []string{"one", "two", "three"} {
		fmt.Fprintf(&pods, semanticsPods, name)
	}
	fmt.Fprintf(&pods, semanticsPods, "client")
	c.apply(pods.String())
	c.kubectl("wait", "--for=condition=Ready", "pod", "--all", "--timeout=90s")
	c.apply(with(strings.ReplaceAll(server("shy", nodeName), "app: web", "app: shy"), "readinessProbe: {exec: {command: [/strake, nothing]}, periodSeconds: 1}"))
	for _, args := range []string{"-n " + c.Outside + " route add 203.0.113.0/24 via " + lab.NodeIP, "-n " + c.Outside + " route add 2001:db8:113::/64 via " + lab.NodeIP6} {
		c.must(exec.Command("ip", strings.Fields(args)...))
	}
	var zone sync.Mutex
	for _, v6 := range []bool{false, true} {
		s := &semantics{cluster: c, v6: v6, pods: map[string]string{}, zone: &zone}
		for _, name := range []string{"one", "two", "three"} {
			for ip := range strings.FieldsSeq(c.kubectl("get", "pod", name, "-o", "jsonpath={.status.podIPs[*].ip}")) {
				if a, err := netip.ParseAddr(ip); err == nil && a.Is6() == v6 {
					s.pods[name] = ip
				}
			}
		}
		parts := []struct {
			name string
			test func(*semantics)
		}{
			{"policies", (*semantics).policies}, {"addresses", (*semantics).addresses}, {"endpoints", (*semantics).endpoints}, {"who may ask", (*semantics).sources},
			{"labels and mirrors", (*semantics).labels}, {"names and readiness", (*semantics).names}, {"health", (*semantics).health},
		}
		t.Run(string(s.family()), func(t *testing.T) {
			t.Parallel()
			for _, part := range parts {
				t.Run(part.name, func(t *testing.T) {
					inner := *s
					inner.cluster = c.in(t)
					part.test(&inner)
				})
			}
		})
	}
}

// policies: Local of each kind, with endpoints here and without.
func (s *semantics) policies() {
	local := corev1.ServiceInternalTrafficPolicyLocal
	in := s.service("internal", func(svc *corev1.Service) { svc.Spec.InternalTrafficPolicy = &local })
	away := s.service("away", func(svc *corev1.Service) { svc.Spec.InternalTrafficPolicy = &local })
	port := int32(30400)
	if s.v6 {
		port = 30460
	}
	out := s.service("external", func(svc *corev1.Service) {
		svc.Spec.Type, svc.Spec.ExternalTrafficPolicy = corev1.ServiceTypeLoadBalancer, corev1.ServiceExternalTrafficPolicyLocal
		svc.Spec.ExternalIPs = []string{strings.Trim(s.at("203.0.113.40", "2001:db8:113::40"), "[]")}
		svc.Spec.Ports[0].NodePort, svc.Spec.Ports[1].NodePort = port, port
	})
	s.write(in, s.slice(in, end{pod: "one", node: nodeName}, end{pod: "two", node: "elsewhere"}), away, s.slice(away, end{pod: "two", node: "elsewhere"}),
		out, s.slice(out, end{pod: "one", node: nodeName}, end{pod: "two", node: "elsewhere"}))
	s.balance(out, s.at("203.0.113.41", "2001:db8:113::41"), corev1.LoadBalancerIPModeVIP)
	for _, scheme := range []string{"http://", "udp://"} {
		for _, from := range []string{fromPod, fromNode} {
			s.reach(from, scheme+s.clusterIP(in)+":80", "one")
		}
		// From inside of the cluster all are reached, from outside those of this node.
		for _, at := range []string{s.at("203.0.113.40", "2001:db8:113::40") + ":80", s.at("203.0.113.41", "2001:db8:113::41") + ":80", s.at(lab.NodeIP, lab.NodeIP6) + fmt.Sprintf(":%d", port)} {
			s.reach(fromPod, scheme+at, "one", "two")
			s.reach(fromNode, scheme+at, "one", "two")
			s.reach(fromOutside, scheme+at, "one")
		}
	}
	// The client's own address is seen.
	client := s.at(lab.OutsideIP, lab.OutsideIP6)
	if text := s.call(fromOutside, "http://"+s.at("203.0.113.41", "2001:db8:113::41"), 1); !strings.Contains(text, "from "+strings.Trim(client, "[]")) {
		s.t.Errorf("a Local policy hides the client: %s", text)
	}
	s.unanswered(fromPod, "http://"+s.clusterIP(away))
	s.write(s.slice(out, end{pod: "two", node: "elsewhere"}))
	s.reach(fromPod, "http://"+s.at("203.0.113.41", "2001:db8:113::41"), "two")
	s.unanswered(fromOutside, "http://"+s.at("203.0.113.41", "2001:db8:113::41"))
}

// addresses: external ones, those of load balancers, node ports, several ports with targets of their own; and what is none.
func (s *semantics) addresses() {
	port := int32(30410)
	if s.v6 {
		port = 30470
	}
	svc := s.service("addresses", func(svc *corev1.Service) {
		svc.Spec.Type = corev1.ServiceTypeLoadBalancer
		svc.Spec.ExternalIPs = []string{strings.Trim(s.at("203.0.113.50", "2001:db8:113::50"), "[]")}
		svc.Spec.Ports[0].NodePort, svc.Spec.Ports[1].NodePort = port, port
		svc.Spec.Ports = append(svc.Spec.Ports, corev1.ServicePort{Name: "other", Port: 81, TargetPort: intstr.FromInt32(8081), NodePort: port + 1})
	})
	none := s.service("none", func(*corev1.Service) {})
	s.write(svc, s.slice(svc, end{pod: "one"}, end{pod: "two"}), none)
	s.balance(svc, s.at("203.0.113.51", "2001:db8:113::51"), corev1.LoadBalancerIPModeVIP)
	for _, from := range []string{fromPod, fromNode, fromOutside} {
		for _, at := range []string{s.at("203.0.113.50", "2001:db8:113::50") + ":80", s.at("203.0.113.51", "2001:db8:113::51") + ":80", s.at(lab.NodeIP, lab.NodeIP6) + fmt.Sprintf(":%d", port)} {
			s.reach(from, "http://"+at, "one", "two")
			s.reach(from, "udp://"+at, "one", "two")
		}
		for _, at := range []string{s.at("203.0.113.51", "2001:db8:113::51") + ":81", s.at(lab.NodeIP, lab.NodeIP6) + fmt.Sprintf(":%d", port+1)} {
			if out := s.call(from, "http://"+at+"/hostname", 1); !strings.Contains(out, "one") && !strings.Contains(out, "two") {
				s.t.Errorf("%s to %s: %s", from, at, out)
			}
		}
	}
	for _, from := range []string{fromPod, fromNode} {
		for _, scheme := range []string{"http://", "udp://"} {
			s.reach(from, scheme+s.clusterIP(none)+":80")
		}
	}
	s.reach(fromNode, "http://"+s.at("127.0.0.1", "::1")+fmt.Sprintf(":%d", port)) // NodePorts are none of loopback's
	// A load balancer that delivers by itself keeps its address.
	s.balance(svc, s.at("203.0.113.51", "2001:db8:113::51"), corev1.LoadBalancerIPModeProxy)
	eventually(s.t, 2*time.Minute, func() string {
		if out := s.call(fromPod, "http://"+s.at("203.0.113.51", "2001:db8:113::51"), 1); strings.Contains(out, "answers") {
			return out
		}
		return ""
	})
	s.reach(fromPod, "http://"+s.at("203.0.113.50", "2001:db8:113::50"), "one", "two")
}

// endpoints: which of them are used: ready, terminating, by hints, by affinity.
func (s *semantics) endpoints() {
	svc := s.service("endpoints", func(*corev1.Service) {})
	s.write(svc, s.slice(svc, end{pod: "one"}, end{pod: "two", unready: true, serving: true, dying: true}, end{pod: "three", unready: true}))
	url := "http://" + s.clusterIP(svc)
	s.reach(fromPod, url, "one")
	s.write(s.slice(svc, end{pod: "one", unready: true}, end{pod: "two", unready: true, serving: true, dying: true}, end{pod: "three", unready: true, dying: true}))
	s.reach(fromPod, url, "two")
	s.write(s.slice(svc, end{pod: "one", unready: true}))
	s.reach(fromPod, url)
	// Hints count only where each endpoint has one and one is for this node's zone.
	s.zone.Lock()
	defer s.zone.Unlock()
	s.kubectl("label", "node", nodeName, "--overwrite", corev1.LabelTopologyZone+"=here")
	s.write(s.slice(svc, end{pod: "one", zone: "here"}, end{pod: "two", zone: "there"}))
	s.reach(fromPod, url, "one")
	s.kubectl("label", "node", nodeName, "--overwrite", corev1.LabelTopologyZone+"=there")
	s.reach(fromPod, url, "two")
	s.kubectl("label", "node", nodeName, corev1.LabelTopologyZone+"-")
	s.reach(fromPod, url, "one", "two")
	s.write(s.slice(svc, end{pod: "one", zone: "here"}, end{pod: "two"}))
	s.reach(fromPod, url, "one", "two")
	// A client that stays with its backend, and moves when that goes.
	seconds := int32(10800)
	svc.Spec.SessionAffinity = corev1.ServiceAffinityClientIP
	svc.Spec.SessionAffinityConfig = &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: &seconds}}
	s.write(svc, s.slice(svc, end{pod: "one"}, end{pod: "two"}, end{pod: "three"}))
	var stays string
	eventually(s.t, 2*time.Minute, func() string {
		out := s.call(fromPod, url, 40)
		seen := slices.Sorted(maps.Keys(answersOf(out)))
		if len(seen) != 1 {
			return fmt.Sprintf("a client with affinity reaches %v", seen)
		}
		stays = seen[0]
		return ""
	})
	var left []end
	for _, pod := range []string{"one", "two", "three"} {
		if pod != stays {
			left = append(left, end{pod: pod})
		}
	}
	s.write(s.slice(svc, left...))
	eventually(s.t, 2*time.Minute, func() string {
		out := s.call(fromPod, url, 20)
		if seen := answersOf(out); len(seen) != 1 || seen[stays] > 0 || strings.Contains(out, "error") {
			return out
		}
		return ""
	})
}

// sources: who may ask at a load balancer's address.
func (s *semantics) sources() {
	at := s.at("203.0.113.60", "2001:db8:113::60")
	allowed, others := s.at(lab.OutsideIP, lab.OutsideIP6), s.at("192.0.2.0/24", "2001:db8:ffff::/64")
	bits := "/32"
	if s.v6 {
		bits = "/128"
	}
	svc := s.service("sources", func(svc *corev1.Service) {
		svc.Spec.Type, svc.Spec.LoadBalancerSourceRanges = corev1.ServiceTypeLoadBalancer, []string{strings.Trim(allowed, "[]") + bits}
	})
	s.write(svc, s.slice(svc, end{pod: "one"}))
	s.balance(svc, at, corev1.LoadBalancerIPModeVIP)
	s.reach(fromOutside, "http://"+at, "one")
	s.reach(fromNode, "http://"+at, "one")
	s.unanswered(fromPod, "http://"+at)
	svc.Spec.LoadBalancerSourceRanges = []string{strings.Trim(others, "[]")}
	s.write(svc)
	s.unanswered(fromOutside, "http://"+at)
	s.reach(fromPod, "http://"+s.clusterIP(svc), "one")
	svc.Spec.LoadBalancerSourceRanges = nil
	s.write(svc)
	s.reach(fromOutside, "http://"+at, "one")
	s.reach(fromPod, "http://"+at, "one")
}

// labels: Services of other proxies are left alone, and Endpoints that a user writes count.
func (s *semantics) labels() {
	svc := s.service("labelled", func(*corev1.Service) {})
	endpoints := fmt.Sprintf("apiVersion: v1\nkind: Endpoints\nmetadata: {name: %s}\nsubsets:\n- addresses: [{ip: %q}]\n  ports: [{name: http, port: 8080}, {name: packets, port: 8080, protocol: UDP}]\n", svc.Name, s.pods["three"])
	s.write(svc)
	s.apply(endpoints)
	url := "http://" + s.clusterIP(svc)
	s.reach(fromPod, url, "three")
	for _, label := range []string{"service.kubernetes.io/service-proxy-name", "service.kubernetes.io/headless"} {
		s.kubectl("label", "service", svc.Name, label+"=mine")
		eventually(s.t, 4*time.Minute, func() string {
			if out := s.call(fromPod, url, 1); strings.Contains(out, "answers") {
				return out
			}
			return ""
		})
		s.kubectl("label", "service", svc.Name, label+"-")
		s.reach(fromPod, url, "three")
	}
}

// names: what has names alone; who is published though it is not ready; a port that endpoints have by numbers of their own.
func (s *semantics) names() {
	shy := s.service("shy", func(svc *corev1.Service) {
		svc.Spec.Selector, svc.Spec.PublishNotReadyAddresses = map[string]string{"app": "shy"}, true
	})
	s.write(shy)
	for _, from := range []string{fromPod, fromNode} {
		for _, scheme := range []string{"http://", "udp://"} {
			s.reach(from, scheme+s.clusterIP(shy)+":80", "shy")
		}
	}
	if ready := s.kubectl("get", "pod", "shy", "-o", `jsonpath={.status.conditions[?(@.type=="Ready")].status}`); ready != "False" {
		s.t.Errorf("Ready is %q of a pod whose probe fails", ready)
	}
	s.kubectl("patch", "service", shy.Name, "-p", `{"spec":{"publishNotReadyAddresses":false}}`)
	s.reach(fromPod, "http://"+s.clusterIP(shy))

	headless := s.service("bare", func(svc *corev1.Service) { svc.Spec.ClusterIP = corev1.ClusterIPNone })
	renamed, other := s.service("renamed", func(*corev1.Service) {}), s.service("other", func(*corev1.Service) {})
	s.write(headless, s.slice(headless, end{pod: "one"}, end{pod: "three"}), renamed, s.slice(renamed, end{pod: "one"}), other, s.slice(other, end{pod: "two"}))
	s.reach(fromPod, "http://"+renamed.Name, "one")
	former := netip.MustParseAddr(strings.Trim(s.clusterIP(renamed), "[]"))
	s.kubectl("patch", "service", renamed.Name, "-p", fmt.Sprintf(`{"spec":{"type":"ExternalName","externalName":"%s.default.svc.cluster.local"}}`, other.Name))
	each(s.t, []caller{callerIn(fromNode, podnet.Space("/run/netns/"+s.Net))}, []netip.AddrPort{netip.AddrPortFrom(former, 80)}, brief, fails)
	for _, scheme := range []string{"http://", "udp://"} {
		s.reach(fromPod, scheme+renamed.Name+":80", "two")
	}
	eventually(s.t, 2*time.Minute, func() string {
		out := s.call(fromPod, "http://"+headless.Name+":8080", 12)
		if seen := answersOf(out); strings.Contains(out, "error") || len(seen) == 0 || len(seen)-min(seen["one"], 1)-min(seen["three"], 1) > 0 {
			return "a headless Service leads to " + out
		}
		return ""
	})
	for name, says := range map[string]string{renamed.Name: "a name for " + other.Name, headless.Name: "headless"} {
		if out, err := s.Strake("service", "get", name); err != nil || !strings.Contains(out, says) {
			s.t.Errorf("service get %s: %v\n%s", name, err, out)
		}
	}

	ported := s.service("ported", func(svc *corev1.Service) { svc.Spec.Ports = svc.Spec.Ports[:1] })
	one, two := s.slice(ported, end{pod: "one"}), s.slice(ported, end{pod: "two"})
	two.Name, two.Ports[0].Port = ported.Name+"-other", new(int32(8081))
	s.write(ported, one, two)
	eventually(s.t, 2*time.Minute, func() string {
		out := s.call(fromPod, "http://"+s.clusterIP(ported)+"/hostname", 30)
		if strings.Contains(out, "error") || !strings.Contains(out, " one answers") || !strings.Contains(out, " two\n") {
			return "endpoints that listen at other ports: " + out
		}
		return ""
	})
}

// health: what load balancers ask nodes, of a Service and of themselves, and metrics.
func (s *semantics) health() {
	svc := s.service("health", func(svc *corev1.Service) {
		svc.Spec.Type, svc.Spec.ExternalTrafficPolicy = corev1.ServiceTypeLoadBalancer, corev1.ServiceExternalTrafficPolicyLocal
	})
	s.write(svc, s.slice(svc, end{pod: "one", node: nodeName}, end{pod: "two", node: "elsewhere"}))
	node := s.at(lab.NodeIP, lab.NodeIP6)
	url := fmt.Sprintf("http://%s:%s/", node, s.kubectl("get", "service", svc.Name, "-o", "jsonpath={.spec.healthCheckNodePort}"))
	says := func(want string) {
		s.t.Helper()
		eventually(s.t, 2*time.Minute, func() string {
			if out := s.call(fromOutside, url, 1); !strings.Contains(out, want) {
				return "the health of a Service: " + out
			}
			return ""
		})
	}
	says(`"localEndpoints": 1`)
	s.write(s.slice(svc, end{pod: "two", node: "elsewhere"}))
	says("HTTP 503")
	if out := s.call(fromOutside, "http://"+node+":10256/healthz", 1); !strings.Contains(out, `"nodeEligible": true`) {
		s.t.Errorf("/healthz of the node: %s", out)
	}
	if out := s.call(fromOutside, "http://"+node+":10249/metrics", 1); !strings.Contains(out, "refused") {
		s.t.Errorf("metrics from outside: %s", out)
	}
	metrics := s.must(s.Command(s.t.Context(), "busybox", "wget", "-qO-", "http://"+s.at("127.0.0.1", "::1")+":10249/metrics"))
	for _, name := range []string{"kubeproxy_network_programming_duration_seconds_count", "kubeproxy_sync_proxy_rules_duration_seconds_count", `kubeproxy_sync_proxy_rules_no_local_endpoints_total{traffic_policy="external"}`, `strake_drops_total{reason="no_backend"}`} {
		if !strings.Contains(metrics, "\n"+name) {
			s.t.Errorf("no metric %s", name)
		}
	}
}
