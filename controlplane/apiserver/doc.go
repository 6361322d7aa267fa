// Package apiserver is the Kubernetes API server: the published server
// libraries (k8s.io/apiserver, apiextensions, kube-aggregator) chained in one
// process and filled with the descriptors of package resources.
//
// A request goes through the aggregator (APIServices of others), then the
// built-in resources, then custom resources. Config says with which files,
// addresses and store; New assembles, Run serves until its context ends.
package apiserver
