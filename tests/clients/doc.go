// Package clients uses a cluster by the libraries that others build on, an operator made with controller-runtime and charts installed with Helm, and
// by what people install first, metrics-server, cert-manager, Argo CD and Prometheus; and Kubernetes' own tests of conformance are run. It is a module of its
// own, so that what these need stays out of Strake's.
package clients
