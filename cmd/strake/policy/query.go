package policy

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/strake-io/strake/netpol"
)

// query is a question as it is asked.
type query struct {
	From     string    `json:"from"`
	To       string    `json:"to"`
	Port     queryPort `json:"port,omitzero"`
	Protocol string    `json:"protocol"`
	fault    error     // of its form
}

// queryPort is a number, or the name of a port.
type queryPort struct {
	text string
	json json.RawMessage // as it was asked
}

func (p queryPort) IsZero() bool { return p.text == "" && p.json == nil }

func (p queryPort) MarshalJSON() ([]byte, error) {
	switch {
	case p.json != nil:
		return p.json, nil
	case p.text != "" && strings.Trim(p.text, "0123456789") == "":
		return []byte(p.text), nil
	}
	return json.Marshal(p.text)
}

func (p *queryPort) UnmarshalJSON(text []byte) error {
	p.json = slices.Clone(text)
	if len(text) > 0 && text[0] == '"' {
		return json.Unmarshal(text, &p.text)
	}
	if string(text) == "null" {
		p.json = nil
		return nil
	}
	var n json.Number
	if err := json.Unmarshal(text, &n); err != nil {
		return errors.New("port is neither a number nor a name")
	}
	p.text = n.String()
	return nil
}

// readQuery reads one of a batch. Its fault is told where it is answered.
func readQuery(text []byte) query {
	var q query
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	err := d.Decode(&q)
	q.Protocol = cmp.Or(q.Protocol, "TCP")
	if err != nil {
		q.fault = fmt.Errorf(`no query, which is {"from":"ns/pod","to":"ns/pod","port":80,"protocol":"TCP"}: %w`, err)
	}
	return q
}

// singleQuery reads one of the command line, where port and protocol are one word.
func singleQuery(from, to, port string) (query, error) {
	q := query{From: from, To: to, Protocol: "TCP"}
	first, second, both := strings.Cut(port, "/")
	switch {
	case both:
		q.Port.text, q.Protocol = first, strings.ToUpper(second)
		if q.Protocol == "" || strings.Contains(second, "/") {
			return q, fmt.Errorf("--port %s: it is NUMBER/PROTOCOL, such as 53/UDP", port)
		}
	case slices.Contains([]string{"ICMP", "ICMPV6"}, strings.ToUpper(port)):
		q.Protocol = strings.ToUpper(port)
	default:
		q.Port.text = port
	}
	return q, nil
}

// resolver finds what queries name.
type resolver struct {
	pods      map[string]*corev1.Pod   // by namespace/name
	workloads map[string][]*corev1.Pod // by namespace/name of who made them
	byAddr    map[netip.Addr]*corev1.Pod
	dns       []netip.Addr
	services  map[string]string // name -> name, and address -> name
	hints     map[string]string // of names that are not there
}

func newResolver(s netpol.State) *resolver {
	r := &resolver{pods: map[string]*corev1.Pod{}, workloads: map[string][]*corev1.Pod{}, byAddr: map[netip.Addr]*corev1.Pod{}, dns: s.DNSAddrs, services: map[string]string{}, hints: map[string]string{}}
	for _, p := range s.Pods {
		r.pods[p.Namespace+"/"+p.Name] = p
		if p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed {
			continue
		}
		for _, name := range makers(p) {
			r.workloads[p.Namespace+"/"+name] = append(r.workloads[p.Namespace+"/"+name], p)
		}
		if p.Spec.HostNetwork {
			continue
		}
		for _, ip := range p.Status.PodIPs {
			if a, err := netip.ParseAddr(ip.IP); err == nil {
				r.byAddr[a.Unmap()] = p
			}
		}
	}
	for _, svc := range s.Services {
		name := svc.Namespace + "/" + svc.Name
		r.services[name] = name
		for _, text := range append([]string{svc.Spec.ClusterIP}, svc.Spec.ClusterIPs...) {
			if a, err := netip.ParseAddr(text); err == nil && !slices.Contains(r.dns, a) {
				r.services[text] = name
			}
		}
	}
	return r
}

// makers are the names of the workload that a pod is of: its controller's, and of a ReplicaSet that a Deployment made, the Deployment's.
func makers(p *corev1.Pod) []string {
	c := metav1.GetControllerOfNoCopy(p)
	if c == nil {
		return nil
	}
	out := []string{c.Name}
	if hash := p.Labels["pod-template-hash"]; c.Kind == "ReplicaSet" && hash != "" && strings.HasSuffix(c.Name, "-"+hash) {
		out = append(out, strings.TrimSuffix(c.Name, "-"+hash))
	}
	return out
}

// flow is what a query asks about.
func (r *resolver) flow(q query) (netpol.Flow, error) {
	var f netpol.Flow
	err := q.fault
	if err != nil {
		return f, err
	}
	if f.From, err = r.end("from", q.From); err != nil {
		return f, err
	}
	if f.To, err = r.end("to", q.To); err != nil {
		return f, err
	}
	r.apart(&f, q)
	if f.Protocol, err = protocol(q.Protocol); err != nil {
		return f, err
	}
	f.Port, err = r.port(f, q.Port.text)
	return f, err
}

// apart has a workload that asks itself ask another of its pods, if it has one: to itself a pod may always talk, and that says nothing of the others.
func (r *resolver) apart(f *netpol.Flow, q query) {
	if f.From.Pod != f.To.Pod || f.From.Addr.IsValid() || f.To.Addr.IsValid() {
		return
	}
	for _, end := range []struct {
		text string
		to   *netpol.End
	}{{q.To, &f.To}, {q.From, &f.From}} {
		name := inNamespace(end.text)
		if r.pods[name] != nil { // that pod is meant
			continue
		}
		for _, p := range r.workloads[name] {
			if other := (types.NamespacedName{Namespace: p.Namespace, Name: p.Name}); other != end.to.Pod {
				end.to.Pod = other
				return
			}
		}
	}
}

// inNamespace is the name of a pod or workload with its namespace.
func inNamespace(name string) string {
	if strings.Contains(name, "/") {
		return name
	}
	return metav1.NamespaceDefault + "/" + name
}

func (r *resolver) end(what, text string) (netpol.End, error) {
	if text == "" {
		return netpol.End{}, fmt.Errorf("%s is missing: NAMESPACE/POD or an address", what)
	}
	if a, err := netip.ParseAddr(text); err == nil {
		return netpol.End{Addr: a.Unmap()}, nil
	}
	name := inNamespace(text)
	p := r.pods[name]
	if made := r.workloads[name]; p == nil && len(made) > 0 {
		p = made[0]
	}
	if p == nil {
		return netpol.End{}, fmt.Errorf("%s: no pod %s%s", what, name, r.hint(name))
	}
	return netpol.End{Pod: types.NamespacedName{Namespace: p.Namespace, Name: p.Name}}, nil
}

// hint proposes the name that is most like one that is not there.
func (r *resolver) hint(name string) string {
	if h, ok := r.hints[name]; ok {
		return h
	}
	if _, is := r.services[name]; is {
		return ", but a Service: policies judge what comes to the pods behind it, ask about one of them"
	}
	best, nearest := "", 0
	try := func(other string) {
		d := distance(name, other)
		if space, short, _ := strings.Cut(other, "/"); strings.HasSuffix(name, "/"+short) && space != "" {
			d = min(d, 2) // the same name elsewhere
		}
		if d <= 1+len(name)/4 && (best == "" || d < nearest || d == nearest && other < best) {
			best, nearest = other, d
		}
	}
	for other := range r.pods {
		try(other)
	}
	for other := range r.workloads {
		try(other)
	}
	if best != "" {
		best = "; did you mean " + best + "?"
	}
	r.hints[name] = best
	return best
}

// distance counts the letters that are to be changed, added, left out, or swapped with their neighbour.
func distance(a, b string) int {
	var before, last []int
	now := make([]int, len(b)+1)
	for j := range now {
		now[j] = j
	}
	for i := 1; i <= len(a); i++ {
		before, last, now = last, now, make([]int, len(b)+1)
		now[0] = i
		for j := 1; j <= len(b); j++ {
			differ := 1
			if a[i-1] == b[j-1] {
				differ = 0
			}
			now[j] = min(last[j]+1, now[j-1]+1, last[j-1]+differ)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				now[j] = min(now[j], before[j-2]+1)
			}
		}
	}
	return now[len(b)]
}

func protocol(text string) (uint8, error) {
	switch upper := strings.ToUpper(text); upper {
	case "ICMP":
		return netpol.ICMP, nil
	case "ICMPV6":
		return netpol.ICMPv6, nil
	default:
		if n, err := strconv.ParseUint(text, 10, 8); err == nil {
			return uint8(n), nil
		}
		p, err := netpol.ProtocolNumber(corev1.Protocol(upper))
		if err != nil {
			return 0, fmt.Errorf("protocol %q: TCP, UDP, SCTP, ICMP, ICMPv6 and numbers to 255 are known", text)
		}
		return p, nil
	}
}

func (r *resolver) port(f netpol.Flow, text string) (uint16, error) {
	if f.Protocol != netpol.TCP && f.Protocol != netpol.UDP && f.Protocol != netpol.SCTP {
		if text != "" && text != "0" {
			return 0, fmt.Errorf("port %s: the protocol %d has no ports", text, f.Protocol)
		}
		return 0, nil
	}
	if text == "" {
		return 0, errors.New("port is missing")
	}
	if n, err := strconv.ParseInt(text, 10, 64); err == nil || strings.Trim(text, "-+.eE0123456789") == "" {
		if err != nil || n < 1 || n > 65535 {
			return 0, fmt.Errorf("port %s: it must be between 1 and 65535", text)
		}
		return uint16(n), nil
	}
	return r.namedPort(f, text)
}

// namedPort looks a name up where the flow goes.
func (r *resolver) namedPort(f netpol.Flow, name string) (uint16, error) {
	p := r.pods[f.To.Pod.String()]
	if f.To.Addr.IsValid() {
		p = r.byAddr[f.To.Addr]
		if p == nil && slices.Contains(r.dns, f.To.Addr) {
			p = dnsPod
		}
		if p == nil {
			return 0, fmt.Errorf("port %s: %s is no pod's address, and has no named ports", name, f.To.Addr)
		}
	}
	var found []uint16
	var known []string
	for _, c := range allContainers(p) {
		for _, port := range c.Ports {
			proto, err := netpol.ProtocolNumber(port.Protocol)
			if err != nil || port.Name == "" {
				continue
			}
			known = append(known, fmt.Sprintf("%s (%d/%s)", port.Name, port.ContainerPort, protocolName(proto)))
			if port.Name == name && proto == f.Protocol && !slices.Contains(found, uint16(port.ContainerPort)) {
				found = append(found, uint16(port.ContainerPort))
			}
		}
	}
	switch {
	case len(found) == 1:
		return found[0], nil
	case len(found) > 1:
		return 0, fmt.Errorf("port %s: pod %s/%s has several of that name: %v; say which", name, p.Namespace, p.Name, found)
	case len(known) == 0:
		return 0, fmt.Errorf("port %s: pod %s/%s has no named ports", name, p.Namespace, p.Name)
	}
	return 0, fmt.Errorf("port %s: pod %s/%s has no %s port of that name; it has %s", name, p.Namespace, p.Name, protocolName(f.Protocol), strings.Join(known, ", "))
}

func allContainers(p *corev1.Pod) []corev1.Container {
	var out []corev1.Container
	for _, c := range p.Spec.InitContainers {
		if c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			out = append(out, c)
		}
	}
	return append(out, p.Spec.Containers...)
}

func protocolName(p uint8) string {
	return map[uint8]string{netpol.TCP: "TCP", netpol.UDP: "UDP", netpol.SCTP: "SCTP"}[p]
}

// dnsPod has the ports of the cluster's DNS where nodes answer it.
var dnsPod = &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceSystem, Name: "kube-dns"}, Spec: corev1.PodSpec{Containers: []corev1.Container{
	{Ports: []corev1.ContainerPort{{Name: "dns", ContainerPort: 53, Protocol: corev1.ProtocolUDP}, {Name: "dns-tcp", ContainerPort: 53, Protocol: corev1.ProtocolTCP}}}}}}
