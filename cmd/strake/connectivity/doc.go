// Package connectivity tests every path of a cluster's network with pods of its own: between pods, nodes and Services, by name, to the
// outside, with packets of every size, in each family.
//
//	Run: deploy pods and Services → Plan (a pure function: every path with what is to be expected) → ask the pods → matrix → clean up
//
// The pods run this binary: Serve answers to anybody, and only with what it was sent or how it is called; Answer, which is reached by exec
// alone, carries out probes.
package connectivity
