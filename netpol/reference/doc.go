// Package reference is the evaluator of network policy: what the two APIs say of a flow, written from the doc comments of their types. It is the
// witness that the compiler and the programs in the kernel are held to, so it shares nothing with them. It is slow and obvious: a function
// for each rule of the APIs, with the sentence that it comes from. What is asked again and again is read once in New: selectors, CIDRs,
// who is at which address, which policies guard a pod.
//
// The sentences cited are those of k8s.io/api/networking/v1 ("NP") and sigs.k8s.io/network-policy-api/apis/v1alpha2 ("CNP"). "Facts"
// are lines of the project's list of what implementations get wrong; each has a test of its name.
package reference
