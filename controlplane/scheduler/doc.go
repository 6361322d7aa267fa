// Package scheduler binds pods to nodes.
//
// Plugins are those of the published scheduling framework
// (k8s.io/kube-scheduler/framework): filters say where a pod can run, scores
// where it runs best. The loop takes the pod of the highest priority from the
// queue, asks the plugins about a cache of nodes that counts its own decisions
// at once, and binds without waiting for the API server's answer.
package scheduler
