// Package compiler makes rows of bpf's policy tables of the API's objects: of pods, namespaces, nodes and policies of both APIs. It is told of
// changes, object by object, and Flush gives the writes that bring the tables there. Its work for a change grows with the change.
//
// # Words
//
//   - A kind is all pods of a namespace with equal labels and equal named ports. Selectors are asked about kinds.
//   - Peers are the other ends that a rule names: its selectors and blocks together. Equal lists are one, whoever's rules they are in.
//   - The class of an address is the set of peers that cover it, and of the numbers that its pod has for names of ports, as far as
//     policies that select pods of this node ask. It is all that their verdicts depend on, so that it has a number in the rows: its identity.
//   - A rule set is what judges a pod in a direction: all policies of all tiers that select it, in their order. For each class it has one
//     list of ports with the verdicts of all tiers merged.
//
// # Order
//
// Rule sets never change: a pod that is judged otherwise gets another one. Addresses get finer identities first, of which the rule sets that are
// there say the same as before; then the pods get their new rule sets; then what nobody asks any more goes. So at no moment is a flow
// judged by a mixture of two states. See transition.go for changes that touch both ends of flows.
package compiler

import (
	"cmp"
	"net/netip"
	"slices"

	"k8s.io/apimachinery/pkg/types"

	"github.com/strake-io/strake/bpf"
	"github.com/strake-io/strake/netpol"
)

// Options are those of a Compiler.
type Options struct {
	// NodeName is the node whose pods are subjects. Empty: every pod is, and one without an address gets one: so States are compiled offline.
	NodeName string
	// KeepFlows: established flows go on when policies change.
	KeepFlows bool
	// MaxRules is how many answers, and how many rows of ports' lists, the tables hold; 0: as many as those of a node do without a
	// flag, or offline those of a bpf.PolicyMachine. A rule set for which there
	// is no room denies all, and is reported.
	MaxRules int
	// MaxPeers is how many blocks the tables hold, with a default as MaxRules. The policies of a namespace, and those of the cluster, name no more than half of
	// them, and all together three quarters: one that goes beyond denies all, and is reported.
	MaxPeers int
}

// Problem is what is wrong with a policy, or what does not fit. It closes, and opens nothing.
type Problem struct {
	Policy netpol.PolicyRef `json:"policy"`
	Field  string           `json:"field"` // spec.ingress[0].from[1].ipBlock.cidr; empty: the policy whole
	Reason string           `json:"reason"`
}

// Compiler keeps what policies are judged by, and what of it the tables hold. It is for one goroutine at a time.
type Compiler struct {
	options Options

	namespaces map[string]*namespace
	pods       map[types.UID]*pod
	kinds      map[kindKey]*kind
	localKinds map[*kind]struct{}
	nodes      map[string]*node
	addrs      map[netip.Addr]*address
	places     *places

	policies        map[policyKey]*policy
	clusterPolicies map[*policy]struct{}
	// How many blocks those name, and all policies, and who is closed because there are too many.
	clusterBlocks, allBlocks int
	crowded                  map[policyKey]*policy
	faulty                   map[*policy]struct{} // with problems
	atoms                    map[string]*atom     // peers, by what is in them
	portNames                map[string]*portName
	nodeAtoms                map[*atom]struct{} // active ones that select nodes
	selectors                *selectorIndex     // of active atoms

	stranger   *identity // of all that no atom covers: 0
	identities map[string]*identity
	sets       map[string]*ruleSet
	lists      map[string]*portList
	peers      map[netip.Prefix]uint32 // rows
	names      map[uint32]bpf.PolicyName

	generation uint32 // of rule sets: see transition.go

	lastPolicy, lastSide, lastAtom, lastIdentity, lastSet, lastList uint32
	mark                                                            uint64

	// What Flush has to look at.
	changedPolicies   map[policyKey]*policy // nil: it goes
	changedNamespaces map[string]*namespaceChange
	touchedPolicies   map[*policy]struct{}
	renamed           map[*policy]struct{}
	dirtyKinds        map[*kind]struct{}
	dirtySets         map[*kind]struct{}
	relabelled        map[*kind]struct{} // their namespace has other labels
	dirtyAddrs        map[*address]struct{}
	movedAddrs        map[*address]struct{} // those of them that are somebody else's now, or somebody's who has changed
	dirtyPlaces       map[netip.Prefix]*place
	freshAtoms        []*atom
	idleAtoms         []*atom
	freshNames        []*portName
	idleNames         []*portName
	finer             bool // some of these are or were fresh in this stage
	freshIdentities   []*identity
	idleIdentities    []*identity
	freshSets         []*ruleSet
	idleSets          []*ruleSet

	answerRows, portRows int
	closed               map[*ruleSet]struct{} // for want of room
	overfull             map[*ruleSet]struct{} // that could not answer in this stage
	wait, patience       int                   // how many times Flush lets pass before it tries them again, and how many are left
	retry                bool

	homeless  map[*pod]struct{} // offline: without an address of their own
	lastGiven [2]netip.Addr     // of those that they were given, by family
	before    *before           // what the tables held before this compiler; nil: nothing, or Flush took it up
}

// New makes a compiler that knows of nothing, for tables that are empty: see Continue.
func New(options Options) *Compiler {
	if options.MaxRules == 0 {
		options.MaxRules = bpf.DefaultMaxPolicyRules
		if options.NodeName == "" { // as many as bpf.PolicyMachine holds
			options.MaxRules = 1 << 20
		}
	}
	if options.MaxPeers == 0 {
		options.MaxPeers = bpf.DefaultMaxPolicyPeers
		if options.NodeName == "" {
			options.MaxPeers = 1 << 20
		}
	}
	return &Compiler{
		options:           options,
		namespaces:        map[string]*namespace{},
		pods:              map[types.UID]*pod{},
		kinds:             map[kindKey]*kind{},
		localKinds:        map[*kind]struct{}{},
		nodes:             map[string]*node{},
		addrs:             map[netip.Addr]*address{},
		places:            newPlaces(),
		policies:          map[policyKey]*policy{},
		clusterPolicies:   map[*policy]struct{}{},
		crowded:           map[policyKey]*policy{},
		faulty:            map[*policy]struct{}{},
		atoms:             map[string]*atom{},
		portNames:         map[string]*portName{},
		nodeAtoms:         map[*atom]struct{}{},
		selectors:         newSelectorIndex(),
		stranger:          &identity{},
		identities:        map[string]*identity{},
		sets:              map[string]*ruleSet{},
		lists:             map[string]*portList{},
		peers:             map[netip.Prefix]uint32{},
		names:             map[uint32]bpf.PolicyName{},
		changedPolicies:   map[policyKey]*policy{},
		changedNamespaces: map[string]*namespaceChange{},
		touchedPolicies:   map[*policy]struct{}{},
		renamed:           map[*policy]struct{}{},
		dirtyKinds:        map[*kind]struct{}{},
		dirtySets:         map[*kind]struct{}{},
		relabelled:        map[*kind]struct{}{},
		dirtyAddrs:        map[*address]struct{}{},
		movedAddrs:        map[*address]struct{}{},
		dirtyPlaces:       map[netip.Prefix]*place{},
		homeless:          map[*pod]struct{}{},
		closed:            map[*ruleSet]struct{}{},
		overfull:          map[*ruleSet]struct{}{},
		lastGiven:         [2]netip.Addr{netip.MustParseAddr("240.0.0.0"), netip.MustParseAddr("100::")}, // reserved; discard-only
	}
}

// SetState makes a State all that the compiler knows: what is not in it is deleted.
func (c *Compiler) SetState(s netpol.State) {
	namespaces, pods, nodes, policies := map[string]bool{}, map[types.UID]bool{dnsUID: true}, map[string]bool{}, map[policyKey]bool{}
	for _, o := range s.Namespaces {
		namespaces[o.Name] = true
		c.SetNamespace(o)
	}
	for _, o := range s.Nodes {
		nodes[o.Name] = true
		c.SetNode(o)
	}
	for _, o := range s.Pods {
		pods[podUID(o)] = true
		c.SetPod(o)
	}
	c.SetDNSAddrs(s.DNSAddrs)
	for _, o := range s.NetworkPolicies {
		policies[policyKey{o.Namespace, o.Name}] = true
		c.SetNetworkPolicy(o)
	}
	for _, o := range s.ClusterNetworkPolicies {
		policies[policyKey{"", o.Name}] = true
		c.SetClusterNetworkPolicy(o)
	}
	for uid := range c.pods {
		if !pods[uid] {
			c.DeletePod(uid)
		}
	}
	for name := range c.nodes {
		if !nodes[name] {
			c.DeleteNode(name)
		}
	}
	for key := range c.policies {
		if !policies[key] {
			c.changePolicy(key, netpol.PolicyRef{}, false, nil)
		}
	}
	for key := range c.changedPolicies {
		if !policies[key] {
			c.changePolicy(key, netpol.PolicyRef{}, false, nil)
		}
	}
	for name, n := range c.namespaces {
		if n.known && !namespaces[name] {
			c.DeleteNamespace(name)
		}
	}
	for name := range c.changedNamespaces {
		if !namespaces[name] {
			c.DeleteNamespace(name)
		}
	}
}

// Rows are what the tables hold after all changes that Flush gave, sorted.
func (c *Compiler) Rows() bpf.PolicyRows {
	var out bpf.PolicyRows
	for _, a := range c.addrs {
		if a.subject != nil {
			out.Subjects = append(out.Subjects, a.subject.of(a.addr))
		}
	}
	for prefix, number := range c.peers {
		out.Peers = append(out.Peers, bpf.PolicyPeer{Prefix: prefix, Identity: number})
	}
	for _, s := range c.sets {
		out.Answers = append(out.Answers, bpf.PolicyAnswer{RuleSet: s.number, Ports: s.base.number})
		for id, a := range s.answers {
			if a.list != s.base {
				out.Answers = append(out.Answers, bpf.PolicyAnswer{RuleSet: s.number, Identity: id.number, Ports: a.list.number})
			}
		}
	}
	for _, l := range c.lists {
		out.Ports = append(out.Ports, l.rows...)
	}
	for _, n := range c.names {
		out.Names = append(out.Names, n)
	}
	slices.SortFunc(out.Subjects, func(a, b bpf.PolicySubject) int { return a.Addr.Compare(b.Addr) })
	slices.SortFunc(out.Peers, func(a, b bpf.PolicyPeer) int { return comparePrefixes(a.Prefix, b.Prefix) })
	slices.SortFunc(out.Answers, compareAnswers)
	slices.SortFunc(out.Ports, func(a, b bpf.PolicyPort) int {
		return cmp.Or(cmp.Compare(a.Ports, b.Ports), cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.Port, b.Port), cmp.Compare(a.Bits, b.Bits))
	})
	slices.SortFunc(out.Names, func(a, b bpf.PolicyName) int { return cmp.Compare(a.Policy, b.Policy) })
	return out
}

func comparePrefixes(a, b netip.Prefix) int {
	return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
}

func compareAnswers(a, b bpf.PolicyAnswer) int {
	return cmp.Or(cmp.Compare(a.RuleSet, b.RuleSet), cmp.Compare(a.Identity, b.Identity))
}

// PodAddrs are the addresses of all pods: offline also those that pods without one were given.
func (c *Compiler) PodAddrs() map[types.NamespacedName][]netip.Addr {
	out := make(map[types.NamespacedName][]netip.Addr, len(c.pods))
	for _, p := range c.pods {
		out[types.NamespacedName{Namespace: p.namespace, Name: p.name}] = p.addrs
	}
	return out
}
