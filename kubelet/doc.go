// Package kubelet runs the pods of one node.
//
// podworker holds the loop of a pod and talks to the container runtime (CRI);
// around it stand small packages for what a pod needs: volumes, cgroups,
// env, podnet (names), objects (the ConfigMaps and Secrets that pods name),
// prober and status. node speaks for the machine, server to those who ask.
// This package wires them: Config in, Run until the context ends.
package kubelet
