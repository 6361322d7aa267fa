// Package netpol is network policy: what NetworkPolicies (networking.k8s.io/v1) and ClusterNetworkPolicies
// (policy.networking.k8s.io/v1alpha2) say of a flow, and why.
//
// There are three witnesses for every answer, and a differential test holds them against each other:
//
//	reference  the evaluator: slow and obvious, from the doc comments of the two APIs
//	compiler   State -> rows of bpf's policy tables, and what those rows say, interpreted in Go
//	bpf        the programs in the kernel, which read the rows
//
// This package has what they share: the state that is judged, the flow that is asked about, and the verdict with its reasons.
// The other folders use them: manifests (a State from files), analysis (matrices, differences, findings), enforce (the
// agent's part: API -> compiler -> tables).
//
// # What is invalid closes
//
// The API refuses invalid policies. Of those that are there nevertheless (older objects, another version's), the witnesses read:
//
//   - NetworkPolicy, an item of from, to or ports that the API's validation refuses (a selector that is none, an ipBlock beside
//     selectors, a CIDR that netip does not parse or that is IPv4 in IPv6, an except that is not strictly within its cidr, a peer
//     with nothing in it, a port out of 1-65535, a name that is no port's name, endPort below port or without a number, a protocol that is
//     not TCP, UDP or SCTP): the item matches nothing. The other items of its list count, and a list with only such items matches nothing.
//   - NetworkPolicy, podSelector: the policy isolates every pod of its namespace and admits nothing.
//   - NetworkPolicy, policyTypes with a word that is neither Ingress nor Egress: it isolates in both directions; rules count in those that
//     it names properly.
//   - ClusterNetworkPolicy, a rule with from or to empty, with any peer or protocol that has not exactly one known field, with a selector,
//     CIDR or port that is invalid (a range wants start < end, a protocol's destinationPort must be there), with domainNames, or with
//     destinationNamedPort beside networks or nodes: an Accept rule matches nothing, every other rule denies all in
//     its direction (the API's words of failing closed).
//   - ClusterNetworkPolicy, a rule whose action is none of the three: denies all in its direction.
//   - ClusterNetworkPolicy, a tier that is neither Admin nor Baseline, or a subject that has not exactly one valid field: the policy counts as one of the
//     Admin tier if the tier is the fault; it has every pod for its subject if the subject is. Its Accept rules match nothing, and its Pass rules
//     deny what they match.
//
// Every namespace has the label kubernetes.io/metadata.name, whatever its object says, and without an object it has no other.
package netpol
