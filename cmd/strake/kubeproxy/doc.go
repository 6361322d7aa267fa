// Package kubeproxy runs the Services' dataplane alone, in kube-proxy's place: beside any kubelet and CNI plugin, with any API server.
// Pods' processes meet it at their sockets, packets from outside at the node's devices. It has no part in pods' interfaces, in routes or in names.
package kubeproxy
