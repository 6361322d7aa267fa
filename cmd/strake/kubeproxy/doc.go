// Package kubeproxy runs the Services' dataplane alone, in kube-proxy's place: beside any kubelet and CNI plugin, with any API server.
// Pods' processes meet it at their sockets, packets from outside at the node's devices, and those of pods that no socket hook serves at their veths. It
// has no part in making pods' interfaces, or in routes.
package kubeproxy
