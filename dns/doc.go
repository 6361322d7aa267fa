// Package dns is cluster DNS: rows of names that the kernel answers by itself,
// and a resolver in user space for all the rest.
//
//	mirror -> Desired (pure) -> Table.Replace(Service UID, names)
//	query the kernel did not answer -> Server -> Records (what the mirror holds), or Forwarder (upstream, cache)
//
// The contract is the Kubernetes DNS-based service discovery specification 1.1.0. Its one idea: what the kernel answers
// is what Records would answer, so that it makes no difference to a client who did (a test compares the two). Nothing
// is listed for a query, and nothing is asked of the API server: answers go on while that is away. Before the cluster was
// seen once, nothing in it is denied: the answer is SERVFAIL.
package dns
