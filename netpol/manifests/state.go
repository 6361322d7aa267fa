package manifests

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/strake-io/strake/netpol"
)

// state completes what the files say.
func (l *loader) state() netpol.State {
	l.grow()
	s := l.found
	haveNamespaces(&s)
	l.madeUp = map[*corev1.Pod]bool{}
	for _, p := range s.Pods {
		l.madeUp[p] = len(p.Status.PodIPs) == 0
	}
	switch full := haveAddresses(&s, l.podCIDRs); {
	case full && len(l.podCIDRs) > 0:
		l.problems = append(l.problems, Problem{File: "(policies)", Reason: fmt.Sprintf("of %s there are not enough addresses that no smaller block covers: pods that have none got some that are in those blocks, or not of that range", l.podCIDRs)})
	case full:
		l.problems = append(l.problems, Problem{File: "(policies)", Reason: "their blocks cover every address: pods that have none got some that are in those blocks"})
	}
	s.DNSAddrs = dnsAddrs(s)
	order(&s)
	return s
}

// Borrow completes a State that has policies and no pods with the cluster of another: its pods, nodes and Services, and its namespaces,
// where the State itself has none or says nothing of their labels. Pods whose addresses were made up get others, which
// the State's own policies do not cover.
func (l Loaded) Borrow(from Loaded) netpol.State {
	s := l.State
	s.Pods, s.Nodes, s.Services, s.DNSAddrs = nil, from.State.Nodes, from.State.Services, from.State.DNSAddrs
	for _, p := range from.State.Pods {
		if from.madeUp[p] {
			p = p.DeepCopy()
			p.Status.PodIP, p.Status.PodIPs = "", nil
		}
		s.Pods = append(s.Pods, p)
	}
	haveAddresses(&s, from.podCIDRs)
	s.Namespaces = Overlay(from.State.Namespaces, l.State.Namespaces, func(n *corev1.Namespace) bool { return len(n.Labels) > 1 })
	return s
}

// Overlay lays objects over others of the same namespace and name, as applying them would. Objects for which says is false count only
// where there is no other.
func Overlay[O metav1.Object](under, over []O, says func(O) bool) []O {
	at := map[[2]string]int{}
	out := slices.Clone(under)
	for i, o := range out {
		at[[2]string{o.GetNamespace(), o.GetName()}] = i
	}
	for _, o := range over {
		i, ok := at[[2]string{o.GetNamespace(), o.GetName()}]
		switch {
		case !ok:
			out = append(out, o)
		case says == nil || says(o):
			out[i] = o
		}
	}
	sortObjects(out)
	return out
}

// haveNamespaces adds the namespaces that objects name, and the label that each has.
func haveNamespaces(s *netpol.State) {
	have := map[string]bool{}
	for _, n := range s.Namespaces {
		have[n.Name] = true
		if n.Labels == nil {
			n.Labels = map[string]string{}
		}
		n.Labels[corev1.LabelMetadataName] = n.Name
	}
	need := func(name string) {
		if !have[name] {
			have[name] = true
			s.Namespaces = append(s.Namespaces, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{corev1.LabelMetadataName: name}}})
		}
	}
	for _, p := range s.Pods {
		need(p.Namespace)
	}
	for _, p := range s.NetworkPolicies {
		need(p.Namespace)
	}
	for _, p := range s.Services {
		need(p.Namespace)
	}
}

func order(s *netpol.State) {
	sortObjects(s.Namespaces)
	sortObjects(s.Pods)
	sortObjects(s.Nodes)
	sortObjects(s.Services)
	sortObjects(s.NetworkPolicies)
	sortObjects(s.ClusterNetworkPolicies)
}

func sortObjects[O metav1.Object](list []O) {
	slices.SortFunc(list, func(a, b O) int {
		return cmp.Or(cmp.Compare(a.GetNamespace(), b.GetNamespace()), cmp.Compare(a.GetName(), b.GetName()))
	})
}

// dnsAddrs are the addresses of the Service kube-system/kube-dns, where no pods stand behind it.
func dnsAddrs(s netpol.State) []netip.Addr {
	for _, p := range s.Pods {
		if p.Namespace == metav1.NamespaceSystem && p.Labels["k8s-app"] == "kube-dns" {
			return nil
		}
	}
	var out []netip.Addr
	for _, svc := range s.Services {
		if svc.Namespace != metav1.NamespaceSystem || svc.Name != "kube-dns" {
			continue
		}
		for _, v := range append([]string{svc.Spec.ClusterIP}, svc.Spec.ClusterIPs...) {
			if a, ok := address(v); ok && !slices.Contains(out, a) {
				out = append(out, a)
			}
		}
	}
	return out
}

func address(v string) (netip.Addr, bool) {
	a, err := netip.ParseAddr(v)
	return a.Unmap(), err == nil && a.Zone() == ""
}
