package compiler

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/strake-io/strake/netpol"
)

// kind is all pods of a namespace with the same labels and named ports.
type kind struct {
	key       kindKey
	namespace *namespace
	labels    labelSet
	ports     []namedPort
	pods      []*pod
	local     int // how many are subjects
	// atoms are those that its selectors and names of ports give it, by number.
	atoms []*atom
	was   []*atom // while the rule sets change that ask it by other labels of its namespace: what it was to those that go; nil: the same
	// identities are those that it has by what covers its pods' addresses: one, or a few. Forgotten when atoms changes.
	identities []covered
	selected   []*policy // those that judge it, if it has subjects: in their order
	sets       subjectSets
}

// covered is an identity that a kind's addresses have where these are covered so.
type covered struct {
	by       *cover
	identity *identity
}

type kindKey struct{ namespace, content string }

type namedPort struct {
	name     string
	protocol uint8
	number   uint16
}

// pod is what is kept of a Pod.
type pod struct {
	uid             types.UID
	namespace, name string
	kind            *kind // nil if it is nobody's peer: ended, or with the node's network
	at              int   // its index in kind.pods
	addrs           []netip.Addr
	created         int64
	local           bool
	keep            keep
}

// newer tells which of two pods has an address that both claim.
func (p *pod) newer(q *pod) bool {
	if p.created != q.created {
		return p.created > q.created
	}
	if order := cmp.Or(strings.Compare(p.namespace, q.namespace), strings.Compare(p.name, q.name)); order != 0 {
		return order < 0
	}
	return p.uid < q.uid
}

// keep is what FlowsAnnotation says.
type keep uint8

const (
	keepUnsaid keep = iota
	keepYes
	keepNo
)

func keepOf(annotations map[string]string) keep {
	switch annotations[netpol.FlowsAnnotation] {
	case netpol.FlowsKeep:
		return keepYes
	case netpol.FlowsJudge:
		return keepNo
	}
	return keepUnsaid
}

// kindContent is what pods of a kind have in common beside their namespace.
func kindContent(set map[string]string, ports []namedPort) string {
	keys := make([]string, 0, len(set))
	for k := range set {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	var b strings.Builder
	for _, k := range keys {
		b.WriteString(k)
		b.WriteByte('=')
		b.WriteString(set[k])
		b.WriteByte(0)
	}
	for _, p := range ports {
		b.WriteByte(1)
		b.WriteString(p.name)
		b.Write([]byte{0, p.protocol, byte(p.number >> 8), byte(p.number)})
	}
	return b.String()
}

// namedPorts are those that rules may name: of all containers, and of init containers that stay.
func namedPorts(o *corev1.Pod) []namedPort {
	var out []namedPort
	add := func(c *corev1.Container) {
		for _, p := range c.Ports {
			protocol, err := netpol.ProtocolNumber(p.Protocol)
			if err == nil && p.Name != "" && 0 < p.ContainerPort && p.ContainerPort <= 65535 {
				out = append(out, namedPort{word(p.Name), protocol, uint16(p.ContainerPort)})
			}
		}
	}
	for i := range o.Spec.Containers {
		add(&o.Spec.Containers[i])
	}
	for i := range o.Spec.InitContainers {
		if c := &o.Spec.InitContainers[i]; c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			add(c)
		}
	}
	slices.SortFunc(out, comparePorts)
	return slices.Compact(out)
}

func comparePorts(a, b namedPort) int {
	return cmp.Or(strings.Compare(a.name, b.name), cmp.Compare(a.protocol, b.protocol), cmp.Compare(a.number, b.number))
}

// SetPod takes a Pod that is new or has changed.
func (c *Compiler) SetPod(o *corev1.Pod) {
	addrs := addrsOf(o)
	p := &pod{
		uid: podUID(o), namespace: word(o.Namespace), name: o.Name, addrs: addrs,
		created: o.CreationTimestamp.Unix(), keep: keepOf(o.Annotations),
		local: c.options.NodeName == "" || o.Spec.NodeName == c.options.NodeName,
	}
	if !hasAddrs(o) {
		c.setPod(p, nil)
		return
	}
	ports := namedPorts(o)
	k := c.kind(p.namespace, kindContent(o.Labels, ports))
	if k.labels == nil {
		k.labels, k.ports = words(o.Labels), ports
	}
	c.setPod(p, k)
	if len(addrs) == 0 && c.options.NodeName == "" && c.pods[p.uid] == p {
		c.homeless[p] = struct{}{}
	}
}

// podUID is the UID of a pod. Offline a manifest may have none; then its name is.
func podUID(o *corev1.Pod) types.UID {
	if o.UID == "" {
		return types.UID(o.Namespace + "/" + o.Name)
	}
	return o.UID
}

// DeletePod takes the end of a Pod, by its UID.
func (c *Compiler) DeletePod(uid types.UID) {
	if p := c.pods[uid]; p != nil {
		c.setPod(&pod{uid: uid}, nil)
		delete(c.pods, uid)
	}
}

// kind finds or makes a kind; a new one has no labels yet.
func (c *Compiler) kind(ns, content string) *kind {
	key := kindKey{ns, content}
	k := c.kinds[key]
	if k == nil {
		k = &kind{key: key, namespace: c.namespace(ns)}
		k.namespace.kinds[k] = struct{}{}
		c.kinds[key] = k
		c.dirtyKinds[k] = struct{}{}
	}
	return k
}

// setPod makes p what its UID stands for, and one of its kind: nil if it is nobody's peer.
func (c *Compiler) setPod(p *pod, k *kind) {
	old := c.pods[p.uid]
	if old != nil && old.kind == k && old.local == p.local && old.keep == p.keep && old.created == p.created && slices.Equal(old.addrs, p.addrs) {
		return
	}
	if k != nil {
		p.kind, p.at = k, len(k.pods)
		k.pods = append(k.pods, p)
		if p.local {
			if k.local++; k.local == 1 {
				c.dirtyKinds[k] = struct{}{}
			}
		}
		for _, addr := range p.addrs {
			c.claim(p, addr)
		}
	}
	if old != nil && old.kind != nil {
		for _, addr := range old.addrs {
			c.unclaim(old, addr)
		}
		if old.local {
			if old.kind.local--; old.kind.local == 0 {
				c.dirtyKinds[old.kind] = struct{}{}
			}
		}
		last := old.kind.pods[len(old.kind.pods)-1]
		old.kind.pods[old.at], last.at = last, old.at
		old.kind.pods[len(old.kind.pods)-1] = nil
		old.kind.pods = old.kind.pods[:len(old.kind.pods)-1]
		if len(old.kind.pods) == 0 {
			c.dirtyKinds[old.kind] = struct{}{}
		}
	}
	c.pods[p.uid] = p
}
