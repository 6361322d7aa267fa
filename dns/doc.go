// Package dns is cluster DNS: rows of names that the kernel answers by itself,
// and a resolver in user space for all the rest.
//
//	informers -> Desired (pure) -> Table.Replace(Service UID, names)
//	query the kernel did not answer -> Server -> cluster records, or upstream
//
// The contract is the Kubernetes DNS-based service discovery specification 1.1.0.
package dns
