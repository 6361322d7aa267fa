// Package store runs the cluster's etcd inside this process.
//
// It is the real etcd server, with its own data folder and mutual TLS on
// loopback, so that etcdctl works on it with the files of the pki folder. The
// API server is one of its clients and knows nothing of this package: an
// external etcd takes its place without a change elsewhere.
package store
