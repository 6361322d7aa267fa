// Package observed judges flows that were recorded: by other policies than those of then (Replay), and by the fewest that would have admitted them
// (Recommend).
package observed

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/strake-io/strake/netpol"
	"github.com/strake-io/strake/netpol/flows"
)

// Record is what was observed.
type Record struct {
	Flows []Observed // each class once
	// Window is the time from the first to the last line.
	From, To time.Time
	Nodes    []string
	// Unknown are the packets amid connections that nobody knows: it is not told who began those.
	Unknown uint64
	// Networks are the flows from outside of which only the network of who asked is known: no sample of them is there.
	Networks uint64
	// Losses are those of the window. Of what is Full nothing is known.
	Losses flows.Loss
}

// Observed are flows that are alike, seen by one node.
type Observed struct {
	flows.Flow
	Count uint64 // flows that began; of those that were dropped: packets
}

// Read reads the records in some folders. Counts tell of all flows; where they tell who asks from outside by his network, the samples tell his address:
// what was counted beyond them is the network's.
func Read(dirs []string, since time.Time) (*Record, error) {
	r := &Record{}
	at := map[string]*Observed{}
	nodes := map[string]bool{}
	add := func(f flows.Flow, n uint64) {
		key := f.Key()
		o := at[key]
		if o == nil {
			o = &Observed{Flow: f}
			at[key] = o
		}
		o.Count += n
	}
	line := func(l flows.Line, first time.Time) {
		nodes[l.Node] = true
		if r.From.IsZero() || first.Before(r.From) {
			r.From = first
		}
		if l.Time.After(r.To) {
			r.To = l.Time
		}
	}
	networks := map[string]flows.Line{}
	counts := map[string]uint64{}
	err := flows.Read(dirs, flows.Options{Since: since, Counts: true}, func(l flows.Line) error {
		if l.Count == nil { // a line that is none of this sort's
			return nil
		}
		line(l, l.Count.Since)
		n := l.Count.Flows + l.Count.Again
		if l.Verdict == flows.Dropped {
			n = l.Count.Packets
		}
		_, err := netip.ParsePrefix(l.Flow.From.Addr)
		switch {
		case l.Port == 0 && hasPorts(l.Protocol):
			r.Unknown += n
		case err == nil:
			networks[l.Flow.Key()] = l
			counts[l.Flow.Key()] += n
		default:
			add(*l.Flow, n)
		}
		return nil
	})
	sampled := map[string]uint64{}
	err = errors.Join(err, flows.Read(dirs, flows.Options{Since: since}, func(l flows.Line) error {
		line(l, l.Time)
		if l.Loss != nil {
			r.Losses.Add(*l.Loss)
		}
		if l.Flow == nil || l.Port == 0 && hasPorts(l.Protocol) {
			return nil
		}
		network := *l.Flow
		if a, err := netip.ParseAddr(l.From.Addr); err == nil {
			network.From = flows.End{Addr: outside(a)}
		}
		if _, ok := networks[network.Key()]; ok {
			sampled[network.Key()]++
			add(*l.Flow, 1)
		}
		return nil
	}))
	for key, l := range networks {
		if n := counts[key]; n > sampled[key] {
			add(*l.Flow, n-sampled[key])
			r.Networks += n - sampled[key]
		}
	}
	r.Nodes = slices.Sorted(maps.Keys(nodes))
	for _, key := range slices.Sorted(maps.Keys(at)) {
		r.Flows = append(r.Flows, *at[key])
	}
	return r, err
}

// outside is the network of who asks from outside, as counts have it.
func outside(a netip.Addr) string {
	bits := 64
	if a.Is4() {
		bits = 24
	}
	return netip.PrefixFrom(a, bits).Masked().String()
}

func hasPorts(protocol string) bool {
	return slices.Contains([]string{"TCP", "UDP", "SCTP"}, protocol)
}

func protocolNumber(name string) (uint8, error) {
	switch name {
	case "ICMP":
		return netpol.ICMP, nil
	case "ICMPv6":
		return netpol.ICMPv6, nil
	}
	if n, err := strconv.ParseUint(name, 10, 8); err == nil {
		return uint8(n), nil
	}
	return netpol.ProtocolNumber(corev1.Protocol(name))
}

// Labels that controllers put on pods, which the template of a workload does not have.
var ofControllers = []string{
	"pod-template-hash", "controller-revision-hash", "pod-template-generation", "statefulset.kubernetes.io/pod-name", "apps.kubernetes.io/pod-index", "controller-uid", "job-name",
	"batch.kubernetes.io/controller-uid", "batch.kubernetes.io/job-name", "batch.kubernetes.io/job-completion-index",
}

// templateLabels are those of a pod's template.
func templateLabels(labels map[string]string) map[string]string {
	out := map[string]string{}
	for k, v := range labels {
		if !slices.Contains(ofControllers, k) {
			out[k] = v
		}
	}
	return out
}

// Workload is all pods of a namespace with the same labels of their template.
type Workload struct {
	Namespace string            `json:"namespace"`
	Labels    map[string]string `json:"labels,omitempty"`
}

func (w Workload) key() string { return w.Namespace + "|" + labelText(w.Labels) }

// String is the namespace with the labels.
func (w Workload) String() string {
	if len(w.Labels) == 0 {
		return w.Namespace + "/(pods without labels)"
	}
	return w.Namespace + "/" + labelText(w.Labels)
}

func labelText(labels map[string]string) string {
	var parts []string
	for _, k := range slices.SortedFunc(maps.Keys(labels), byRank) {
		parts = append(parts, k+"="+labels[k])
	}
	return strings.Join(parts, ",")
}

// byRank has labels first by which people know workloads.
func byRank(a, b string) int {
	known := []string{"app.kubernetes.io/name", "app", "k8s-app", "app.kubernetes.io/component", "component", "name", "app.kubernetes.io/instance"}
	rank := func(k string) int {
		if i := slices.Index(known, k); i >= 0 {
			return i
		}
		return len(known)
	}
	return cmp.Or(cmp.Compare(rank(a), rank(b)), strings.Compare(a, b))
}

func workloadOf(e flows.End) Workload { return Workload{e.Namespace, templateLabels(e.Labels)} }

// who is how groups call an end: its workload, its node or its address.
func who(e flows.End) string {
	if e.Pod != "" {
		return workloadOf(e).String()
	}
	return e.Name()
}

// isDNS tells whether an end is the cluster's DNS as nodes answer it.
func isDNS(e flows.End) bool {
	return e.Namespace == metav1.NamespaceSystem && e.Pod == "kube-dns"
}

// withPods is a State in which all ends of the record are pods that it had: those that are gone by now are there with what the record has of them, and
// ports with names as pods of the same template have them.
type withPods struct {
	netpol.State
	ends map[string]netpol.End // by what endKey tells of an end
}

func endKey(e flows.End) string {
	return e.Namespace + "/" + e.Pod + "|" + e.Addr + "|" + labelText(e.Labels)
}

func populate(s netpol.State, r *Record) (withPods, error) {
	out := withPods{s, map[string]netpol.End{}}
	out.Pods, out.DNSAddrs = slices.Clone(s.Pods), slices.Clone(s.DNSAddrs)
	names := map[string]*corev1.Pod{}
	alike := map[string]*corev1.Pod{}
	for _, p := range s.Pods {
		names[p.Namespace+"/"+p.Name] = p
		alike[Workload{p.Namespace, templateLabels(p.Labels)}.key()] = p
	}
	grown := map[string]*corev1.Pod{} // by name and labels
	for i := range r.Flows {
		for _, e := range []flows.End{r.Flows[i].From, r.Flows[i].To} {
			key := endKey(e)
			if _, known := out.ends[key]; known {
				continue
			}
			addr, err := e.Address()
			if err != nil {
				return out, err
			}
			switch {
			case isDNS(e) && names[e.Namespace+"/"+e.Pod] == nil:
				if !slices.Contains(out.DNSAddrs, addr) {
					out.DNSAddrs = append(out.DNSAddrs, addr)
				}
				fallthrough
			case e.Pod == "":
				out.ends[key] = netpol.End{Addr: addr}
				continue
			}
			name := e.Namespace + "/" + e.Pod + "|" + labelText(e.Labels)
			p := grown[name]
			if p == nil {
				p = &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: e.Namespace, Name: fmt.Sprintf("%s~%d", e.Pod, len(grown)), Labels: e.Labels}}
				if was := alike[workloadOf(e).key()]; was != nil {
					p.Spec.Containers, p.Spec.InitContainers = was.Spec.Containers, was.Spec.InitContainers
				}
				grown[name] = p
				out.Pods = append(out.Pods, p)
			}
			p.Status.PodIPs = append(p.Status.PodIPs, corev1.PodIP{IP: addr.String()})
			out.ends[key] = netpol.End{Pod: nameOf(p), Addr: addr}
		}
	}
	return out, nil
}
