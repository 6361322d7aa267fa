// Package apiserver tests how an API server is run: the files that it follows while it runs, an etcd and a key service of somebody else's, its
// end under load. What it serves is tested where it is made, in controlplane/apiserver.
package apiserver
