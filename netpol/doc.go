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
package netpol
