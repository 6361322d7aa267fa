// Package kubelet runs the pods of one node.
//
// podworker holds the loop of a pod and talks to the container runtime (CRI);
// around it stand small packages for what a pod needs: volumes, cgroups,
// env, podnet (names), objects (the ConfigMaps and Secrets that pods name),
// prober and status. changes hears of containers that end. For the node there
// are node (what the machine is and how it does), eviction (what it is short
// of), images and logrotate (what can be freed), stats (what is used) and
// server, which speaks to those who ask. This package wires them: Config in, Run
// until the context ends.
package kubelet
